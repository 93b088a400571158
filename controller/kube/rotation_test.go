package kube

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"path"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/ambitmesh/ambit/controller/ca"
	"github.com/ambitmesh/ambit/controller/ca/rotation"
)

// rotating is a Rotation whose watches and API server are this test: what is
// written is in the caches at once.
type rotating struct {
	*Rotation
	t       *testing.T
	lacking []string
	version int
	answer  *rotation.Answer
	report  map[string]string
}

func (r *rotating) RoundTrip(q *http.Request) (*http.Response, error) {
	body, _ := io.ReadAll(q.Body)
	answer := &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, Request: q}
	name := path.Base(q.URL.Path)
	switch {
	case strings.Contains(q.URL.Path, "/configmaps"):
		var m corev1.ConfigMap
		if err := json.Unmarshal(body, &m); err != nil {
			r.t.Error(err)
		}
		for k, v := range m.Data {
			r.report[k] = v
		}
	case q.Method == http.MethodPut:
		var s corev1.Secret
		if err := json.Unmarshal(body, &s); err != nil {
			r.t.Error(err)
		}
		if have := r.secret(name); have.ResourceVersion != s.ResourceVersion {
			answer.StatusCode = http.StatusConflict
			body, _ = json.Marshal(metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure, Reason: metav1.StatusReasonConflict, Code: http.StatusConflict})
			break
		}
		body, _ = json.Marshal(r.put(s))
	default:
		r.t.Errorf("%s %s", q.Method, q.URL.Path)
	}
	answer.Body = io.NopCloser(bytes.NewReader(body))
	return answer, nil
}

func (r *rotating) put(s corev1.Secret) corev1.Secret {
	r.version++
	s.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}
	s.Namespace, s.ResourceVersion = "ns", strconv.Itoa(r.version)
	if err := r.secrets[s.Name].GetIndexer().Add(s.DeepCopy()); err != nil {
		r.t.Error(err)
	}
	return s
}

func (r *rotating) secret(name string) *corev1.Secret {
	return get[*corev1.Secret](r.secrets[name], "ns/"+name).DeepCopy()
}

// newRotating has signer in force, from the self-signed Secret.
func newRotating(t *testing.T, signer *ca.Authority) *rotating {
	t.Helper()
	r := &rotating{t: t, report: map[string]string{}}
	client, err := kubernetes.NewForConfig(&rest.Config{Host: "http://api", QPS: -1, Transport: r, ContentConfig: rest.ContentConfig{ContentType: "application/json"}})
	if err != nil {
		t.Fatal(err)
	}
	record := &ca.Record{Source: SelfSignedSecret, Signer: signer, Longest: time.Hour}
	r.Rotation, err = NewRotation(RotationConfig{
		Client: client, Namespace: "ns", Replica: "a", Ring: ca.NewKeyring(time.Hour), Timeout: time.Hour,
		Generate:   func() (map[string][]byte, error) { return selfSigned(t).SecretData(), nil },
		Holders:    func() map[string]string { return nil },
		Lacking:    func(func(string) bool) []string { return r.lacking },
		Logger:     slog.New(slog.NewTextHandler(t.Output(), nil)),
		Registerer: prometheus.NewRegistry(),
	}, record)
	if err != nil {
		t.Fatal(err)
	}
	data, err := record.SecretData()
	if err != nil {
		t.Fatal(err)
	}
	r.put(secretOf(rotation.StateSecret, data))
	r.put(secretOf(SelfSignedSecret, signer.SecretData()))
	return r
}

// look is one look of the replica that leads.
func (r *rotating) look() rotation.Status {
	r.t.Helper()
	if _, err := r.step(r.t.Context(), time.Hour, &r.answer); err != nil {
		r.t.Fatal(err)
	}
	var s rotation.Status
	if err := json.Unmarshal([]byte(r.report[rotation.StatusKey]), &s); err != nil {
		r.t.Fatal(err)
	}
	return s
}

// command is what the CLI does, and the look that follows.
func (r *rotating) command(verb string) rotation.Status {
	r.t.Helper()
	state := r.secret(rotation.StateSecret)
	state.Annotations = map[string]string{rotation.CommandAnnotation: `{"id":"` + verb + `","verb":"` + verb + `"}`}
	r.put(*state)
	s := r.look()
	if s.Command == nil || s.Command.ID != verb || s.Command.Refused != "" {
		r.t.Errorf("%s: %+v", verb, s.Command)
	}
	return s
}

// TestAbortAtTheLastMoment: a change that is given up does not take place, even
// if nobody lacks the new root any more.
//
//ambit:feature identity-root-abort
func TestAbortAtTheLastMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old := selfSigned(t)
		r := newRotating(t, old)
		r.lacking = []string{"node b"}
		if s := r.command(commandRotate); s.Phase != rotation.PhaseDistributing {
			t.Fatalf("%+v", s)
		}
		r.lacking = nil
		if s := r.command(commandAbort); s.Phase != rotation.PhaseSettled || s.Signer != old.Fingerprint() {
			t.Fatalf("%+v", s)
		}
		if s := r.look(); s.Phase != rotation.PhaseSettled || s.Signer != old.Fingerprint() || s.Problem != "" {
			t.Errorf("%+v", s)
		}
	})
}

// TestExpiredRootIsReplaced: nothing is signed any more, and still the command
// that helps is heard.
//
//ambit:feature identity-root-change
func TestExpiredRootIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old := selfSigned(t) // for an hour
		r := newRotating(t, old)
		if s := r.look(); s.Phase != rotation.PhaseSettled || s.Problem != "" {
			t.Fatalf("%+v", s)
		}
		time.Sleep(2 * time.Hour)
		if s := r.look(); s.Problem == "" {
			t.Errorf("not said: %+v", s)
		}
		r.lacking = []string{"node b"} // whom it helps to wait for
		if s := r.command(commandRotate); s.Phase != rotation.PhaseRetiring || s.Signer == old.Fingerprint() {
			t.Errorf("%+v", s)
		}
	})
}

// TestStateThatOthersTouch: an annotation or label on the Secret of what is in
// force does not make it another record, and damage is made good.
//
//ambit:feature identity-secret-damaged
func TestStateThatOthersTouch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		signer := selfSigned(t)
		r := newRotating(t, signer)
		for _, damage := range []func(*corev1.Secret){
			func(s *corev1.Secret) { s.Labels = map[string]string{"backup": "yes"} },
			func(s *corev1.Secret) { s.Data = nil },
			func(s *corev1.Secret) { s.Data[ca.KeyCAKey] = selfSigned(t).SecretData()[ca.KeyCAKey] },
			func(s *corev1.Secret) { s.Data[ca.KeyRotation] = []byte("{") },
		} {
			want := r.secret(rotation.StateSecret).Data
			state := r.secret(rotation.StateSecret)
			damage(state)
			r.put(*state)
			if _, err := r.step(t.Context(), time.Hour, &r.answer); err != nil { // which may only mend it
				t.Fatal(err)
			}
			if s := r.look(); s.Signer != signer.Fingerprint() || s.Problem != "" {
				t.Errorf("%+v", s)
			}
			for k, v := range want {
				if !bytes.Equal(r.secret(rotation.StateSecret).Data[k], v) {
					t.Errorf("key %s is not what it was", k)
				}
			}
		}
	})
}
