package live

import (
	"bytes"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"
)

// tcpPair is both ends of a loopback connection.
func tcpPair(t *testing.T) (a, b *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []net.Conn{c, s} {
		x.SetDeadline(time.Now().Add(20 * time.Second))
		t.Cleanup(func() { x.Close() })
	}
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

// piped is an application on each side of a running Pipe.
func piped(t *testing.T) (client, server *net.TCPConn, p *Pipe, result chan error) {
	t.Helper()
	client, a := tcpPair(t)
	b, server := tcpPair(t)
	a.SetDeadline(time.Time{})
	b.SetDeadline(time.Time{})
	p = NewPipe(a, b)
	result = make(chan error, 1)
	go func() { result <- p.Run() }()
	return client, server, p, result
}

func TestPipe(t *testing.T) {
	t.Run("both ways, client ends first", func(t *testing.T) {
		client, server, p, result := piped(t)
		data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
		go func() { client.Write(data); client.CloseWrite() }()
		got, err := io.ReadAll(server)
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		server.Write([]byte("answer"))
		server.CloseWrite()
		if got, err := io.ReadAll(client); err != nil || string(got) != "answer" {
			t.Fatalf("%q, %v", got, err)
		}
		if err := <-result; err != nil {
			t.Error(err)
		}
		if p.Received() != uint64(len(data)) || p.Sent() != 6 {
			t.Errorf("counted %d, %d", p.Received(), p.Sent())
		}
	})
	t.Run("server ends first", func(t *testing.T) {
		client, server, _, result := piped(t)
		server.Write([]byte("over"))
		server.CloseWrite()
		if got, err := io.ReadAll(client); err != nil || string(got) != "over" {
			t.Fatalf("%q, %v", got, err)
		}
		client.Write([]byte("rest"))
		client.CloseWrite()
		if got, err := io.ReadAll(server); err != nil || string(got) != "rest" {
			t.Fatalf("%q, %v", got, err)
		}
		if err := <-result; err != nil {
			t.Error(err)
		}
	})
	t.Run("client resets", func(t *testing.T) {
		client, server, _, result := piped(t)
		Reset(client)
		if _, err := server.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("server read %v", err)
		}
		if err := <-result; reasonOf(err) != ClientReset {
			t.Errorf("%v", err)
		}
	})
	t.Run("server resets", func(t *testing.T) {
		client, server, _, result := piped(t)
		Reset(server)
		if _, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("client read %v", err)
		}
		if err := <-result; reasonOf(err) != ServerReset {
			t.Errorf("%v", err)
		}
	})
	t.Run("cut", func(t *testing.T) {
		client, _, p, result := piped(t)
		p.Cut(Errorf(Drained, "drain"))
		if _, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("client read %v", err)
		}
		if err := <-result; reasonOf(err) != Drained {
			t.Errorf("%v", err)
		}
	})
}
