package netns_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/ambitmesh/ambit/controller/mesh"
	istioclient "istio.io/client-go/pkg/clientset/versioned"
	authnv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"
)

// plane is the whole control plane: an API server, two controllers that are
// programs of their own, and the address they share.
type plane struct {
	t          testing.TB
	bin        string // folder of the programs
	kubeconfig string
	client     kubernetes.Interface
	istio      istioclient.Interface
	replicas   []*replica
	ctx        context.Context // ends before the world does
	parts      sync.WaitGroup
}

// replica is a controller. Its addresses change when it is started again.
type replica struct {
	plane *plane
	name  string
	args  []string

	mu        sync.Mutex
	cmd       *exec.Cmd     // guarded by mu
	done      chan struct{} // closed when it has ended, guarded by mu
	xds, http string        // "" until it has said so, guarded by mu
	lines     []string      // guarded by mu
}

// newPlane starts an API server; without the program for it the test is left
// out.
func newPlane(t testing.TB) *plane {
	t.Helper()
	lab := os.Getenv("AMBIT_KUBELAB")
	if lab == "" {
		lab, _ = exec.LookPath("kubelab")
	}
	if lab == "" {
		t.Skip("needs a kube-apiserver: AMBIT_KUBELAB is not set and kubelab is not in PATH")
	}
	p := &plane{t: t, bin: t.TempDir()}
	build := exec.Command("go", "build", "-o", p.bin+"/", "github.com/ambitmesh/ambit/cmd/ambit-controller", "github.com/ambitmesh/ambit/cmd/ambit")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the programs: %v\n%s", err, out)
	}
	name := fmt.Sprintf("plane%d", os.Getpid())
	t.Cleanup(func() {
		if out, err := exec.Command(lab, "down", "--name", name).CombinedOutput(); err != nil {
			t.Errorf("kubelab down: %v\n%s", err, out)
		}
	})
	var stderr bytes.Buffer
	up := exec.Command(lab, "up", "--api-only", "--name", name)
	up.Stderr = &stderr
	out, err := up.Output()
	if err != nil {
		t.Fatalf("kubelab up: %v\n%s", err, stderr.String())
	}
	_, path, ok := strings.Cut(string(out), "KUBECONFIG=")
	if !ok {
		t.Fatalf("kubelab up printed no KUBECONFIG: %q", out)
	}
	p.kubeconfig = strings.TrimSpace(path)
	rc, err := clientcmd.BuildConfigFromFlags("", p.kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	rc.QPS = -1
	p.client = must(kubernetes.NewForConfig(rc))(t)
	p.istio = must(istioclient.NewForConfig(rc))(t)
	ctx, cancel := context.WithCancel(context.Background())
	p.ctx = ctx
	t.Cleanup(func() {
		cancel()
		p.parts.Wait()
		for _, r := range p.replicas {
			r.end(syscall.SIGKILL)
			if t.Failed() {
				r.mu.Lock()
				t.Logf("log of %s:\n%s", r.name, strings.Join(tail(r.lines, 60), "\n"))
				r.mu.Unlock()
			}
		}
	})
	return p
}

// must turns a call's error into the end of the test.
func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func (p *plane) installCRDs() {
	p.t.Helper()
	files, err := filepath.Glob("../../deploy/crds/istio/*.yaml")
	if err != nil || len(files) == 0 {
		p.t.Fatalf("no CRDs in deploy/crds/istio: %v", err)
	}
	for _, f := range files {
		body := must(yaml.YAMLToJSON(must(os.ReadFile(f))(p.t)))(p.t)
		err := p.client.Discovery().RESTClient().Post().AbsPath("/apis/apiextensions.k8s.io/v1/customresourcedefinitions").
			SetHeader("Content-Type", "application/json").Body(body).Do(p.ctx).Error()
		if err != nil {
			p.t.Fatalf("%s: %v", f, err)
		}
	}
}

func (p *plane) namespace(name string, labels map[string]string) {
	p.t.Helper()
	must(p.client.CoreV1().Namespaces().Create(p.ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}, metav1.CreateOptions{}))(p.t)
}

// pod makes a pod that runs on node and is ready, and its account.
func (p *plane) pod(namespace, name, account, node, ip string, labels, annotations map[string]string) (*corev1.Pod, error) {
	_, err := p.client.CoreV1().ServiceAccounts(namespace).Create(p.ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: account}}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return nil, err
	}
	pods := p.client.CoreV1().Pods(namespace)
	made, err := pods.Create(p.ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels, Annotations: annotations},
		Spec:       corev1.PodSpec{NodeName: node, ServiceAccountName: account, Containers: []corev1.Container{{Name: "c", Image: "none"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	made.Status = corev1.PodStatus{
		Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}},
		Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
	}
	return pods.UpdateStatus(p.ctx, made, metav1.UpdateOptions{})
}

// token is what the kubelet would mount into pod.
func (p *plane) token(pod *corev1.Pod) string {
	p.t.Helper()
	r := must(p.client.CoreV1().ServiceAccounts(pod.Namespace).CreateToken(p.ctx, pod.Spec.ServiceAccountName, &authnv1.TokenRequest{
		Spec: authnv1.TokenRequestSpec{Audiences: []string{"istio-ca"},
			BoundObjectRef: &authnv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID}},
	}, metav1.CreateOptions{}))(p.t)
	path := filepath.Join(p.t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(r.Status.Token), 0o600); err != nil {
		p.t.Fatal(err)
	}
	return path
}

// controller starts a replica.
func (p *plane) controller(name string, args ...string) *replica {
	p.t.Helper()
	r := &replica{plane: p, name: name, args: args}
	p.replicas = append(p.replicas, r)
	r.start()
	return r
}

func (r *replica) start() {
	t := r.plane.t
	t.Helper()
	cmd := exec.Command(r.plane.bin+"/ambit-controller", append([]string{"--kubeconfig", r.plane.kubeconfig, "--replica", r.name, "--cluster-id", "test",
		"--address", "127.0.0.1:0", "--monitoring-address", "127.0.0.1:0"}, r.args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out := must(cmd.StderrPipe())(t)
	done := make(chan struct{})
	started := make(chan error)
	go func() {
		defer close(done)
		// Pdeathsig is about the thread that forked: it stays until the end.
		lockThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		s := bufio.NewScanner(out)
		s.Buffer(nil, 1<<20)
		for s.Scan() {
			r.said(s.Text())
		}
		cmd.Wait()
		r.mu.Lock()
		r.xds, r.http = "", ""
		r.mu.Unlock()
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	r.cmd, r.done = cmd, done
	r.mu.Unlock()
	eventually(t, r.name+" is ready", func() error { _, err := r.get("/ready"); return err })
}

// said takes in a line of the log; two of them name the addresses.
func (r *replica) said(line string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, line)
	_, address, ok := strings.Cut(line, " address=")
	switch {
	case !ok || !strings.Contains(line, "msg=serving"):
	case strings.Contains(line, "what=monitoring"):
		r.http = address
	case strings.Contains(line, `what="xDS and CA"`):
		r.xds = address
	}
}

// end is kill -9, or a Deployment's way.
func (r *replica) end(signal syscall.Signal) {
	r.mu.Lock()
	cmd, done := r.cmd, r.done
	r.mu.Unlock()
	cmd.Process.Signal(signal)
	<-done
}

func (r *replica) addresses() (xds, http string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.xds, r.http
}

func (r *replica) get(path string) (string, error) {
	_, address := r.addresses()
	if address == "" {
		return "", errors.New("does not run")
	}
	c := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Get("http://" + address + path)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d: %s", resp.StatusCode, b)
	}
	return string(b), err
}

// metric sums the samples of name whose labels contain all of parts.
func (r *replica) metric(name string, parts ...string) (float64, error) {
	body, err := r.get("/metrics")
	if err != nil {
		return 0, err
	}
	return sumMetric(body, name, parts...), nil
}

// serve is the Service of the controllers: every connection goes to one that
// runs, by chance.
func (p *plane) serve(ns *netns.NS) {
	p.t.Helper()
	f := must(ns.ListenTCP(netip.MustParseAddrPort("[::]:15012"), netns.SocketOptions{}))(p.t)
	ln := must(net.FileListener(f))(p.t)
	f.Close()
	stop := context.AfterFunc(p.ctx, func() { ln.Close() })
	p.parts.Go(func() {
		defer stop()
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			p.parts.Go(func() { p.carry(c.(*net.TCPConn)) })
		}
	})
}

func (p *plane) carry(c *net.TCPConn) {
	defer c.Close()
	for _, i := range rand.Perm(len(p.replicas)) {
		address, _ := p.replicas[i].addresses()
		if address == "" {
			continue
		}
		up, err := (&net.Dialer{}).DialContext(p.ctx, "tcp", address)
		if err != nil {
			continue
		}
		defer up.Close()
		stop := context.AfterFunc(p.ctx, func() { up.Close(); c.Close() })
		defer stop()
		var both sync.WaitGroup
		for _, d := range [][2]net.Conn{{up, c}, {c, up}} {
			both.Go(func() {
				io.Copy(d[0], d[1])
				up.Close()
				c.Close()
			})
		}
		both.Wait()
		return
	}
}

// mountRoots keeps a file like the kubelet does that mounts the ConfigMap of
// the roots.
func (p *plane) mountRoots(path string) {
	p.t.Helper()
	refresh := func() error {
		cm, err := p.client.CoreV1().ConfigMaps("ambit-system").Get(p.ctx, "ambit-ca-root-cert", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if err := os.WriteFile(path+".new", []byte(cm.Data["root-cert.pem"]), 0o600); err != nil {
			return err
		}
		return os.Rename(path+".new", path)
	}
	eventually(p.t, "the roots are there", refresh)
	p.parts.Go(func() {
		tick := time.NewTicker(10 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				refresh() // the next time, when the API server is busy
			case <-p.ctx.Done():
				return
			}
		}
	})
}

// ambit runs the CLI.
func (p *plane) ambit(args ...string) (string, error) {
	cmd := exec.CommandContext(p.ctx, p.bin+"/ambit", append([]string{"--kubeconfig", p.kubeconfig}, args...)...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// rotation is what the CLI says of the CA.
func (p *plane) rotation() (s struct {
	Phase, Signer, Roots, Problem string
	Next                          struct{ Waiting []string }
}, err error) {
	out, err := p.ambit("ca", "status", "-o", "json")
	if err != nil {
		return s, fmt.Errorf("%w: %s", err, out)
	}
	return s, json.Unmarshal([]byte(out), &s)
}

// leader is who holds the Lease.
func (p *plane) leader() (*replica, error) {
	l, err := p.client.CoordinationV1().Leases("ambit-system").Get(p.ctx, "ambit-controller-leader", metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	for _, r := range p.replicas {
		if l.Spec.HolderIdentity != nil && *l.Spec.HolderIdentity == r.name {
			return r, nil
		}
	}
	return nil, errors.New("nobody leads")
}

// newPlaneWorld is two nodes under the whole control plane. Pods in it are
// known to the API server, and capture is the tests'.
func newPlaneWorld(t *testing.T, args ...string) (*world, *plane) {
	t.Helper()
	p := newPlane(t)
	w, ctrl := newWires(t, onlyIPv4)
	// What the two-node world tells its own control plane goes nowhere.
	w.control = &control{t: t, ns: ctrl, store: mesh.NewStore(), root: filepath.Join(t.TempDir(), "root-cert.pem")}
	p.installCRDs()
	for ns, labels := range map[string]map[string]string{
		"ambit-system": nil, "istio-system": nil, "demo": {"istio.io/dataplane-mode": "ambient"},
	} {
		p.namespace(ns, labels)
	}
	for _, n := range []*node{w.a, w.b} {
		must(p.client.CoreV1().Nodes().Create(p.ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.name}}, metav1.CreateOptions{}))(t)
	}
	p.controller("controller-1", args...)
	p.controller("controller-2", args...)
	p.serve(ctrl)
	p.mountRoots(w.control.root)
	for _, n := range []*node{w.a, w.b} {
		zt := must(p.pod("ambit-system", "ztunnel-"+n.name, "ztunnel", n.name, fmt.Sprintf("10.99.%d.2", n.number), map[string]string{"app": "ztunnel"}, nil))(t)
		n.agent = newAgent(t, n)
		n.zt = n.startZtunnel([]string{"AUTH_TOKEN=" + p.token(zt), "SECRET_TTL=30s", "POOL_UNUSED_RELEASE_TIMEOUT=300ms"})
	}
	w.waitReady(w.a, w.b)
	return w, p
}

// meshed is a pod that the API server knows and that is captured.
func (p *plane) meshed(w *world, n *node, name string) *pod {
	p.t.Helper()
	made := w.newPod(n, name)
	must(p.pod("demo", name, name, n.name, made.addr.String(), map[string]string{"app": name}, map[string]string{"ambient.istio.io/redirection": "enabled"}))(p.t)
	n.agent.enrol(made)
	return made
}
