package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambitmesh/ambit/controller/mesh"
)

// Bounds of a Demand.
const (
	// fetchLimit is how long somebody waits for an answer.
	fetchLimit = 5 * time.Second
	// perOwner is how many questions of one owner are open at once; more wait.
	perOwner = 32
	// absentPerOwner and absentAll are how many names that mean nothing are
	// remembered; the oldest is given up.
	absentPerOwner = 1024
	absentAll      = 8192
	// openPerOwner is how many names of one owner may be without an answer,
	// whoever still waits for it: each is asked again on the next stream.
	openPerOwner = 1024
	// absentFor is how long the word of a control plane counts that may not tell
	// when a name that meant nothing comes to mean something.
	absentFor = 5 * time.Second
)

// ErrUnanswered marks a Fetch that got no answer in time.
var ErrUnanswered = errors.New("no answer of the control plane")

// Demand asks the control plane for single names on behalf of connections. Its
// methods may be called from any goroutine.
type Demand struct {
	store *mesh.Store
	now   func() time.Time
	wake  chan struct{} // one slot: there is something to ask or to give up

	questions *prometheus.CounterVec

	mu       sync.Mutex
	names    map[string]*question // guarded by mu; asked, absent or complete
	open     map[string]struct{}  // guarded by mu; of names, the addresses being asked for
	asks     []string             // guarded by mu; to be sent
	giveUps  []string             // guarded by mu; to be sent
	owners   map[string]*owner    // guarded by mu
	absent   []string             // guarded by mu; names that were absent, oldest first
	whole    bool                 // guarded by mu; everything is sent without being asked
	coherent bool                 // guarded by mu; the server tells when an absent name appears
	ours     bool                 // guarded by mu; the server sends services without their workloads
}

// state of a question.
type state uint8

const (
	asking   state = iota
	absent         // answered: nothing has that name
	complete       // answered: a service, with all its workloads
)

type question struct {
	state state
	owner string
	done  chan struct{} // closed with the answer; only while asking
	asker *owner        // whose open question it is; only while asking
	when  time.Time     // of the answer
}

// owner is on whose behalf names are asked: a pod.
type owner struct {
	turns  chan struct{}
	absent []string // oldest first
	users  int
	open   int // questions without an answer
}

func newDemand(store *mesh.Store, questions *prometheus.CounterVec) *Demand {
	return &Demand{
		store: store, now: time.Now, wake: make(chan struct{}, 1), questions: questions,
		names: make(map[string]*question), open: make(map[string]struct{}), owners: make(map[string]*owner),
	}
}

// Known reports whether nothing is to be learned by asking for name: it is
// known to mean nothing, or to be a service whose workloads are all here.
func (d *Demand) Known(name string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.whole {
		return true
	}
	q := d.names[name]
	switch {
	case q == nil || q.state == asking:
		return false
	case q.state == absent && !d.coherent:
		return d.now().Sub(q.when) < absentFor
	}
	return true
}

// Fetch asks for name and returns when the store holds the answer, or with an
// error when none comes in time: then nothing is known of it. For one owner only
// so many names are asked at once; further ones wait, within the same time.
func (d *Demand) Fetch(ctx context.Context, of, name string) error {
	ctx, cancel := context.WithTimeout(ctx, fetchLimit)
	defer cancel()
	o := d.enter(of)
	defer d.leave(of, o)
	fail := func() error {
		d.questions.WithLabelValues("unanswered").Inc()
		return fmt.Errorf("%s: %w within %s", name, ErrUnanswered, fetchLimit)
	}
	select {
	case o.turns <- struct{}{}:
		defer func() { <-o.turns }()
	case <-ctx.Done():
		return fail()
	}
	if d.Known(name) {
		return nil // somebody else asked meanwhile
	}
	answered, ok := d.ask(of, o, name)
	if !ok {
		d.questions.WithLabelValues("unanswered").Inc()
		return fmt.Errorf("%s: %w to %d others of the same pod", name, ErrUnanswered, openPerOwner)
	}
	select {
	case <-answered:
		return nil
	case <-ctx.Done():
		return fail()
	}
}

func (d *Demand) enter(of string) *owner {
	d.mu.Lock()
	defer d.mu.Unlock()
	o := d.owners[of]
	if o == nil {
		o = &owner{turns: make(chan struct{}, perOwner)}
		d.owners[of] = o
	}
	o.users++
	return o
}

func (d *Demand) leave(of string, o *owner) {
	d.mu.Lock()
	defer d.mu.Unlock()
	o.users--
	d.idleLocked(of, o)
}

// idleLocked lets go of an owner of whom there is nothing left to know.
func (d *Demand) idleLocked(of string, o *owner) {
	if o.users == 0 && o.open == 0 && len(o.absent) == 0 && d.owners[of] == o {
		delete(d.owners, of)
	}
}

// ask returns a channel that is closed with the answer. It is not ok while too many
// questions of o, who is of, have none.
func (d *Demand) ask(of string, o *owner, name string) (answered <-chan struct{}, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if q := d.names[name]; q != nil && q.state == asking {
		return q.done, true
	}
	if o.open >= openPerOwner {
		return nil, false
	}
	d.forgetAbsentLocked(name) // if its time is over: it is asked again
	o.open++
	q := &question{owner: of, done: make(chan struct{}), asker: o}
	d.names[name] = q
	if _, _, ok := mesh.ParseAddressName(name); ok {
		d.open[name] = struct{}{}
	}
	d.asks = append(d.asks, name)
	d.poke()
	return q.done, true
}

// closeLocked tells those who wait for q that it has its answer.
func (d *Demand) closeLocked(q *question) {
	close(q.done)
	o := q.asker
	q.done, q.asker = nil, nil
	o.open--
	d.idleLocked(q.owner, o)
}

func (d *Demand) poke() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// take gives what is to be sent.
func (d *Demand) take() (asks, giveUps []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	asks, giveUps, d.asks, d.giveUps = d.asks, d.giveUps, nil, nil
	return asks, giveUps
}

// begin prepares for a new stream: every name is to be asked again on it. It
// returns them.
func (d *Demand) begin() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asks, d.giveUps = nil, nil
	d.coherent = false
	names := make([]string, 0, len(d.names))
	for n := range d.names {
		names = append(names, n)
	}
	return names
}

// server takes which kind of server speaks on the stream, before any of its
// answers. That one does not send everything, as the last one did, counts at
// once: it may have nothing to say of addresses before it is asked.
func (d *Demand) server(ours, whole bool) {
	d.mu.Lock()
	d.ours, d.whole = ours, d.whole && whole
	d.mu.Unlock()
}

// mode takes what the server says of itself: it sends everything, or tells
// when an absent name appears, or (Istio's) neither.
func (d *Demand) mode(whole, coherent bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.whole, d.coherent = whole, coherent
	if !whole {
		return
	}
	for _, q := range d.names {
		if q.state == asking {
			d.closeLocked(q)
		}
	}
	clear(d.names)
	clear(d.open)
	clear(d.owners)
	d.absent, d.asks, d.giveUps = nil, nil, nil
}

// answered takes in one response after it was applied: names that were
// received, by name or alias, and names that were removed.
func (d *Demand) answered(received, removed []string) {
	at := d.store.Load()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, n := range received {
		d.receivedLocked(at, n)
	}
	if len(received) > 0 {
		// Istio's control plane answers by the name of the resource alone.
		for n := range d.open {
			d.receivedLocked(at, n)
		}
	}
	for _, n := range removed {
		q := d.names[n]
		switch {
		case q == nil:
		case q.state == asking && !d.presentLocked(at, n):
			d.absentLocked(n, q)
		case q.state == asking:
			d.foundLocked(n, q)
		case q.state == complete:
			delete(d.names, n) // the service is gone
			d.giveUps = append(d.giveUps, n)
			d.poke()
		}
	}
}

func (d *Demand) receivedLocked(at *mesh.Snapshot, n string) {
	switch q := d.names[n]; {
	case q == nil:
	case q.state == asking:
		if d.presentLocked(at, n) { // not if it was refused
			d.foundLocked(n, q)
		}
	case q.state == absent:
		d.forgetAbsentLocked(n) // it appeared, the store has it
		delete(d.names, n)
	}
}

// presentLocked reports whether the store knows what n means.
func (d *Demand) presentLocked(at *mesh.Snapshot, n string) bool {
	if network, ip, ok := mesh.ParseAddressName(n); ok {
		return at.WorkloadAt(network, ip) != nil || len(at.ServicesAt(network, ip)) > 0
	}
	return at.Service(n) != nil || at.Workload(n) != nil || hostnamed(at, n)
}

// foundLocked: of an address the store has all there is to know. A service is
// complete as long as it is there.
func (d *Demand) foundLocked(n string, q *question) {
	d.questions.WithLabelValues("found").Inc()
	delete(d.open, n)
	d.closeLocked(q)
	at := d.store.Load()
	network, ip, ok := mesh.ParseAddressName(n)
	if !ok {
		q.state, q.when = complete, d.now()
		return
	}
	delete(d.names, n)
	if d.ours {
		return // services come by themselves, without their workloads
	}
	for _, v := range at.ServicesAt(network, ip) {
		if d.names[v.Key()] == nil {
			d.names[v.Key()] = &question{state: complete, owner: q.owner, when: d.now()} // it came with its workloads
		}
	}
}

func (d *Demand) absentLocked(n string, q *question) {
	d.questions.WithLabelValues("absent").Inc()
	delete(d.open, n)
	d.closeLocked(q)
	q.state, q.when = absent, d.now()
	o := d.owners[q.owner]
	if o == nil {
		o = &owner{turns: make(chan struct{}, perOwner)}
		d.owners[q.owner] = o
	}
	o.absent = append(o.absent, n)
	d.absent = append(d.absent, n)
	if len(o.absent) > absentPerOwner {
		d.dropLocked(o.absent[0])
	}
	if len(d.absent) > absentAll {
		d.dropLocked(d.absent[0])
	}
}

// dropLocked gives an absent name up, here and at the server.
func (d *Demand) dropLocked(n string) {
	d.forgetAbsentLocked(n)
	delete(d.names, n)
	d.giveUps = append(d.giveUps, n)
	d.poke()
}

// forgetAbsentLocked takes n out of the lists of absent names, if it is in.
func (d *Demand) forgetAbsentLocked(n string) {
	q := d.names[n]
	if q == nil || q.state != absent {
		return
	}
	d.absent = without(d.absent, n)
	if o := d.owners[q.owner]; o != nil {
		o.absent = without(o.absent, n)
		d.idleLocked(q.owner, o)
	}
}

func without(list []string, n string) []string {
	if i := slices.Index(list, n); i >= 0 {
		return slices.Delete(list, i, i+1)
	}
	return list
}

func hostnamed(at *mesh.Snapshot, name string) bool {
	namespace, host, ok := strings.Cut(name, "/")
	return ok && host != "" && at.WorkloadByHostname(namespace, host) != nil
}
