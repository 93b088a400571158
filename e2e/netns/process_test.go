package netns_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/ambitmesh/ambit/cni/netns"
)

var binary struct {
	once sync.Once
	path string
	err  error
}

// ztunnelBinary builds the program once per test run.
func ztunnelBinary(t testing.TB) string {
	t.Helper()
	binary.once.Do(func() {
		dir, err := os.MkdirTemp("", "ambit-netns-")
		if err != nil {
			binary.err = err
			return
		}
		binary.path = dir + "/ambit-ztunnel"
		cmd := exec.Command("go", "build", "-o", binary.path, "github.com/ambitmesh/ambit/cmd/ambit-ztunnel")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		out, err := cmd.CombinedOutput()
		if err != nil {
			binary.err = fmt.Errorf("build ambit-ztunnel: %w\n%s", err, out)
		}
	})
	if binary.err != nil {
		t.Fatal(binary.err)
	}
	return binary.path
}

func TestMain(m *testing.M) {
	code := m.Run()
	if binary.path != "" {
		os.RemoveAll(strings.TrimSuffix(binary.path, "/ambit-ztunnel"))
	}
	os.Exit(code)
}

// process is a running ztunnel.
type process struct {
	t    testing.TB
	cmd  *exec.Cmd
	done chan struct{} // closed when it has exited and its output is read

	mu    sync.Mutex
	lines []string // guarded by mu
}

// lockThread keeps the calling goroutine's thread for it, to its end.
func lockThread() { runtime.LockOSThread() }

// startZtunnel starts the program inside the node's namespace. env is added.
func (n *node) startZtunnel(env []string) *process {
	t := n.w.t
	t.Helper()
	p := &process{t: t, done: make(chan struct{})}
	p.cmd = exec.Command(ztunnelBinary(t))
	p.cmd.Env = append([]string{
		"NODE_NAME=" + n.name, "CLUSTER_ID=test", "POD_NAME=ztunnel-" + n.name, "POD_NAMESPACE=ambit-system",
		"SERVICE_ACCOUNT=ztunnel", "XDS_ADDRESS=" + n.xds, "XDS_ROOT_CA=" + n.w.control.root,
		"ALT_XDS_HOSTNAME=" + controllerName, "ALT_CA_HOSTNAME=" + controllerName, "AUTH_TOKEN=" + n.name,
		"INPOD_UDS=" + n.socket(), "RUST_LOG=info",
	}, env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stderr = p.cmd.Stdout
	started := make(chan error)
	exited := make(chan struct{})
	go func() {
		// The signal of Pdeathsig comes when the thread that forked dies, so
		// the goroutine that starts the process keeps its thread until the end.
		err := n.ns.Do(func() error {
			err := p.cmd.Start()
			started <- err
			if err == nil {
				<-exited
			}
			return nil
		})
		if err != nil {
			select {
			case started <- err:
			default:
			}
		}
	}()
	if err := <-started; err != nil {
		t.Fatalf("start ztunnel on %s: %v", n.name, err)
	}
	go func() {
		s := bufio.NewScanner(out)
		s.Buffer(nil, 1<<20)
		for s.Scan() {
			p.mu.Lock()
			p.lines = append(p.lines, s.Text())
			p.mu.Unlock()
		}
		p.cmd.Wait()
		close(exited)
		close(p.done)
	}()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			p.mu.Lock()
			defer p.mu.Unlock()
			t.Logf("log of ztunnel on %s:\n%s", n.name, strings.Join(tail(p.lines, 60), "\n"))
		}
	})
	return p
}

func tail(lines []string, n int) []string { return lines[max(0, len(lines)-n):] }

func (p *process) kill() {
	p.cmd.Process.Kill()
	<-p.done
}

// terminate asks p to end and waits for it.
func (p *process) terminate() {
	p.cmd.Process.Signal(syscall.SIGTERM)
	<-p.done
}

// log finds a line that contains all of parts.
func (p *process) log(parts ...string) (string, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.lines {
		ok := true
		for _, s := range parts {
			ok = ok && strings.Contains(l, s)
		}
		if ok {
			return l, true
		}
	}
	return "", false
}

// count is how many lines contain all of parts.
func (p *process) count(parts ...string) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.lines {
		ok := true
		for _, s := range parts {
			ok = ok && strings.Contains(l, s)
		}
		if ok {
			n++
		}
	}
	return n
}

// wantLog waits for such a line.
func (p *process) wantLog(t testing.TB, parts ...string) string {
	t.Helper()
	var line string
	eventually(t, fmt.Sprintf("a log line with %q", parts), func() error {
		l, ok := p.log(parts...)
		if !ok {
			return fmt.Errorf("not there")
		}
		line = l
		return nil
	})
	return line
}

// get fetches a page of the node's own HTTP servers.
func (n *node) get(addr, path string) (string, error) { return page(n.ns, addr, path) }

// page fetches a page as an application of the pod does.
func (p *pod) page(addr, path string) (string, error) { return page(p.ns, addr, path) }

func page(ns *netns.NS, addr, path string) (string, error) {
	c := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, a string) (net.Conn, error) {
			return ns.DialTCP(ctx, netip.AddrPort{}, netip.MustParseAddrPort(a), netns.SocketOptions{})
		}}}
	r, err := c.Get("http://" + addr + path)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err == nil && r.StatusCode != 200 {
		err = fmt.Errorf("status %d: %s", r.StatusCode, bytes.TrimSpace(b))
	}
	return string(b), err
}

// metric sums the samples of name whose labels contain all of parts.
func (n *node) metric(t testing.TB, name string, parts ...string) float64 {
	t.Helper()
	body, err := n.get("127.0.0.1:15020", "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	return sumMetric(body, name, parts...)
}

func sumMetric(body, name string, parts ...string) float64 {
	var sum float64
	for line := range strings.SplitSeq(body, "\n") {
		if !strings.HasPrefix(line, name+"{") && !strings.HasPrefix(line, name+" ") {
			continue
		}
		ok := true
		for _, p := range parts {
			ok = ok && strings.Contains(line, p)
		}
		var v float64
		if _, err := fmt.Sscan(line[strings.LastIndexByte(line, ' ')+1:], &v); ok && err == nil {
			sum += v
		}
	}
	return sum
}
