package hbone_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/ambitmesh/ambit/hbone"
	"github.com/ambitmesh/ambit/hbone/hbonetest"
	"github.com/ambitmesh/ambit/hbone/identity"
)

// rawPeer is a client that sends whatever a test wants.
type rawPeer struct {
	t   testing.TB
	tcp *net.TCPConn
	nc  *tls.Conn
	fr  *http2.Framer
	hb  bytes.Buffer
	he  *hpack.Encoder
}

func dialRaw(t testing.TB, s *hbonetest.Server) *rawPeer {
	t.Helper()
	nc, err := s.DialRaw()
	if err != nil {
		t.Fatal(err)
	}
	c := tls.Client(nc, identity.ClientConfig(s.Source(), hbonetest.ClientID, []identity.ID{hbonetest.ServerID}))
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(time.Minute))
	tcp, _ := nc.(*net.TCPConn)
	p := &rawPeer{t: t, tcp: tcp, nc: c, fr: http2.NewFramer(c, c)}
	p.he = hpack.NewEncoder(&p.hb)
	p.fr.AllowIllegalWrites = true
	p.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	return p
}

// start says hello.
func (p *rawPeer) start(settings ...http2.Setting) {
	io.WriteString(p.nc, http2.ClientPreface)
	p.fr.WriteSettings(settings...)
}

func (p *rawPeer) block(kv ...string) []byte {
	p.hb.Reset()
	for i := 0; i < len(kv); i += 2 {
		p.he.WriteField(hpack.HeaderField{Name: kv[i], Value: kv[i+1]})
	}
	return p.hb.Bytes()
}

func (p *rawPeer) connect(id uint32, end bool) {
	p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: p.block(":method", "CONNECT", ":authority", "10.0.0.1:80"), EndHeaders: true, EndStream: end})
}

// await reads frames until match likes one.
func (p *rawPeer) await(what string, match func(http2.Frame) bool) http2.Frame {
	p.t.Helper()
	for {
		f, err := p.fr.ReadFrame()
		if err != nil {
			p.t.Fatalf("waiting for %s: %v", what, err)
		}
		if match(f) {
			return f
		}
	}
}

func (p *rawPeer) awaitGoAway(code http2.ErrCode) {
	p.t.Helper()
	f := p.await("GOAWAY "+code.String(), func(f http2.Frame) bool { return f.Header().Type == http2.FrameGoAway }).(*http2.GoAwayFrame)
	if f.ErrCode != code {
		p.t.Errorf("GOAWAY %v, want %v", f.ErrCode, code)
	}
}

func (p *rawPeer) awaitReset(id uint32, code http2.ErrCode) {
	p.t.Helper()
	f := p.await("RST_STREAM "+code.String(), func(f http2.Frame) bool { return f.Header().Type == http2.FrameRSTStream }).(*http2.RSTStreamFrame)
	if f.ErrCode != code || f.StreamID != id {
		p.t.Errorf("RST_STREAM %d %v, want %d %v", f.StreamID, f.ErrCode, id, code)
	}
}

func (p *rawPeer) awaitStatus(id uint32, status string) {
	p.t.Helper()
	f := p.await("status "+status, func(f http2.Frame) bool {
		return f.Header().Type == http2.FrameHeaders && f.Header().StreamID == id
	}).(*http2.MetaHeadersFrame)
	if f.PseudoValue("status") != status {
		p.t.Errorf("stream %d status %s, want %d %s", f.StreamID, f.PseudoValue("status"), id, status)
	}
}

// TestConnectionErrors: what no peer may do ends the connection, with the code that
// says what it was.
//
//ambit:feature hbone-continuation hbone-floods hbone-padding
func TestConnectionErrors(t *testing.T) {
	raw := func(p *rawPeer, typ http2.FrameType, flags http2.Flags, id uint32, payload string) {
		p.fr.WriteRawFrame(typ, flags, id, []byte(payload))
	}
	for _, tc := range []struct {
		name string
		code http2.ErrCode
		send func(p *rawPeer)
	}{
		{"HTTP/1.1", http2.ErrCodeProtocol, func(p *rawPeer) { io.WriteString(p.nc, "GET / HTTP/1.1\r\nHost: x\r\n\r\n") }},
		{"first frame is not SETTINGS", http2.ErrCodeProtocol, func(p *rawPeer) {
			io.WriteString(p.nc, http2.ClientPreface)
			p.fr.WritePing(false, [8]byte{})
		}},
		{"frame over our limit", http2.ErrCodeFrameSize, func(p *rawPeer) {
			p.start()
			p.nc.Write([]byte{0x20, 0, 0, byte(http2.FrameData), 0, 0, 0, 0, 1})
		}},
		{"DATA on stream 0", http2.ErrCodeProtocol, func(p *rawPeer) { p.start(); raw(p, http2.FrameData, 0, 0, "x") }},
		{"DATA on an idle stream", http2.ErrCodeProtocol, func(p *rawPeer) { p.start(); raw(p, http2.FrameData, 0, 7, "x") }},
		{"RST_STREAM on an idle stream", http2.ErrCodeProtocol, func(p *rawPeer) { p.start(); p.fr.WriteRSTStream(7, http2.ErrCodeCancel) }},
		{"WINDOW_UPDATE on an idle stream", http2.ErrCodeProtocol, func(p *rawPeer) { p.start(); p.fr.WriteWindowUpdate(7, 1) }},
		{"HEADERS on an even stream", http2.ErrCodeProtocol, func(p *rawPeer) { p.start(); p.connect(2, false) }},
		{"padding longer than the frame", http2.ErrCodeProtocol, func(p *rawPeer) {
			p.start()
			p.connect(1, false)
			raw(p, http2.FrameData, http2.FlagDataPadded, 1, "\x05abcd")
		}},
		{"padded frame without length", http2.ErrCodeFrameSize, func(p *rawPeer) {
			p.start()
			p.connect(1, false)
			raw(p, http2.FrameData, http2.FlagDataPadded, 1, "")
		}},
		{"DATA inside a header block", http2.ErrCodeProtocol, func(p *rawPeer) {
			p.start()
			p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(":method", "CONNECT")})
			raw(p, http2.FrameData, 0, 1, "x")
		}},
		{"unknown frame inside a header block", http2.ErrCodeProtocol, func(p *rawPeer) {
			p.start()
			p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(":method", "CONNECT")})
			raw(p, 0x77, 0, 1, "x")
		}},
		{"HEADERS inside a header block", http2.ErrCodeProtocol, func(p *rawPeer) {
			p.start()
			p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(":method", "CONNECT")})
			p.connect(3, false)
		}},
		{"CONTINUATION of another stream", http2.ErrCodeProtocol, func(p *rawPeer) {
			p.start()
			p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(":method", "CONNECT")})
			p.fr.WriteContinuation(3, true, p.block(":authority", "a:1"))
		}},
		{"PING inside a header block", http2.ErrCodeProtocol, func(p *rawPeer) {
			p.start()
			p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(":method", "CONNECT")})
			p.fr.WritePing(false, [8]byte{})
		}},
		{"CONTINUATION of nothing", http2.ErrCodeProtocol, func(p *rawPeer) { p.start(); p.fr.WriteContinuation(1, true, nil) }},
		{"CONTINUATION flood", http2.ErrCodeEnhanceYourCalm, func(p *rawPeer) {
			p.start()
			p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(":method", "CONNECT")})
			for range 100 {
				p.fr.WriteContinuation(1, false, nil)
			}
		}},
		{"endless header block", http2.ErrCodeEnhanceYourCalm, func(p *rawPeer) {
			p.start()
			p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(":method", "CONNECT")})
			for range 20 {
				p.fr.WriteContinuation(1, false, p.block("x", strings.Repeat("\x01", 16000)))
			}
		}},
		{"long HEADERS frame", http2.ErrCodeEnhanceYourCalm, func(p *rawPeer) {
			p.start()
			raw(p, http2.FrameHeaders, 0, 1, strings.Repeat("x", 100_000))
		}},
		{"bad compression", http2.ErrCodeCompression, func(p *rawPeer) {
			p.start()
			p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, EndHeaders: true})
		}},
		{"window of SETTINGS too large", http2.ErrCodeFlowControl, func(p *rawPeer) {
			p.start(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 31})
		}},
		{"SETTINGS overflow an open stream", http2.ErrCodeFlowControl, func(p *rawPeer) {
			p.start()
			p.connect(1, false)
			p.awaitStatus(1, "200")
			p.fr.WriteWindowUpdate(1, 1<<31-1-65535)
			p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 70000})
		}},
		{"connection window overflow", http2.ErrCodeFlowControl, func(p *rawPeer) {
			p.start()
			p.fr.WriteWindowUpdate(0, 1<<31-1)
		}},
		{"more than the connection window", http2.ErrCodeFlowControl, func(p *rawPeer) {
			p.start()
			p.connect(1, false)
			p.fr.WriteData(1, false, make([]byte, 150_000))
		}},
		{"PUSH_PROMISE", http2.ErrCodeProtocol, func(p *rawPeer) {
			p.start()
			p.fr.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, EndHeaders: true})
		}},
		{"PING of wrong length", http2.ErrCodeFrameSize, func(p *rawPeer) { p.start(); raw(p, http2.FramePing, 0, 0, "abc") }},
		{"SETTINGS of wrong length", http2.ErrCodeFrameSize, func(p *rawPeer) { p.start(); raw(p, http2.FrameSettings, 0, 0, "abc") }},
		{"many settings", http2.ErrCodeEnhanceYourCalm, func(p *rawPeer) {
			p.start()
			raw(p, http2.FrameSettings, 0, 0, strings.Repeat("\x00\x99\x00\x00\x00\x00", 100))
		}},
		{"header padding longer than the frame", http2.ErrCodeProtocol, func(p *rawPeer) {
			p.start()
			raw(p, http2.FrameHeaders, http2.FlagHeadersPadded|http2.FlagHeadersEndHeaders, 1, "\x09abc")
		}},
		{"GOAWAY flood", http2.ErrCodeEnhanceYourCalm, func(p *rawPeer) {
			p.start()
			for range 3000 {
				p.fr.WriteGoAway(0, http2.ErrCodeNo, nil)
			}
		}},
		{"PRIORITY flood", http2.ErrCodeEnhanceYourCalm, func(p *rawPeer) {
			p.start()
			for range 3000 {
				p.fr.WritePriority(1, http2.PriorityParam{Weight: 1})
			}
		}},
		{"header blocks for a stream that has ended", http2.ErrCodeEnhanceYourCalm, func(p *rawPeer) {
			p.start()
			p.connect(1, true)
			p.fr.WriteRSTStream(1, http2.ErrCodeCancel)
			for range 3000 {
				p.connect(1, true)
			}
		}},
		{"rapid reset", http2.ErrCodeEnhanceYourCalm, func(p *rawPeer) {
			p.start()
			for i := range 3000 {
				p.connect(uint32(2*i+1), false)
				p.fr.WriteRSTStream(uint32(2*i+1), http2.ErrCodeCancel)
			}
		}},
		{"PING flood", http2.ErrCodeEnhanceYourCalm, func(p *rawPeer) {
			p.start()
			for range 3000 {
				p.fr.WritePing(false, [8]byte{})
			}
		}},
		{"SETTINGS flood", http2.ErrCodeEnhanceYourCalm, func(p *rawPeer) {
			p.start()
			for range 300 {
				p.fr.WriteSettings()
			}
		}},
		{"empty DATA flood", http2.ErrCodeEnhanceYourCalm, func(p *rawPeer) {
			p.start()
			p.connect(1, false)
			for range 3000 {
				p.fr.WriteData(1, false, nil)
			}
		}},
		{"unknown frame flood", http2.ErrCodeEnhanceYourCalm, func(p *rawPeer) {
			p.start()
			for range 3000 {
				raw(p, 0x99, 0, 0, "")
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			hold := make(chan struct{})
			s := hbonetest.NewServer(t, hbonetest.Options{Server: hbone.Config{ConnWindow: 100_000, StreamWindow: 100_000}}, func(in *hbone.Incoming) {
				in.Accept()
				<-hold
			})
			p := dialRaw(t, s)
			sent := make(chan struct{})
			go func() { // floods must not wait for us to read
				defer close(sent)
				tc.send(p)
			}()
			if strings.Contains(tc.name, "open stream") {
				<-sent
			}
			release := sync.OnceFunc(func() { close(hold) })
			t.Cleanup(release)
			p.awaitGoAway(tc.code)
			<-sent
			p.nc.Close()
			release()
			s.Close()
			errs := s.Errors()
			var ce *hbone.ConnError
			if len(errs) != 1 || !errors.As(errs[0], &ce) || ce.Code != tc.code || ce.Op != "protocol" {
				t.Errorf("Serve returned %v", errs)
			}
		})
	}
}

// TestStreamErrors: what concerns one stream ends that one, and no other.
//
//ambit:feature hbone-padding
func TestStreamErrors(t *testing.T) {
	connect := []string{":method", "CONNECT", ":authority", "10.0.0.1:80"}
	for _, tc := range []struct {
		name string
		code http2.ErrCode
		send func(p *rawPeer)
	}{
		{"CONNECT with a path", http2.ErrCodeProtocol, func(p *rawPeer) { p.request(append(connect, ":path", "/")...) }},
		{"CONNECT with a scheme", http2.ErrCodeProtocol, func(p *rawPeer) { p.request(append(connect, ":scheme", "https")...) }},
		{"CONNECT without authority", http2.ErrCodeProtocol, func(p *rawPeer) { p.request(":method", "CONNECT") }},
		{"no method", http2.ErrCodeProtocol, func(p *rawPeer) { p.request(":authority", "a:1") }},
		{"two methods", http2.ErrCodeProtocol, func(p *rawPeer) { p.request(":method", "CONNECT", ":method", "CONNECT", ":authority", "a:1") }},
		{"status in a request", http2.ErrCodeProtocol, func(p *rawPeer) { p.request(append(connect, ":status", "200")...) }},
		{"unknown pseudo-header", http2.ErrCodeProtocol, func(p *rawPeer) { p.request(append(connect, ":protocol", "websocket")...) }},
		{"pseudo-header last", http2.ErrCodeProtocol, func(p *rawPeer) { p.request(":method", "CONNECT", "baggage", "x", ":authority", "a:1") }},
		{"upper case", http2.ErrCodeProtocol, func(p *rawPeer) { p.request(append(connect, "Baggage", "x")...) }},
		{"line break", http2.ErrCodeProtocol, func(p *rawPeer) { p.request(append(connect, "baggage", "x\r\ny: z")...) }},
		{"connection header", http2.ErrCodeProtocol, func(p *rawPeer) { p.request(append(connect, "connection", "close")...) }},
		{"header list over the limit", http2.ErrCodeEnhanceYourCalm, func(p *rawPeer) {
			// Small on the wire: one long value, then references to it.
			kv := append(connect, "x", strings.Repeat("v", 2000))
			for range 100 {
				kv = append(kv, "x", strings.Repeat("v", 2000))
			}
			p.request(kv...)
		}},
		{"zero WINDOW_UPDATE", http2.ErrCodeProtocol, func(p *rawPeer) { p.request(connect...); p.fr.WriteWindowUpdate(1, 0) }},
		{"window overflow", http2.ErrCodeFlowControl, func(p *rawPeer) { p.request(connect...); p.fr.WriteWindowUpdate(1, 1<<31-1) }},
		{"more than the window", http2.ErrCodeFlowControl, func(p *rawPeer) {
			p.request(connect...)
			for range 2 {
				p.fr.WriteData(1, false, make([]byte, 60_000))
			}
		}},
		{"padding beyond the window", http2.ErrCodeFlowControl, func(p *rawPeer) {
			p.request(connect...)
			p.fr.WriteData(1, false, make([]byte, 60_000))
			p.fr.WriteData(1, false, make([]byte, 39_900))
			p.fr.WriteDataPadded(1, false, make([]byte, 90), make([]byte, 20)) // 100 bytes are left
		}},
		{"DATA behind END_STREAM", http2.ErrCodeStreamClosed, func(p *rawPeer) {
			p.request(connect...)
			p.fr.WriteData(1, true, nil)
			p.fr.WriteData(1, false, []byte("x"))
		}},
		{"HEADERS inside", http2.ErrCodeProtocol, func(p *rawPeer) { p.request(connect...); p.connect(1, false) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			hold := make(chan struct{})
			s := hbonetest.NewServer(t, hbonetest.Options{Server: hbone.Config{StreamWindow: 100_000}}, func(in *hbone.Incoming) {
				if in.Authority == "good:1" {
					in.Reject(404)
					return
				}
				in.Accept()
				<-hold
			})
			defer close(hold)
			p := dialRaw(t, s)
			p.start()
			tc.send(p)
			p.awaitReset(1, tc.code)
			// The connection goes on.
			p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: p.block(":method", "CONNECT", ":authority", "good:1"), EndHeaders: true})
			p.awaitStatus(3, "404")
		})
	}
}

func (p *rawPeer) request(kv ...string) {
	p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(kv...), EndHeaders: true})
}

func TestOtherMethodReachesTheHandler(t *testing.T) {
	s := hbonetest.NewServer(t, hbonetest.Options{}, func(in *hbone.Incoming) {
		if in.Method != "GET" {
			t.Errorf("method %q", in.Method)
		}
		in.Reject(400)
	})
	p := dialRaw(t, s)
	p.start()
	p.request(":method", "GET", ":scheme", "https", ":path", "/", ":authority", "a")
	p.awaitStatus(1, "400")
	p.awaitReset(1, http2.ErrCodeNo)
}

// TestPaddingAndContinuation: both are legal, and nobody is told of them.
//
//ambit:feature hbone-padding hbone-continuation
func TestPaddingAndContinuation(t *testing.T) {
	s := hbonetest.NewServer(t, hbonetest.Options{}, echo)
	p := dialRaw(t, s)
	p.start()
	block := bytes.Clone(p.block(":method", "CONNECT", ":authority", "10.0.0.1:80", "baggage", "x"))
	p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:3], PadLength: 9, Priority: http2.PriorityParam{Weight: 3}})
	p.fr.WriteContinuation(1, false, block[3:7])
	p.fr.WriteContinuation(1, true, block[7:])
	p.awaitStatus(1, "200")
	p.fr.WriteDataPadded(1, false, []byte("hel"), make([]byte, 200))
	p.fr.WriteRawFrame(0x55, 0, 1, []byte("unknown frames are ignored"))
	p.fr.WriteDataPadded(1, false, nil, make([]byte, 3))
	p.fr.WritePriority(1, http2.PriorityParam{Weight: 1})
	p.fr.WriteDataPadded(1, true, []byte("lo"), nil)
	var got []byte
	p.await("END_STREAM", func(f http2.Frame) bool {
		if d, ok := f.(*http2.DataFrame); ok {
			got = append(got, d.Data()...)
			return d.StreamEnded()
		}
		return false
	})
	if string(got) != "hello" {
		t.Errorf("echoed %q", got)
	}
}

// TestByteByByte sends a connection's worth of frames one TLS record per byte.
func TestByteByByte(t *testing.T) {
	s := hbonetest.NewServer(t, hbonetest.Options{}, echo)
	p := dialRaw(t, s)
	var all bytes.Buffer
	p.fr = http2.NewFramer(&all, p.nc)
	p.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	all.WriteString(http2.ClientPreface)
	p.fr.WriteSettings()
	p.connect(1, false)
	p.fr.WriteDataPadded(1, false, []byte("slow"), []byte{0, 0})
	p.fr.WriteData(1, true, nil)
	for _, b := range all.Bytes() {
		if _, err := p.nc.Write([]byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	p.awaitStatus(1, "200")
	p.await("END_STREAM", func(f http2.Frame) bool {
		d, ok := f.(*http2.DataFrame)
		return ok && d.StreamEnded()
	})
}

// TestStreamLimit: beyond twice what was announced streams are refused, for as long as
// the handlers of earlier ones run.
//
//ambit:feature hbone-stream-limit
func TestStreamLimit(t *testing.T) {
	release := make(chan struct{})
	s := hbonetest.NewServer(t, hbonetest.Options{}, func(in *hbone.Incoming) {
		<-release
		in.Reject(503)
	})
	p := dialRaw(t, s)
	p.start()
	// A peer that takes all 200 may know that they have ended before their
	// handlers are through, and open as many again.
	for i := range 200 {
		p.connect(uint32(2*i+1), false)
	}
	for i := range 200 {
		p.fr.WriteRSTStream(uint32(2*i+1), http2.ErrCodeCancel)
	}
	for i := 200; i < 401; i++ {
		p.connect(uint32(2*i+1), false)
	}
	p.awaitReset(801, http2.ErrCodeRefusedStream)
	// Resetting does not make room while the handlers run.
	for i := 200; i < 400; i++ {
		p.fr.WriteRSTStream(uint32(2*i+1), http2.ErrCodeCancel)
	}
	p.connect(803, false)
	p.awaitReset(803, http2.ErrCodeRefusedStream)
	close(release)
}

//ambit:feature hbone-wire
func TestServerSettings(t *testing.T) {
	s := hbonetest.NewServer(t, hbonetest.Options{}, echo)
	p := dialRaw(t, s)
	p.start()
	f := p.await("SETTINGS", func(f http2.Frame) bool { return f.Header().Type == http2.FrameSettings }).(*http2.SettingsFrame)
	for id, want := range map[http2.SettingID]uint32{
		http2.SettingInitialWindowSize: 256 << 10, http2.SettingMaxFrameSize: 1 << 20,
		http2.SettingMaxHeaderListSize: 65536, http2.SettingMaxConcurrentStreams: 200,
	} {
		if v, ok := f.Value(id); !ok || v != want {
			t.Errorf("%v %d, want %d", id, v, want)
		}
	}
	if _, ok := f.Value(http2.SettingEnableConnectProtocol); ok {
		t.Error("extended CONNECT is offered")
	}
	w := p.await("WINDOW_UPDATE", func(f http2.Frame) bool { return f.Header().Type == http2.FrameWindowUpdate }).(*http2.WindowUpdateFrame)
	if w.StreamID != 0 || w.Increment != 16<<20-65535 {
		t.Errorf("WINDOW_UPDATE %d by %d", w.StreamID, w.Increment)
	}
}

// TestPeerLimits checks what we send against a peer's smallest frames and windows.
func TestPeerLimits(t *testing.T) {
	const size = 1 << 20
	s := hbonetest.NewServer(t, hbonetest.Options{}, func(in *hbone.Incoming) {
		st, err := in.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		st.Write(make([]byte, size))
		st.Close()
	})
	p := dialRaw(t, s)
	p.start(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1000})
	p.connect(1, false)
	got, window := 0, 1000
	p.await("END_STREAM", func(f http2.Frame) bool {
		d, ok := f.(*http2.DataFrame)
		if !ok {
			return false
		}
		n := len(d.Data())
		got += n
		if window -= n; window < 0 || n > 16384 {
			t.Fatalf("DATA of %d bytes, window %d", n, window)
		}
		if window == 0 {
			window = 20_000
			p.fr.WriteWindowUpdate(1, 20_000)
			p.fr.WriteWindowUpdate(0, 20_000)
		}
		return d.StreamEnded()
	})
	if got != size {
		t.Errorf("%d bytes", got)
	}
}

func TestGarbage(t *testing.T) {
	for name, garbage := range map[string]string{
		"HTTP":    "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"zeros":   strings.Repeat("\x00", 100),
		"nothing": "",
		"cut":     "\x16\x03\x01\x02\x00\x01",
	} {
		t.Run(name, func(t *testing.T) {
			got := make(chan error, 1)
			s := hbonetest.NewServer(t, hbonetest.Options{
				Server:           hbone.Config{HandshakeTimeout: 200 * time.Millisecond},
				OnHandshakeError: func(err error) { got <- err },
			}, echo)
			nc, err := s.DialRaw()
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			io.WriteString(nc, garbage)
			select {
			case err := <-got:
				var ce *hbone.ConnError
				if !errors.As(err, &ce) || ce.Op != "tls handshake" {
					t.Errorf("error %v", err)
				}
			case <-time.After(time.Minute):
				t.Fatal("hangs")
			}
		})
	}
}

// TestSilentClient finishes TLS and then says nothing.
func TestSilentClient(t *testing.T) {
	got := make(chan error, 1)
	s := hbonetest.NewServer(t, hbonetest.Options{
		Server:           hbone.Config{HandshakeTimeout: 200 * time.Millisecond},
		OnHandshakeError: func(err error) { got <- err },
	}, echo)
	dialRaw(t, s)
	select {
	case err := <-got:
		if !strings.Contains(err.Error(), "preface") {
			t.Errorf("error %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("hangs")
	}
}

// TestSilentBeforeTLS: nor does a connection on which nothing was ever said stay.
func TestSilentBeforeTLS(t *testing.T) {
	got := make(chan error, 1)
	s := hbonetest.NewServer(t, hbonetest.Options{
		Server:           hbone.Config{HandshakeTimeout: 200 * time.Millisecond},
		OnHandshakeError: func(err error) { got <- err },
	}, echo)
	c, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	select {
	case err := <-got:
		if !strings.Contains(err.Error(), "tls handshake") || !strings.Contains(err.Error(), "not finished after") {
			t.Errorf("error %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("hangs")
	}
}

// TestGarbageServer is the client's turn.
func TestGarbageServer(t *testing.T) {
	a, b := tcpPair(t)
	go func() {
		io.WriteString(b, "SSH-2.0-OpenSSH_9.2\r\n")
		io.Copy(io.Discard, b)
	}()
	src := hbonetest.NewCA(t).Source(hbonetest.ClientID)
	_, err := hbone.NewClient(context.Background(), a, identity.ClientConfig(src, hbonetest.ClientID, nil), hbone.Config{})
	var ce *hbone.ConnError
	if !errors.As(err, &ce) || ce.Op != "tls handshake" {
		t.Errorf("error %v", err)
	}
	if _, err := a.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("connection left open: %v", err)
	}
}

func TestClientHandshakeObeysContext(t *testing.T) {
	a, _ := tcpPair(t)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	src := hbonetest.NewCA(t).Source(hbonetest.ClientID)
	_, err := hbone.NewClient(ctx, a, identity.ClientConfig(src, hbonetest.ClientID, nil), hbone.Config{})
	if err == nil || ctx.Err() == nil {
		t.Errorf("error %v", err)
	}
}
