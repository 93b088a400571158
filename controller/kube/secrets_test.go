package kube

import (
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/ambitmesh/ambit/controller/ca"
	"github.com/ambitmesh/ambit/controller/ca/rotation"
)

// secretAPI is as much of an API server as finding the CA needs, over real
// HTTP.
type secretAPI struct {
	mu      sync.Mutex
	objects map[string]any // by the end of their path, guarded by mu
	failing []int          // codes of the next answers, guarded by mu
	asked   int            // guarded by mu
	created []string       // guarded by mu
}

func (a *secretAPI) set(path string, o any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.objects[path] = o
}

func (a *secretAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked++
	status := func(code int, reason metav1.StatusReason) {
		w.WriteHeader(code)
		json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"},
			Status: metav1.StatusFailure, Reason: reason, Code: int32(code)})
	}
	w.Header().Set("Content-Type", "application/json")
	if len(a.failing) > 0 {
		code := a.failing[0]
		a.failing = a.failing[1:]
		status(code, metav1.StatusReasonForbidden)
		return
	}
	path := strings.TrimPrefix(r.URL.Path, "/api/v1/namespaces/ns/")
	switch o := a.objects[path]; {
	case r.Method == http.MethodPost || r.Method == http.MethodPut:
		body, _ := io.ReadAll(r.Body)
		var s corev1.Secret
		if err := json.Unmarshal(body, &s); err != nil {
			status(http.StatusBadRequest, metav1.StatusReasonBadRequest)
			return
		}
		if _, there := a.objects["secrets/"+s.Name]; there && r.Method == http.MethodPost {
			status(http.StatusConflict, metav1.StatusReasonAlreadyExists)
			return
		}
		a.objects["secrets/"+s.Name] = s
		a.created = append(a.created, s.Name)
		w.Write(body)
	case o == nil:
		status(http.StatusNotFound, metav1.StatusReasonNotFound)
	default:
		json.NewEncoder(w).Encode(o)
	}
}

// newSecretAPI returns the server and what Load says in its log.
func newSecretAPI(t *testing.T, said func(string)) (*secretAPI, *CASecrets) {
	t.Helper()
	a := &secretAPI{objects: map[string]any{}}
	h := httptest.NewServer(a)
	t.Cleanup(h.Close)
	client, err := kubernetes.NewForConfig(&rest.Config{Host: h.URL, QPS: -1, ContentConfig: rest.ContentConfig{ContentType: "application/json"}})
	if err != nil {
		t.Fatal(err)
	}
	return a, NewCASecrets(SecretConfig{
		Client: client, Namespace: "ns", Retry: time.Millisecond, Logger: slog.New(slog.NewTextHandler(lines(func(b []byte) { said(string(b)) }), nil)),
		Generate: func() (map[string][]byte, error) {
			a, err := ca.NewSelfSigned("cluster.local", time.Hour)
			if err != nil {
				return nil, err
			}
			return a.SecretData(), nil
		},
	})
}

type lines func([]byte)

func (w lines) Write(b []byte) (int, error) { w(b); return len(b), nil }

func selfSigned(t *testing.T) *ca.Authority {
	t.Helper()
	a, err := ca.NewSelfSigned("cluster.local", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func secretOf(name string, data map[string][]byte) corev1.Secret {
	return corev1.Secret{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}, ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}, Data: data}
}

// TestCASecretsOutwaitTheAPIServer: one that is away at the start, or does not
// know our RBAC yet, is asked again.
func TestCASecretsOutwaitTheAPIServer(t *testing.T) {
	api, s := newSecretAPI(t, func(string) {})
	a := selfSigned(t)
	data, err := (&ca.Record{Source: PluggedInSecret, Signer: a, Longest: time.Hour}).SecretData()
	if err != nil {
		t.Fatal(err)
	}
	api.set("secrets/"+rotation.StateSecret, secretOf(rotation.StateSecret, data))
	api.failing = []int{http.StatusInternalServerError, http.StatusForbidden}
	r, err := s.Load(t.Context())
	if err != nil || r.Source != PluggedInSecret || r.Signer.Fingerprint() != a.Fingerprint() || api.asked != 3 {
		t.Errorf("%+v, %v after %d requests", r, err, api.asked)
	}
}

// TestCASecretsAtTheStart: what is in force comes first, then what is plugged
// in, then the self-signed one; what cannot be used is named, and mended it is
// taken up; no new root is made while another is in use.
//
//ambit:feature identity-secret-damaged identity-plugged-in
func TestCASecretsAtTheStart(t *testing.T) {
	inForce, plugged, own := selfSigned(t), selfSigned(t), selfSigned(t)
	state, err := (&ca.Record{Source: SelfSignedSecret, Signer: inForce, Longest: time.Hour}).SecretData()
	if err != nil {
		t.Fatal(err)
	}
	damaged := own.SecretData()
	damaged[ca.KeyCAKey] = []byte("not a key")
	root := corev1.ConfigMap{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: RootConfigMap}, Data: map[string]string{RootKey: "a root"}}
	for _, c := range []struct {
		name    string
		objects map[string]any
		mended  map[string]any // set when the trouble was said
		want    *ca.Authority  // nil: a new one
		source  string
		said    []string
	}{
		{"nothing there", nil, nil, nil, SelfSignedSecret, nil},
		{"all there", map[string]any{"secrets/" + rotation.StateSecret: secretOf(rotation.StateSecret, state), "secrets/" + PluggedInSecret: secretOf(PluggedInSecret, plugged.SecretData()),
			"secrets/" + SelfSignedSecret: secretOf(SelfSignedSecret, own.SecretData())}, nil, inForce, SelfSignedSecret, nil},
		{"plugged in", map[string]any{"secrets/" + PluggedInSecret: secretOf(PluggedInSecret, plugged.SecretData()),
			"secrets/" + SelfSignedSecret: secretOf(SelfSignedSecret, own.SecretData())}, nil, plugged, PluggedInSecret, nil},
		{"damaged", map[string]any{"secrets/" + SelfSignedSecret: secretOf(SelfSignedSecret, damaged)},
			map[string]any{"secrets/" + SelfSignedSecret: secretOf(SelfSignedSecret, own.SecretData())}, own, SelfSignedSecret, []string{"ns/" + SelfSignedSecret, ca.KeyCAKey}},
		{"lost, and a root in use", map[string]any{"configmaps/" + RootConfigMap: root},
			map[string]any{"secrets/" + SelfSignedSecret: secretOf(SelfSignedSecret, own.SecretData())}, own, SelfSignedSecret, []string{"ns/" + SelfSignedSecret, "ns/" + RootConfigMap}},
		{"what is in force damaged", map[string]any{"secrets/" + rotation.StateSecret: secretOf(rotation.StateSecret, damaged), "secrets/" + SelfSignedSecret: secretOf(SelfSignedSecret, own.SecretData())},
			map[string]any{"secrets/" + rotation.StateSecret: secretOf(rotation.StateSecret, state)}, inForce, SelfSignedSecret, []string{"ns/" + rotation.StateSecret, ca.KeyCAKey}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var once sync.Once
			var api *secretAPI
			var first string
			api, s := newSecretAPI(t, func(line string) {
				once.Do(func() {
					first = line
					for path, o := range c.mended { // as the operator does who reads it
						api.set(path, o)
					}
				})
			})
			for path, o := range c.objects {
				api.set(path, o)
			}
			r, err := s.Load(t.Context())
			if err != nil || r.Source != c.source || r.Phase() != rotation.PhaseSettled || c.want != nil && r.Signer.Fingerprint() != c.want.Fingerprint() {
				t.Fatalf("%+v, %v", r, err)
			}
			for _, text := range c.said {
				if !strings.Contains(first, text) {
					t.Errorf("%s is not named: %s", text, first)
				}
			}
			again, err := s.Load(t.Context())
			if err != nil || again.Signer.Fingerprint() != r.Signer.Fingerprint() {
				t.Errorf("a second replica has another CA: %v", err)
			}
		})
	}
}
