package enroll

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

const (
	// readDeadline is generous: the plugin writes its request at once.
	readDeadline = 5 * time.Second
	// maxCalls bounds the requests under way; a node starts at most some
	// hundred pods at once, and a caller beyond that waits in the backlog.
	maxCalls = 256
)

// Server is the agent's end.
type Server struct {
	path     string
	listener *net.UnixListener
	handle   func(context.Context, Request) Response
	log      *slog.Logger
}

// Listen takes the socket at path, replacing one that a dead agent left. Only
// root can open it. handle may take as long as a pod start may; its context
// ends when the plugin has gone.
func Listen(path string, handle func(context.Context, Request) Response, log *slog.Logger) (*Server, error) {
	// Bind under another name and rename: between bind and chmod the mode is
	// what umask says, and a plugin must never find a half-made socket.
	temporary := path + ".new"
	if err := os.Remove(temporary); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("plugin socket %s: %w", path, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temporary, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("plugin socket %s: %w", path, err)
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
		return nil, fmt.Errorf("plugin socket %s: %w", path, err)
	}
	return &Server{path: path, listener: l, handle: handle, log: log}, nil
}

// Run answers until ctx ends; it returns when every handler has.
func (s *Server) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { s.listener.Close() })
	defer stop()
	slots := make(chan struct{}, maxCalls)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		conn, err := s.listener.AcceptUnix()
		if err != nil {
			<-slots
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("plugin socket %s: %w", s.path, err)
			}
			s.log.Error("cannot accept a plugin", "socket", s.path, "err", err)
			select { // out of descriptors passes; spinning would not help
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		wg.Go(func() {
			defer func() { <-slots }()
			s.serve(ctx, conn)
		})
	}
}

// Close releases the socket of a server that is never run.
func (s *Server) Close() error { return s.listener.Close() }

func (s *Server) serve(ctx context.Context, conn *net.UnixConn) {
	defer conn.Close()
	if err := checkRoot(conn); err != nil {
		s.log.Warn("plugin turned away", "socket", s.path, "err", err)
		return
	}
	// Run closes no connection by itself: this does, for reads and writes.
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := conn.SetReadDeadline(time.Now().Add(readDeadline)); err != nil {
		return
	}
	line, err := readLine(conn)
	if err != nil {
		s.log.Warn("plugin request unreadable", "socket", s.path, "err", err)
		return
	}
	var answer Response
	request, err := decodeRequest(line)
	if err != nil {
		answer = Response{Outcome: Refused, Reason: err.Error()}
		s.log.Warn("plugin request refused", "socket", s.path, "err", err)
	} else {
		if err := conn.SetReadDeadline(time.Time{}); err != nil {
			return
		}
		answer = s.await(ctx, conn, request)
	}
	answer.Version = Version
	b, err := json.Marshal(answer)
	if err != nil {
		s.log.Error("plugin answer cannot be encoded", "err", err)
		return
	}
	if _, err := conn.Write(append(b, '\n')); err != nil && ctx.Err() == nil {
		s.log.Warn("plugin went away before its answer", "pod", request.Pod.String(), "outcome", answer.Outcome, "err", err)
	}
}

// await runs the handler and cancels it when the plugin hangs up: a runtime
// that gave up on the sandbox must not leave work behind.
func (s *Server) await(ctx context.Context, conn *net.UnixConn, r Request) Response {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var watch sync.WaitGroup
	watch.Go(func() {
		var one [1]byte
		// The plugin sends nothing more, so this returns when it is gone or
		// when the deadline below ends the watch.
		_, err := conn.Read(one[:])
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			cancel()
		}
	})
	answer := s.handle(ctx, r)
	if err := conn.SetReadDeadline(time.Unix(1, 0)); err != nil {
		conn.Close()
	}
	watch.Wait()
	return answer
}

// checkRoot admits processes of user 0 of the host: the runtime runs plugins
// as root. The mode of the socket says the same; this holds even where a
// directory was mounted with other modes.
func checkRoot(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *syscall.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err := errors.Join(err, credErr); err != nil {
		return fmt.Errorf("peer credentials: %w", err)
	}
	if cred.Uid != 0 {
		return fmt.Errorf("process %d of user %d: only root may ask", cred.Pid, cred.Uid)
	}
	return nil
}
