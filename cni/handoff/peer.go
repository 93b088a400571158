package handoff

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

// peer is one connected ztunnel, seen from the agent.
type peer struct {
	// immutable
	conn     *net.UnixConn
	acked    func(Client, Pod) error // may be nil
	hello    hello
	pid      int
	since    time.Time
	deadline time.Duration
	requests chan request
	acks     chan string
	broken   chan struct{} // closed by read: nothing more will come
	gone     chan struct{} // closed by serve: nothing more will be sent

	readErr error // written by read before it closes broken
	synced  bool  // guarded by Server.mu
}

// request is a message somebody waits to see acknowledged.
type request struct {
	do   func() error // sends it and awaits the Ack, on the connection's goroutine
	done chan error   // buffered
}

// request runs do on the goroutine that owns the conversation and returns its
// result. A connection that ends first gives ErrNoClient.
func (p *peer) request(ctx context.Context, do func() error) error {
	r := request{do: do, done: make(chan error, 1)}
	select {
	case p.requests <- r:
	case <-p.gone:
		return ErrNoClient
	case <-ctx.Done():
		return ctx.Err()
	}
	// Sent or about to be: the outcome is known within one deadline, and a
	// caller that left early could not tell served from not served.
	return <-r.done
}

// read takes Acks off the connection. It is also what notices the end of an
// idle connection.
func (p *peer) read() {
	defer close(p.broken)
	for {
		b, files, err := readDatagram(p.conn)
		if err != nil {
			p.readErr = err
			return
		}
		if len(files) > 0 {
			closeAll(files)
			p.readErr = fmt.Errorf("an Ack with %d descriptors", len(files))
			return
		}
		text, err := decodeAck(b)
		if err != nil {
			p.readErr = err
			return
		}
		select {
		case p.acks <- text:
		case <-p.gone:
			return
		}
	}
}

// add sends p's pod in the peer's dialect.
func (p *peer) add(pod Pod) error {
	if pod.NS == nil {
		return os.ErrClosed
	}
	files := []*os.File{pod.NS.File()}
	var kinds []kind
	if pod.Listeners != nil {
		for _, s := range pod.Listeners.sockets() {
			files = append(files, s.file)
			kinds = append(kinds, s.kind)
		}
	}
	b, err := encodeAdd(pod, kinds)
	if err != nil {
		return err
	}
	if err := p.send(b, files); err != nil {
		return err
	}
	if pod.Listeners == nil && p.acked != nil {
		if err := p.acked(p.client(), pod); err != nil {
			return &unusableError{err}
		}
	}
	return nil
}

// client is how the agent knows the peer. Synced is only right under
// Server.mu, or on the goroutine that owns the conversation.
func (p *peer) client() Client {
	return Client{Version: p.hello.version, Foreign: p.hello.dialect == dialectPort, PID: p.pid, Since: p.since, Synced: p.synced}
}

// exchange sends a message without descriptors. Its parameters are what an
// encoder returns.
func (p *peer) exchange(b []byte, err error) error {
	if err != nil {
		return err
	}
	return p.send(b, nil)
}

// send is one message and its Ack.
func (p *peer) send(b []byte, files []*os.File) error {
	if err := p.conn.SetWriteDeadline(time.Now().Add(p.deadline)); err != nil {
		return err
	}
	if err := writeDatagram(p.conn, b, files); err != nil {
		return err
	}
	t := time.NewTimer(p.deadline)
	defer t.Stop()
	select {
	case text := <-p.acks:
		if text != "" {
			return &AckError{Text: text}
		}
		return nil
	case <-p.broken:
		return errors.Join(ErrNoClient, p.readErr)
	case <-t.C:
		// A late Ack would be taken for the next message's, so the
		// connection ends here.
		return fmt.Errorf("no Ack within %s", p.deadline)
	}
}
