package older

import (
	"errors"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/mesh/authz"
	"github.com/ambitmesh/ambit/ztunnel/live"
	"golang.org/x/sys/unix"
)

const (
	// settle is how long after the hand-over connections may still turn out to
	// be older: an agent that is not ours may capture a little later.
	//
	// It is also how long a connection is left alone that may be a probe of the
	// kubelet, which passes capture on purpose and under any policy. Its address
	// is the node's, so never a pod's that the mesh knows; and it asks once on
	// each connection and waits a second for the answer unless told otherwise.
	settle = 10 * time.Second
	// pause spaces the looks that only find out what has ended by itself.
	pause = time.Minute
	// batch bounds what is ended on one visit to the namespace.
	batch = 256
)

// pod has its older connections. Its fields belong to the goroutine of Run
// unless they say otherwise.
type pod struct {
	w       *Watch       // immutable
	live    *live.Pod    // immutable
	ns      Sockets      // immutable
	settled time.Time    // immutable; afterwards nothing is added
	refused atomic.Int64 // connections that policy refuses and that go on

	conns   []conn
	served  map[uint16]bool // local ports that some process listens on, or did
	next    time.Time       // of the next look
	last    bool            // a look after settled has been
	unasked bool            // policy has not been asked about all of conns
	again   time.Time       // when to ask although nothing changes; zero: never
	failed  bool            // the last look failed, and it was said
}

// conn is one that enters the pod.
type conn struct {
	netns.Socket
	since time.Time // first seen
}

func newPod(w *Watch, p *live.Pod, ns Sockets, now time.Time) *pod {
	return &pod{w: w, live: p, ns: ns, settled: now.Add(settle), served: map[uint16]bool{}}
}

// step does what is due for the pod and returns when to come again. more is
// false when there is nothing left to come for.
func (p *pod) step(s *mesh.Snapshot, changes mesh.Changes, all bool, now time.Time) (due time.Time, more bool) {
	if !now.Before(p.next) {
		if err := p.look(now); errors.Is(err, os.ErrClosed) {
			return time.Time{}, false
		}
		if p.last && len(p.conns) == 0 {
			p.refused.Store(0)
			return time.Time{}, false
		}
	}
	self := s.LocalWorkload(p.w.cfg.Node, p.live.Namespace, p.live.Name, p.live.ServiceAccount)
	if self == nil || len(p.conns) == 0 {
		return p.next, true // the next change may tell about it
	}
	_, moved := slices.BinarySearch(changes.Workloads, self.UID)
	patient := p.again.IsZero() || now.Before(p.again)
	if all || moved || len(changes.Policies) > 0 || p.unasked || !patient {
		var err error
		if p.again, err = p.ask(s, self, now); errors.Is(err, os.ErrClosed) {
			return time.Time{}, false
		}
		p.unasked = false
	}
	if !p.again.IsZero() && p.again.Before(p.next) {
		return p.again, true
	}
	return p.next, true
}

// look brings conns up to date with the kernel.
func (p *pod) look(now time.Time) error {
	p.next = now.Add(pause)
	if now.Before(p.settled) {
		p.next = p.settled
	}
	err := p.refresh(now)
	switch {
	case errors.Is(err, os.ErrClosed):
	case err != nil:
		p.next = now.Add(settle)
		if !p.failed {
			p.w.cfg.Logger.Warn("connections older than a pod's capture cannot be listed; policy is not applied to them", "pod", p.live.String(), "err", err, "retry", settle)
		}
		p.failed = true
	default:
		p.failed = false
		p.last = p.last || !now.Before(p.settled)
	}
	return err
}

// refresh forgets what has ended and, until a look has been when everything was
// settled, adds what enters the pod and passes the proxy.
func (p *pod) refresh(now time.Time) error {
	bypass, err := p.bypassing()
	if err != nil {
		return err
	}
	if p.last || len(bypass) == 0 {
		p.keep(bypass)
		return nil
	}
	listeners, err := p.ns.Listeners()
	if err != nil {
		return err
	}
	for _, l := range listeners {
		p.served[l.Local.Port()] = true
	}
	first, last, err := p.ns.LocalPorts()
	if err != nil {
		first, last = 32768, 60999 // Linux's default
	}
	known := p.keep(bypass)
	for _, s := range bypass {
		if !known[s.Cookie] && enters(s, p.served, first, last) {
			p.conns = append(p.conns, conn{s, now})
			p.unasked = true
		}
	}
	return nil
}

// bypassing lists the connections that the proxy has nothing to do with. Both
// families are listed one after the other, so that a connection made in
// between can show one end only; what is to be ended is looked at twice.
func (p *pod) bypassing() ([]netns.Socket, error) {
	all, err := p.ns.Connections()
	if err != nil {
		return nil, err
	}
	return netns.Uncaptured(all), nil
}

// keep drops the connections that are not among sockets, and returns the
// cookies of the others.
func (p *pod) keep(sockets []netns.Socket) map[uint64]bool {
	if len(p.conns) == 0 {
		return nil
	}
	open := make(map[uint64]netns.Socket, len(sockets))
	for _, s := range sockets {
		open[s.Cookie] = s
	}
	known := make(map[uint64]bool, len(p.conns))
	left := p.conns[:0]
	for _, c := range p.conns {
		if s, ok := open[c.Cookie]; ok {
			c.Socket = s // its state may be another
			left = append(left, c)
			known[c.Cookie] = true
		}
	}
	p.conns = left
	return known
}

// enters reports whether the pod was the one that was dialled: on a port that
// somebody listens on, which the kernel gives no outgoing connection, or at least
// on none from which it would take one for itself.
func enters(s netns.Socket, served map[uint16]bool, first, last uint16) bool {
	port := s.Local.Port()
	return served[port] || port < first || port > last
}

// ask puts every connection to policy and ends those that it refuses. If some
// are left alone for now, it returns when to ask again.
func (p *pod) ask(s *mesh.Snapshot, self *mesh.Workload, now time.Time) (again time.Time, err error) {
	later := func(t time.Time) {
		if again.IsZero() || t.Before(again) {
			again = t
		}
	}
	doomed := map[uint64]string{} // why, by cookie
	for _, c := range p.conns {
		if slices.Contains(self.Addresses, c.Remote.Addr()) {
			continue // the pod with itself, in a roundabout way
		}
		v := authz.Decide(s, self, authz.Conn{Src: c.Remote, Dst: c.Local})
		if v.Allow || v.Pending {
			continue
		}
		if end := c.since.Add(settle); now.Before(end) && s.WorkloadAt(self.Network, c.Remote.Addr()) == nil {
			later(end)
			continue
		}
		doomed[c.Cookie] = v.Reason
	}
	if len(doomed) == 0 {
		p.refused.Store(0)
		return again, nil
	}
	if p.w.unsupported {
		p.refused.Store(int64(len(doomed)))
		return again, nil
	}
	left, err := p.end(s, self, doomed)
	p.refused.Store(int64(left))
	if errors.Is(err, os.ErrClosed) {
		return again, err
	}
	if err != nil {
		p.w.cfg.Logger.Warn("connections older than a pod's capture go on although policy refuses them", "pod", p.live.String(), "connections", left, "err", err)
		if !p.w.unsupported {
			later(now.Add(settle))
		}
	}
	return again, nil
}

// end destroys connections and returns how many go on, with the first error.
func (p *pod) end(s *mesh.Snapshot, self *mesh.Workload, doomed map[uint64]string) (left int, err error) {
	bypass, err := p.bypassing()
	if err != nil {
		return len(doomed), err
	}
	p.keep(bypass)
	var todo []netns.Socket
	for _, c := range p.conns {
		if doomed[c.Cookie] != "" {
			todo = append(todo, c.Socket)
		}
	}
	gone := map[uint64]bool{}
	for part := range slices.Chunk(todo, batch) {
		results, fatal := p.ns.Destroy(part)
		if fatal != nil {
			return len(todo) - len(gone), fatal
		}
		for i, c := range part {
			switch result := results[i]; {
			case result == nil:
				gone[c.Cookie] = true
				p.say(s, self, c, doomed[c.Cookie])
			case errors.Is(result, unix.ENOENT), errors.Is(result, unix.ESTALE):
				gone[c.Cookie] = true // it has ended by itself
			case err == nil:
				err = result
			}
		}
		if errors.Is(err, unix.EOPNOTSUPP) {
			p.w.unsupported = true
			err = errNoDestroy
			break
		}
	}
	p.conns = slices.DeleteFunc(p.conns, func(c conn) bool { return gone[c.Cookie] })
	return len(todo) - len(gone), err
}

var errNoDestroy = errors.New("this kernel cannot end connections of others (CONFIG_INET_DIAG_DESTROY); restart their clients")

func (p *pod) say(s *mesh.Snapshot, self *mesh.Workload, c netns.Socket, why string) {
	var source *mesh.Workload
	if a := c.Remote.Addr(); a != (netip.Addr{}) {
		source = s.WorkloadAt(self.Network, a)
	}
	p.w.cfg.Table.Destroyed(p.live, live.Facts{
		Src: c.Remote, Dst: c.Local, Original: c.Local, Source: source, Destination: self,
	}, live.Errorf(live.OlderDenied, "connection older than the pod's enrolment ended by policy: %s", why))
}
