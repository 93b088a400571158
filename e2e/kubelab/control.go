package kubelab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"time"
)

// ControlSocket is where the supervisor of the cluster in dir is asked.
func ControlSocket(dir string) string { return filepath.Join(dir, "control.sock") }

// Request is one order to a supervisor; a connection carries one.
type Request struct {
	Op   string `json:"op"` // down, cut, heal, reboot, status
	Node string `json:"node,omitempty"`
}

// Response says how it went. The answer to down comes when everything is gone.
type Response struct {
	Error  string   `json:"error,omitempty"`
	Failed []string `json:"failed,omitempty"` // status: components that have ended
}

// Ask sends a request to the supervisor of the cluster in dir.
func Ask(ctx context.Context, dir string, r Request) (Response, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", ControlSocket(dir))
	if err != nil {
		return Response{}, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if err := json.NewEncoder(conn).Encode(r); err != nil {
		return Response{}, err
	}
	var resp Response
	if err := json.NewDecoder(conn).Decode(&resp); err != nil {
		return Response{}, fmt.Errorf("no answer from the supervisor: %w", err)
	}
	if resp.Error != "" {
		return resp, errors.New(resp.Error)
	}
	return resp, nil
}

// Serve answers requests until one of them is down, or ctx ends; then the
// cluster has been stopped.
func (c *Cluster) Serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l, err := net.Listen("unix", ControlSocket(c.dir))
	if err != nil {
		return errors.Join(err, c.Stop())
	}
	var (
		wg     sync.WaitGroup
		mu     sync.Mutex
		asking []net.Conn // who wants to hear that it is down; guarded by mu
	)
	defer context.AfterFunc(ctx, func() { l.Close() })()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				break
			}
			continue
		}
		wg.Go(func() {
			var r Request
			_ = conn.SetReadDeadline(time.Now().Add(dialTimeout))
			if json.NewDecoder(conn).Decode(&r) != nil {
				conn.Close()
				return
			}
			if r.Op == "down" {
				mu.Lock()
				asking = append(asking, conn)
				mu.Unlock()
				cancel()
				return
			}
			defer conn.Close()
			_ = json.NewEncoder(conn).Encode(c.answer(ctx, r))
		})
	}
	wg.Wait()
	err = c.Stop()
	for _, conn := range asking {
		var resp Response
		if err != nil {
			resp.Error = err.Error()
		}
		_ = json.NewEncoder(conn).Encode(resp)
		conn.Close()
	}
	return err
}

func (c *Cluster) answer(ctx context.Context, r Request) Response {
	if r.Op == "status" {
		var resp Response
		for _, n := range append([]*Node{c.cp}, c.nodes...) {
			p := n.proc()
			if p == nil {
				resp.Failed = append(resp.Failed, n.Name+" is down")
			} else if err := p.failed(); err != nil {
				resp.Failed = append(resp.Failed, err.Error())
			}
		}
		return resp
	}
	n, err := c.Node(r.Node)
	if err == nil {
		switch r.Op {
		case "cut":
			err = n.Cut()
		case "heal":
			err = n.Heal()
		case "reboot":
			err = n.Reboot(ctx)
		default:
			err = fmt.Errorf("unknown request %q", r.Op)
		}
	}
	if err != nil {
		return Response{Error: err.Error()}
	}
	return Response{}
}
