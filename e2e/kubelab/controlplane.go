package kubelab

import (
	"context"
	"path/filepath"
	"time"
)

const dialTimeout = 5 * time.Second

func (c *Cluster) component(name string, args ...string) command {
	return command{
		Name: name,
		Args: append([]string{filepath.Join(c.opt.Cache, "kube"), name}, args...),
		Log:  filepath.Join(c.dir, "log", name+".log"),
	}
}

// startControlPlane starts etcd and the API server and the way to reach it.
func (c *Cluster) startControlPlane(ctx context.Context) error {
	p, err := c.spawn(ctx, "cp", c.cp.IP.String(), settings{
		Hostname: "cp",
		Self:     filepath.Join(c.dir, "init"),
		Sysctls: c.opt.forwarding(map[string]string{
			// Frames between nodes are switched, not filtered by the host's rules.
			"net/bridge/bridge-nf-call-iptables":  "0",
			"net/bridge/bridge-nf-call-ip6tables": "0",
		}),
	}, nil)
	if err != nil {
		return err
	}
	c.cp.process = p
	if err := c.bridge(); err != nil {
		return err
	}
	if c.forward, err = startForwarder(c.cp.NetNS(), apiAddress); err != nil {
		return err
	}
	if c.api, err = newAPIClient(c); err != nil {
		return err
	}
	c.kubeconfig = filepath.Join(c.dir, "kubeconfig")
	if err := c.pki.writeKubeconfig(c.kubeconfig, "admin", c.forward.Addr()); err != nil {
		return err
	}
	if err := c.record(func(s *State) { s.Kubeconfig, s.Cache = c.kubeconfig, c.opt.Cache }); err != nil {
		return err
	}
	// etcd on the loopback of this namespace: two clusters never collide.
	const client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
	if err := p.run(ctx, c.component("etcd",
		"--name=cp", "--data-dir="+filepath.Join(c.dir, "etcd"), "--unsafe-no-fsync",
		"--listen-client-urls="+client, "--advertise-client-urls="+client,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=cp="+peer,
		"--log-level=warn")); err != nil {
		return err
	}
	f := c.pki.path
	return p.run(ctx, c.component("kube-apiserver",
		"--etcd-servers="+client,
		"--bind-address="+c.opt.primary("0.0.0.0", "::"),
		"--advertise-address="+c.opt.primary(controlPlaneIP.String(), controlPlaneIP6.String()), "--secure-port=6443",
		"--service-cluster-ip-range="+c.opt.joined(serviceCIDR, serviceCIDR6),
		"--authorization-mode=Node,RBAC", "--allow-privileged=true",
		// Pod addresses and not ClusterIPs for webhooks: no kube-proxy runs here.
		"--enable-aggregator-routing=true",
		"--client-ca-file="+f("ca.crt"),
		"--tls-cert-file="+f("apiserver.crt"), "--tls-private-key-file="+f("apiserver.key"),
		"--kubelet-client-certificate="+f("kubelet-client.crt"), "--kubelet-client-key="+f("kubelet-client.key"),
		"--kubelet-certificate-authority="+f("ca.crt"), "--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file="+f("sa.pub"), "--service-account-signing-key-file="+f("sa.key"),
		"--requestheader-client-ca-file="+f("front-ca.crt"), "--requestheader-allowed-names=front-proxy-client",
		"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file="+f("front-proxy.crt"), "--proxy-client-key-file="+f("front-proxy.key")))
}

// startControllers starts what needs a ready API server, and makes the Node
// objects before their kubelets start, so that the pod networks are known.
func (c *Cluster) startControllers(ctx context.Context) error {
	if c.opt.APIOnly {
		return nil
	}
	f := c.pki.path
	kubeconfigs := func(name string) []string {
		k := f(name + ".kubeconfig")
		return []string{"--kubeconfig=" + k, "--authentication-kubeconfig=" + k, "--authorization-kubeconfig=" + k,
			"--leader-elect=false", "--bind-address=127.0.0.1"}
	}
	manager := append(kubeconfigs("controller-manager"),
		"--use-service-account-credentials=true", "--service-account-private-key-file="+f("sa.key"),
		"--root-ca-file="+f("ca.crt"),
		"--cluster-signing-cert-file="+f("ca.crt"), "--cluster-signing-key-file="+f("ca.key"),
		"--allocate-node-cidrs=false", "--cluster-cidr="+c.opt.joined(podCIDR, podCIDR6),
		"--service-cluster-ip-range="+c.opt.joined(serviceCIDR, serviceCIDR6),
		// Each controller asks for a token of its own at start: with the default
		// rate the first Deployment has no pods for 4.5 s.
		"--kube-api-qps=300", "--kube-api-burst=500")
	if c.opt.ShortTimers {
		manager = append(manager, "--node-monitor-grace-period=10s", "--node-monitor-period=1s")
	}
	p := c.cp.proc()
	if err := p.run(ctx, c.component("kube-controller-manager", manager...)); err != nil {
		return err
	}
	if err := p.run(ctx, c.component("kube-scheduler", kubeconfigs("scheduler")...)); err != nil {
		return err
	}
	for _, n := range c.nodes {
		pods := c.opt.podNetwork(n.index)
		if err := c.api.create(ctx, "/api/v1/nodes", map[string]any{
			"apiVersion": "v1", "kind": "Node",
			"metadata": map[string]any{"name": n.Name},
			"spec":     map[string]any{"podCIDR": pods[0], "podCIDRs": pods},
		}); err != nil {
			return err
		}
	}
	return c.api.create(ctx, "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", map[string]any{
		"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
		"metadata": map[string]any{"name": "kubelab:kube-proxy"},
		"roleRef":  map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:node-proxier"},
		"subjects": []any{map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:kube-proxy"}},
	})
}
