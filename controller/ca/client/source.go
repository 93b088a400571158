// Package client owns the data plane's certificates: it asks the CA for them,
// keeps them fresh and hands them out as an identity.Source.
package client

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambitmesh/ambit/hbone/identity"
)

// Config of a Source.
type Config struct {
	Address     string                      // host:port; a leading http:// or https:// is ignored
	TLS         func() (*tls.Config, error) // asked per connection, so that new roots count; nil: plaintext
	Token       func() (string, error)      // asked per request; nil or "": no authorization
	ClusterID   string
	Impersonate bool              // ask for identities other than the token's own
	TTL         time.Duration     // 0: 24 h
	Headers     map[string]string // sent with every request
	Terms       *identity.Terms   // of peers, see Source.Terms; nil: nothing further
	Logger      *slog.Logger
	Registerer  prometheus.Registerer // nil: metrics are not exposed
}

const (
	parallel     = 8 // requests at once
	fetchTimeout = 15 * time.Second
	minFetch     = 3 * time.Second
	firstBackoff = time.Second
	maxBackoff   = 150 * time.Second
	maxHeld      = 8192 // identities; more than any node has pods
)

// Source is an identity.Source backed by the CA. Certificate and the other
// methods work while Run does.
type Source struct {
	config  Config
	metrics metrics
	// ask obtains one certificate; a field so that tests need no network.
	ask  func(ctx context.Context, id identity.ID) (*issued, error)
	wake chan struct{} // one slot: something may be due

	mu      sync.Mutex
	held    map[identity.ID]*entry // guarded by mu
	active  int                    // requests under way, guarded by mu
	stopped bool                   // Run has ended, guarded by mu
	pushed  anchors                // by SetRoots, guarded by mu
	answer  anchors                // of the last answer since then, guarded by mu

	roots atomic.Pointer[x509.CertPool] // of both; nil until the first answer or push
}

// entry is one identity. Guarded by Source.mu.
type entry struct {
	id       identity.ID
	priority priority
	due      time.Time // of the next request
	fetching bool
	got      *issued
	err      *Error        // of the last request; nil after success
	backoff  time.Duration // before jitter; 0 after success
	done     chan struct{} // closed when the request that waiters wait for ends; nil without waiters
}

// priority of a request; a pending one only rises.
type priority uint8

const (
	background priority = iota // refresh
	warmup                     // prefetch
	realTime                   // a connection waits
)

// issued is a certificate with what came along.
type issued struct {
	certificate *tls.Certificate
	chain       []*x509.Certificate
	rootPEM     string
	roots       []*x509.Certificate
	pool        *x509.CertPool
}

// Error is why a certificate is not available.
type Error struct {
	ID     identity.ID
	Denied bool // the CA answered and refused
	Err    error
}

func (e *Error) Error() string { return fmt.Sprintf("certificate for %v: %v", e.ID, e.Err) }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

var (
	errForgotten = errors.New("identity is no longer used on this node")
	errStopped   = errors.New("certificate client has stopped")
	errFull      = fmt.Errorf("more than %d identities on one node", maxHeld)
)

// New has no side effects but registering metrics.
func New(c Config) *Source {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.TTL <= 0 {
		c.TTL = 24 * time.Hour
	}
	s := &Source{
		config: c,
		wake:   make(chan struct{}, 1),
		held:   make(map[identity.ID]*entry),
	}
	s.metrics = newMetrics(c.Registerer, s)
	s.ask = (&caller{config: c}).ask
	return s
}

// Certificate implements identity.Source. While the CA is away the last
// certificate is good until it expires; without one the error of the last
// attempt comes at once, and attempts go on.
func (s *Source) Certificate(ctx context.Context, id identity.ID) (*tls.Certificate, error) {
	s.mu.Lock()
	e := s.held[id]
	if e != nil {
		if e.valid(time.Now()) {
			c := e.got.certificate
			s.mu.Unlock()
			return c, nil
		}
		if e.err != nil {
			err := e.err
			s.mu.Unlock()
			return nil, err
		}
	}
	e, err := s.wantLocked(id, realTime)
	if err != nil {
		s.mu.Unlock()
		return nil, err
	}
	if e.done == nil {
		e.done = make(chan struct{})
	}
	done := e.done
	s.mu.Unlock()

	select {
	case <-done:
	case <-ctx.Done():
		return nil, &Error{ID: id, Err: ctx.Err()}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case e.valid(time.Now()):
		return e.got.certificate, nil
	case e.err != nil:
		return nil, e.err
	}
	return nil, &Error{ID: id, Err: errForgotten}
}

func (e *entry) valid(now time.Time) bool {
	return e.got != nil && now.Before(e.got.certificate.Leaf.NotAfter)
}

// wantLocked makes sure that a certificate for id is on its way.
func (s *Source) wantLocked(id identity.ID, p priority) (*entry, error) {
	if s.stopped {
		return nil, &Error{ID: id, Err: errStopped}
	}
	e := s.held[id]
	if e == nil {
		if len(s.held) >= maxHeld {
			return nil, &Error{ID: id, Err: errFull}
		}
		e = &entry{id: id, due: time.Now()}
		s.held[id] = e
	}
	if e.got != nil && !e.valid(time.Now()) && e.err == nil {
		e.due = time.Now() // expired before its refresh, for example while suspended
	}
	e.priority = max(e.priority, p)
	s.poke()
	return e, nil
}

func (s *Source) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Prefetch asks for id before a connection needs it.
func (s *Source) Prefetch(id identity.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held[id] != nil {
		return
	}
	if _, err := s.wantLocked(id, warmup); err != nil {
		s.config.Logger.Warn("certificate not prefetched", "error", err)
	}
}

// Forget drops id: nothing on this node uses it any more. Waiters get an
// error.
func (s *Source) Forget(id identity.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.held[id]; e != nil {
		delete(s.held, id)
		e.got, e.err = nil, &Error{ID: id, Err: errForgotten}
		e.release()
	}
}

// release lets waiters go.
func (e *entry) release() {
	if e.done != nil {
		close(e.done)
		e.done = nil
	}
}

// Run obtains and refreshes certificates until ctx ends.
func (s *Source) Run(ctx context.Context) error {
	var workers sync.WaitGroup
	for ctx.Err() == nil {
		s.mu.Lock()
		now := time.Now()
		var wait time.Duration
		for {
			e := s.nextLocked()
			if e == nil || s.active == parallel {
				wait = -1 // a wake-up will come
				break
			}
			if wait = e.due.Sub(now); wait > 0 {
				break
			}
			e.fetching = true
			s.active++
			workers.Go(func() { s.fetch(ctx, e) })
		}
		s.mu.Unlock()
		s.sleep(ctx, wait)
	}
	workers.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
	for id, e := range s.held {
		if e.done != nil {
			e.err = &Error{ID: id, Err: errStopped}
			e.release()
		}
	}
	return nil
}

// sleep until something may be due; a negative wait is without end.
func (s *Source) sleep(ctx context.Context, wait time.Duration) {
	var timer <-chan time.Time
	if wait >= 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		timer = t.C
	}
	select {
	case <-ctx.Done():
	case <-s.wake:
	case <-timer:
	}
}

// nextLocked is the entry to ask for next: of those due the most urgent, else
// the one due first.
func (s *Source) nextLocked() *entry {
	now := time.Now()
	var best *entry
	for _, e := range s.held {
		if !e.fetching && (best == nil || before(e, best, now) < 0) {
			best = e
		}
	}
	return best
}

func before(a, b *entry, now time.Time) int {
	late := func(e *entry) int {
		if e.due.After(now) {
			return 0
		}
		return 1 + int(e.priority)
	}
	return cmp.Or(cmp.Compare(late(b), late(a)), a.due.Compare(b.due))
}

// fetch asks the CA once and plans what comes next.
func (s *Source) fetch(ctx context.Context, e *entry) {
	c, cancel := context.WithTimeout(ctx, s.limit(e))
	got, err := s.ask(c, e.id)
	cancel()
	if err == nil {
		err = s.judgeClock(got.certificate.Leaf, time.Now())
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.poke()
	s.active--
	e.fetching = false
	if s.held[e.id] != e || ctx.Err() != nil {
		return // forgotten meanwhile, or stopping
	}
	now := time.Now()
	e.priority = background
	if err != nil {
		s.failedLocked(e, err, now)
	} else {
		leaf := got.certificate.Leaf
		e.got, e.err, e.backoff = got, nil, 0
		e.due = leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 2)
		if e.due.Before(now) { // a very short-lived one: still at half of what is left
			e.due = now.Add(max(leaf.NotAfter.Sub(now)/2, firstBackoff))
		}
		if s.answer.pem != got.rootPEM {
			s.answer = anchors{got.rootPEM, got.roots}
			s.trustLocked("answer of the CA")
		}
		s.metrics.requests.WithLabelValues("success").Inc()
		s.config.Logger.Debug("certificate received", "identity", e.id.String(), "not_after", leaf.NotAfter, "refresh", e.due)
	}
	e.release()
}

func (s *Source) failedLocked(e *entry, err error, now time.Time) {
	failure := &Error{ID: e.id, Denied: denied(err), Err: err}
	e.err = failure
	e.backoff = min(maxBackoff, max(firstBackoff, 2*e.backoff))
	wait := time.Duration(float64(e.backoff) * (0.8 + 0.4*rand.Float64()))
	e.due = now.Add(min(wait, maxBackoff))
	kept := e.valid(now)
	if kept {
		if end := e.got.certificate.Leaf.NotAfter; e.due.After(end) {
			e.due = end
		}
	}
	label := "error"
	if failure.Denied {
		label = "denied"
	}
	s.metrics.requests.WithLabelValues(label).Inc()
	s.config.Logger.Warn("certificate not obtained", "identity", e.id.String(), "error", err,
		"retry_in", e.due.Sub(now).Round(time.Millisecond), "old_one_in_use", kept)
}

// limit of one attempt: short enough that a replica of the CA that does not
// answer leaves time for others while the old certificate is good.
func (s *Source) limit(e *entry) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); e.valid(now) {
		return min(fetchTimeout, max(minFetch, e.got.certificate.Leaf.NotAfter.Sub(now)/4))
	}
	return fetchTimeout
}

// judgeClock compares our clock with the CA's, as far as a fresh certificate
// tells. One that nobody here could use is an error.
func (s *Source) judgeClock(leaf *x509.Certificate, now time.Time) error {
	if !now.Before(leaf.NotAfter) {
		return fmt.Errorf("answer of the CA: certificate is over since %s: this node's clock is ahead of the CA's by at least %v",
			leaf.NotAfter.UTC().Format(time.RFC3339), now.Sub(leaf.NotAfter).Round(time.Second))
	}
	if early := leaf.NotBefore.Sub(now); early > 0 {
		s.config.Logger.Warn("this node's clock is behind the CA's: it will refuse peers' certificates as not yet valid",
			"by_at_least", early.Round(time.Second))
	}
	return nil
}

// CertState describes one identity for config_dump.
type CertState struct {
	ID    identity.ID
	State string // Initializing; Available; Available, not renewed: <reason>; Unavailable: <reason>
	Chain []*x509.Certificate
	Roots []*x509.Certificate
}

// States lists what is held, sorted by identity.
func (s *Source) States() []CertState {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	out := make([]CertState, 0, len(s.held))
	for id, e := range s.held {
		c := CertState{ID: id, State: "Initializing"}
		if e.got != nil {
			c.Chain, c.Roots = e.got.chain, e.got.roots
		}
		switch {
		case e.valid(now) && e.err != nil:
			c.State = "Available, not renewed: " + e.err.Err.Error()
		case e.valid(now):
			c.State = "Available"
		case e.err != nil:
			c.State = "Unavailable: " + e.err.Err.Error()
		}
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b CertState) int { return cmp.Compare(a.ID.String(), b.ID.String()) })
	return out
}
