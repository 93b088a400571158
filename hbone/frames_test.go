package hbone

import (
	"bytes"
	"encoding/hex"
	"io"
	"net"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

//ambit:feature hbone-wire
func TestGoldenConnect(t *testing.T) {
	r := Request{Authority: "10.1.2.3:8080", Header: []Header{
		{"baggage", "k8s.cluster.name=c1,k8s.namespace.name=ns,k8s.deployment.name=web,service.name=web,service.version=v1,cloud.region=r,cloud.availability_zone=z"},
		{"forwarded", `for="10.0.0.9:41234";host=web.ns.svc.cluster.local`},
		{"Traceparent", "00-0123456789abcdef0123456789abcdef-0123456789abcdef-00"},
	}}
	got := appendRequest(nil, "CONNECT", r)
	want := "0207434f4e4e454354" + // :method CONNECT, name indexed, literal without indexing
		"010d" + hex.EncodeToString([]byte("10.1.2.3:8080")) + // :authority
		"0007" + hex.EncodeToString([]byte("baggage")) +
		"7f0f" + hex.EncodeToString([]byte(r.Header[0].Value)) + // 142 = 127 + 15
		"0009" + hex.EncodeToString([]byte("forwarded")) +
		"32" + hex.EncodeToString([]byte(r.Header[1].Value)) +
		"000b" + hex.EncodeToString([]byte("traceparent")) +
		"37" + hex.EncodeToString([]byte(r.Header[2].Value))
	if s := hex.EncodeToString(got); s != want {
		t.Errorf("got  %s\nwant %s", s, want)
	}
	if s := hex.EncodeToString(appendResponse(nil, 200, nil)); s != "88" {
		t.Errorf("200 is %s", s)
	}
	if s := hex.EncodeToString(appendResponse(nil, 503, nil)); s != "0803353033" {
		t.Errorf("503 is %s", s)
	}
}

// TestLiteralsDecode compares the encoder with hpack's decoder over string lengths
// around the limits of the integer form.
func TestLiteralsDecode(t *testing.T) {
	for _, n := range []int{0, 1, 126, 127, 128, 254, 255, 256, 16510, 16511, 16512, 70000} {
		r := Request{Authority: "a:1", Header: []Header{{"x", strings.Repeat("v", n)}, {"y", "z"}}}
		fs, err := hpack.NewDecoder(4096, nil).DecodeFull(appendRequest(nil, "CONNECT", r))
		if err != nil {
			t.Fatalf("length %d: %v", n, err)
		}
		want := []hpack.HeaderField{{Name: ":method", Value: "CONNECT"}, {Name: ":authority", Value: "a:1"}, {Name: "x", Value: r.Header[0].Value}, {Name: "y", Value: "z"}}
		if !reflect.DeepEqual(fs, want) {
			t.Errorf("length %d: decoded otherwise", n)
		}
	}
}

// discard is a record layer that goes nowhere.
type discard struct{}

func (discard) Wait() error               { return io.EOF }
func (discard) Read([]byte) (int, error)  { return 0, io.EOF }
func (discard) Write(bufs [][]byte) error { return nil }
func (discard) CloseWrite() error         { return nil }

// parser is a connection without a network or a record layer.
func parser(client bool, handler func(*Incoming)) (*Conn, func()) {
	a, b := net.Pipe()
	c := &Conn{
		cfg: Config{StreamWindow: minWindow, ConnWindow: minWindow, MaxStreams: 10}.filled(client), client: client, nc: a, rec: discard{},
		serve: handler, done: make(chan struct{}), settled: make(chan struct{}), streams: map[uint32]*Stream{}, nextID: 1,
		sendWindow: minWindow, peerWindow: minWindow, peerFrame: minFrame, peerStreams: 10,
	}
	c.out.init(c)
	c.in.init(c)
	return c, func() {
		c.fail(io.EOF)
		c.handlers.Wait()
		a.Close()
		b.Close()
	}
}

func frames(write func(fr *http2.Framer, block func(kv ...string) []byte)) []byte {
	var b bytes.Buffer
	b.WriteString(http2.ClientPreface)
	fr := http2.NewFramer(&b, nil)
	fr.AllowIllegalWrites = true
	fr.WriteSettings()
	write(fr, func(kv ...string) []byte {
		var h bytes.Buffer
		e := hpack.NewEncoder(&h)
		for i := 0; i < len(kv); i += 2 {
			e.WriteField(hpack.HeaderField{Name: kv[i], Value: kv[i+1]})
		}
		return h.Bytes()
	})
	return b.Bytes()
}

// FuzzFrames feeds bytes to a server's parser, whole and in pieces of step bytes;
// both must come to the same end and no stream may be given what was not sent.
//
//ambit:feature wire-fuzzed
func FuzzFrames(f *testing.F) {
	connect := []string{":method", "CONNECT", ":authority", "10.0.0.1:80"}
	seed := func(write func(fr *http2.Framer, block func(kv ...string) []byte)) {
		f.Add(frames(write), uint8(1))
		f.Add(frames(write), uint8(13))
	}
	seed(func(fr *http2.Framer, block func(kv ...string) []byte) {
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block(connect...), EndHeaders: true})
		fr.WriteData(1, false, []byte("hello"))
		fr.WriteDataPadded(1, false, []byte("padded"), make([]byte, 7))
		fr.WriteData(1, true, nil)
	})
	seed(func(fr *http2.Framer, block func(kv ...string) []byte) {
		b := block(append(connect, "baggage", "a=b")...)
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b[:2], PadLength: 3})
		fr.WriteContinuation(1, true, b[2:])
		fr.WriteWindowUpdate(1, 5)
		fr.WriteWindowUpdate(0, 5)
		fr.WriteRSTStream(1, http2.ErrCodeConnect)
		fr.WriteGoAway(0, http2.ErrCodeNo, []byte("bye"))
	})
	seed(func(fr *http2.Framer, _ func(kv ...string) []byte) {
		fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1}, http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1 << 20})
		fr.WriteSettingsAck()
		fr.WritePing(false, [8]byte{1})
		fr.WritePing(true, pingGoAway)
		fr.WriteRawFrame(0x42, 0, 9, []byte("unknown"))
		fr.WritePriority(1, http2.PriorityParam{})
	})
	seed(func(fr *http2.Framer, block func(kv ...string) []byte) { // taken back, and once more
		for id := uint32(1); id < 7; id += 2 {
			fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block(connect...), EndHeaders: true})
			fr.WriteRSTStream(id, http2.ErrCodeCancel)
			fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block(connect...), EndHeaders: true, EndStream: true})
		}
		fr.WriteRawFrame(http2.FrameHeaders, http2.FlagHeadersPadded|http2.FlagHeadersEndHeaders, 9, []byte{9, 1, 2})
	})
	seed(func(fr *http2.Framer, block func(kv ...string) []byte) { // windows there and back
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block(append(connect, "x", strings.Repeat("v", 2000))...), EndHeaders: true})
		for _, w := range []uint32{0, 1<<31 - 1, 10} {
			fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: w})
			fr.WriteWindowUpdate(1, 1)
		}
	})
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), uint8(3))
	f.Fuzz(func(t *testing.T, in []byte, step uint8) {
		run := func(step int) (uint64, string) {
			c, stop := parser(false, func(in *Incoming) {
				if _, err := in.Accept(); err == nil {
					<-in.Context().Done()
				}
			})
			defer stop()
			var buf []byte
			var perr error
			for rest := in; len(rest) > 0 && perr == nil; {
				n := min(step, len(rest))
				buf = append(buf, rest[:n]...)
				rest = rest[n:]
				var used int
				used, perr = c.in.parse(buf)
				if used > len(buf) {
					t.Fatalf("used %d of %d bytes", used, len(buf))
				}
				buf = append([]byte(nil), buf[used:]...)
			}
			var got uint64
			for _, s := range c.streams {
				got += s.Received()
			}
			if got > uint64(len(in)) {
				t.Fatalf("%d bytes delivered of %d", got, len(in))
			}
			code := "none"
			if ce, ok := perr.(*ConnError); ok {
				code = ce.Code.String()
			} else if perr != nil {
				t.Fatalf("error of type %T", perr)
			}
			return got, code
		}
		if len(in) == 0 {
			return
		}
		whole, wcode := run(len(in))
		parts, pcode := run(int(step) + 1)
		if wcode == "none" && (pcode != wcode || whole != parts) {
			t.Errorf("whole: %d bytes, %s; in parts: %d bytes, %s", whole, wcode, parts, pcode)
		}
	})
}

// FuzzHeaderBlock feeds a header block of a CONNECT to the decoder.
//
//ambit:feature wire-fuzzed
func FuzzHeaderBlock(f *testing.F) {
	f.Add(appendRequest(nil, "CONNECT", Request{Authority: "[fd00::1]:80", Header: []Header{{"baggage", "x"}}}), uint16(3))
	f.Add([]byte{0x82, 0x86, 0x84, 0x41, 0x0f}, uint16(1))
	f.Add([]byte{0x3f, 0xe1, 0x1f, 0x88}, uint16(0))
	f.Fuzz(func(t *testing.T, in []byte, cut uint16) {
		var hb headerBlock
		hb.init(hpack.NewDecoder(4096, nil), 2000)
		hb.begin(1, false)
		k := min(int(cut), len(in))
		if hb.add(in[:k]) != nil || hb.add(in[k:]) != nil {
			return
		}
		h, err := hb.finish()
		if err != nil {
			return
		}
		size := 0
		for _, x := range h.fields {
			size += len(x.Name) + len(x.Value) + 32
			if h.malformed == "" && badField(x.Name, x.Value) != "" {
				t.Errorf("bad field %q let through", x.Name)
			}
		}
		if size > 2000 {
			t.Errorf("header list of %d bytes let through", size)
		}
		if h.request() == "" && !h.tooBig && (h.method == "" || h.method == "CONNECT" && (h.authority == "" || h.hasPath || h.hasScheme)) {
			t.Errorf("malformed request let through: %+v", h)
		}
	})
}

// TestFrameParsingDoesNotAllocate covers both ways through the framing; per
// frame nothing may be allocated.
func TestFrameParsingDoesNotAllocate(t *testing.T) {
	c, stop := parser(true, nil)
	defer stop()
	c.in.settled = true
	s := newStream(c, 1, minWindow)
	s.recv.answered = true
	c.nextID = 3
	c.streams[1] = s
	s.recvWindow.Store(1 << 40)
	c.in.window = 1 << 40
	frame := make([]byte, frameHeaderLen+1000)
	putDataHeader(frame, 1000, 1)
	sink := make([]byte, 2000)
	n := testing.AllocsPerRun(1000, func() {
		if used, err := c.in.parse(frame); err != nil || used != len(frame) {
			t.Fatal(used, err)
		}
		s.Read(sink)
	})
	if n > 0 {
		t.Errorf("%v allocations per DATA frame", n)
	}
	out := new(frameBuf)
	n = testing.AllocsPerRun(1000, func() {
		putDataHeader(out.b[:], 1000, 1)
		c.out.data(s, out, frameHeaderLen+1000)
	})
	if n > 0 {
		t.Errorf("%v allocations per frame sent", n)
	}
}
