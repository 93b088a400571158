package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambitmesh/ambit/controller/ca"
	"github.com/ambitmesh/ambit/controller/ca/rotation"
	"github.com/ambitmesh/ambit/controller/kube"
)

// rotationState is what this test reads of the status.
type rotationState struct {
	Phase, Signer, Problem string
	Next                   struct{ Waiting []string }
	Command                struct{ ID, Refused string }
}

func (r *running) rotation(ctx context.Context) (s rotationState, err error) {
	cm, err := r.client.CoreV1().ConfigMaps("ambit-system").Get(ctx, rotation.ConfigMap, metav1.GetOptions{})
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal([]byte(cm.Data["status"]), &s)
}

// becomes waits for a state of the change.
func (r *running) becomes(t *testing.T, what string, ok func(rotationState) bool) (last rotationState) {
	t.Helper()
	eventually(t, func() error {
		s, err := r.rotation(t.Context())
		if err == nil && !ok(s) {
			err = fmt.Errorf("%s: %+v", what, s)
		}
		last = s
		return err
	})
	return last
}

// command is what the CLI does; it returns why it was refused.
func (r *running) command(t *testing.T, verb string, args ...string) string {
	t.Helper()
	id := fmt.Sprintf("%s-%d", verb, len(r.log.String()))
	text := must(json.Marshal(map[string]any{"id": id, "verb": verb, "args": args}))(t)
	patch := must(json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]any{rotation.CommandAnnotation: string(text)}}}))(t)
	must(r.client.CoreV1().Secrets("ambit-system").Patch(t.Context(), rotation.StateSecret, types.MergePatchType, patch, metav1.PatchOptions{}))(t)
	return r.becomes(t, "answer to "+verb, func(s rotationState) bool { return s.Command.ID == id }).Command.Refused
}

// anchors counts the roots in a namespace's ConfigMap.
func (r *running) anchors(t *testing.T, namespace string, want int) {
	t.Helper()
	eventually(t, func() error {
		cm, err := r.client.CoreV1().ConfigMaps(namespace).Get(t.Context(), kube.RootConfigMap, metav1.GetOptions{})
		if err != nil {
			return err
		}
		n, rest := 0, []byte(cm.Data[kube.RootKey])
		for {
			var b *pem.Block
			if b, rest = pem.Decode(rest); b == nil {
				break
			}
			n++
		}
		if n != want {
			return fmt.Errorf("%s holds %d roots, want %d", namespace, n, want)
		}
		return nil
	})
}

// testRootChange goes through the four steps with everything that can stop
// them: a node that does not report, a restart in the middle, commands at the
// wrong time, Secrets that are damaged or gone.
func (r *running) testRootChange(t *testing.T) {
	r.stop()
	r.start(r.whole, "--ca-rotation-timeout", "2s")
	secrets := r.client.CoreV1().Secrets("ambit-system")
	first := r.becomes(t, "settled", func(s rotationState) bool { return s.Phase == "settled" && s.Problem == "" })
	for verb, want := range map[string]string{"continue": "no change", "abort": "no change is under way", "retire": "no old root", "nonsense": "no such command"} {
		if refused := r.command(t, verb); !strings.Contains(refused, want) {
			t.Errorf("%s with nothing under way: %q", verb, refused)
		}
	}
	// A ztunnel that runs and never says anything holds the switch up.
	r.pod(t, "ambit-system", "ztunnel-b", "node-b", "10.0.1.1", map[string]string{"app": "ztunnel"})
	if refused := r.command(t, "rotate"); refused != "" {
		t.Fatalf("rotate: %s", refused)
	}
	r.becomes(t, "stalled over ztunnel-b alone", func(s rotationState) bool {
		return s.Phase == "stalled" && len(s.Next.Waiting) == 1 && s.Next.Waiting[0] == "ztunnel ztunnel-b on node-b"
	})
	if refused := r.command(t, "rotate"); !strings.Contains(refused, "under way already") {
		t.Errorf("rotate twice: %q", refused)
	}
	if refused := r.command(t, "retire"); !strings.Contains(refused, "does not sign yet") {
		t.Errorf("retire before the switch: %q", refused)
	}
	r.anchors(t, "prod", 2)
	if !strings.Contains(r.get("/metrics"), "\nambit_ca_rotation_waiting 1\n") || !strings.Contains(r.get("/metrics"), `ambit_ca_rotation_phase{phase="stalled"} 1`) {
		t.Error("the metrics do not say it")
	}
	// Back to where it was, and again.
	if refused := r.command(t, "abort"); refused != "" {
		t.Fatalf("abort: %s", refused)
	}
	r.becomes(t, "settled again", func(s rotationState) bool { return s.Phase == "settled" && s.Signer == first.Signer })
	r.anchors(t, "prod", 1)
	if refused := r.command(t, "rotate"); refused != "" {
		t.Fatalf("rotate: %s", refused)
	}
	r.becomes(t, "stalled", func(s rotationState) bool { return s.Phase == "stalled" })
	// A restart knows where it was.
	r.stop()
	r.start(r.whole)
	if s := must(r.rotation(t.Context()))(t); s.Phase != "stalled" || s.Signer != first.Signer {
		t.Errorf("after a restart: %+v", s)
	}
	// The ztunnel comes back to a replica that has to hear from it again.
	if refused := r.command(t, "without", "ztunnel ztunnel-b on node-b"); refused != "" {
		t.Fatalf("without: %s", refused)
	}
	second := r.becomes(t, "the new key signs", func(s rotationState) bool { return s.Phase == "retiring" && s.Signer != first.Signer })
	r.anchors(t, "prod", 2)
	r.certs.Forget(id("prod", "web"))
	cert := must(r.certs.Certificate(t.Context(), id("prod", "web")))(t)
	old, young := must(secrets.Get(t.Context(), rotation.StateSecret, metav1.GetOptions{}))(t).Data["previous-ca-cert.pem"], must(secrets.Get(t.Context(), kube.SelfSignedSecret, metav1.GetOptions{}))(t).Data["ca-cert.pem"]
	if issuer := authorityKey(t, young); string(cert.Leaf.AuthorityKeyId) != issuer || issuer == authorityKey(t, old) {
		t.Error("the certificate is not of the new key")
	}
	if refused := r.command(t, "retire"); refused != "" {
		t.Fatalf("retire: %s", refused)
	}
	r.becomes(t, "settled", func(s rotationState) bool { return s.Phase == "settled" && s.Signer == second.Signer })
	r.anchors(t, "prod", 1)
	if err := r.client.CoreV1().Pods("ambit-system").Delete(t.Context(), "ztunnel-b", metav1.DeleteOptions{GracePeriodSeconds: new(int64)}); err != nil {
		t.Fatal(err)
	}
	r.testDamagedSecrets(t, second)
	r.testPluggedIn(t)
}

// testPluggedIn: a Secret cacerts that appears is a change of the root that
// begins by itself; one that goes leaves its key in force until something else is
// asked for.
func (r *running) testPluggedIn(t *testing.T) {
	secrets := r.client.CoreV1().Secrets("ambit-system")
	mine := must(ca.NewSelfSigned("cluster.local", 48*time.Hour))(t)
	must(secrets.Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: kube.PluggedInSecret}, Data: mine.SecretData()}, metav1.CreateOptions{}))(t)
	r.becomes(t, "the key that was plugged in signs", func(s rotationState) bool { return s.Phase == "retiring" && s.Signer == mine.Fingerprint() })
	if refused := r.command(t, "rotate"); !strings.Contains(refused, "put the new one into Secret ambit-system/cacerts") {
		t.Errorf("rotate with a key plugged in: %q", refused)
	}
	if refused := r.command(t, "retire"); refused != "" {
		t.Fatalf("retire: %s", refused)
	}
	if err := secrets.Delete(t.Context(), kube.PluggedInSecret, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	r.becomes(t, "its key stays in force", func(s rotationState) bool {
		return s.Phase == "settled" && s.Signer == mine.Fingerprint() && strings.Contains(s.Problem, "cacerts is gone")
	})
	if refused := r.command(t, "rotate"); refused != "" {
		t.Fatalf("rotate: %s", refused)
	}
	r.becomes(t, "a self-signed key signs", func(s rotationState) bool {
		return s.Phase == "retiring" && s.Signer != mine.Fingerprint() && s.Problem == ""
	})
	if refused := r.command(t, "retire"); refused != "" {
		t.Fatalf("retire: %s", refused)
	}
	r.anchors(t, "prod", 1)
}

func (r *running) testDamagedSecrets(t *testing.T, before rotationState) {
	secrets := r.client.CoreV1().Secrets("ambit-system")
	signs := func(account string) {
		t.Helper()
		r.certs.Forget(id("prod", account))
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if _, err := r.certs.Certificate(ctx, id("prod", account)); err != nil {
			t.Errorf("nothing is signed: %v", err)
		}
	}
	good := must(secrets.Get(t.Context(), kube.SelfSignedSecret, metav1.GetOptions{}))(t)
	bad := good.DeepCopy()
	bad.Data["ca-key.pem"] = []byte("not a key")
	good2 := must(secrets.Update(t.Context(), bad, metav1.UpdateOptions{}))(t)
	r.becomes(t, "the damage is named", func(s rotationState) bool {
		return s.Phase == "settled" && s.Signer == before.Signer && strings.Contains(s.Problem, "ambit-system/ambit-ca-secret") && strings.Contains(s.Problem, "ca-key.pem")
	})
	signs("web")
	good2.Data = good.Data
	must(secrets.Update(t.Context(), good2, metav1.UpdateOptions{}))(t)
	r.becomes(t, "mended", func(s rotationState) bool { return s.Problem == "" })
	// What is in force: damaged and gone, it comes back from memory.
	intact := func() error {
		s, err := secrets.Get(t.Context(), rotation.StateSecret, metav1.GetOptions{})
		if err == nil && string(s.Data["ca-key.pem"]) != string(good.Data["ca-key.pem"]) {
			err = errors.New("the state Secret is not restored")
		}
		return err
	}
	state := must(secrets.Get(t.Context(), rotation.StateSecret, metav1.GetOptions{}))(t)
	state.Data["ca-key.pem"] = []byte("not a key")
	must(secrets.Update(t.Context(), state, metav1.UpdateOptions{}))(t)
	eventually(t, intact)
	signs("web")
	if err := secrets.Delete(t.Context(), rotation.StateSecret, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, intact)
	signs("web")
	if text := r.log.String(); !strings.Contains(text, "secret ambit-system/ambit-ca-state: key ca-key.pem") {
		t.Error("the log does not name the damaged Secret and its key")
	}
}

// authorityKey is the key identifier of a CA certificate.
func authorityKey(t *testing.T, text []byte) string {
	t.Helper()
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatalf("not PEM: %q", text)
	}
	return string(must(x509.ParseCertificate(block.Bytes))(t).SubjectKeyId)
}
