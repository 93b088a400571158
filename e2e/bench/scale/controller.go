package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	authnv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/ambitmesh/ambit/controller/wire"
)

const system = "ambit-system"

// cluster is an API server without kubelets: every object in it is made here.
type cluster struct {
	client     kubernetes.Interface
	kubeconfig string
	tokens     []string // of the ztunnels
	pods       int      // made so far
}

// controllers measures the controller as the cluster and the number of clients grow.
func controllers(ctx context.Context, program string, o options) error {
	name := fmt.Sprintf("scale%d", os.Getpid())
	defer func() {
		if err := exec.Command(o.kubelab, "down", "--name", name).Run(); err != nil {
			fmt.Fprintf(os.Stderr, "kubelab down --name %s: %v\n", name, err)
		}
	}()
	var stderr bytes.Buffer
	up := exec.CommandContext(ctx, o.kubelab, "up", "--api-only", "--name", name)
	up.Stderr = &stderr
	out, err := up.Output()
	if err != nil {
		return fmt.Errorf("kubelab up: %w\n%s", err, stderr.String())
	}
	_, path, _ := strings.Cut(string(out), "KUBECONFIG=")
	k := &cluster{kubeconfig: strings.TrimSpace(path)}
	rc, err := clientcmd.BuildConfigFromFlags("", k.kubeconfig)
	if err != nil {
		return err
	}
	rc.QPS = -1
	if k.client, err = kubernetes.NewForConfig(rc); err != nil {
		return err
	}
	if err := k.prepare(ctx, o); err != nil {
		return err
	}
	fmt.Println("| pods | ztunnels | changes/s | write to ztunnel p50, ms | p99, ms | of which the write itself p50, ms | p99, ms | CPU, % of a core | CPU per change and ztunnel, µs | RSS, MB | resources sent |")
	fmt.Println("|---|---|---|---|---|---|---|---|---|---|---|")
	for _, pods := range []int{o.pods / 4, o.pods / 2, o.pods} {
		if err := k.grow(ctx, pods, o.services); err != nil {
			return err
		}
		for _, nodes := range []int{o.nodes / 4, o.nodes / 2, o.nodes} {
			if pods != o.pods && nodes != o.nodes {
				continue // one dimension at a time
			}
			if err := k.measure(ctx, program, o, nodes); err != nil {
				return err
			}
		}
	}
	return nil
}

// each does f for 0 to n, some at once.
func each(n int, f func(i int) error) error {
	var wg sync.WaitGroup
	var next atomic.Int64
	errs := make(chan error, 16)
	for range cap(errs) {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				if err := f(i); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	return <-errs
}

// prepare makes namespaces, services, and a ztunnel with a token for every node.
func (k *cluster) prepare(ctx context.Context, o options) error {
	c := k.client.CoreV1()
	for name, labels := range map[string]map[string]string{system: nil, "istio-system": nil, "shop": {"istio.io/dataplane-mode": "ambient"}} {
		if _, err := c.Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "ztunnel", Namespace: system}}
	if _, err := c.ServiceAccounts(system).Create(ctx, account, metav1.CreateOptions{}); err != nil {
		return err
	}
	if err := each(o.services, func(i int) error {
		_, err := c.Services("shop").Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("app-%d", i)},
			Spec: corev1.ServiceSpec{Selector: map[string]string{"app": fmt.Sprint(i)}, Ports: []corev1.ServicePort{{Port: 80}}}}, metav1.CreateOptions{})
		return err
	}); err != nil {
		return err
	}
	k.tokens = make([]string, o.nodes)
	return each(o.nodes, func(i int) error {
		node, name := fmt.Sprintf("node-%d", i), fmt.Sprintf("ztunnel-%d", i)
		if _, err := c.Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}}, metav1.CreateOptions{}); err != nil {
			return err
		}
		p, err := c.Pods(system).Create(ctx, podOf(name, node, "ztunnel", nil), metav1.CreateOptions{})
		if err != nil {
			return err
		}
		seconds := int64(3600)
		t, err := c.ServiceAccounts(system).CreateToken(ctx, "ztunnel", &authnv1.TokenRequest{Spec: authnv1.TokenRequestSpec{
			Audiences: []string{"istio-ca"}, ExpirationSeconds: &seconds,
			BoundObjectRef: &authnv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: name, UID: p.UID}}}, metav1.CreateOptions{})
		if err == nil {
			k.tokens[i] = t.Status.Token
		}
		return err
	})
}

func podOf(name, node, account string, labels map[string]string) *corev1.Pod {
	mount := false
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels, Annotations: map[string]string{"ambient.istio.io/redirection": "enabled"}},
		Spec: corev1.PodSpec{NodeName: node, ServiceAccountName: account, AutomountServiceAccountToken: &mount,
			Containers: []corev1.Container{{Name: "app", Image: "app"}}},
	}
}

// grow makes pods until there are so many.
func (k *cluster) grow(ctx context.Context, pods, services int) error {
	first := k.pods
	k.pods = pods
	if first == 0 {
		if _, err := k.client.CoreV1().ServiceAccounts("shop").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	return each(pods-first, func(i int) error {
		i += first
		p := podOf(fmt.Sprintf("pod-%d", i), fmt.Sprintf("node-%d", i%len(k.tokens)), "default", map[string]string{"app": fmt.Sprint(i % services)})
		if _, err := k.client.CoreV1().Pods("shop").Create(ctx, p, metav1.CreateOptions{}); err != nil {
			return err
		}
		return k.ready(ctx, i, true)
	})
}

// ready makes a pod ready or not, which is a change of its workload.
func (k *cluster) ready(ctx context.Context, i int, yes bool) error {
	status := corev1.ConditionFalse
	if yes {
		status = corev1.ConditionTrue
	}
	ip := fmt.Sprintf("10.%d.%d.%d", 1+i>>16, i>>8&255, i&255)
	patch, err := json.Marshal(map[string]any{"status": corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}},
		Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: status}}}})
	if err != nil {
		return err
	}
	_, err = k.client.CoreV1().Pods("shop").Patch(ctx, fmt.Sprintf("pod-%d", i), types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	return err
}

// watcher is a ztunnel that notes when it hears of what.
type watcher struct {
	names   atomic.Int64 // resources received
	changes *sync.Map    // name to time of the last change
	synced  chan struct{}

	mu   sync.Mutex
	lags []time.Duration // guarded by mu
}

func (w *watcher) run(ctx context.Context, address, token string) error {
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(200<<20)))
	if err != nil {
		return err
	}
	defer conn.Close()
	s, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token))
	if err != nil {
		return err
	}
	for _, t := range []string{wire.TypeAddress, wire.TypeAuthorization} {
		if err := s.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: t}); err != nil {
			return err
		}
	}
	for first := true; ; {
		r, err := s.Recv()
		if err != nil {
			return err
		}
		now := time.Now()
		w.names.Add(int64(len(r.GetResources())))
		if !first {
			w.mu.Lock()
			for _, x := range r.GetResources() {
				if at, ok := w.changes.Load(x.GetName()); ok {
					w.lags = append(w.lags, now.Sub(at.(time.Time)))
				}
			}
			w.mu.Unlock()
		}
		if r.GetTypeUrl() == wire.TypeAddress && first {
			first = false
			close(w.synced)
		}
		if err := s.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()}); err != nil {
			return err
		}
	}
}

// measure has pods change with so many ztunnels connected.
func (k *cluster) measure(ctx context.Context, program string, o options, nodes int) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p, address, err := k.controller(ctx, program)
	if err != nil {
		return err
	}
	defer p.end()
	var changes sync.Map
	var clients sync.WaitGroup
	defer clients.Wait()
	defer cancel()
	watchers := make([]*watcher, nodes)
	failed := make(chan error, nodes)
	for i := range watchers {
		w := &watcher{changes: &changes, synced: make(chan struct{})}
		watchers[i] = w
		clients.Go(func() { failed <- w.run(ctx, address, k.tokens[i]) })
	}
	for _, w := range watchers {
		select {
		case <-w.synced:
		case err := <-failed:
			return fmt.Errorf("client: %w", err)
		case <-time.After(time.Minute):
			return errors.New("a client has had no answer for a minute")
		}
	}
	time.Sleep(2 * time.Second) // what the API server still had to say
	var held int64
	for _, w := range watchers {
		held += w.names.Load()
	}
	cpu, began := p.cpu(), time.Now()
	total := int(o.time.Seconds() * float64(o.rate))
	var writers sync.WaitGroup
	errs := make(chan error, total)
	writes := make([]time.Duration, total)
	for i := range total {
		time.Sleep(time.Until(began.Add(time.Duration(i) * time.Second / time.Duration(o.rate))))
		writers.Go(func() {
			pod := i % k.pods
			// Before the request: what is measured is how long others see the old state.
			start := time.Now()
			changes.Store(fmt.Sprintf("Kubernetes//Pod/shop/pod-%d", pod), start)
			err := k.ready(ctx, pod, i/k.pods%2 == 1)
			writes[i] = time.Since(start)
			errs <- err
		})
	}
	writers.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			return err
		}
	}
	deadline := time.Now().Add(time.Minute)
	var lags []time.Duration
	for {
		lags = lags[:0]
		for _, w := range watchers {
			w.mu.Lock()
			lags = append(lags, w.lags...)
			w.mu.Unlock()
		}
		if len(lags) >= total*nodes || time.Now().After(deadline) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	took, used := time.Since(began), p.cpu()-cpu
	var sent int64
	for _, w := range watchers {
		sent += w.names.Load()
	}
	fmt.Printf("| %d | %d | %.0f | %s | %s | %s | %s | %.1f | %.1f | %.0f | %d of %d changes × ztunnels |\n", k.pods, nodes, float64(total)/o.time.Seconds(),
		ms(quantile(lags, .5)), ms(quantile(lags, .99)), ms(quantile(writes, .5)), ms(quantile(writes, .99)), 100*used.Seconds()/took.Seconds(), float64(used.Microseconds())/float64(total*nodes),
		p.memory("VmRSS"), sent-held, total*nodes)
	// Back to ready for the next round.
	return each(k.pods, func(i int) error { return k.ready(ctx, i, true) })
}

// controller starts one and waits until it serves.
func (k *cluster) controller(ctx context.Context, program string) (process, string, error) {
	cmd := exec.CommandContext(ctx, program, "--kubeconfig", k.kubeconfig, "--namespace", system, "--replica", "scale-0",
		"--address", "127.0.0.1:0", "--plaintext-address", "127.0.0.1:0", "--monitoring-address", "127.0.0.1:0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StderrPipe()
	if err != nil {
		return process{}, "", err
	}
	if err := cmd.Start(); err != nil {
		return process{}, "", err
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if line := lines.Text(); strings.Contains(line, `what="plaintext xDS and CA"`) {
			_, address, _ := strings.Cut(line, "address=")
			go func() { _, _ = io.Copy(io.Discard, out) }()
			return process{cmd}, strings.TrimSpace(address), nil
		}
	}
	_ = cmd.Wait()
	return process{}, "", errors.New("the controller ended before it served")
}
