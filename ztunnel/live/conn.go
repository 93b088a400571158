package live

import (
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/mesh/authz"
	"github.com/ambitmesh/ambit/hbone/identity"
)

// Pod is the local pod whose listener accepted a connection. It is used by
// pointer: a pod that is replaced under the same UID is another Pod.
type Pod struct {
	UID, Name, Namespace, ServiceAccount string

	cut atomic.Pointer[Error] // set once, by CutPod
}

func (p *Pod) String() string { return p.Namespace + "/" + p.Name }

// Facts are what is known of a connection once it has been routed. They do
// not change afterwards.
type Facts struct {
	Src, Dst  netip.AddrPort // as logged: peer, and actual TCP destination
	Original  netip.AddrPort // what the application dialled, for the dump
	Authority string         // CONNECT authority; "" unless HBONE
	HBONE     bool
	Double    bool // HBONE in HBONE, through a gateway

	Source, Destination     *mesh.Workload
	SourceID, DestinationID identity.ID // set for mTLS only
	// Client and ClientID are for whom a waypoint makes the connection.
	Client   netip.AddrPort
	ClientID identity.ID
	Service  *mesh.Service
	// Check is set for inbound connections: what policy is asked about, now
	// and at every change.
	Check *Check
}

// Check names the workload a connection enters and the connection's facts for
// authorization.
type Check struct {
	Workload *mesh.Workload // as of the start; the current record of the same UID is asked
	Conn     authz.Conn
}

// Counter gives the plaintext bytes of a running copy: from the client to the
// server and back. It may be called at any time from any goroutine.
type Counter interface {
	Received() uint64 // client → server
	Sent() uint64     // server → client
}

// Conn is the record of one proxied connection, from accept to its single log
// line.
type Conn struct {
	// immutable
	t        *Table
	pod      *Pod
	reporter Reporter
	start    time.Time

	// owned by the goroutine of the connection until Open, then immutable
	facts  Facts
	series *series
	key    labelKey

	mu       sync.Mutex
	counter  Counter     // guarded by mu
	cut      func(error) // guarded by mu
	cause    *Error      // guarded by mu; set once
	reported [2]uint64   // guarded by mu; bytes already in the metrics

	said  atomic.Int64 // when the last line about it was written while it was open; 0: never
	ended atomic.Bool
}

// Accept opens a record for a connection that pod's listener accepted.
func (t *Table) Accept(pod *Pod, r Reporter) *Conn {
	return &Conn{t: t, pod: pod, reporter: r, start: t.now()}
}

// Open registers the connection: it counts as opened, is listed, and is found
// by the re-check from here on. Call it before the first authorization.
func (c *Conn) Open(f Facts) {
	c.facts = f
	c.key = labelKey{
		reporter:    c.reporter,
		source:      partyOf(f.Source, f.SourceID),
		destination: partyOf(f.Destination, f.DestinationID),
		mtls:        f.HBONE,
	}
	if f.Destination != nil { // the reference's: from the record, whatever the wire
		c.key.destination.principal = f.Destination.Identity()
	}
	if f.Service != nil {
		c.key.service, c.key.serviceNS, c.key.serviceName = f.Service.Hostname, f.Service.Namespace, f.Service.Name
	}
	c.series = c.t.metrics.series(&c.key)
	c.series.opened.Inc()
	c.t.add(c)
	if e := c.pod.cut.Load(); e != nil {
		c.Cut(e) // CutPod may have looked before c was added
	}
	if c.t.access.Enabled(c.t.ctx, slog.LevelDebug) {
		c.t.access.LogAttrs(c.t.ctx, slog.LevelDebug, "connection opened", c.who(nil)...)
	}
}

// OnCut names what ends the connection when policy, drain or removal does. If
// that has happened already, cut is called at once.
func (c *Conn) OnCut(cut func(error)) {
	c.mu.Lock()
	cause := c.cause
	c.cut = cut
	c.mu.Unlock()
	if cause != nil {
		cut(cause)
	}
}

// Count names the byte counters of the copy.
func (c *Conn) Count(n Counter) {
	c.mu.Lock()
	c.counter = n
	c.mu.Unlock()
}

// Cut ends the connection with a reason. Only the first reason counts.
func (c *Conn) Cut(e *Error) {
	c.mu.Lock()
	if c.cause != nil {
		c.mu.Unlock()
		return
	}
	c.cause = e
	cut := c.cut
	c.mu.Unlock()
	if cut != nil {
		cut(e)
	}
}

// Err is the cause the connection was cut for, nil if it was not.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause == nil {
		return nil
	}
	return c.cause
}

// flush moves the bytes not yet reported into the metrics.
func (c *Conn) flush() (received, sent uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.counter == nil {
		return 0, 0
	}
	received, sent = c.counter.Received(), c.counter.Sent()
	if d := received - c.reported[0]; d > 0 {
		c.series.received.Add(float64(d))
	}
	if d := sent - c.reported[1]; d > 0 {
		c.series.sent.Add(float64(d))
	}
	c.reported = [2]uint64{received, sent}
	return received, sent
}

// reasonOf finds the reason in an error's chain.
func reasonOf(err error) Reason {
	if err == nil {
		return ""
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return Internal
}

// End closes the record: counters, and the one log line. err is nil for a
// connection that ended in order. Only the first End counts.
func (c *Conn) End(err error) {
	if c.ended.Swap(true) {
		return
	}
	if e := c.pod.cut.Load(); e != nil && c.series == nil && err != nil {
		err = e // whatever it was given up at
	}
	c.mu.Lock()
	if c.cause != nil {
		err = c.cause // what cut it, not what the cut looked like from inside
	} else {
		c.cause = &Error{Reason: reasonOf(err), Err: err}
	}
	c.mu.Unlock()
	reason := reasonOf(err)
	if c.series == nil {
		c.early(err, reason)
		return
	}
	c.t.remove(c)
	received, sent := c.flush()
	m := c.t.metrics
	if flag := reason.Flag(); flag == FlagNone {
		c.series.closed.Inc()
	} else {
		v := c.key.values(flag)
		m.closed.WithLabelValues(v...).Inc()
		m.failed.WithLabelValues(v...).Inc()
	}
	level := slog.LevelInfo
	var suppressed uint64
	if err != nil {
		m.reasons.WithLabelValues(c.reporter.String(), string(reason)).Inc()
		// A reset is an application's choice, not the mesh's failure.
		if reason != ClientReset && reason != ServerReset {
			level = slog.LevelError
		}
		var ok bool
		if ok, suppressed = c.allow(reason); !ok {
			return
		}
	}
	if !c.t.access.Enabled(c.t.ctx, level) {
		return
	}
	attrs := c.carried(c.who(make([]slog.Attr, 0, 24)), received, sent, c.t.now())
	attrs = failure(attrs, err, reason, suppressed)
	c.t.access.LogAttrs(c.t.ctx, level, "connection complete", attrs...)
}

// Destroyed records the end of a connection that the proxy has never carried and
// that policy had ended: it counts as failed, neither as opened nor as closed, and
// gets one line.
func (t *Table) Destroyed(pod *Pod, f Facts, e *Error) {
	c := &Conn{t: t, pod: pod, reporter: Destination, facts: f}
	k := labelKey{reporter: Destination, source: partyOf(f.Source, f.SourceID), destination: partyOf(f.Destination, f.DestinationID)}
	if f.Destination != nil {
		k.destination.principal = f.Destination.Identity()
	}
	t.metrics.failed.WithLabelValues(k.values(e.Reason.Flag())...).Inc()
	t.metrics.reasons.WithLabelValues(Destination.String(), string(e.Reason)).Inc()
	ok, suppressed := c.allow(e.Reason)
	if !ok || !t.access.Enabled(t.ctx, slog.LevelError) {
		return
	}
	t.access.LogAttrs(t.ctx, slog.LevelError, "connection destroyed", failure(c.who(make([]slog.Attr, 0, 16)), e, e.Reason, suppressed)...)
}

// Deny closes a record that was never opened: a connection refused before its
// parties were known. It gets the short line.
func (c *Conn) Deny(src, dst netip.AddrPort, err error) {
	if c.series == nil {
		c.facts.Src, c.facts.Dst = src, dst
	}
	c.End(err)
}

func (c *Conn) early(err error, reason Reason) {
	if err == nil {
		return
	}
	c.t.metrics.reasons.WithLabelValues(c.reporter.String(), string(reason)).Inc()
	ok, suppressed := c.allow(reason)
	if !ok {
		return
	}
	attrs := make([]slog.Attr, 0, 8)
	attrs = address(attrs, "src.addr", c.facts.Src)
	attrs = address(attrs, "dst.addr", c.facts.Dst)
	attrs = append(attrs, slog.String("direction", c.reporter.Direction()))
	c.t.access.LogAttrs(c.t.ctx, slog.LevelWarn, "connection failed", failure(attrs, err, reason, suppressed)...)
}

func (c *Conn) allow(r Reason) (bool, uint64) {
	ok, n := c.t.limit.allow(limitKey{c.pod.UID, r}, c.t.now())
	if !ok {
		c.t.metrics.suppressed.Inc()
	}
	return ok, n
}

func failure(attrs []slog.Attr, err error, reason Reason, suppressed uint64) []slog.Attr {
	if err == nil {
		return attrs
	}
	attrs = append(attrs, slog.String("error", err.Error()), slog.String("reason", string(reason)))
	if suppressed > 0 {
		attrs = append(attrs, slog.Uint64("suppressed", suppressed))
	}
	return attrs
}

func address(attrs []slog.Attr, key string, a netip.AddrPort) []slog.Attr {
	if !a.IsValid() {
		return attrs
	}
	return append(attrs, slog.Any(key, a))
}

// who appends the fields that name the parties, in the reference's order.
func (c *Conn) who(attrs []slog.Attr) []slog.Attr {
	f := &c.facts
	attrs = address(attrs, "src.addr", f.Src)
	attrs = side(attrs, &sourceFields, f.Source, f.SourceID)
	if !f.ClientID.IsZero() {
		attrs = address(attrs, "client.addr", f.Client)
		attrs = append(attrs, slog.String("client.identity", f.ClientID.String()))
	}
	attrs = address(attrs, "dst.addr", f.Dst)
	if f.Authority != "" {
		attrs = append(attrs, slog.Any("dst.hbone_addr", Text(f.Authority)))
	}
	if f.Service != nil {
		attrs = append(attrs, slog.String("dst.service", f.Service.Hostname))
	}
	attrs = side(attrs, &destinationFields, f.Destination, f.DestinationID)
	return append(attrs, slog.String("direction", c.reporter.Direction()))
}

type sideFields struct{ workload, namespace, identity, cluster string }

var (
	sourceFields      = sideFields{"src.workload", "src.namespace", "src.identity", "src.cluster"}
	destinationFields = sideFields{"dst.workload", "dst.namespace", "dst.identity", "dst.cluster"}
)

func side(attrs []slog.Attr, names *sideFields, w *mesh.Workload, id identity.ID) []slog.Attr {
	if w != nil {
		name := w.Name
		if name == "" {
			name = w.CanonicalName
		}
		attrs = append(attrs, slog.String(names.workload, name), slog.String(names.namespace, w.Namespace))
	}
	if !id.IsZero() {
		attrs = append(attrs, slog.String(names.identity, id.String()))
	}
	if w != nil {
		attrs = append(attrs, slog.String(names.cluster, cluster(w)))
	}
	return attrs
}
