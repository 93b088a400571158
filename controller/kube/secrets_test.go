package kube

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
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

// TestCASecretMissing: no new root is made while another is in use; the
// restored Secret is taken up.
func TestCASecretMissing(t *testing.T) {
	var restored atomic.Bool
	var asked, created atomic.Int32
	said := make(chan string, 1)
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch {
		case r.Method != http.MethodGet:
			created.Add(1)
			http.Error(w, "no", http.StatusInternalServerError)
		case strings.HasSuffix(r.URL.Path, "/configmaps/"+RootConfigMap):
			asked.Add(1)
			json.NewEncoder(w).Encode(corev1.ConfigMap{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
				ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: RootConfigMap}, Data: map[string]string{RootKey: "a root"}})
		case strings.HasSuffix(r.URL.Path, "/secrets/"+SelfSignedSecret) && restored.Load():
			json.NewEncoder(w).Encode(corev1.Secret{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"},
				ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: SelfSignedSecret}, Data: map[string][]byte{"k": []byte("v")}})
		default:
			w.WriteHeader(http.StatusNotFound)
			json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"},
				Status: metav1.StatusFailure, Reason: metav1.StatusReasonNotFound, Code: http.StatusNotFound})
		}
	}))
	defer h.Close()
	client, err := kubernetes.NewForConfig(&rest.Config{Host: h.URL, QPS: -1, ContentConfig: rest.ContentConfig{ContentType: "application/json"}})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(lines(func(b []byte) {
		select {
		case said <- string(b):
			restored.Store(true) // as the operator does who reads it
		default:
		}
	}), nil))
	s := NewCASecret(SecretConfig{Client: client, Namespace: "ns", Retry: time.Millisecond, Logger: log, Registerer: prometheus.NewRegistry()})
	name, data, err := s.Load(t.Context())
	if err != nil || name != "ns/"+SelfSignedSecret || string(data["k"]) != "v" {
		t.Errorf("%q, %v, %v", name, data, err)
	}
	if asked.Load() == 0 || created.Load() != 0 {
		t.Errorf("root asked for %d times, %d objects created", asked.Load(), created.Load())
	}
	if line := <-said; !strings.Contains(line, "ns/"+SelfSignedSecret) || !strings.Contains(line, "ns/"+RootConfigMap) {
		t.Errorf("the objects are not named: %s", line)
	}
}

type lines func([]byte)

func (w lines) Write(b []byte) (int, error) { w(b); return len(b), nil }
