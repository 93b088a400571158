package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/ambitmesh/ambit/cni/enroll"
)

// TestMain lets the test binary be the plugin, so that the skeleton runs as it
// does under a container runtime: environment, stdin, stdout, exit code.
func TestMain(m *testing.M) {
	if os.Getenv("CNI_COMMAND") != "" {
		skel.PluginMainFuncs(New(os.Stdout, os.Stderr).Funcs(), version.All, "test")
		return
	}
	os.Exit(m.Run())
}

const prev = `{"cniVersion":"%s","interfaces":[{"name":"eth0","sandbox":"/x"}],"ips":[{"version":"4","address":"10.1.2.3/24","interface":0},{"version":"6","address":"fd00::3/64"}],"dns":{},"future":{"kept":[1,2]}}`

type command struct {
	name      string // CNI_COMMAND
	version   string
	namespace string
	pod       string
	netns     string
	extra     map[string]any // in the configuration
	noPrev    bool
}

// execute runs the plugin as a runtime would.
func execute(t *testing.T, c command) (stdout, stderr string, err error) {
	t.Helper()
	if c.version == "" {
		c.version = "0.4.0"
	}
	if c.netns == "" {
		c.netns = "/proc/1/ns/net"
	}
	conf := map[string]any{"cniVersion": c.version, "name": "net", "type": "ambit-cni"}
	if !c.noPrev {
		conf["prevResult"] = json.RawMessage(fmt.Sprintf(prev, c.version))
	}
	for k, v := range c.extra {
		conf[k] = v
	}
	stdin, err := json.Marshal(conf)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = []string{
		"CNI_COMMAND=" + c.name, "CNI_CONTAINERID=container", "CNI_NETNS=" + c.netns, "CNI_IFNAME=eth0", "CNI_PATH=/opt/cni/bin",
		"CNI_NETNS_OVERRIDE=true", // our own namespace stands for the pod's
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=" + c.namespace + ";K8S_POD_NAME=" + c.pod + ";K8S_POD_UID=uid-1;OTHER=a=b",
	}
	cmd.Stdin = bytes.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// agent answers every request alike and remembers them.
type agent struct {
	mu       sync.Mutex
	requests []enroll.Request // guarded by mu
}

func (a *agent) seen() []enroll.Request {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]enroll.Request(nil), a.requests...)
}

func startAgent(t *testing.T, path string, answer enroll.Response) *agent {
	t.Helper()
	a := new(agent)
	s, err := enroll.Listen(path, func(_ context.Context, r enroll.Request) enroll.Response {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.requests = append(a.requests, r)
		return answer
	}, slog.New(slog.DiscardHandler))
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
	return a
}

func paths(t *testing.T) (dir string, extra map[string]any) {
	t.Helper()
	dir = t.TempDir()
	return dir, map[string]any{
		"socket": filepath.Join(dir, "cni.sock"), "intent": filepath.Join(dir, "intent"),
		"excludeNamespaces": []string{"kube-system", "ambit-system"}, "timeoutSeconds": 1,
	}
}

// TestAddReturnsPrevResult: captured or passed, in every CNI version, the
// result is the one before us byte for byte.
func TestAddReturnsPrevResult(t *testing.T) {
	for _, v := range []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		for _, outcome := range []enroll.Outcome{enroll.Captured, enroll.Passed} {
			t.Run(v+" "+string(outcome), func(t *testing.T) {
				dir, extra := paths(t)
				a := startAgent(t, filepath.Join(dir, "cni.sock"), enroll.Response{Outcome: outcome})
				out, _, err := execute(t, command{name: "ADD", version: v, namespace: "shop", pod: "web", extra: extra})
				if err != nil {
					t.Fatalf("%v: %s", err, out)
				}
				if want := fmt.Sprintf(prev, v); strings.TrimSpace(out) != want {
					t.Errorf("result %s, want %s", out, want)
				}
				r := a.seen()[0]
				if r.Kind != enroll.Add || r.ContainerID != "container" || r.Netns != "/proc/1/ns/net" || r.Pod != (enroll.Pod{Namespace: "shop", Name: "web", UID: "uid-1"}) ||
					fmt.Sprint(r.IPs) != "[10.1.2.3 fd00::3]" || r.CNIVersion != v {
					t.Errorf("agent was asked %+v", r)
				}
			})
		}
	}
}

// cniError is what a runtime reads from stdout after a failure.
func cniError(t *testing.T, out string) types.Error {
	t.Helper()
	var e types.Error
	if err := json.Unmarshal([]byte(out), &e); err != nil {
		t.Fatalf("stdout is no CNI error: %v: %s", err, out)
	}
	return e
}

func TestAddRefused(t *testing.T) {
	dir, extra := paths(t)
	startAgent(t, filepath.Join(dir, "cni.sock"), enroll.Response{Outcome: enroll.Refused, Reason: "kernel without tcx"})
	out, _, err := execute(t, command{name: "ADD", namespace: "shop", pod: "web", extra: extra})
	if err == nil {
		t.Fatalf("ADD succeeded: %s", out)
	}
	if e := cniError(t, out); !strings.Contains(e.Msg, "shop/web") || e.Details != "kernel without tcx" {
		t.Errorf("error %+v", e)
	}
}

// TestWithoutAgent: the intent file decides, and what it does not say fails.
func TestWithoutAgent(t *testing.T) {
	intent := enroll.Intent{Node: "n", Namespaces: map[string]enroll.Enrolment{
		"in": enroll.Enrolled, "out": enroll.Outside, "some": enroll.Mixed,
	}}
	for _, c := range []struct {
		namespace, damage string
		pass              bool
		want              string
	}{
		{namespace: "out", pass: true},
		{namespace: "kube-system", pass: true},
		{namespace: "ambit-system", pass: true},
		{namespace: "in", want: "namespace in is enrolled"},
		{namespace: "some", want: "namespace some has pods that are enrolled by their own label"},
		{namespace: "new", want: "namespace new was not known when the agent was last here"},
		{namespace: "out", damage: "missing", want: "no such file"},
		{namespace: "out", damage: "cut", want: "checksum does not match: truncated or damaged"},
		{namespace: "out", damage: "empty", want: "truncated: no first line"},
	} {
		t.Run(c.namespace+" "+c.damage, func(t *testing.T) {
			t.Parallel()
			dir, extra := paths(t)
			path := filepath.Join(dir, "intent")
			b, err := enroll.EncodeIntent(intent)
			if err != nil {
				t.Fatal(err)
			}
			switch c.damage {
			case "cut":
				b = b[:len(b)-3]
			case "empty":
				b = nil
			}
			if c.damage != "missing" {
				if err := os.WriteFile(path, b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			out, _, err := execute(t, command{name: "ADD", namespace: c.namespace, pod: "web", extra: extra})
			if c.pass {
				if err != nil || strings.TrimSpace(out) != fmt.Sprintf(prev, "0.4.0") {
					t.Errorf("%v: %s", err, out)
				}
				return
			}
			if err == nil {
				t.Fatalf("pod passed: %s", out)
			}
			e := cniError(t, out)
			if !strings.Contains(e.Msg, c.namespace+"/web") || !strings.Contains(e.Details, c.want) || !strings.Contains(e.Details, "waited 1s") {
				t.Errorf("error %+v, want %q in it", e, c.want)
			}
		})
	}
}

// TestAddWaitsForTheAgent: one that comes back within the time is asked.
func TestAddWaitsForTheAgent(t *testing.T) {
	dir, extra := paths(t)
	extra["timeoutSeconds"] = 60
	// The plugin reads the intent file after it has looked for the agent in
	// vain. Of a FIFO it reads as long as we hold the other end.
	fifo := filepath.Join(dir, "intent")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	type result struct {
		out string
		err error
	}
	done := make(chan result, 1)
	go func() {
		out, _, err := execute(t, command{name: "ADD", namespace: "in", pod: "web", extra: extra})
		done <- result{out, err}
	}()
	w, err := os.OpenFile(fifo, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	a := startAgent(t, filepath.Join(dir, "cni.sock"), enroll.Response{Outcome: enroll.Captured})
	w.Close()
	r := <-done
	if r.err != nil || len(a.seen()) != 1 {
		t.Errorf("%v: %s; %d requests", r.err, r.out, len(a.seen()))
	}
}

func TestExcludedAreNotAskedAbout(t *testing.T) {
	dir, extra := paths(t)
	a := startAgent(t, filepath.Join(dir, "cni.sock"), enroll.Response{Outcome: enroll.Refused})
	for _, name := range []string{"ADD", "CHECK", "DEL"} {
		for _, ns := range []string{"kube-system", "ambit-system", ""} {
			if out, _, err := execute(t, command{name: name, namespace: ns, pod: "web", extra: extra}); err != nil {
				t.Errorf("%s in %q: %v: %s", name, ns, err, out)
			}
		}
	}
	if len(a.seen()) != 0 {
		t.Errorf("agent was asked %+v", a.seen())
	}
}

func TestDelNeverFails(t *testing.T) {
	dir, extra := paths(t)
	if out, errs, err := execute(t, command{name: "DEL", namespace: "in", pod: "web", extra: extra}); err != nil || !strings.Contains(errs, "in/web") {
		t.Errorf("without an agent: %v: %s %s", err, out, errs)
	}
	extra["timeoutSeconds"] = "nonsense"
	if out, _, err := execute(t, command{name: "DEL", namespace: "in", pod: "web", extra: extra}); err != nil {
		t.Errorf("with a broken configuration: %v: %s", err, out)
	}
	delete(extra, "timeoutSeconds")
	a := startAgent(t, filepath.Join(dir, "cni.sock"), enroll.Response{Outcome: enroll.Done})
	if out, _, err := execute(t, command{name: "DEL", namespace: "in", pod: "web", extra: extra}); err != nil || len(a.seen()) != 1 || a.seen()[0].Kind != enroll.Del {
		t.Errorf("with an agent: %v: %s %+v", err, out, a.seen())
	}
}

// TestStatusSucceeds, agent or not: an error would evict the whole node.
func TestStatusSucceeds(t *testing.T) {
	_, extra := paths(t)
	if out, _, err := execute(t, command{name: "STATUS", version: "1.1.0", extra: extra}); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

func TestCheck(t *testing.T) {
	dir, extra := paths(t)
	if out, _, err := execute(t, command{name: "CHECK", namespace: "in", pod: "web", extra: extra}); err == nil || !strings.Contains(out, "in/web") {
		t.Errorf("without an agent: %v: %s", err, out)
	}
	startAgent(t, filepath.Join(dir, "cni.sock"), enroll.Response{Outcome: enroll.Refused, Reason: "egress program is gone"})
	out, _, err := execute(t, command{name: "CHECK", namespace: "in", pod: "web", extra: extra})
	if err == nil || !strings.Contains(out, "egress program is gone") {
		t.Errorf("%v: %s", err, out)
	}
}

func TestNoPrevResult(t *testing.T) {
	dir, extra := paths(t)
	startAgent(t, filepath.Join(dir, "cni.sock"), enroll.Response{Outcome: enroll.Passed})
	out, _, err := execute(t, command{name: "ADD", namespace: "in", pod: "web", extra: extra, noPrev: true})
	if err != nil || strings.TrimSpace(out) != `{"cniVersion":"0.4.0"}` {
		t.Errorf("%v: %s", err, out)
	}
}

func TestOldResultAddresses(t *testing.T) {
	c, err := parseConfig([]byte(`{"prevResult":{"ip4":{"ip":"10.0.0.9/16"},"ip6":{"ip":"fd00::9/64"}}}`))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := c.addresses(); err != nil || fmt.Sprint(got) != "[10.0.0.9 fd00::9]" {
		t.Errorf("%v, %v", got, err)
	}
}

// FuzzStdin: the runtime hands over what somebody put into a file.
func FuzzStdin(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"0.4.0","name":"n","type":"ambit-cni","prevResult":`+fmt.Sprintf(prev, "0.4.0")+`}`), "K8S_POD_NAME=a;K8S_POD_NAMESPACE=b")
	f.Add([]byte(`{"prevResult":{"ips":[{"address":"x"}]}}`), ";;==;K8S_POD_UID")
	f.Add([]byte(`null`), "")
	f.Add([]byte(`{"prevResult":[]}`), "")
	f.Fuzz(func(t *testing.T, stdin []byte, args string) {
		c, err := parseConfig(stdin)
		if err != nil {
			return
		}
		c.ignores(parseArgs(args))
		addrs, err := c.addresses()
		for _, a := range addrs {
			if err == nil && (!a.IsValid() || a.Is4In6()) {
				t.Fatalf("address %v", a)
			}
		}
		if d := c.timeout(); d <= 0 || d > 10*time.Minute {
			t.Fatalf("timeout %v", d)
		}
	})
}
