package kubelab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

// prepare makes the node and loads the images; it needs no API server yet, so
// that both start together.
func (n *Node) prepare(ctx context.Context) error {
	if err := n.makeRoot(); err != nil {
		return fmt.Errorf("root of %s: %w", n.Name, err)
	}
	if err := n.boot(ctx); err != nil {
		return fmt.Errorf("start %s: %w", n.Name, err)
	}
	images := []string{"pause.tar", "app.tar"}
	if n.cluster.opt.DNS {
		images = append(images, "coredns.tar")
	}
	for i, f := range images {
		images[i] = filepath.Join(n.cluster.opt.Cache, "images", f)
	}
	for _, f := range append(images, n.cluster.opt.Images...) {
		if err := n.LoadImage(ctx, f); err != nil {
			return err
		}
	}
	return nil
}

// boot starts PID 1, plugs the cable in and starts containerd.
func (n *Node) boot(ctx context.Context) error {
	c := n.cluster
	cgroups, err := nodeCgroups(n.cgroupName())
	if err != nil {
		return err
	}
	p, err := c.spawn(ctx, n.Name, n.IP.String(), settings{
		Hostname: n.Name,
		Root:     n.Root(),
		Kube:     filepath.Join(c.opt.Cache, "kube"),
		Self:     "/opt/k8s/init",
		Cgroups:  true,
		Sysctls: c.opt.forwarding(map[string]string{
			"net/ipv4/conf/all/rp_filter":     "0",
			"net/ipv4/conf/default/rp_filter": "0",
		}),
	}, cgroups)
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.process = p
	n.mu.Unlock()
	if err := n.plug(); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	if err := p.run(ctx, command{
		Name: "containerd", Log: "/var/log/containerd.log",
		Args: []string{"/usr/bin/containerd", "-c", "/etc/containerd/config.toml"},
	}); err != nil {
		return err
	}
	socket := fmt.Sprintf("/proc/%d/root/run/containerd/containerd.sock", p.pid)
	wait, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := poll(wait, 20*time.Millisecond, func() (bool, error) {
		_, err := os.Stat(socket)
		return err == nil, p.failed()
	}); err != nil {
		return fmt.Errorf("wait for containerd: %w", err)
	}
	return nil
}

func (n *Node) cgroupName() string { return "kubelab-" + n.cluster.opt.Name + "-" + n.Name }

func (n *Node) startKubelet(ctx context.Context) error {
	return n.proc().run(ctx, command{
		Name: "kubelet", Log: "/var/log/kubelet.log", Group: true,
		Args: []string{"/opt/k8s/kube", "kubelet",
			"--config=/etc/kubernetes/kubelet.yaml", "--kubeconfig=/etc/kubernetes/kubelet.kubeconfig",
			"--hostname-override=" + n.Name, "--node-ip=" + n.cluster.opt.joined(nodeIP(n.index).String(), nodeIP6(n.index).String()), "--root-dir=/var/lib/kubelet",
			fmt.Sprintf("--node-labels=topology.kubernetes.io/zone=z%d", n.index)},
	})
}

// RestartKubelet ends the kubelet and starts it again, in a new cgroup. Pods run on.
func (n *Node) RestartKubelet(ctx context.Context) error {
	wait, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := n.proc().stop(wait, "kubelet"); err != nil {
		return err
	}
	return n.startKubelet(ctx)
}

func (n *Node) startProxy(ctx context.Context) error {
	return n.proc().run(ctx, command{
		Name: "kube-proxy", Log: "/var/log/kube-proxy.log",
		Args: []string{"/opt/k8s/kube", "kube-proxy", "--config=/etc/kubernetes/proxy.yaml"},
	})
}

// Reboot kills the node as a power cut would and starts it again on the same
// disk. It returns when the kubelet runs; Ready comes some seconds later.
func (n *Node) Reboot(ctx context.Context) error {
	if n.index == 0 {
		return errors.New("the control plane is not rebooted: it owns the bridge")
	}
	n.cluster.rebootMu.Lock()
	defer n.cluster.rebootMu.Unlock()
	n.mu.Lock()
	p := n.process
	n.process = nil
	n.mu.Unlock()
	if p != nil {
		p.kill()
	}
	// With the groups of dead pods still there the kubelet inspects each for
	// seconds and does nothing else for about 40 s.
	dirs, err := nodeCgroups(n.cgroupName())
	if err != nil {
		return err
	}
	for _, d := range dirs {
		if err := removeCgroup(d, false); err != nil {
			return err
		}
	}
	if err := n.boot(ctx); err != nil {
		return fmt.Errorf("start %s: %w", n.Name, err)
	}
	if err := n.startKubelet(ctx); err != nil {
		return err
	}
	return n.startProxy(ctx)
}

// ExecArgs is the command line that runs argv in all namespaces of the node
// whose PID 1 is pid.
func ExecArgs(pid int, argv ...string) []string {
	return append([]string{"/usr/bin/nsenter", "-t", strconv.Itoa(pid), "-a", "--"}, argv...)
}

// Command prepares a command that runs in all namespaces of the node.
func (n *Node) Command(ctx context.Context, argv ...string) *exec.Cmd {
	return nodeCommand(ctx, n.PID(), argv...)
}

func nodeCommand(ctx context.Context, pid int, argv ...string) *exec.Cmd {
	full := ExecArgs(pid, argv...)
	cmd := exec.CommandContext(ctx, full[0], full[1:]...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "TERM=" + os.Getenv("TERM")}
	return cmd
}

// LoadImage imports an image tar into the node's containerd. Kubernetes names
// the image by the annotation io.containerd.image.name of the tar.
func (n *Node) LoadImage(ctx context.Context, path string) error {
	return LoadImage(ctx, n.Name, n.PID(), path)
}

// LoadImage is Node.LoadImage for a node known by its PID 1.
func LoadImage(ctx context.Context, node string, pid int, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	read, err := forPlatform(f)
	if err != nil {
		return fmt.Errorf("image %s: %w", path, err)
	}
	cmd := nodeCommand(ctx, pid, "ctr", "--namespace=k8s.io", "images", "import", "-")
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	var out outputTail
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return err
	}
	_, werr := io.Copy(in, read)
	in.Close()
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("import %s on %s: %w: %s", path, node, err, out)
	}
	if werr != nil {
		return fmt.Errorf("import %s on %s: %w", path, node, werr)
	}
	return nil
}

type outputTail []byte

func (o *outputTail) Write(b []byte) (int, error) {
	*o = append(*o, b...)
	if len(*o) > 2000 {
		*o = (*o)[len(*o)-2000:]
	}
	return len(b), nil
}

func copyFile(from, to string, mode os.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
