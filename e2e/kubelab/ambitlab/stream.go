package ambitlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
)

// Stream is a connection that a pod holds open and sends on all the time.
type Stream struct {
	s         *Space
	pod, word string
	cancel    context.CancelFunc
	done      chan struct{}
	err       error // owned by the goroutine until done is closed

	mu     sync.Mutex
	echoes int          // guarded by mu
	errs   bytes.Buffer // guarded by mu
}

// Hold opens a connection to an echo server that says the word again and again.
func (s *Space) Hold(pod, address, word string) *Stream {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	h := &Stream{s: s, pod: pod, word: word, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(h.done)
		h.err = s.Exec(ctx, pod, counter{h, nil}, counter{h, &h.errs}, "testapp", "connect", "-hold", "1h", "-every", "100ms", "-timeout", "30s", "-send", word, address)
	}()
	s.t.Cleanup(func() { cancel(); <-h.done })
	h.GoesOn("after it was opened")
	return h
}

type counter struct {
	h    *Stream
	keep *bytes.Buffer
}

func (c counter) Write(b []byte) (int, error) {
	c.h.mu.Lock()
	defer c.h.mu.Unlock()
	if c.keep != nil {
		c.keep.Write(b)
	} else {
		c.h.echoes += bytes.Count(b, []byte("echo "))
	}
	return len(b), nil
}

func (h *Stream) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.echoes
}

// GoesOn wants some more echoes on the same connection.
func (h *Stream) GoesOn(when string) {
	h.s.t.Helper()
	want := h.count() + 3
	Until(h.s.t, "an open connection to go on "+when, func() (string, bool) {
		select {
		case <-h.done:
			h.s.t.Fatalf("an open connection ended %s: %v", when, h.Broken())
		default:
		}
		return fmt.Sprintf("%d echoes", h.count()), h.count() >= want
	})
}

// Close ends it, by ending the program: that goes on when nobody listens to it
// any more.
func (h *Stream) Close() {
	h.s.t.Helper()
	h.s.OnNode(h.s.t, h.s.Now(h.pod).Spec.NodeName,
		`for d in /proc/[0-9]*; do tr '\0' ' ' 2>/dev/null <$d/cmdline | grep -q "^testapp .*`+h.word+`" && kill ${d#/proc/}; done; true`)
	<-h.done
}

// Done is closed when the connection has ended.
func (h *Stream) Done() <-chan struct{} { return h.done }

// Broken says why it ended, and waits until it has.
func (h *Stream) Broken() error {
	<-h.done
	h.mu.Lock()
	defer h.mu.Unlock()
	return errors.Join(h.err, errors.New(h.errs.String()))
}
