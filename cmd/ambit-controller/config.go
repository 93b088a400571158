package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/ambitmesh/ambit/cni/enablement"
	"github.com/ambitmesh/ambit/controller/ca"
	"github.com/ambitmesh/ambit/controller/kube"
	"github.com/ambitmesh/ambit/controller/translate"
	"github.com/ambitmesh/ambit/hbone/identity"
)

// config is everything the command line and environment say.
type config struct {
	kubeconfig     string
	namespace      string
	replica        string
	rootNamespace  string
	clusterID      string
	clusterDomain  string
	trustDomain    string
	network        string
	excluded       list
	nodeAccounts   list
	enablement     string
	untaint        bool
	taint          string
	istioNames     bool
	revision       string
	besideIstio    bool
	netPolicies    bool
	allocate       bool
	allocateIPv4   string
	allocateIPv6   string
	address        string
	plaintext      string
	monitoring     string
	level          slog.Level
	onDemandAbove  int
	compliance     string
	check          bool
	showVersion    bool
	selfSignedLife time.Duration
	certificateTTL time.Duration
	rotationWait   time.Duration
}

// list is a comma-separated flag.
type list []string

func (l *list) String() string { return strings.Join(*l, ",") }

func (l *list) Set(s string) error {
	*l = nil
	for part := range strings.SplitSeq(s, ",") {
		if part = strings.TrimSpace(part); part != "" {
			*l = append(*l, part)
		}
	}
	return nil
}

// parse reads args; a flag's default comes from its environment variable when
// that is set.
func parse(args []string, env func(string) (string, bool), stderr io.Writer) (*config, error) {
	c := &config{excluded: translate.DefaultEnrolment().Excluded}
	fs := flag.NewFlagSet("ambit-controller", flag.ContinueOnError)
	fs.SetOutput(stderr)
	text := func(p *string, name, variable, fallback, usage string) {
		if v, ok := env(variable); ok && v != "" {
			fallback = v
		}
		if variable != "" {
			usage += " [$" + variable + "]"
		}
		fs.StringVar(p, name, fallback, usage)
	}
	text(&c.kubeconfig, "kubeconfig", "KUBECONFIG", "", "kubeconfig file; empty inside a cluster")
	text(&c.namespace, "namespace", "POD_NAMESPACE", "ambit-system", "namespace of the controller's own objects")
	text(&c.replica, "replica", "POD_NAME", "", "name of this replica")
	text(&c.rootNamespace, "root-namespace", "", "", "namespace of mesh-wide policy and of the mesh's settings; default istio-system, beside Istio the controller's own")
	text(&c.clusterID, "cluster-id", "CLUSTER_ID", "Kubernetes", "name of this cluster")
	text(&c.clusterDomain, "cluster-domain", "", "cluster.local", "DNS suffix of services")
	text(&c.trustDomain, "trust-domain", "TRUST_DOMAIN", "", "trust domain of every identity; empty: that of the mesh's settings, else cluster.local")
	text(&c.revision, "revision", "REVISION", "", "objects with another value of the label istio.io/rev are not ours; empty: the default one")
	fs.BoolVar(&c.besideIstio, "beside-istio", envBool(env, "AMBIT_BESIDE_ISTIO", false), "another control plane is in the cluster: what does not say --revision, itself or by its namespace, is left to it [$AMBIT_BESIDE_ISTIO]")
	text(&c.network, "network", "NETWORK", "", "network of this cluster; empty: the root namespace's label")
	text(&c.address, "address", "", ":15012", "address of xDS and CA over TLS")
	text(&c.plaintext, "plaintext-address", "", "", "address of xDS and CA without TLS; empty: off")
	text(&c.monitoring, "monitoring-address", "", ":15014", "address of /metrics, /ready, /version, and for loopback /debug/clients")
	fs.Var(&c.excluded, "exclude-namespaces", "namespaces that are never enrolled [$EXCLUDE_NAMESPACES]")
	fs.BoolVar(&c.untaint, "untaint-nodes", envBool(env, "PILOT_ENABLE_NODE_UNTAINT_CONTROLLERS", false), "take a taint off nodes whose node agent is ready; needs the rights in deploy/taint [$PILOT_ENABLE_NODE_UNTAINT_CONTROLLERS]")
	text(&c.taint, "taint-name", "PILOT_NODE_UNTAINT_CONTROLLERS_TAINT_NAME", "cni.istio.io/not-ready", "key of that taint")
	text(&c.enablement, "enablement-selector", "AMBIENT_ENABLEMENT_SELECTOR", "", "which pods are in the mesh, as the node agents have it: a YAML list of podSelector and namespaceSelector")
	fs.Var(&c.nodeAccounts, "trusted-node-accounts", "accounts that may read the mesh and ask for other identities of their node, <namespace>/<name>; default <namespace>/ztunnel [$CA_TRUSTED_NODE_ACCOUNTS]")
	fs.BoolVar(&c.istioNames, "istio-names", false, "answer under Istio's names too: DNS name istiod.istio-system.svc, ConfigMap "+kube.IstioRootConfigMap+" and, with revocation lists, "+kube.IstioCRLConfigMap)
	fs.BoolVar(&c.allocate, "allocate-addresses", envBool(env, "PILOT_ENABLE_IP_AUTOALLOCATE", true), "give the hosts of ServiceEntries addresses of their own, in their status [$PILOT_ENABLE_IP_AUTOALLOCATE]")
	text(&c.allocateIPv4, "allocate-ipv4", "PILOT_IP_AUTOALLOCATE_IPV4_PREFIX", "240.240.0.0/16", "where these IPv4 addresses are from; empty: there are none")
	text(&c.allocateIPv6, "allocate-ipv6", "PILOT_IP_AUTOALLOCATE_IPV6_PREFIX", "2001:2::/48", "where these IPv6 addresses are from; empty: there are none")
	fs.BoolVar(&c.netPolicies, "network-policies", true, "hold what comes through tunnels to the NetworkPolicies of its pod, by its own port and source; false: whoever may reach port 15008 may reach every port, as far as NetworkPolicies go")
	fs.DurationVar(&c.selfSignedLife, "self-signed-ca-lifetime", 10*365*24*time.Hour, "lifetime of a root certificate made at first start")
	fs.DurationVar(&c.certificateTTL, "max-workload-cert-ttl", ca.MaxTTL, "longest life of a workload's certificate; who asks for more, up to 24h, gets this")
	fs.DurationVar(&c.rotationWait, "ca-rotation-timeout", 10*time.Minute, "how long a change of the CA's root waits for nodes that lack the new root, before it waits for an operator instead")
	fs.IntVar(&c.onDemandAbove, "on-demand-above", 5000, "a mesh of up to so many workloads is sent whole to every ztunnel, also to one that asks for single ones (XDS_ON_DEMAND); 0: none is")
	text(&c.compliance, "compliance-policy", "COMPLIANCE_POLICY", "", "what TLS of xDS and CA is restricted to: fips-140-2 or pqc; empty: nothing")
	fs.TextVar(&c.level, "log-level", slog.LevelInfo, "debug, info, warn or error")
	fs.BoolVar(&c.check, "check", false, "check the configuration and exit")
	fs.BoolVar(&c.showVersion, "version", false, "print the version and exit")
	for variable, l := range map[string]*list{"EXCLUDE_NAMESPACES": &c.excluded, "CA_TRUSTED_NODE_ACCOUNTS": &c.nodeAccounts} {
		if v, ok := env(variable); ok {
			if err := l.Set(v); err != nil {
				return nil, fmt.Errorf("%s: %w", variable, err)
			}
		}
	}
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if fs.NArg() > 0 {
		fmt.Fprintf(stderr, "ambit-controller: unexpected argument %q\n", fs.Arg(0))
		return nil, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	c.resolveNamespaces()
	if len(c.nodeAccounts) == 0 {
		c.nodeAccounts = list{c.namespace + "/ztunnel"}
	}
	return c, nil
}

// envBool is the variable's value, or fallback when it says neither.
func envBool(env func(string) (string, bool), variable string, fallback bool) bool {
	v, _ := env(variable)
	if b, err := strconv.ParseBool(v); err == nil {
		return b
	}
	return fallback
}

// untaintKey is the taint that comes off nodes, "" for none.
func (c *config) untaintKey() string {
	if !c.untaint {
		return ""
	}
	return c.taint
}

// allocateFrom of a valid configuration.
func (c *config) allocateFrom() (from []netip.Prefix) {
	for _, text := range []string{c.allocateIPv4, c.allocateIPv6} {
		if p, err := netip.ParsePrefix(text); err == nil && c.allocate {
			from = append(from, p)
		}
	}
	return from
}

// Validate reports all problems at once.
func (c *config) Validate() error {
	var errs []error
	bad := func(name, value, problem string) {
		errs = append(errs, fmt.Errorf("--%s %q: %s", name, value, problem))
	}
	for _, f := range [][2]string{
		{"namespace", c.namespace}, {"replica", c.replica}, {"root-namespace", c.rootNamespace},
		{"cluster-id", c.clusterID}, {"cluster-domain", c.clusterDomain}, {"trust-domain", cmp.Or(c.trustDomain, "default")},
	} {
		if f[1] == "" || strings.ContainsAny(f[1], "/ \t\n") {
			bad(f[0], f[1], "must be a name")
		}
	}
	errs = append(errs, c.revisionErrors())
	for _, f := range [][2]string{{"address", c.address}, {"plaintext-address", c.plaintext}, {"monitoring-address", c.monitoring}} {
		if f[1] == "" && f[0] == "plaintext-address" {
			continue
		}
		if _, err := net.ResolveTCPAddr("tcp", f[1]); err != nil {
			bad(f[0], f[1], "not a host:port to listen on")
		}
	}
	for _, f := range []struct {
		name, value string
		ipv4        bool
	}{{"allocate-ipv4", c.allocateIPv4, true}, {"allocate-ipv6", c.allocateIPv6, false}} {
		if f.value == "" {
			continue
		}
		if p, err := netip.ParsePrefix(f.value); err != nil || p.Addr().Is4() != f.ipv4 || p.Addr().Is4In6() || p != p.Masked() || p.Bits() > p.Addr().BitLen()-4 {
			bad(f.name, f.value, "not a CIDR with room for addresses")
		}
	}
	if _, err := enablement.Parse(c.enablement); err != nil {
		bad("enablement-selector", c.enablement, err.Error())
	}
	for _, a := range c.nodeAccounts {
		if ns, sa, ok := strings.Cut(a, "/"); !ok || ns == "" || sa == "" || strings.Contains(sa, "/") {
			bad("trusted-node-accounts", a, "not of the form <namespace>/<service account>")
		}
	}
	if c.selfSignedLife < 24*time.Hour {
		bad("self-signed-ca-lifetime", c.selfSignedLife.String(), "shorter than a workload certificate's day")
	}
	if c.certificateTTL < 10*time.Second || c.certificateTTL > ca.MaxTTL {
		bad("max-workload-cert-ttl", c.certificateTTL.String(), "not between 10s and "+ca.MaxTTL.String())
	}
	if c.onDemandAbove < 0 {
		bad("on-demand-above", strconv.Itoa(c.onDemandAbove), "less than none")
	}
	switch identity.Compliance(c.compliance) {
	case identity.AnyCompliance, identity.FIPS140, identity.PQC:
	default:
		bad("compliance-policy", c.compliance, "neither fips-140-2 nor pqc")
	}
	if c.rotationWait < time.Second {
		bad("ca-rotation-timeout", c.rotationWait.String(), "shorter than a second")
	}
	return errors.Join(errs...)
}

// serverNames are the DNS names clients may know the controller by.
func (c *config) serverNames() []string {
	host := "ambit-controller." + c.namespace + ".svc"
	names := []string{host, host + "." + c.clusterDomain}
	if c.istioNames {
		names = append(names, "istiod.istio-system.svc")
	}
	return names
}

// configMaps are the names under which namespaces receive the root.
func (c *config) configMaps() []string {
	if c.istioNames {
		return []string{kube.RootConfigMap, kube.IstioRootConfigMap, kube.IstioCRLConfigMap}
	}
	return []string{kube.RootConfigMap}
}
