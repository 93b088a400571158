package handoff

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNoClient says that no ztunnel is connected: nobody serves the pod yet.
var ErrNoClient = errors.New("no ztunnel is connected")

// AckError is a ztunnel's own refusal of a message. The connection is fine and
// the ztunnel retries the pod by itself.
type AckError struct{ Text string }

func (e *AckError) Error() string { return "ztunnel answered: " + e.Text }

const (
	defaultDeadline = 5 * time.Second
	// maxClients bounds the generations of ztunnels that overlap in upgrades,
	// each of which costs descriptors of every pod.
	maxClients = 8
	// acceptPause spaces connections: a ztunnel that crashes in a loop must
	// not make the agent repeat the snapshot as fast as it can.
	acceptPause = 50 * time.Millisecond
)

// ServerConfig is what the agent's end needs.
type ServerConfig struct {
	// Snapshot returns every pod that a ztunnel has to serve. It is called
	// once for each new connection, after which changes reach that connection
	// by Add and Del. The server duplicates the descriptors before it sends
	// them, so a pod may be closed at any time; a closed one is passed over.
	Snapshot func() []Pod
	// Keep returns the uids of pods that are enrolled but cannot be handed
	// over at present; a ztunnel that serves one goes on doing so. May be nil.
	Keep func() []string
	// Synced is called when a ztunnel has acknowledged its whole snapshot,
	// with the uids it accepted. From then on Add may be tried again for pods
	// that met ErrNoClient. Called from the connection's goroutine. May be nil.
	Synced func(served []string)
	// Acked is called after each Add that a ztunnel of the port dialect has
	// acknowledged: its listeners for the pod exist. An error leaves the pod
	// pending. Called from the connection's goroutine. May be nil.
	Acked func(Client, Pod) error
	// Gone is called when a ztunnel has disconnected. Called from the
	// connection's goroutine. May be nil.
	Gone func()
	// CheckPeer decides from the credentials of the connecting process whether
	// it may have the pods of this node. nil admits whoever can open the socket.
	CheckPeer func(unix.Ucred) error
	// Deadline bounds the wait for one Ack and for the hello; 0 means 5 s.
	Deadline time.Duration
	Logger   *slog.Logger
}

// Client describes one connected ztunnel.
type Client struct {
	Version string // as told in the hello; empty when foreign
	Foreign bool   // it makes its own listeners: the port dialect
	PID     int
	Since   time.Time
	Synced  bool // the snapshot has been acknowledged
}

// Server is the agent's end. Its methods may be called from any goroutine.
type Server struct {
	// immutable
	cfg      ServerConfig
	path     string
	listener *net.UnixListener

	mu    sync.Mutex
	peers []*peer // guarded by mu; oldest first
}

// Listen takes the socket at path, replacing one that a dead agent left. Only
// root can open it.
func Listen(path string, cfg ServerConfig) (*Server, error) {
	if cfg.Deadline == 0 {
		cfg.Deadline = defaultDeadline
	}
	// Bind under another name and rename: between bind and chmod the mode is
	// what umask says, and a client must never find a half-made socket.
	temporary := path + ".new"
	if err := os.Remove(temporary); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("zds socket %s: %w", path, err)
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: temporary, Net: "unixpacket"})
	if err != nil {
		return nil, fmt.Errorf("zds socket %s: %w", path, err)
	}
	// A successor may have the path already when this agent ends.
	l.SetUnlinkOnClose(false)
	err = os.Chmod(temporary, 0o600)
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		l.Close()
		os.Remove(temporary)
		return nil, fmt.Errorf("zds socket %s: %w", path, err)
	}
	return &Server{cfg: cfg, path: path, listener: l}, nil
}

// Run accepts ztunnels until ctx ends, closes them and returns when every
// connection's goroutines have.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { s.listener.Close() })
	defer stop()
	for {
		conn, err := s.listener.AcceptUnix()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			// Out of descriptors is worth waiting for; the agent must not die.
			s.cfg.Logger.Error("cannot accept a ztunnel", "socket", s.path, "err", err)
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("zds socket %s: %w", s.path, err)
			}
		} else {
			wg.Go(func() { s.serve(ctx, conn) })
		}
		if !sleep(ctx, acceptPause) {
			return nil
		}
	}
}

// Close releases the socket of a server that is never run.
func (s *Server) Close() error { return s.listener.Close() }

// Add hands p to the newest ztunnel and waits for its Ack. p's descriptors
// remain the caller's. When the newest speaks the other dialect than p is made
// for, that is ErrNoClient: nobody who could serve it is there yet.
func (s *Server) Add(ctx context.Context, p Pod) error {
	s.mu.Lock()
	var newest *peer
	if n := len(s.peers); n > 0 {
		newest = s.peers[n-1]
	}
	s.mu.Unlock()
	if newest == nil || newest.hello.dialect != p.dialect() {
		return ErrNoClient
	}
	if err := newest.request(ctx, func() error { return newest.add(p) }); err != nil {
		return fmt.Errorf("hand pod %s to ztunnel %d: %w", p, newest.pid, err)
	}
	return nil
}

// Del tells every ztunnel that uid is gone and waits for their Acks. A ztunnel
// that disconnects meanwhile learns it from its next snapshot.
func (s *Server) Del(ctx context.Context, uid string) error {
	return s.withdraw(ctx, uid, func(p *peer) error { return p.exchange(encodeDel(uid)) })
}

// Retire has every ztunnel of the slot dialect give up the listeners of uid
// and let its connections end by themselves.
func (s *Server) Retire(ctx context.Context, uid string) error {
	return s.withdraw(ctx, uid, func(p *peer) error {
		if p.hello.dialect != dialectSlot {
			return nil
		}
		return p.exchange(encodeRetire(uid))
	})
}

func (s *Server) withdraw(ctx context.Context, uid string, say func(*peer) error) error {
	s.mu.Lock()
	peers := append([]*peer(nil), s.peers...)
	s.mu.Unlock()
	errs := make([]error, len(peers))
	var wg sync.WaitGroup
	for i, p := range peers {
		wg.Go(func() {
			err := p.request(ctx, func() error { return say(p) })
			if err != nil && !errors.Is(err, ErrNoClient) {
				errs[i] = fmt.Errorf("withdraw pod %s from ztunnel %d: %w", uid, p.pid, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Clients lists the connected ztunnels, oldest first.
func (s *Server) Clients() []Client {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Client, 0, len(s.peers))
	for _, p := range s.peers {
		out = append(out, p.client())
	}
	return out
}

// serve is one connection from its first byte to its last.
func (s *Server) serve(ctx context.Context, conn *net.UnixConn) {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	p, err := s.greet(conn)
	if err != nil {
		s.cfg.Logger.Warn("ztunnel turned away", "socket", s.path, "err", err)
		return
	}
	log := s.cfg.Logger.With("ztunnel", p.pid, "version", p.hello.version, "dialect", p.hello.dialect)
	// Registered before the snapshot is taken: a Del that happens in between
	// queues behind the snapshot and so cannot be lost.
	s.mu.Lock()
	if len(s.peers) >= maxClients {
		s.mu.Unlock()
		log.Warn("ztunnel turned away", "err", fmt.Sprintf("%d are connected already", maxClients))
		return
	}
	s.peers = append(s.peers, p)
	s.mu.Unlock()

	log.Info("ztunnel connected")
	var readers sync.WaitGroup
	readers.Go(p.read)
	err = s.converse(ctx, p)

	s.mu.Lock()
	for i := range s.peers {
		if s.peers[i] == p {
			s.peers = append(s.peers[:i:i], s.peers[i+1:]...)
			break
		}
	}
	s.mu.Unlock()
	close(p.gone)
	conn.Close()
	readers.Wait()
	if s.cfg.Gone != nil {
		s.cfg.Gone()
	}
	log.Info("ztunnel disconnected", "err", err)
}

// greet checks who is calling and reads the hello.
func (s *Server) greet(conn *net.UnixConn) (*peer, error) {
	cred, err := credentials(conn)
	if err != nil {
		return nil, err
	}
	if s.cfg.CheckPeer != nil {
		if err := s.cfg.CheckPeer(*cred); err != nil {
			return nil, fmt.Errorf("process %d of user %d: %w", cred.Pid, cred.Uid, err)
		}
	}
	if err := conn.SetReadDeadline(time.Now().Add(s.cfg.Deadline)); err != nil {
		return nil, err
	}
	b, files, err := readDatagram(conn)
	if err != nil {
		return nil, fmt.Errorf("process %d: no hello: %w", cred.Pid, err)
	}
	if len(files) > 0 {
		closeAll(files)
		return nil, fmt.Errorf("process %d: hello carries %d descriptors", cred.Pid, len(files))
	}
	h, err := decodeHello(b)
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", cred.Pid, err)
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return nil, err
	}
	return &peer{
		conn:     conn,
		acked:    s.cfg.Acked,
		hello:    h,
		pid:      int(cred.Pid),
		since:    time.Now(),
		deadline: s.cfg.Deadline,
		requests: make(chan request),
		acks:     make(chan string),
		broken:   make(chan struct{}),
		gone:     make(chan struct{}),
	}, nil
}

func credentials(conn *net.UnixConn) (*unix.Ucred, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, credErr); err != nil {
		return nil, fmt.Errorf("peer credentials: %w", err)
	}
	return cred, nil
}

// converse sends the snapshot and then what is asked for, one message at a
// time, until the connection or ctx ends.
func (s *Server) converse(ctx context.Context, p *peer) error {
	var served []string
	for _, pod := range s.cfg.Snapshot() {
		if pod.dialect() != p.hello.dialect {
			// It is another ztunnel's until the agent has made it fit. Should
			// this one serve it from before, it goes on.
			if err := p.exchange(encodeKeep(pod.UID)); err != nil && !isRefusal(err) {
				return fmt.Errorf("snapshot: keep %s: %w", pod.UID, err)
			}
			continue
		}
		err := p.add(pod)
		var refused *AckError
		switch {
		case err == nil:
			served = append(served, pod.UID)
		case errors.As(err, &refused):
			// The ztunnel keeps the pod as pending and tries again by itself.
			s.cfg.Logger.Warn("ztunnel cannot serve pod", "pod", pod.String(), "ztunnel", p.pid, "err", err)
		case isUnusable(err):
			s.cfg.Logger.Warn("what ztunnel made for a pod cannot be used", "pod", pod.String(), "ztunnel", p.pid, "err", err)
		case errors.Is(err, os.ErrClosed):
			// Removed since the snapshot was taken; its Del is queued.
		default:
			return fmt.Errorf("snapshot: pod %s: %w", pod, err)
		}
	}
	if s.cfg.Keep != nil {
		for _, uid := range s.cfg.Keep() {
			if err := p.exchange(encodeKeep(uid)); err != nil && !isRefusal(err) {
				return fmt.Errorf("snapshot: keep %s: %w", uid, err)
			}
		}
	}
	if ctx.Err() != nil {
		// The agent is ending and may have closed what it has before that could be
		// sent. A snapshot that ends without them would take those pods from a
		// ztunnel that is to go on serving them.
		return nil
	}
	if err := p.exchange(encodeSnapshotSent()); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	s.mu.Lock()
	p.synced = true
	s.mu.Unlock()
	if s.cfg.Synced != nil {
		s.cfg.Synced(served)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.broken:
			return p.readErr
		case <-p.acks:
			return errors.New("an Ack that nothing asked for")
		case r := <-p.requests:
			err := r.do()
			r.done <- err
			if err != nil && !isRefusal(err) && !isUnusable(err) && !errors.Is(err, os.ErrClosed) {
				return err
			}
		}
	}
}

// unusableError is Acked's: the conversation is fine, the pod is not.
type unusableError struct{ err error }

func (e *unusableError) Error() string { return e.err.Error() }
func (e *unusableError) Unwrap() error { return e.err }

func isUnusable(err error) bool {
	var unusable *unusableError
	return errors.As(err, &unusable)
}

func isRefusal(err error) bool {
	var refused *AckError
	return errors.As(err, &refused)
}
