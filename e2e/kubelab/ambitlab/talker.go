package ambitlab

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
)

// Talker sends requests with one secret word, each on a new connection, again
// and again: some may fail while the mesh is broken, none may be readable.
type Talker struct {
	s    *Space
	Word string
	Stop func()

	mu  sync.Mutex
	out bytes.Buffer // guarded by mu
}

// Write takes the program's output.
func (k *Talker) Write(b []byte) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.out.Write(b)
}

// Answers counts the requests that succeeded and the others.
func (k *Talker) Answers() (ok, failed int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for line := range strings.Lines(k.out.String()) {
		if strings.HasPrefix(line, "200 ") {
			ok++
		} else if strings.HasPrefix(line, "failed") {
			failed++
		}
	}
	return ok, failed
}

// Talk begins to send, and waits until it succeeds.
func (s *Space) Talk(pod, to string) *Talker {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	k := &Talker{s: s, Word: Token("talk")}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Exec(ctx, pod, k, k, "testapp", "get", "-n", "0", "-every", "30ms", "-timeout", "10s", "-carry-on", "http://"+to+"/"+k.Word)
	}()
	k.Stop = sync.OnceFunc(func() { cancel(); <-done })
	s.t.Cleanup(k.Stop)
	k.GoesOn("before anything was broken")
	return k
}

// GoesOn wants some more requests to succeed.
func (k *Talker) GoesOn(when string) {
	k.s.t.Helper()
	before, _ := k.Answers()
	Until(k.s.t, "requests to succeed "+when, func() (string, bool) {
		ok, failed := k.Answers()
		return fmt.Sprintf("%d succeeded, %d failed", ok, failed), ok >= before+5
	})
}

// Unread ends it and wants none of its requests to have been readable.
func (k *Talker) Unread() {
	k.s.t.Helper()
	k.Stop()
	k.s.Wire.Secret(k.s.t, k.Word)
	ok, failed := k.Answers()
	k.s.t.Logf("%d requests succeeded, %d failed, none was readable", ok, failed)
}
