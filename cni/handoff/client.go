package handoff

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/ambitmesh/ambit/cni/handoff/zds"
	"github.com/ambitmesh/ambit/cni/netns"
)

// Handler is told what the agent wants served. Its methods are called from one
// goroutine, one after the other; the Ack is sent when the method has returned.
type Handler interface {
	// Add serves p from now on. It owns p's descriptors whatever it returns
	// and closes them when it does not keep them. A known uid with the same
	// network namespace is a no-op, with another one the old pod is replaced.
	// The error goes to the agent; the pod then counts as pending.
	Add(ctx context.Context, p Pod) error
	// Del ends serving uid. Unknown uids are not an error. Before the snapshot
	// is complete it only takes uid out of the wanted set.
	Del(uid string)
	// Retire accepts no more for uid and gives its listeners up, which somebody
	// else is about to make; its connections go on to their end.
	Retire(uid string)
	// Keep marks uid as still wanted although its pod is not handed over again.
	Keep(uid string)
	// SnapshotDone ends the snapshot: what was served before this connection
	// and was neither added nor kept on it ends.
	SnapshotDone()
}

// ClientConfig is what the ztunnel's end needs.
type ClientConfig struct {
	Path    string // the agent's socket
	Version string // ours, told to an agent that understands it
	Slots   bool   // ask for the slot dialect
	Handler Handler
	// Ready is told true when a snapshot is complete and false when the
	// connection is lost. May be nil.
	Ready  func(bool)
	Logger *slog.Logger
}

// ViolationError is a message that leaves unknown which pods are to be served:
// an Add that does not name its pod, or a snapshot that goes on after its end.
// Carrying on would mean serving the wrong set, so the process is to end and
// start over.
type ViolationError struct{ What string }

func (e *ViolationError) Error() string { return "zds: protocol violation: " + e.What }

// Prefixes of the texts in error Acks, as other agents' operators know them.
const (
	ackStart   = "failure to start proxy : "
	ackProcess = "failure to process message : "
	ackRead    = "failure to read message : "
)

// RunClient keeps a connection to the agent until ctx ends, which is not an
// error. It returns a *ViolationError when the agent breaks the protocol in a
// way that leaves unknown which pods are to be served.
func RunClient(ctx context.Context, cfg ClientConfig) error {
	if cfg.Ready == nil {
		cfg.Ready = func(bool) {}
	}
	// Others wait up to 15 s. The socket is local, looking costs nothing, and
	// pods that start while an agent is replaced wait for this.
	dial := backoff{first: 20 * time.Millisecond, cap: time.Second}
	lost := backoff{first: 5 * time.Millisecond, cap: 15 * time.Second, jitter: 0.2}
	for {
		conn, err := connect(ctx, cfg.Path)
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return nil
		}
		if err != nil {
			if dial.last < dial.cap { // after that it would be a line per second
				cfg.Logger.Warn("cannot reach the node agent", "socket", cfg.Path, "err", err)
			}
			wait := dial.next()
			if !sleep(ctx, wait) {
				return nil
			}
			continue
		}
		dial.reset()
		s := session{conn: conn, cfg: cfg}
		err = s.run(ctx)
		cfg.Ready(false)
		if ctx.Err() != nil {
			return nil
		}
		var violation *ViolationError
		if errors.As(err, &violation) {
			return violation
		}
		if s.heard {
			lost.reset()
			cfg.Logger.Warn("connection to the node agent lost", "socket", cfg.Path, "err", err)
			continue // a restarted agent is waited for in connect, not here
		}
		// Not a single request: the agent turned us away. Without a pause
		// this would be a busy loop.
		wait := lost.next()
		cfg.Logger.Warn("node agent closed before its first message", "socket", cfg.Path, "err", err, "retry", wait)
		if !sleep(ctx, wait) {
			return nil
		}
	}
}

func connect(ctx context.Context, path string) (*net.UnixConn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unixpacket", path)
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}

// session is one connection to the agent.
type session struct {
	// immutable
	conn *net.UnixConn
	cfg  ClientConfig

	// owned by run
	heard    bool // a request has arrived
	complete bool // SnapshotSent has arrived
}

func (s *session) run(ctx context.Context) error {
	defer s.conn.Close()
	// The only way to end a blocked read; AfterFunc's goroutine ends at once.
	stop := context.AfterFunc(ctx, func() { s.conn.Close() })
	defer stop()

	h := hello{dialect: dialectPort, version: s.cfg.Version}
	if s.cfg.Slots {
		h.dialect = dialectSlot
	}
	b, err := h.encode()
	if err != nil {
		return err
	}
	if err := writeDatagram(s.conn, b, nil); err != nil {
		return fmt.Errorf("send ZdsHello: %w", err)
	}
	for {
		b, files, err := readDatagram(s.conn)
		if err != nil {
			var bad *frameError
			if errors.As(err, &bad) {
				s.heard = true
				return s.refuse(ackRead, err)
			}
			return err
		}
		s.heard = true
		if err := s.handle(ctx, b, files); err != nil {
			return err
		}
	}
}

// handle answers one request; an error ends the connection. It owns files.
func (s *session) handle(ctx context.Context, b []byte, files []*os.File) error {
	req := new(zds.WorkloadRequest)
	if err := proto.Unmarshal(b, req); err != nil {
		closeAll(files)
		return s.refuse(ackRead, fmt.Errorf("WorkloadRequest: %w", err))
	}
	add, isAdd := req.Payload.(*zds.WorkloadRequest_Add)
	if len(files) > 0 && !isAdd {
		closeAll(files)
		return s.refuse(ackRead, fmt.Errorf("%T carries %d descriptors, want none", req.Payload, len(files)))
	}
	switch m := req.Payload.(type) {
	case *zds.WorkloadRequest_Add:
		return s.handleAdd(ctx, add.Add, files)
	case *zds.WorkloadRequest_Keep:
		if s.complete {
			return s.violate("Keep of " + m.Keep.GetUid() + " after SnapshotSent")
		}
		s.cfg.Handler.Keep(m.Keep.GetUid())
	case *zds.WorkloadRequest_Del:
		if retires(m.Del) {
			s.cfg.Handler.Retire(m.Del.GetUid())
		} else {
			s.cfg.Handler.Del(m.Del.GetUid())
		}
	case *zds.WorkloadRequest_SnapshotSent:
		if s.complete {
			return s.violate("second SnapshotSent")
		}
		s.complete = true
		s.cfg.Handler.SnapshotDone()
		if err := s.ack(""); err != nil {
			return err
		}
		s.cfg.Ready(true)
		return nil
	default:
		return s.refuse(ackRead, errors.New("WorkloadRequest: field payload: have none"))
	}
	return s.ack("")
}

func (s *session) handleAdd(ctx context.Context, add *zds.AddWorkload, files []*os.File) error {
	info := add.GetWorkloadInfo()
	if info == nil {
		closeAll(files)
		return s.violate("Add of " + add.GetUid() + " without workload_info")
	}
	listeners, err := sortSockets(add, files)
	if err != nil {
		closeAll(files)
		return s.refuse(ackRead, err)
	}
	ns, err := netns.FromFile(files[0])
	if err != nil {
		closeAll(files)
		return s.refuse(ackRead, fmt.Errorf("AddWorkload %s: descriptor of the network namespace: %w", add.GetUid(), err))
	}
	p := Pod{
		UID:            add.GetUid(),
		Name:           info.GetName(),
		Namespace:      info.GetNamespace(),
		ServiceAccount: info.GetServiceAccount(),
		FromStart:      fromStart(add),
		NS:             ns,
		Listeners:      listeners,
	}
	if err := s.cfg.Handler.Add(ctx, p); err != nil {
		// This one pod is pending; the connection is as good as before.
		return s.ack(ackStart + err.Error())
	}
	return s.ack("")
}

// sortSockets checks that the descriptors are the namespace and, where the Add
// says so, sockets of the kinds it names.
func sortSockets(add *zds.AddWorkload, files []*os.File) (*Listeners, error) {
	kinds, err := socketKinds(add)
	if err != nil {
		return nil, err
	}
	if len(files) != 1+len(kinds) {
		return nil, fmt.Errorf("AddWorkload %s: want %d descriptors, have %d", add.GetUid(), 1+len(kinds), len(files))
	}
	if len(kinds) == 0 {
		return nil, nil
	}
	l := new(Listeners)
	for i, k := range kinds {
		if !l.put(k, files[1+i]) {
			return nil, fmt.Errorf("AddWorkload %s: two sockets of kind %d", add.GetUid(), k)
		}
	}
	if l.Outbound == nil || l.Inbound == nil || len(l.HBONE) == 0 {
		return nil, fmt.Errorf("AddWorkload %s: outbound, inbound and HBONE sockets are all needed, have kinds %v", add.GetUid(), kinds)
	}
	return l, nil
}

// ack answers a request.
func (s *session) ack(text string) error {
	b, err := encodeAck(text)
	if err != nil {
		return err
	}
	if err := writeDatagram(s.conn, b, nil); err != nil {
		return fmt.Errorf("send Ack: %w", err)
	}
	return nil
}

// refuse answers a message that cannot be read, and gives up the connection:
// what was said in it is unknown, and a new snapshot will say it again.
func (s *session) refuse(prefix string, err error) error {
	return errors.Join(err, s.ack(prefix+err.Error()))
}

func (s *session) violate(what string) error {
	v := &ViolationError{What: what}
	return errors.Join(v, s.ack(ackProcess+what))
}

// backoff doubles from first to cap.
type backoff struct {
	first, cap time.Duration
	jitter     float64
	last       time.Duration
}

func (b *backoff) next() time.Duration {
	b.last = min(max(b.first, 2*b.last), b.cap)
	return time.Duration(float64(b.last) * (1 + b.jitter*(2*rand.Float64()-1)))
}

func (b *backoff) reset() { b.last = 0 }

// sleep reports whether d passed before ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

var _ io.Closer = Pod{} // both ends close pods the same way
