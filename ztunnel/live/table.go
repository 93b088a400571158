package live

import (
	"cmp"
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/mesh/authz"
	"github.com/prometheus/client_golang/prometheus"
)

// Config of a Table.
type Config struct {
	Store      *mesh.Store
	Metrics    *Metrics
	Registerer prometheus.Registerer
	Logger     *slog.Logger // the access log gets scope "access"
	// LogBurst and LogRate bound the lines per pod and reason; zero means 20
	// and 2 per second.
	LogBurst, LogRate float64
	// Progress is how often a connection that stays open gets a line; 0: never.
	Progress time.Duration
	// PolicyInfo logs decisions of policy at level info instead of debug.
	PolicyInfo bool
	Now        func() time.Time // nil: time.Now
}

// Table holds the open connections of all pods of the node.
type Table struct {
	// immutable
	ctx         context.Context // for slog only; never ends
	store       *mesh.Store
	metrics     *Metrics
	log         *slog.Logger
	access      *slog.Logger
	policy      *slog.Logger
	policyLevel slog.Level
	limit       *limiter
	progress    time.Duration
	now         func() time.Time

	pausedSaid seldom
	strangers  strangers

	mu   sync.Mutex
	open map[*Conn]struct{} // guarded by mu
}

// New makes an empty table. With a Registerer it also reports how many
// connections are open.
func New(cfg Config) *Table {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.LogBurst == 0 {
		cfg.LogBurst = 20
	}
	if cfg.LogRate == 0 {
		cfg.LogRate = 2
	}
	t := &Table{
		ctx: context.Background(), store: cfg.Store, metrics: cfg.Metrics,
		log: cfg.Logger, access: cfg.Logger.With(ScopeKey, "access"), limit: newLimiter(cfg.LogBurst, cfg.LogRate), progress: cfg.Progress,
		now: cfg.Now, open: map[*Conn]struct{}{},
		policy: cfg.Logger.With(ScopeKey, "policy"), policyLevel: slog.LevelDebug,
	}
	if cfg.PolicyInfo {
		t.policyLevel = slog.LevelInfo
	}
	if cfg.Registerer != nil {
		cfg.Registerer.MustRegister(&openGauge{t})
	}
	return t
}

// Metrics of the table.
func (t *Table) Metrics() *Metrics { return t.metrics }

func (t *Table) add(c *Conn) {
	t.mu.Lock()
	t.open[c] = struct{}{}
	t.mu.Unlock()
}

func (t *Table) remove(c *Conn) {
	t.mu.Lock()
	delete(t.open, c)
	t.mu.Unlock()
}

func (t *Table) collect(keep func(*Conn) bool) []*Conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []*Conn
	for c := range t.open {
		if keep(c) {
			out = append(out, c)
		}
	}
	return out
}

// Len counts the open connections, those of one pod if pod is not nil.
func (t *Table) Len(pod *Pod) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if pod == nil {
		return len(t.open)
	}
	n := 0
	for c := range t.open {
		if c.pod == pod {
			n++
		}
	}
	return n
}

// CutPod ends every open connection of a pod, and those that are being opened.
func (t *Table) CutPod(pod *Pod, e *Error) {
	pod.cut.CompareAndSwap(nil, e)
	for _, c := range t.collect(func(c *Conn) bool { return c.pod == pod }) {
		c.Cut(e)
	}
}

// Run asks policy about every open inbound connection whenever the snapshot
// changes, and reports suppressed log lines. It returns when ctx ends.
func (t *Table) Run(ctx context.Context) error {
	tick := time.NewTicker(10 * time.Second)
	defer tick.Stop()
	var asked mesh.Mark
	for {
		changed := t.store.Changed()
		s := t.store.Load()
		changes, known := t.store.Changes(asked, s)
		asked = s.Mark()
		t.recheck(s, func(workload string) bool { return !known || concerns(changes, workload) })
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-tick.C:
			t.report(t.now())
			for _, l := range t.limit.sweep(t.now()) {
				t.access.LogAttrs(t.ctx, slog.LevelWarn, "connections failed, lines suppressed",
					slog.String("pod", l.pod), slog.String("reason", string(l.reason)), slog.Uint64("suppressed", l.suppressed))
			}
		}
	}
}

// concerns reports whether changes can make a difference to what policy says
// about connections to a workload: those of a busy mesh are mostly other pods
// that come and go.
func concerns(changes mesh.Changes, workload string) bool {
	_, itself := slices.BinarySearch(changes.Workloads, workload)
	return itself || len(changes.Policies) > 0
}

// Recheck closes the inbound connections that s denies. A policy that is
// named but has not arrived never closes one (the control plane may send the
// workload before the policy).
func (t *Table) Recheck(s *mesh.Snapshot) {
	if s != nil {
		t.recheck(s, func(string) bool { return true })
	}
}

// recheck is about connections to the workloads that some tells by UID.
func (t *Table) recheck(s *mesh.Snapshot, some func(workload string) bool) {
	for _, c := range t.collect(func(c *Conn) bool { return c.facts.Check != nil && some(c.facts.Check.Workload.UID) }) {
		w := c.facts.Check.Workload
		if cur := s.Workload(w.UID); cur != nil {
			w = cur
		}
		v := authz.Decide(s, w, c.facts.Check.Conn)
		if !v.Allow && !v.Pending {
			c.Cut(Errorf(PolicyChanged, "connection closed due to policy change: %s", v.Reason))
		}
	}
}

// Connection is one open connection in the admin dump.
type Connection struct {
	Reporter      Reporter
	Src, Original netip.AddrPort
	Actual        netip.AddrPort
	Protocol      string
}

// Connections lists a pod's open connections, ordered by source.
func (t *Table) Connections(pod *Pod) []Connection {
	var out []Connection
	for _, c := range t.collect(func(c *Conn) bool { return c.pod == pod }) {
		p := "TCP"
		if c.facts.HBONE {
			p = "HBONE"
		}
		if c.facts.Double {
			p = "DOUBLEHBONE"
		}
		out = append(out, Connection{c.reporter, c.facts.Src, c.facts.Original, c.facts.Dst, p})
	}
	slices.SortFunc(out, func(a, b Connection) int {
		return cmp.Or(a.Src.Compare(b.Src), a.Actual.Compare(b.Actual))
	})
	return out
}

// Flush moves the bytes of running copies into the metrics. Call it before
// they are read: so byte counters are live without a lock per read.
func (t *Table) Flush() {
	for _, c := range t.collect(func(c *Conn) bool { return !c.ended.Load() }) {
		c.flush()
	}
}

// openGauge reports the number of open connections.
type openGauge struct{ t *Table }

var openDesc = prometheus.NewDesc("ambit_connections_open", "Proxied connections that are open (unstable)", []string{"reporter"}, nil)

func (g *openGauge) Describe(ch chan<- *prometheus.Desc) { ch <- openDesc }

func (g *openGauge) Collect(ch chan<- prometheus.Metric) {
	var n [2]int
	for _, c := range g.t.collect(func(*Conn) bool { return true }) {
		n[c.reporter]++
	}
	for _, r := range []Reporter{Source, Destination} {
		ch <- prometheus.MustNewConstMetric(openDesc, prometheus.GaugeValue, float64(n[r]), r.String())
	}
}
