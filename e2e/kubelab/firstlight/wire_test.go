package firstlight

import (
	"bytes"
	"context"
	"crypto/rand"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/ambitmesh/ambit/e2e/kubelab"
)

// wire is the recording of every packet between the machines.
type wire struct {
	l    *lab
	mu   sync.Mutex
	data []byte // guarded by mu
}

func (w *wire) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.data = append(w.data, b...)
	return len(b), nil
}

func (w *wire) bytes() []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.data)
}

func (w *wire) has(token string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return bytes.Contains(w.data, []byte(token))
}

// record starts the recording, which ends with the test.
func (l *lab) record(t *testing.T) *wire {
	t.Helper()
	w := &wire{l: l}
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		n, err := kubelab.Capture(ctx, l.cluster.ControlPlane().NetNS(), w, func() { close(ready) })
		if err != nil || n.Lost > 0 {
			t.Errorf("recording: %d packets lost, %v", n.Lost, err)
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	select {
	case <-ready:
	case <-done:
		t.FailNow()
	}
	return w
}

// token makes a word that occurs nowhere else.
func token(word string) string { return word + "-" + strings.ToLower(rand.Text()[:16]) }

// settle returns when everything sent before the call is in the recording.
func (w *wire) settle(t *testing.T) {
	t.Helper()
	mark := token("mark")
	until(t, "the recording to have caught up", func() (string, bool) {
		// UDP, to a port where nobody listens: lost only on the way.
		c, err := w.l.node(t, "node1").Dial(t.Context(), "udp", w.l.node(t, "node2").IP.String()+":9")
		if err != nil {
			return err.Error(), false
		}
		defer c.Close()
		if _, err := c.Write([]byte(mark)); err != nil {
			return err.Error(), false
		}
		return "", w.has(mark)
	})
}

// plain wants the token to have crossed a link readably.
func (w *wire) plain(t *testing.T, token string) {
	t.Helper()
	w.settle(t)
	if !w.has(token) {
		t.Errorf("%s is not in the recording: the test would not see plaintext either", token)
	}
}

// secret wants the token not to have crossed any link readably.
func (w *wire) secret(t *testing.T, token string) {
	t.Helper()
	w.settle(t)
	if w.has(token) {
		t.Errorf("%s crossed a link in plaintext", token)
	}
}
