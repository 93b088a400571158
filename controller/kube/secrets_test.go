package kube

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// TestCASecretOutwaitsTheAPIServer: one that is away at the start, or does not
// know our RBAC yet, is asked again.
func TestCASecretOutwaitsTheAPIServer(t *testing.T) {
	var asked atomic.Int32
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		switch asked.Add(1) {
		case 1:
			http.Error(w, "starting", http.StatusInternalServerError)
		case 2:
			http.Error(w, "no RBAC yet", http.StatusForbidden)
		default:
			w.Header().Set("Content-Type", "application/json")
			json.NewEncoder(w).Encode(corev1.Secret{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"},
				ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: PluggedInSecret}, Data: map[string][]byte{"k": []byte("v")}})
		}
	}))
	defer h.Close()
	client, err := kubernetes.NewForConfig(&rest.Config{Host: h.URL, ContentConfig: rest.ContentConfig{ContentType: "application/json"}})
	if err != nil {
		t.Fatal(err)
	}
	s := NewCASecret(SecretConfig{Client: client, Namespace: "ns", Retry: time.Millisecond,
		Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry()})
	name, data, err := s.Load(t.Context())
	if err != nil || name != "ns/"+PluggedInSecret || string(data["k"]) != "v" || asked.Load() != 3 {
		t.Errorf("%q, %v, %v after %d requests", name, data, err, asked.Load())
	}
}
