package enroll

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// serve runs an agent's end for the time of the test.
func serve(t *testing.T, handle func(context.Context, Request) Response) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "cni.sock")
	s, err := Listen(path, handle, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return path
}

func TestCall(t *testing.T) {
	want := Request{Version: Version, Kind: Add, ContainerID: "c", Netns: "/run/netns/x", Pod: Pod{"ns", "name", "uid"},
		IPs: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}, CNIVersion: "0.4.0"}
	got := make(chan Request, 1)
	path := serve(t, func(_ context.Context, r Request) Response {
		got <- r
		return Response{Outcome: Captured}
	})
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", st.Mode(), err)
	}
	answer, err := Call(t.Context(), path, want)
	if err != nil || answer.Outcome != Captured {
		t.Fatalf("%+v, %v", answer, err)
	}
	if r := <-got; !reflect.DeepEqual(r, want) {
		t.Errorf("agent got %+v, want %+v", r, want)
	}
}

// TestHangUpCancels: a runtime that gave up leaves no work behind.
func TestHangUpCancels(t *testing.T) {
	started, ended := make(chan struct{}), make(chan struct{})
	path := serve(t, func(ctx context.Context, _ Request) Response {
		close(started)
		<-ctx.Done()
		close(ended)
		return Response{Outcome: Refused}
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-started; cancel() }()
	_, err := Call(ctx, path, Request{Kind: Add, ContainerID: "c", Netns: "n", Pod: Pod{"a", "b", ""}})
	var away *UnreachableError
	if !errors.As(err, &away) {
		t.Errorf("err = %v", err)
	}
	<-ended
}

func TestUnreachable(t *testing.T) {
	var away *UnreachableError
	if _, err := Call(t.Context(), filepath.Join(t.TempDir(), "none"), Request{}); !errors.As(err, &away) {
		t.Errorf("no socket: %v", err)
	}
	// An agent that dies while it thinks has not answered either.
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			_, _ = bufio.NewReader(c).ReadString('\n')
			_, _ = c.Write([]byte(`{"version":1,"outc`))
			c.Close()
		}
	}()
	if _, err := Call(t.Context(), path, Request{}); !errors.As(err, &away) {
		t.Errorf("cut answer: %v", err)
	}
}

func TestBadRequests(t *testing.T) {
	path := serve(t, func(context.Context, Request) Response { t.Error("handler was called"); return Response{Outcome: Done} })
	for _, c := range []struct{ name, line, want string }{
		{"garbage", "nonsense", "request: invalid character 'o' in literal null (expecting 'u')"},
		{"everything missing", "{}", "request: version: want 1, have 0\nrequest: kind \"\": want add, check or del\nrequest: containerID is empty\nrequest: netns is empty\nrequest: pod: namespace and name are needed"},
		{"bad address", `{"version":1,"kind":"add","containerID":"c","netns":"n","pod":{"namespace":"a","name":"b"},"ips":["x"]}`, `request: ParseAddr("x"): unable to parse IP`},
	} {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write([]byte(c.line + "\n")); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(conn).ReadBytes('\n')
		if err != nil {
			t.Fatal(err)
		}
		r, err := decodeResponse(line)
		if err != nil || r.Outcome != Refused || r.Reason != c.want {
			t.Errorf("%s: %+v, %v; want %q", c.name, r, err, c.want)
		}
	}
	// Too long: the connection ends.
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go func() { _, _ = conn.Write([]byte(strings.Repeat("x", maxMessage+10))) }()
	if n, err := conn.Read(make([]byte, 1)); err == nil {
		t.Errorf("%d bytes in answer to too much", n)
	}
}

func TestIntent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "intent")
	if _, err := ReadIntent(path); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("missing file: %v", err)
	}
	want := Intent{Node: "n", Boot: "b", Namespaces: map[string]Enrolment{"a": Enrolled, "b": Mixed, "c": Outside},
		Pods: []IntendedPod{{UID: "u", Namespace: "a", Name: "p", ContainerID: "c", Cookie: 7, Netns: "/n", Sockets: []IntendedSocket{{"outbound", 9}}}}}
	for range 2 { // the second replaces
		if err := WriteIntent(path, want); err != nil {
			t.Fatal(err)
		}
	}
	got, err := ReadIntent(path)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%+v, %v", got, err)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// Whatever is missing at the end or wrong in the middle is noticed.
	for n := range whole {
		var corrupt *CorruptError
		if _, err := DecodeIntent(path, whole[:n]); !errors.As(err, &corrupt) {
			t.Fatalf("cut after %d bytes: %v", n, err)
		}
		bad := append([]byte(nil), whole...)
		bad[n] ^= 1
		if in, err := DecodeIntent(path, bad); err == nil {
			t.Fatalf("byte %d flipped: %+v", n, in)
		}
	}
	if err := WriteIntent(filepath.Join(t.TempDir(), "no", "intent"), want); err == nil {
		t.Error("no error for a missing directory")
	}
}

func FuzzIntent(f *testing.F) {
	if b, err := EncodeIntent(Intent{Node: "n", Namespaces: map[string]Enrolment{"a": Enrolled}}); err == nil {
		f.Add(b)
	}
	f.Add([]byte("ambit-intent 1 00\n{}"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		in, err := DecodeIntent("x", b)
		if err != nil {
			return
		}
		if _, err := EncodeIntent(in); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzRequest(f *testing.F) {
	if b, err := json.Marshal(Request{Version: 1, Kind: Add, ContainerID: "c", Netns: "n", Pod: Pod{"a", "b", "c"}}); err == nil {
		f.Add(b)
	}
	f.Add([]byte(`{"ips":["::ffff:1.2.3.4"]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRequest(b)
		if err == nil && (r.ContainerID == "" || r.Pod.Name == "") {
			t.Fatalf("%+v passed", r)
		}
	})
}
