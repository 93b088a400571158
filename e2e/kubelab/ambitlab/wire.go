package ambitlab

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

// Wire is the recording of every packet between the machines.
type Wire struct {
	l    *Lab
	mu   sync.Mutex
	data []byte // guarded by mu
}

// Write takes the recording.
func (w *Wire) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.data = append(w.data, b...)
	return len(b), nil
}

func (w *Wire) bytes() []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.data)
}

// Has says whether the token crossed a link readably so far.
func (w *Wire) Has(token string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return bytes.Contains(w.data, []byte(token))
}

// record starts the recording, which ends with the test.
func (l *Lab) record(t *testing.T) *Wire {
	t.Helper()
	w := &Wire{l: l}
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		n, err := kubelab.Capture(ctx, l.Cluster.ControlPlane().NetNS(), w, func() { close(ready) })
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

// Token makes a word that occurs nowhere else.
func Token(word string) string { return word + "-" + strings.ToLower(rand.Text()[:16]) }

// Settle returns when everything sent before the call is in the recording.
func (w *Wire) Settle(t *testing.T) {
	t.Helper()
	mark := Token("mark")
	Until(t, "the recording to have caught up", func() (string, bool) {
		// UDP, to a port where nobody listens: lost only on the way.
		c, err := w.l.Node(t, "node1").Dial(t.Context(), "udp", w.l.Node(t, "node2").IP.String()+":9")
		if err != nil {
			return err.Error(), false
		}
		defer c.Close()
		if _, err := c.Write([]byte(mark)); err != nil {
			return err.Error(), false
		}
		return "", w.Has(mark)
	})
}

// Plain wants the token to have crossed a link readably.
func (w *Wire) Plain(t *testing.T, token string) {
	t.Helper()
	w.Settle(t)
	if !w.Has(token) {
		t.Errorf("%s is not in the recording: the test would not see plaintext either", token)
	}
}

// Secret wants the token not to have crossed any link readably.
func (w *Wire) Secret(t *testing.T, token string) {
	t.Helper()
	w.Settle(t)
	if w.Has(token) {
		t.Errorf("%s crossed a link in plaintext", token)
	}
}
