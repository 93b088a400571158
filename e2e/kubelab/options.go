package kubelab

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"path/filepath"
	"regexp"
)

// Version is the Kubernetes version of every component.
const Version = "v1.36.3"

// The addresses are the same in every cluster: nothing of a cluster is bound in
// the host's namespaces, so two clusters do not meet.
var controlPlaneIP = netip.AddrFrom4([4]byte{172, 30, 0, 10})

const (
	apiAddress  = "172.30.0.10:6443"
	podCIDR     = "10.244.0.0/16"
	serviceCIDR = "10.96.0.0/16"
	dnsIP       = "10.96.0.10"
	maxNodes    = 9
)

func nodeIP(i int) netip.Addr { return netip.AddrFrom4([4]byte{172, 30, 0, byte(10 + i)}) }
func nodeCIDR(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i), 0}), 24)
}

// Options say what cluster to make. The zero value is two nodes named after
// the cluster "demo", without DNS.
type Options struct {
	Name        string // default "demo"
	State       string // default /var/tmp/kubelab/<name>
	Cache       string // folder of the compiled binaries; default: DefaultCache
	Nodes       int    // default 2
	DualStack   bool   // IPv6 beside IPv4
	IPv6First   bool   // IPv6 is the primary family of a dual-stack cluster
	APIOnly     bool   // etcd and the API server, nothing else
	DNS         bool   // CoreDNS as kube-dns, waited for
	ShortTimers bool   // a cut node is NotReady after about 12 s and not 50 s
	ProxyMode   string // nftables (default) or iptables
	Images      []string
	// Shapes says for each node how its CNI plugin connects pods; nodes without
	// an entry are ShapePTP.
	Shapes []Shape
	Logger *slog.Logger
}

var nameForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)

// DefaultState is where a cluster of that name keeps its files.
func DefaultState(name string) string { return filepath.Join("/var/tmp/kubelab", name) }

func (o Options) withDefaults() Options {
	if o.Name == "" {
		o.Name = "demo"
	}
	if o.State == "" {
		o.State = DefaultState(o.Name)
	}
	if o.Cache == "" {
		o.Cache = DefaultCache("", "")
	}
	o.DualStack = o.DualStack || o.IPv6First
	if o.APIOnly {
		o.Nodes, o.DNS = 0, false
	} else if o.Nodes == 0 {
		o.Nodes = 2
	}
	if o.ProxyMode == "" {
		o.ProxyMode = "nftables"
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	return o
}

func (o Options) validate() error {
	var errs []error
	if !nameForm.MatchString(o.Name) {
		errs = append(errs, fmt.Errorf("name %q: want lower case letters, digits and dashes, at most 32", o.Name))
	}
	if o.Nodes < 0 || o.Nodes > maxNodes {
		errs = append(errs, fmt.Errorf("%d nodes: want 1 to %d", o.Nodes, maxNodes))
	}
	if o.ProxyMode != "nftables" && o.ProxyMode != "iptables" {
		errs = append(errs, fmt.Errorf("proxy mode %q: want nftables or iptables", o.ProxyMode))
	}
	errs = append(errs, o.validateShapes())
	if !filepath.IsAbs(o.State) {
		errs = append(errs, fmt.Errorf("state folder %q: want an absolute path", o.State))
	}
	if s := ControlSocket(o.State); len(s) > 107 {
		errs = append(errs, fmt.Errorf("state folder %q: the control socket's path would be longer than the kernel's 107 bytes", o.State))
	}
	return errors.Join(errs...)
}
