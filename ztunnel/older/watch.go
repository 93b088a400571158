package older

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/ztunnel/live"
	"github.com/prometheus/client_golang/prometheus"
)

// Sockets is a pod's network namespace; *netns.NS is one.
type Sockets interface {
	Connections() ([]netns.Socket, error)
	Listeners() ([]netns.Socket, error)
	LocalPorts() (first, last uint16, err error)
	Destroy([]netns.Socket) ([]error, error)
}

// Config of a Watch.
type Config struct {
	Node       string // "" takes workloads of any node for local
	Store      *mesh.Store
	Table      *live.Table
	Registerer prometheus.Registerer // may be nil
	Logger     *slog.Logger
}

// Watch asks policy about the older connections of all pods that are served. A
// pod costs nothing once it has none left.
type Watch struct {
	cfg  Config        // immutable
	wake chan struct{} // one slot: a pod was added

	mu   sync.Mutex
	pods map[*live.Pod]*pod // guarded by mu; the values belong to Run

	// owned by Run
	asked       mesh.Mark // the snapshot of the last pass
	unsupported bool      // the kernel cannot end connections; it was said
}

// New makes a Watch; it has no effects before Run but registering a metric.
func New(cfg Config) *Watch {
	w := &Watch{cfg: cfg, wake: make(chan struct{}, 1), pods: map[*live.Pod]*pod{}}
	if cfg.Registerer != nil {
		cfg.Registerer.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "ambit_older_connections_refused",
			Help: "Open connections, older than the capture of their pod, that policy refuses and that could not be ended (unstable)"},
			func() float64 { return float64(w.refused()) }))
	}
	return w
}

// Add begins with a pod that is captured already: what is open then and not the
// proxy's is older. The namespace stays the caller's; once it is closed the pod
// is forgotten.
func (w *Watch) Add(p *live.Pod, ns Sockets) {
	w.mu.Lock()
	w.pods[p] = newPod(w, p, ns, time.Now())
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Remove forgets a pod.
func (w *Watch) Remove(p *live.Pod) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.pods, p)
}

// Run asks until ctx ends.
func (w *Watch) Run(ctx context.Context) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		changed := w.cfg.Store.Changed()
		due := w.pass(ctx, w.cfg.Store.Load())
		timer.Stop()
		var later <-chan time.Time
		if !due.IsZero() {
			timer.Reset(time.Until(due))
			later = timer.C
		}
		if w.idle() {
			changed = nil // nobody to ask for: an update of the mesh wakes nobody
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-w.wake:
		case <-later:
		}
	}
}

// pass asks about every pod and returns when the next has to be looked at
// though nothing changes.
func (w *Watch) pass(ctx context.Context, s *mesh.Snapshot) (due time.Time) {
	changes, ok := w.cfg.Store.Changes(w.asked, s)
	w.asked = s.Mark()
	for _, p := range w.list() {
		if ctx.Err() != nil {
			return time.Time{}
		}
		next, more := p.step(s, changes, !ok, time.Now())
		if !more {
			w.drop(p)
			continue
		}
		if due.IsZero() || next.Before(due) {
			due = next
		}
	}
	return due
}

func (w *Watch) list() []*pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]*pod, 0, len(w.pods))
	for _, p := range w.pods {
		out = append(out, p)
	}
	return out
}

func (w *Watch) idle() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.pods) == 0
}

// drop forgets p unless it was added anew meanwhile.
func (w *Watch) drop(p *pod) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pods[p.live] == p {
		delete(w.pods, p.live)
	}
}

func (w *Watch) refused() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, p := range w.pods {
		n += int(p.refused.Load())
	}
	return n
}
