package kubelab

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

var rootFolders = []string{
	"proc", "sys", "dev", "run", "tmp", "usr", "root", "home", "mnt",
	"opt/cni/bin", "opt/k8s",
	"var/log/pods", "var/log/containers", "var/lib/kubelet", "var/lib/containerd", "var/lib/cni", "var/tmp",
	"etc/cni/net.d", "etc/kubernetes", "etc/containerd",
}

// The host's files which a node's programs read. alternatives is what makes
// "iptables" more than a dangling link.
var hostFiles = []string{
	"alternatives", "passwd", "group", "nsswitch.conf", "ld.so.cache", "ld.so.conf",
	"protocols", "services", "iproute2", "ethertypes",
}

// makeRoot fills the node's own folder: a clean root in which a careless
// privileged pod can write to nothing of the host.
func (n *Node) makeRoot() error {
	c, root := n.cluster, n.Root()
	at := func(p string) string { return filepath.Join(root, p) }
	for _, d := range rootFolders {
		if err := os.MkdirAll(at(d), 0o755); err != nil {
			return err
		}
	}
	for _, d := range []string{"tmp", "var/tmp"} {
		if err := os.Chmod(at(d), 0o1777|os.ModeSticky); err != nil {
			return err
		}
	}
	if err := os.Symlink("/run", at("var/run")); err != nil {
		return err
	}
	for _, l := range []string{"bin", "sbin", "lib", "lib32", "lib64"} {
		if target, err := os.Readlink("/" + l); err == nil {
			if err := os.Symlink(target, at(l)); err != nil {
				return err
			}
		}
	}
	args := []string{"-a"}
	for _, f := range hostFiles {
		if _, err := os.Lstat("/etc/" + f); err == nil {
			args = append(args, "/etc/"+f)
		}
	}
	if out, err := exec.Command("cp", append(args, at("etc"))...).CombinedOutput(); err != nil {
		return fmt.Errorf("copy of /etc: %w: %s", err, out)
	}
	for _, f := range []string{"loopback", "ptp", "bridge", "macvlan", "host-local", "portmap"} {
		if err := copyFile("/usr/lib/cni/"+f, at("opt/cni/bin/"+f), 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(at("opt/cni/bin/"+gatewayPlugin), []byte(gatewayScript), 0o755); err != nil {
		return err
	}
	if err := copyFile(filepath.Join(c.dir, "init"), at("opt/k8s/init"), 0o755); err != nil {
		return err
	}
	for from, to := range map[string]string{
		"ca.crt": "ca.crt", n.Name + ".crt": "kubelet.crt", n.Name + ".key": "kubelet.key",
		n.Name + ".kubeconfig": "kubelet.kubeconfig", "proxy.kubeconfig": "proxy.kubeconfig",
	} {
		if err := copyFile(c.pki.path(from), at("etc/kubernetes/"+to), 0o600); err != nil {
			return err
		}
	}
	files := map[string]string{
		"opt/k8s/kube":                      "", // the binary is mounted here
		"etc/hostname":                      n.Name + "\n",
		"etc/resolv.conf":                   "", // the cluster has no outside
		"etc/hosts":                         n.hosts(),
		"etc/os-release":                    "ID=kubelab\nPRETTY_NAME=\"kubelab node\"\n",
		"etc/machine-id":                    machineID() + "\n",
		"etc/cni/net.d/10-kubelab.conflist": c.opt.conflistFor(n.index),
		"etc/containerd/config.toml":        containerdConfig,
		"etc/kubernetes/kubelet.yaml":       kubeletConfig(c.opt),
		"etc/kubernetes/proxy.yaml":         fmt.Sprintf(proxyConfig, c.opt.ProxyMode, c.opt.joined(podCIDR, podCIDR6), n.Name),
	}
	for path, text := range files {
		if err := os.WriteFile(at(path), []byte(text), 0o644); err != nil {
			return err
		}
	}
	if _, err := os.Stat(at("etc/passwd")); errors.Is(err, fs.ErrNotExist) {
		return errors.New("the host has no /etc/passwd")
	}
	return nil
}

func (n *Node) hosts() string {
	lines := "127.0.0.1 localhost\n"
	for _, a := range n.cluster.opt.nodeAddresses(n.index) {
		lines += fmt.Sprintf("%s %s\n", a.Addr(), n.Name)
	}
	return lines
}

func machineID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	return fmt.Sprintf("%x", b)
}

// conflist of every node; see conflistFor.
const conflist = `{
  "cniVersion": "0.4.0",
  "name": "kubelab",
  "plugins": [
    {%s,
     "ipam": {"type": "host-local", "dataDir": "/run/cni-ipam",
              "ranges": [%s], "routes": [%s]}},
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
`

// containerdConfig is for containerd 1.6. restrict_oom_score_adj: without
// CAP_SYS_RESOURCE nothing may lower oom_score_adj, and every sandbox would fail.
const containerdConfig = `version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "kubelab.local/pause:1"
  restrict_oom_score_adj = true
  disable_apparmor = true
  disable_tcp_service = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
    max_conf_num = 1
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
    # runc under the name of gVisor, for what goes by the handler's name.
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runsc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runsc.options]
        SystemdCgroup = false
`

func kubeletConfig(o Options) string {
	var b strings.Builder
	b.WriteString(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
clusterDNS: ["` + strings.Join(o.families(dnsIP, dnsIP6), `", "`) + `"]
clusterDomain: cluster.local
resolvConf: /etc/resolv.conf
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: /etc/kubernetes/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: /etc/kubernetes/kubelet.crt
tlsPrivateKeyFile: /etc/kubernetes/kubelet.key
failSwapOn: false
# Naming one threshold switches the ones for disks off: the disk is the host's.
evictionHard: {memory.available: "50Mi"}
# No registry to pull a removed image from.
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
serializeImagePulls: false
# The default is below /usr, which is read-only.
volumePluginDir: /var/lib/kubelet/volumeplugins
logging: {verbosity: 2}
`)
	if o.ShortTimers {
		b.WriteString("nodeLeaseDurationSeconds: 10\nnodeStatusUpdateFrequency: 2s\n")
	}
	return b.String()
}

// proxyConfig: the zeros of conntrack keep kube-proxy from writing sysctls that
// are the whole machine's.
const proxyConfig = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: %s
clientConnection: {kubeconfig: /etc/kubernetes/proxy.kubeconfig}
clusterCIDR: "%s"
detectLocalMode: ClusterCIDR
hostnameOverride: %s
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
nftables: {minSyncPeriod: 0s, syncPeriod: 30s}
iptables: {minSyncPeriod: 0s, syncPeriod: 30s}
`
