package netns_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Protocols in which the server speaks first: a banner arrives although the
// client has not said a word, whichever way it came.
//
//ambit:feature traffic-server-first
func TestServerSpeaksFirst(t *testing.T) { each(t, serverSpeaksFirst) }

func serverSpeaksFirst(t *testing.T, f families) {
	w := newWorldOf(t, f)
	client, near, far, plain := w.newPod(w.a, "client"), w.newPod(w.a, "near"), w.newPod(w.b, "far"), w.newPod(w.a, "plain")
	ext := w.outside(t)
	const banner = "220 mail.example.com ready\r\n"
	for _, p := range []*pod{near, far, ext} {
		p.listen(2525, func(c *net.TCPConn) {
			io.WriteString(c, banner)
			line, _ := bufio.NewReader(c).ReadString('\n')
			io.WriteString(c, "221 "+line)
		})
	}
	w.enrol(client, near, far)
	w.serviceAt("mail", f.vip(25), 25, 2525, far)
	for _, c := range []struct {
		name string
		from *pod
		to   string
	}{
		{"one node", client, near.at(2525)}, {"two nodes", client, far.at(2525)}, {"service", client, f.vipAt(25, 25)},
		{"external", client, ext.at(2525)}, {"plaintext client", plain, far.at(2525)},
	} {
		t.Run(c.name, func(t *testing.T) {
			nc := c.from.mustDial(t, c.to)
			r := bufio.NewReader(nc)
			if s, err := r.ReadString('\n'); err != nil || s != banner {
				t.Fatalf("banner %q: %v", s, err)
			}
			io.WriteString(nc, "QUIT\r\n")
			if s, err := r.ReadString('\n'); err != nil || s != "221 QUIT\r\n" {
				t.Fatalf("answer %q: %v", s, err)
			}
		})
	}
}

// across runs a test for a server on the other node and for one on the client's,
// with addresses of each family.
func across(t *testing.T, serve func(*pod), test func(t *testing.T, client, server *pod)) {
	each(t, func(t *testing.T, f families) {
		w := newWorldOf(t, f)
		client, near, far := w.newPod(w.a, "client"), w.newPod(w.a, "near"), w.newPod(w.b, "far")
		serve(near)
		serve(far)
		w.enrol(client, near, far)
		t.Run("one node", func(t *testing.T) { test(t, client, near) })
		t.Run("two nodes", func(t *testing.T) { test(t, client, far) })
	}, onlyIPv4, onlyIPv6)
}

func (p *pod) serveWith(port uint16, h http.Handler) {
	ln := p.listener(port)
	srv := &http.Server{Handler: h, MaxHeaderBytes: 1 << 20}
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(ln) }()
	p.node.w.t.Cleanup(func() { srv.Close(); <-done })
}

//ambit:feature traffic-websocket
func TestWebSocket(t *testing.T) {
	across(t, func(p *pod) {
		p.serveWith(8080, websocket.Handler(func(c *websocket.Conn) {
			websocket.Message.Send(c, "welcome")
			io.Copy(c, c)
		}))
	}, func(t *testing.T, client, server *pod) {
		cfg, err := websocket.NewConfig("ws://"+server.at(8080)+"/chat", "http://demo/")
		if err != nil {
			t.Fatal(err)
		}
		c, err := websocket.NewClient(cfg, client.mustDial(t, server.at(8080)))
		if err != nil {
			t.Fatal(err)
		}
		var s string
		if err := websocket.Message.Receive(c, &s); err != nil || s != "welcome" {
			t.Fatalf("first message %q: %v", s, err)
		}
		for i := range 100 {
			want := fmt.Sprint("message ", i, strings.Repeat(".", i*100))
			if err := websocket.Message.Send(c, want); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len(want))
			if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
				t.Fatalf("message %d: %.40q, %v", i, got, err)
			}
		}
		c.Close()
	})
}

// chat is a gRPC service without generated code: it gives back what it gets
// and says how the client's context ended.
func chat(ended chan<- error) *grpc.ServiceDesc {
	return &grpc.ServiceDesc{ServiceName: "demo.Chat", HandlerType: (*any)(nil), Streams: []grpc.StreamDesc{{
		StreamName: "Talk", ServerStreams: true, ClientStreams: true,
		Handler: func(_ any, s grpc.ServerStream) error {
			for {
				var m wrapperspb.BytesValue
				if err := s.RecvMsg(&m); err != nil {
					if errors.Is(err, io.EOF) {
						return nil
					}
					ended <- s.Context().Err()
					return err
				}
				if err := s.SendMsg(&m); err != nil {
					return err
				}
			}
		}}}}
}

//ambit:feature traffic-grpc
func TestGRPCStreaming(t *testing.T) {
	ended := make(chan error, 10)
	across(t, func(p *pod) {
		srv := grpc.NewServer()
		srv.RegisterService(chat(ended), nil)
		ln := p.listener(50051)
		done := make(chan struct{})
		go func() { defer close(done); srv.Serve(ln) }()
		p.node.w.t.Cleanup(func() { srv.Stop(); <-done })
	}, func(t *testing.T, client, server *pod) {
		cc, err := grpc.NewClient("passthrough:///"+server.at(50051), grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(_ context.Context, a string) (net.Conn, error) { return client.dial(a) }))
		if err != nil {
			t.Fatal(err)
		}
		defer cc.Close()
		open := func(d time.Duration) (grpc.ClientStream, context.CancelFunc) {
			ctx, cancel := context.WithTimeout(context.Background(), d)
			s, err := cc.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/demo.Chat/Talk")
			if err != nil {
				t.Fatal(err)
			}
			return s, cancel
		}
		s, cancel := open(patience)
		defer cancel()
		for i := range 100 {
			sent := wrapperspb.Bytes([]byte(strings.Repeat("g", 1+i*500)))
			if err := s.SendMsg(sent); err != nil {
				t.Fatal(err)
			}
			var got wrapperspb.BytesValue
			if err := s.RecvMsg(&got); err != nil || len(got.Value) != len(sent.Value) {
				t.Fatalf("message %d: %d bytes, %v", i, len(got.Value), err)
			}
		}
		s.CloseSend()
		if err := s.RecvMsg(&wrapperspb.BytesValue{}); !errors.Is(err, io.EOF) {
			t.Errorf("end of the stream: %v", err)
		}

		// A deadline ends the call at both ends.
		late, cancel := open(2 * time.Second)
		defer cancel()
		if err := late.RecvMsg(&wrapperspb.BytesValue{}); status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("call past its deadline: %v", err)
		}
		select {
		case err := <-ended:
			if err == nil {
				t.Error("the server's context lives on")
			}
		case <-time.After(patience):
			t.Fatal("the server does not learn of the deadline")
		}
	})
}

// Applications that speak MPTCP (Go's listeners do) fall back to TCP where the
// other end is ztunnel.
//
//ambit:feature traffic-mptcp
func TestMultipathTCP(t *testing.T) { each(t, multipathTCP, onlyIPv4, onlyIPv6) }

func multipathTCP(t *testing.T, f families) {
	fd, err := unix.Socket(f.used().domain(), unix.SOCK_STREAM, unix.IPPROTO_MPTCP)
	if err != nil {
		t.Skipf("the kernel has no MPTCP: %v", err)
	}
	unix.Close(fd)
	w := newWorldOf(t, f)
	client, near, far, plain := w.newPod(w.a, "client"), w.newPod(w.a, "near"), w.newPod(w.b, "far"), w.newPod(w.a, "plain")
	multipath := make(chan bool, 1)
	for _, p := range []*pod{near, far, plain} {
		var ln net.Listener
		within(t, p.ns, func() (err error) {
			var lc net.ListenConfig
			lc.SetMultipathTCP(true)
			ln, err = lc.Listen(context.Background(), f.used().network("tcp"), net.JoinHostPort(f.used().any(), "9000"))
			return err
		})
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				m, _ := c.(*net.TCPConn).MultipathTCP()
				multipath <- m
				echo(c.(*net.TCPConn))
				c.Close()
			}
		}()
		t.Cleanup(func() { ln.Close(); <-done })
	}
	dial := func(t *testing.T, from *pod, to string) *net.TCPConn {
		var c net.Conn
		within(t, from.ns, func() (err error) {
			d := net.Dialer{Timeout: patience}
			d.SetMultipathTCP(true)
			c, err = d.Dial(f.used().network("tcp"), to)
			return err
		})
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(patience))
		return c.(*net.TCPConn)
	}
	for _, c := range []struct {
		name       string
		from, to   *pod
		both, mesh bool
	}{
		{"without a mesh", client, far, true, false},
		{"one node", client, near, false, true},
		{"two nodes", client, far, false, true},
		{"plaintext client", plain, far, false, true},
		{"plaintext server", client, plain, false, true},
	} {
		if c.mesh && !w.a.agent.has(client) {
			w.enrol(client, near, far)
		}
		t.Run(c.name, func(t *testing.T) {
			nc := dial(t, c.from, c.to.at(9000))
			pingPong(t, nc, "over one path")
			here, err := nc.MultipathTCP()
			if there := <-multipath; err != nil || here != c.both || there != c.both {
				t.Errorf("MPTCP at the client %v, at the server %v, want %v: %v", here, there, c.both, err)
			}
			nc.CloseWrite()
			if _, err := nc.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("end: %v", err)
			}
		})
	}
}

// fastOpen connects with the first bytes in the SYN, if the kernel may.
func (p *pod) fastOpen(t testing.TB, to, first string) (*net.TCPConn, bool) {
	t.Helper()
	dst := netip.MustParseAddrPort(to)
	var c net.Conn
	var inSYN bool
	within(t, p.ns, func() error {
		fd, err := unix.Socket(familyOf(dst.Addr()).domain(), unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Sendto(fd, []byte(first), unix.MSG_FASTOPEN, sockaddr(dst)); err != nil {
			return err
		}
		// Wait for the handshake, which Sendto does not always do.
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, int(patience.Milliseconds())); err != nil {
			return err
		}
		info, err := unix.GetsockoptTCPInfo(fd, unix.SOL_TCP, unix.TCP_INFO)
		if err != nil {
			return err
		}
		inSYN = info.Options&tcpSYNData != 0
		d, err := unix.Dup(fd)
		if err != nil {
			return err
		}
		unix.SetNonblock(d, true)
		f := os.NewFile(uintptr(d), "fast open")
		defer f.Close()
		c, err = net.FileConn(f)
		return err
	})
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn), inSYN
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// tcpSYNData is TCPI_OPT_SYN_DATA: the SYN-ACK acknowledged the SYN's data.
const tcpSYNData = 32

// TCP Fast Open, as its users have it (the data waits for the handshake unless
// both ends were told otherwise) and forced by sysctl at every listener, with
// data in the SYN.
//
//ambit:feature traffic-fast-open
func TestFastOpen(t *testing.T) { each(t, fastOpen, onlyIPv4, onlyIPv6) }

func fastOpen(t *testing.T, f families) {
	w := newWorldOf(t, f)
	client, near, far, plain := w.newPod(w.a, "client"), w.newPod(w.a, "near"), w.newPod(w.b, "far"), w.newPod(w.a, "plain")
	ext := w.outside(t)
	forced := []*pod{w.newPod(w.a, "client-forced"), w.newPod(w.b, "server-forced")}
	const always = "1543" // client, server, no cookie either way, every listener
	for _, p := range append(forced, plain) {
		p.sysctl(t, "tcp_fastopen", always)
	}
	for _, p := range []*pod{near, far, ext, forced[1]} {
		p.listen(9000, echo)
	}
	w.enrol(client, near, far, forced[0], forced[1])
	wire := capturing(t, w.a.ns, "wire0")
	for _, c := range []struct {
		name     string
		from, to *pod
		inSYN    bool
	}{
		{"one node", client, near, false},
		{"two nodes", client, far, false},
		{"external", client, ext, false},
		{"forced, one node", forced[0], near, true},
		{"forced, two nodes", forced[0], forced[1], true},
		{"forced, external", forced[0], ext, true},
		{"forced, plaintext client", plain, forced[1], true},
	} {
		t.Run(c.name, func(t *testing.T) {
			for i := range 5 {
				first := fmt.Sprint("in the SYN ", i)
				nc, inSYN := c.from.fastOpen(t, c.to.at(9000), first)
				if inSYN != c.inSYN {
					t.Errorf("data in the SYN: %v", inSYN)
				}
				got := make([]byte, len(first))
				if _, err := io.ReadFull(nc, got); err != nil || string(got) != first {
					t.Fatalf("%q came back: %v", got, err)
				}
				pingPong(t, nc, "and on")
				nc.CloseWrite()
				if _, err := nc.Read(make([]byte, 1)); err != io.EOF {
					t.Errorf("end: %v", err)
				}
				nc.Close()
			}
			if c.from != plain && wire.contains("in the SYN") {
				t.Error("plaintext between the nodes")
			}
		})
	}
}

// Requests of unusual shape: headers far beyond a segment, and a writer that
// takes its time, whose every byte arrives on its own.
//
//ambit:feature traffic-odd-shapes
func TestBigHeadersAndSlowWriters(t *testing.T) {
	across(t, func(p *pod) {
		p.serveWith(8080, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Echo", r.Header.Get("X-Big"))
			fmt.Fprint(w, len(r.Header.Get("X-Big")))
		}))
		p.listen(9000, echo)
	}, func(t *testing.T, client, server *pod) {
		const size = 512 << 10
		c := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true, MaxResponseHeaderBytes: 2 * size,
			DialContext: func(_ context.Context, _, a string) (net.Conn, error) { return client.dial(a) }}}
		req, _ := http.NewRequest("GET", "http://"+server.at(8080)+"/", nil)
		req.Header.Set("X-Big", strings.Repeat("h", size))
		r, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		if b, _ := io.ReadAll(r.Body); string(b) != fmt.Sprint(size) || len(r.Header.Get("X-Echo")) != size {
			t.Errorf("header of %d bytes: the server saw %s, the client %d", size, b, len(r.Header.Get("X-Echo")))
		}

		slow := client.mustDial(t, server.at(9000))
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for i := range 40 {
			<-tick.C
			pingPong(t, slow, string(rune('a'+i%26)))
		}
	})
}
