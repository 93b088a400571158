package handoff

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/ambitmesh/ambit/cni/handoff/zds"
	"github.com/ambitmesh/ambit/cni/netns"
)

// TestGoldenBytes pins every message: other implementations read these.
//
//ambit:feature zds-wire
func TestGoldenBytes(t *testing.T) {
	pod := Pod{UID: "u", Name: "n", Namespace: "s", ServiceAccount: "a"}
	for _, c := range []struct {
		name string
		b    []byte
		err  error
		want string
	}{
		{name: "ZdsHello", want: "0801"},
		{name: "ZdsHello slot", want: "0801" + "a20604" + hex.EncodeToString([]byte("slot")) + "aa0602" + hex.EncodeToString([]byte("v1"))},
		{name: "AddWorkload", want: "0a0e" + "0a0175" + "1209" + "0a016e" + "120173" + "1a0161"},
		{name: "AddWorkload slot", want: "0a17" + "0a0175" + "1209" + "0a016e" + "120173" + "1a0161" + "a206060102030304" + "05"},
		{name: "AddWorkload from start", want: "0a12" + "0a0175" + "1209" + "0a016e" + "120173" + "1a0161" + "aa060101"},
		{name: "DelWorkload", want: "1203" + "120175"},
		{name: "SnapshotSent", want: "1a00"},
		{name: "KeepWorkload", want: "2a03" + "0a0175"},
		{name: "Ack", want: "0a00"},
		{name: "Ack error", want: "0a04" + "0a026e6f"},
	} {
		switch c.name {
		case "ZdsHello":
			c.b, c.err = hello{dialect: dialectPort}.encode()
		case "ZdsHello slot":
			c.b, c.err = hello{dialect: dialectSlot, version: "v1"}.encode()
		case "AddWorkload":
			c.b, c.err = encodeAdd(pod, nil)
		case "AddWorkload slot":
			c.b, c.err = encodeAdd(pod, []kind{kindOutbound, kindInbound, kindHBONE, kindHBONE, kindDNSTCP, kindDNSUDP})
		case "AddWorkload from start":
			p := pod
			p.FromStart = true
			c.b, c.err = encodeAdd(p, nil)
		case "DelWorkload":
			c.b, c.err = encodeDel("u")
		case "SnapshotSent":
			c.b, c.err = encodeSnapshotSent()
		case "KeepWorkload":
			c.b, c.err = encodeKeep("u")
		case "Ack":
			c.b, c.err = encodeAck("")
		case "Ack error":
			c.b, c.err = encodeAck("no")
		}
		if got := hex.EncodeToString(c.b); c.err != nil || got != c.want {
			t.Errorf("%s: %s, %v; want %s", c.name, got, c.err, c.want)
		}
	}
}

// TestLongestAddFits: names at the limits Kubernetes sets, all sockets there are.
func TestLongestAddFits(t *testing.T) {
	p := Pod{UID: strings.Repeat("u", 36), Name: strings.Repeat("n", 253), Namespace: strings.Repeat("s", 63), ServiceAccount: strings.Repeat("a", 253)}
	b, err := encodeAdd(p, make([]kind, maxFDs-1))
	if err != nil || len(b) > maxMessage {
		t.Errorf("%d bytes, %v; the limit is %d", len(b), err, maxMessage)
	}
}

func TestHello(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     hello
		wantErr  string
	}{
		{"plain", "0801", hello{dialect: dialectPort}, ""},
		{"slot", "0801a20604736c6f74aa06027631", hello{dialectSlot, "v1"}, ""},
		{"other dialect", "0801a20604666f6f21", hello{dialect: dialectPort}, ""},
		{"field of another type", "0801a00601", hello{dialect: dialectPort}, ""},
		{"unknown fields around", "0801f206020102a20604736c6f74", hello{dialect: dialectSlot}, ""},
		{"no version", "", hello{}, "ZdsHello: field version: want 1, have 0"},
		{"garbage", "ffff", hello{}, "ZdsHello: "},
	} {
		b, _ := hex.DecodeString(c.in)
		got, err := decodeHello(b)
		if got != c.want || (err == nil) != (c.wantErr == "") || err != nil && !strings.HasPrefix(strings.ReplaceAll(err.Error(), "\u00a0", " "), c.wantErr) {
			t.Errorf("%s: %+v, %v; want %+v, %q", c.name, got, err, c.want, c.wantErr)
		}
	}
}

// rawAgent is the agent's end of a connection, to send what a sane agent does not.
func rawAgent(t *testing.T) (path string, accept func() *net.UnixConn) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "z.sock")
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return path, func() *net.UnixConn {
		c, err := l.AcceptUnix()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		b, _, err := readDatagram(c)
		if err != nil {
			t.Fatal(err)
		}
		if h, err := decodeHello(b); err != nil || h.dialect != dialectSlot {
			t.Fatalf("hello %+v, %v", h, err)
		}
		return c
	}
}

func message(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func plainAdd(t *testing.T, uid string) []byte {
	b, err := encodeAdd(Pod{UID: uid, Name: "n", Namespace: "s", ServiceAccount: "a"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func slotAdd(t *testing.T, kinds ...kind) []byte {
	b, err := encodeAdd(Pod{UID: "u", Name: "n", Namespace: "s"}, kinds)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestBadRequests: each is answered with an error, costs no descriptor and, as
// one cannot know what was meant, the connection; then the client is back.
//
//ambit:feature zds-violations
func TestBadRequests(t *testing.T) {
	full := []kind{kindOutbound, kindInbound, kindHBONE}
	for _, c := range []struct {
		name  string
		b     []byte
		files int // the first is a namespace
		plain bool
		want  string
	}{
		{name: "garbage", b: []byte{0xff, 0xff, 0xff}, want: "failure to read message : WorkloadRequest: "},
		{name: "garbage with descriptors", b: []byte{0xff}, files: 3, want: "failure to read message : WorkloadRequest: "},
		{name: "empty payload", b: []byte{0x32, 0x00}, want: "failure to read message : WorkloadRequest: field payload: have none"},
		{name: "oversized", b: make([]byte, maxMessage+1), files: 2, want: "failure to read message : message truncated: longer than 1024 bytes"},
		{name: "cut", b: plainAdd(t, "u")[:9], files: 1, want: "failure to read message : WorkloadRequest: "},
		{name: "add without descriptor", b: plainAdd(t, "u"), want: "failure to read message : AddWorkload u: want 1 descriptors, have 0"},
		{name: "add with two", b: plainAdd(t, "u"), files: 2, want: "failure to read message : AddWorkload u: want 1 descriptors, have 2"},
		{name: "add of something else", b: plainAdd(t, "u"), files: 1, plain: true, want: "failure to read message : AddWorkload u: descriptor of the network namespace: "},
		{name: "too many descriptors", b: plainAdd(t, "u"), files: maxFDs + 5, want: "failure to read message : control data truncated: more than 32 descriptors"},
		{name: "slot: one missing", b: slotAdd(t, full...), files: 3, want: "failure to read message : AddWorkload u: want 4 descriptors, have 3"},
		{name: "slot: twice the same", b: slotAdd(t, kindOutbound, kindOutbound, kindInbound), files: 4, want: "failure to read message : AddWorkload u: two sockets of kind 1"},
		{name: "slot: no inbound", b: slotAdd(t, kindOutbound, kindHBONE), files: 3, want: "failure to read message : AddWorkload u: outbound, inbound and HBONE sockets are all needed"},
		{name: "slot: unknown kind", b: slotAdd(t, kindOutbound, 9), files: 3, want: "failure to read message : AddWorkload: field 100: unknown kind of socket 9"},
		{name: "del with descriptor", b: message(t, &zds.WorkloadRequest{Payload: &zds.WorkloadRequest_Del{Del: &zds.DelWorkload{Uid: "u"}}}), files: 1, want: "failure to read message : *zds.WorkloadRequest_Del carries 1 descriptors, want none"},
	} {
		t.Run(c.name, func(t *testing.T) {
			noLeak(t)
			path, accept := rawAgent(t)
			r := new(recorder)
			ready := ztunnel(t, path, r, true)
			conn := accept()
			send(t, conn, c.b, c.files, c.plain)
			text := readAck(t, conn)
			if !strings.HasPrefix(strings.ReplaceAll(text, "\u00a0", " "), c.want) {
				t.Errorf("Ack %q, want %q", text, c.want)
			}
			if _, _, err := readDatagram(conn); !errors.Is(err, io.EOF) {
				t.Errorf("after a bad message: %v, want EOF", err)
			}
			conn = accept()
			send(t, conn, []byte{0x1a, 0x00}, 0, false)
			if text := readAck(t, conn); text != "" {
				t.Errorf("after the reconnection: %q", text)
			}
			eventually(t, "ready", ready.get)
			if got := r.log(); got != "done" {
				t.Errorf("handler heard %q", got)
			}
		})
	}
}

// send passes n descriptors, the first of which is a namespace unless plain.
func send(t *testing.T, c *net.UnixConn, b []byte, n int, plain bool) {
	t.Helper()
	var fds []int
	for i := range n {
		if i == 0 && !plain {
			ns, err := netns.Current()
			if err != nil {
				t.Fatal(err)
			}
			defer ns.Close()
			fds = append(fds, int(ns.File().Fd()))
			continue
		}
		f, err := os.Open("/dev/null")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		fds = append(fds, int(f.Fd()))
	}
	var oob []byte
	if n > 0 {
		oob = unix.UnixRights(fds...)
	}
	if _, _, err := c.WriteMsgUnix(b, oob, nil); err != nil {
		t.Fatal(err)
	}
}

func readAck(t *testing.T, c *net.UnixConn) string {
	t.Helper()
	b, files, err := readDatagram(c)
	closeAll(files)
	if err != nil {
		t.Fatal(err)
	}
	text, err := decodeAck(b)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestViolationsEndTheClient: the set of pods would be unknown.
//
//ambit:feature zds-violations
func TestViolationsEndTheClient(t *testing.T) {
	nameless := message(t, &zds.WorkloadRequest{Payload: &zds.WorkloadRequest_Add{Add: &zds.AddWorkload{Uid: "u"}}})
	keep, _ := encodeKeep("u")
	sent, _ := encodeSnapshotSent()
	for _, c := range []struct {
		name   string
		before [][]byte
		b      []byte
		files  int
		want   string
	}{
		{"add without workload_info", nil, nameless, 1, "Add of u without workload_info"},
		{"keep after the snapshot", [][]byte{sent}, keep, 0, "Keep of u after SnapshotSent"},
		{"second snapshot", [][]byte{sent}, sent, 0, "second SnapshotSent"},
	} {
		t.Run(c.name, func(t *testing.T) {
			noLeak(t)
			path, accept := rawAgent(t)
			done := make(chan error, 1)
			go func() {
				done <- RunClient(context.Background(), ClientConfig{Path: path, Slots: true, Handler: new(recorder), Logger: quiet()})
			}()
			conn := accept()
			for _, b := range c.before {
				send(t, conn, b, 0, false)
				if text := readAck(t, conn); text != "" {
					t.Fatal(text)
				}
			}
			send(t, conn, c.b, c.files, false)
			if text := readAck(t, conn); text != "failure to process message : "+c.want {
				t.Errorf("Ack %q", text)
			}
			var v *ViolationError
			if err := <-done; !errors.As(err, &v) || v.What != c.want {
				t.Errorf("RunClient returned %v", err)
			}
		})
	}
}

// TestBadClients: whatever a client does costs it its connection and nobody
// else anything.
//
//ambit:feature zds-violations
func TestBadClients(t *testing.T) {
	good, _ := hello{dialect: dialectSlot}.encode()
	ack, _ := encodeAck("")
	for _, c := range []struct {
		name  string
		sends [][]byte
		files int // with the last
	}{
		{"garbage hello", [][]byte{{0xff, 0x01}}, 0},
		{"hello with descriptors", [][]byte{good}, 3},
		{"oversized hello", [][]byte{make([]byte, 4000)}, 0},
		{"garbage for an ack", [][]byte{good, {0xff}}, 0},
		{"ack with descriptors", [][]byte{good, ack}, 2},
		{"acks nobody asked for", [][]byte{good, ack, ack}, 0},
		{"empty response", [][]byte{good, {0x12, 0x00}}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			noLeak(t)
			s, path := agent(t, ServerConfig{})
			conn := dial(t, path)
			for i, b := range c.sends {
				n := 0
				if i == len(c.sends)-1 {
					n = c.files
				}
				send(t, conn, b, n, true)
			}
			for {
				_, files, err := readDatagram(conn)
				closeAll(files)
				if err != nil {
					// With messages of ours unread the kernel says reset.
					if !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
						t.Fatalf("read: %v", err)
					}
					break
				}
			}
			eventually(t, "the agent forgot it", func() bool { return len(s.Clients()) == 0 })
			r := new(recorder)
			eventually(t, "another ztunnel is served", ztunnel(t, path, r, true).get)
		})
	}
}

// FuzzRequest: whatever arrives, with however many descriptors, the client
// neither panics nor keeps one.
//
//ambit:feature wire-fuzzed
func FuzzRequest(f *testing.F) {
	f.Add([]byte{}, uint8(0))
	f.Add([]byte{0x1a, 0x00}, uint8(0))
	if b, err := encodeAdd(Pod{UID: "u", Name: "n", Namespace: "s"}, []kind{kindOutbound, kindInbound, kindHBONE}); err == nil {
		f.Add(b, uint8(4))
		f.Add(b, uint8(0))
	}
	if b, err := encodeDel("u"); err == nil {
		f.Add(b, uint8(1))
	}
	f.Fuzz(func(t *testing.T, b []byte, n uint8) {
		n %= 8
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		ours, theirs := fromFD(t, pair[0]), fromFD(t, pair[1])
		defer theirs.Close()
		var files []*os.File
		for i := range n {
			path := "/dev/null"
			if i == 0 {
				path = "/proc/self/ns/net"
			}
			file, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, file)
		}
		before := openFDs(t)
		r := new(recorder)
		s := session{conn: ours, cfg: ClientConfig{Handler: r, Ready: func(bool) {}, Logger: quiet()}}
		_ = s.handle(context.Background(), b, files)
		ours.Close()
		r.closeAll()
		for _, f := range files {
			f.Close() // what the session closed already says so
		}
		if after := openFDs(t); after > before-int(n)-1 {
			t.Fatalf("%d descriptors before, %d after", before, after)
		}
	})
}

func fromFD(t *testing.T, fd int) *net.UnixConn {
	t.Helper()
	f := os.NewFile(uintptr(fd), "pair")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	return c.(*net.UnixConn)
}

func FuzzHello(f *testing.F) {
	for _, s := range []string{"0801", "0801a20604736c6f74aa06027631", "", "a206"} {
		b, _ := hex.DecodeString(s)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := decodeHello(b)
		if err != nil {
			return
		}
		again, err := h.encode()
		if err != nil {
			return // not UTF-8 and the like
		}
		if back, err := decodeHello(again); err != nil || back != h {
			t.Fatalf("%+v became %+v, %v", h, back, err)
		}
	})
}
