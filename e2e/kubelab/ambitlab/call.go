package ambitlab

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
)

// ID is the SPIFFE identity of an account.
func (s *Space) ID(account string) string {
	return "spiffe://cluster.local/ns/" + s.Name + "/sa/" + account
}

// Exec runs a program in a pod.
func (s *Space) Exec(ctx context.Context, pod string, stdout, stderr io.Writer, args ...string) error {
	return s.exec(ctx, s.Name, pod, stdout, stderr, args...)
}

func (l *Lab) exec(ctx context.Context, namespace, pod string, stdout, stderr io.Writer, args ...string) error {
	r := l.Client.CoreV1().RESTClient().Post().Resource("pods").Namespace(namespace).Name(pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Command: args, Stdout: true, Stderr: true}, scheme.ParameterCodec)
	e, err := remotecommand.NewWebSocketExecutor(l.REST, "GET", r.URL().String())
	if err != nil {
		return err
	}
	return e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: stdout, Stderr: stderr})
}

// Try makes one request from a pod and returns the answer.
func (s *Space) Try(pod, url string) (string, error) { return s.Get(s.t, s.Name, pod, url) }

// Get makes one request from a pod and returns the answer. It gives up soon, for
// who waits: a connection made before kube-proxy's rules never gets anywhere.
func (l *Lab) Get(t *testing.T, namespace, pod, url string) (string, error) {
	return l.get(t, namespace, pod, url, 5*time.Second)
}

// GetOnce is Get for a request that is not made again: it is given its time.
func (l *Lab) GetOnce(t *testing.T, namespace, pod, url string) (string, error) {
	return l.get(t, namespace, pod, url, time.Minute)
}

func (l *Lab) get(t *testing.T, namespace, pod, url string, limit time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(t.Context(), limit+time.Minute)
	defer cancel()
	var out, errs bytes.Buffer
	err := l.exec(ctx, namespace, pod, &out, &errs, "testapp", "get", "-timeout", limit.String(), url)
	if err != nil {
		err = fmt.Errorf("%s: GET %s: %w: %s", pod, url, err, strings.TrimSpace(errs.String()))
	}
	return out.String(), err
}

// Call makes a request that must succeed, the first one; when is the machine's
// affair.
func (s *Space) Call(pod, url string) string {
	s.t.Helper()
	out, err := s.GetOnce(s.t, s.Name, pod, url)
	if err != nil {
		s.t.Error(err)
	}
	return out
}

// Works waits until a request succeeds.
func (s *Space) Works(pod, url string) {
	s.t.Helper()
	Until(s.t, url+" from "+pod, func() (string, bool) {
		_, err := s.Try(pod, url)
		return fmt.Sprint(err), err == nil
	})
}

// Fails waits until a request is refused.
func (s *Space) Fails(pod, url string) error {
	s.t.Helper()
	var refused error
	Until(s.t, url+" from "+pod+" to be refused", func() (string, bool) {
		_, refused = s.Try(pod, url)
		return "it succeeds", refused != nil
	})
	return refused
}

// Meshed waits until both nodes know the pods as meshed: what crosses the link
// between them is not readable any more. Only from then on is it promised.
func (s *Space) Meshed(from, to string) {
	s.t.Helper()
	Until(s.t, "traffic from "+from+" to "+to+" to be carried in mTLS", func() (string, bool) {
		word := Token("probe")
		if out, err := s.Try(from, "http://"+to+"/"+word); err != nil {
			return out + err.Error(), false
		}
		s.Wire.Settle(s.t)
		return "plaintext", !s.Wire.Has(word)
	})
}

// Plainly waits until traffic is readable on the link again.
func (s *Space) Plainly(from, to string) {
	s.t.Helper()
	Until(s.t, "traffic from "+from+" to "+to+" to go direct", func() (string, bool) {
		word := Token("probe")
		if out, err := s.GetOnce(s.t, s.Name, from, "http://"+to+"/"+word); err != nil {
			s.t.Errorf("a request failed while the pods were leaving: %v %s", err, out)
			return "", true
		}
		s.Wire.Settle(s.t)
		return "not readable", s.Wire.Has(word)
	})
}

// Refused waits until a request is reset, and not just lost.
func (l *Lab) Refused(t *testing.T, what, namespace, pod, url string) {
	t.Helper()
	Until(t, what+" to be refused", func() (string, bool) {
		_, err := l.Get(t, namespace, pod, url)
		if err == nil {
			return "it succeeds", false
		}
		for _, sign := range []string{"reset by peer", "broken pipe", "EOF"} {
			if strings.Contains(err.Error(), sign) {
				return "", true
			}
		}
		return err.Error(), false
	})
}
