package main

import (
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/ambitmesh/ambit/cni/enablement"
	"github.com/ambitmesh/ambit/cni/enroll"
	"github.com/ambitmesh/ambit/cni/install"
	"github.com/ambitmesh/ambit/cni/node"
	"github.com/ambitmesh/ambit/cni/redirect"
)

type options struct {
	node         node.Config
	hostRoot     string
	cniBinDir    string
	cniConfDir   string
	pluginSource string
	pinRoot      string
	clsact       bool
	kubeconfig   string
	adminAddress string
	logLevel     slog.Level
	addTimeout   time.Duration
	check        bool
	uninstall    bool
	mountBPFFS   bool
	version      bool
}

// parse reads flags; the environment gives what the deployment knows.
func parse(args []string, getenv func(string) string) (options, error) {
	var o options
	env := func(name, fallback string) string {
		if v := getenv(name); v != "" {
			return v
		}
		return fallback
	}
	f := flag.NewFlagSet("ambit-cni-node", flag.ContinueOnError)
	f.StringVar(&o.node.Node, "node-name", env("NODE_NAME", ""), "name of this node (NODE_NAME)")
	f.StringVar(&o.node.Pod, "pod-name", env("POD_NAME", ""), "name of this agent's own pod, where it says what holds for the whole node (POD_NAME)")
	f.StringVar(&o.node.Rules.OwnNamespace, "namespace", env("POD_NAMESPACE", ""), "namespace of Ambit's own components, never enrolled (POD_NAMESPACE)")
	f.StringVar(&o.node.ZtunnelNamespace, "ztunnel-namespace", env("ZTUNNEL_NAMESPACE", ""), "namespace of the ztunnel that may have this node's pods; default the own one (ZTUNNEL_NAMESPACE)")
	exclude := f.String("exclude-namespaces", env("EXCLUDE_NAMESPACES", "kube-system"), "namespaces that are never enrolled, separated by commas (EXCLUDE_NAMESPACES)")
	selector := f.String("enablement-selector", env("AMBIENT_ENABLEMENT_SELECTOR", ""), "which pods ask for the mesh: a YAML list of podSelector and namespaceSelector, of which one item must match; default is the label istio.io/dataplane-mode=ambient of the pod, or of its namespace unless the pod says none. The controller needs the same (AMBIENT_ENABLEMENT_SELECTOR)")
	f.StringVar(&o.hostRoot, "host-root", "/proc/1/root", "the host's root directory as seen from here")
	f.StringVar(&o.cniBinDir, "cni-bin-dir", env("CNI_BIN_DIR", "/opt/cni/bin"), "plugin directory on the host (CNI_BIN_DIR)")
	f.StringVar(&o.cniConfDir, "cni-conf-dir", env("CNI_CONF_DIR", "/etc/cni/net.d"), "network configuration directory on the host (CNI_CONF_DIR)")
	f.StringVar(&o.pluginSource, "plugin-source", "/usr/local/bin/ambit-cni", "the plugin's binary to install")
	f.StringVar(&o.node.CRISocket, "cri-socket", env("CRI_SOCKET", ""), "container runtime's socket on the host; default is the first of containerd, k3s, CRI-O (CRI_SOCKET)")
	f.StringVar(&o.node.PluginSocket, "plugin-socket", enroll.DefaultSocket, "socket for the plugin")
	f.StringVar(&o.node.ZDSSocket, "zds-socket", env("ZTUNNEL_UDS_ADDRESS", "/var/run/ztunnel/ztunnel.sock"), "socket for ztunnel (ZTUNNEL_UDS_ADDRESS)")
	f.StringVar(&o.node.Intent, "intent", enroll.DefaultIntent, "file that keeps what was decided across restarts")
	kubeletPort := f.Uint("kubelet-port", node.DefaultKubeletPort, "port of the node's kubelet: the process that listens there is the one whose probes pass")
	f.BoolVar(&o.node.DNS, "dns-capture", env("AMBIENT_DNS_CAPTURE", "") == "true", "capture DNS queries of pods, for a ztunnel that answers them (AMBIENT_DNS_CAPTURE)")
	f.StringVar(&o.pinRoot, "pin-root", redirect.DefaultPinRoot, "folder in the host's bpffs")
	f.BoolVar(&o.clsact, "clsact", false, "attach programs by clsact even where the kernel has tcx")
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "outside a cluster: file that says how to reach the API server")
	f.StringVar(&o.adminAddress, "admin-address", "127.0.0.1:15098", "address of /readyz and /metrics; empty for none")
	f.TextVar(&o.logLevel, "log-level", slog.LevelInfo, "debug, info, warn or error")
	f.DurationVar(&o.addTimeout, "add-timeout", 60*time.Second, "how long the start of a pod may wait for the mesh")
	f.DurationVar(&o.node.PeersWait, "peers-wait", 2*time.Second, "un-enrolment: time for peers to hear of it before connections go direct")
	f.DurationVar(&o.node.DrainWait, "drain-wait", 5*time.Minute, "un-enrolment: longest time for captured connections to end; those left are cut")
	f.DurationVar(&o.node.DriftEvery, "drift-check", 30*time.Second, "pause between two looks at every captured pod")
	f.BoolVar(&o.check, "check", false, "check configuration, kernel and mounts, change nothing, and end")
	f.BoolVar(&o.uninstall, "uninstall", false, "take Ambit off a node where no agent runs: plugin, network configuration entry, capture; and end")
	f.BoolVar(&o.mountBPFFS, "mount-bpffs", false, "mount a bpffs on the host for the pins where there is none, as on nodes that are containers; and end")
	f.BoolVar(&o.version, "version", false, "print the version and end")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	if *kubeletPort == 0 || *kubeletPort > 65535 {
		return o, fmt.Errorf("kubelet port %d is no port", *kubeletPort)
	}
	o.node.KubeletPort = uint16(*kubeletPort)
	var err error
	if o.node.Rules.Selectors, err = enablement.Parse(*selector); err != nil {
		return o, err
	}
	for n := range strings.SplitSeq(*exclude, ",") {
		if n = strings.TrimSpace(n); n != "" {
			o.node.Rules.ExcludeNamespaces = append(o.node.Rules.ExcludeNamespaces, n)
		}
	}
	if o.node.ZtunnelNamespace == "" {
		o.node.ZtunnelNamespace = o.node.Rules.OwnNamespace
	}
	o.node.HostRoot = node.HostRoot(o.hostRoot)
	o.node.Service = node.ServiceAddr(getenv("KUBERNETES_SERVICE_HOST"), getenv("KUBERNETES_SERVICE_PORT"))
	// Ours ends first, so that the reason reaches the runtime.
	o.node.AddWait = o.addTimeout - o.addTimeout/20
	if o.version || o.uninstall || o.mountBPFFS {
		return o, nil
	}
	return o, o.node.Validate()
}

// entry is what the plugin is told through the network configuration. Only
// what differs from its defaults is written.
func (o options) entry() install.Entry {
	var e install.Entry
	if o.node.PluginSocket != enroll.DefaultSocket {
		e.Socket = o.node.PluginSocket
	}
	if o.node.Intent != enroll.DefaultIntent {
		e.Intent = o.node.Intent
	}
	e.ExcludeNamespaces = slices.Clone(o.node.Rules.ExcludeNamespaces)
	if own := o.node.Rules.OwnNamespace; own != "" && !slices.Contains(e.ExcludeNamespaces, own) {
		e.ExcludeNamespaces = append(e.ExcludeNamespaces, own)
	}
	if s := int(o.addTimeout / time.Second); s != 60 {
		e.TimeoutSeconds = s
	}
	return e
}

// dir is a directory of the host that is kept open.
type dir struct {
	*os.File
	path string
}

// hostDir opens a directory of the host, making it when there is none.
func hostDir(o options, path string) (dir, error) {
	root := node.HostRoot(o.hostRoot)
	f, at, err := root.Dir(path)
	if errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(filepath.Join(o.hostRoot, path), 0o755); err != nil {
			return dir{}, err
		}
		f, at, err = root.Dir(path)
	}
	if err != nil {
		return dir{}, err
	}
	// A plain path reads better in logs; it is the same directory unless an
	// absolute symbolic link of the host is on the way.
	plain := filepath.Join(o.hostRoot, path)
	if a, err := os.Stat(plain); err == nil {
		if b, err := f.Stat(); err == nil && os.SameFile(a, b) {
			at = plain
		}
	}
	return dir{f, at}, nil
}

func restConfig(kubeconfig string) (*rest.Config, error) {
	var c *rest.Config
	var err error
	if kubeconfig == "" {
		c, err = rest.InClusterConfig()
	} else {
		c, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	}
	if err != nil {
		return nil, fmt.Errorf("API server: %w", err)
	}
	// A namespace label can concern every pod of the node at once.
	c.QPS, c.Burst = 80, 160
	c.UserAgent = "ambit-cni-node/" + version
	return c, nil
}
