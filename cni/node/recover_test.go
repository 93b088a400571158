package node

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/ambitmesh/ambit/cni/enroll"
	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/ambitmesh/ambit/cni/redirect"
)

// TestSocketsComeBack: listeners that another process holds are found by their
// cookies, and what comes back is the same socket.
func TestSocketsComeBack(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: pidfd_getfd of another process")
	}
	l := &redirect.Listeners{Outbound: tcpFile(t), Inbound: tcpFile(t), HBONE: []*os.File{tcpFile(t), tcpFile(t)}}
	defer l.Close()
	names, err := name(l)
	if err != nil {
		t.Fatal(err)
	}
	if len(names) != 4 || names[0].Kind != kindOutbound || names[3].Kind != kindHBONE {
		t.Fatalf("names %+v", names)
	}
	// A process that has them and nothing to do with us but inheritance.
	holder := exec.Command("cat")
	holder.ExtraFiles = l.Files()
	stdin, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		stdin.Close()
		_ = holder.Wait()
	}()
	want := addressOf(t, l.HBONE[1])
	l.Close() // the agent before is gone

	r := recovery{}
	r.expect([]enroll.IntendedPod{{Sockets: names}})
	defer r.release()
	// Its ztunnel has not connected yet.
	if l, err := r.take(nil, enroll.IntendedPod{Sockets: names}); l != nil || err != nil {
		t.Fatalf("from nobody: %v, %v", l, err)
	}
	clients := []client{{pid: holder.Process.Pid, since: time.Now()}}
	got, err := r.take(clients, enroll.IntendedPod{Sockets: names})
	if err != nil || got == nil {
		t.Fatalf("%v, %v", got, err)
	}
	defer got.Close()
	if a := addressOf(t, got.HBONE[1]); a != want {
		t.Errorf("second HBONE socket is %s, want %s", a, want)
	}
	again, err := name(got)
	if err != nil || len(again) != len(names) || again[0] != names[0] {
		t.Errorf("%+v, %v; want %+v", again, err, names)
	}
	// Nothing is given twice; a pod whose sockets are gone gets none.
	if l, err := r.take(clients, enroll.IntendedPod{Sockets: names}); l != nil || err != nil {
		t.Errorf("second time: %v, %v", l, err)
	}
}

func tcpFile(t *testing.T) *os.File {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func addressOf(t *testing.T, f *os.File) string {
	t.Helper()
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// TestHostRoot: an absolute link of the host stays inside the host's root.
func TestHostRoot(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "run", "netns"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "run", "netns", "x"), []byte("in the host"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(root, "var"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/run", filepath.Join(root, "var", "run")); err != nil {
		t.Fatal(err)
	}
	f, err := HostRoot(root).Open("/var/run/netns/x", os.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 20)
	if n, _ := f.Read(b); string(b[:n]) != "in the host" {
		t.Errorf("read %q", b[:n])
	}
	// A plain file is no namespace, and the error says so.
	if _, err := HostRoot(root).Netns("/var/run/netns/x"); err == nil {
		t.Error("a plain file was taken for a namespace")
	}
	if _, err := HostRoot(root).Open("/../../etc/passwd", os.O_RDONLY); err == nil {
		t.Error("left the root")
	}
	own, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	ns, err := HostRoot(root).Netns("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if ns.ID() != own.ID() {
		t.Error("not our namespace")
	}
}
