package translate

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/ambitmesh/ambit/controller/mesh"
)

// External is what a ServiceEntry becomes.
type External struct {
	Services  []*mesh.Service  // of the hosts it is the one entry for, see owns
	Workloads []*mesh.Workload // its inline endpoints, or the hosts themselves
}

// ServiceEntry is what se becomes. What is wrong with one field costs that
// field's host, port, address or endpoint and nothing else.
func (c Config) ServiceEntry(se *networkingv1.ServiceEntry, objs Objects) (External, error) {
	var out External
	if !c.Reads(se, objs) {
		return out, nil
	}
	r := c.readEntry(se)
	visible := c.visibility(se, r.object, objs)
	if c.unserved(se, visible, objs) {
		visible = VisibleNone
	}
	addresses := r.addresses(c.network(objs))
	allocated := r.allocated(c.network(objs))
	for _, host := range r.hosts {
		if visible == VisibleNone || !c.owns(se, host, objs) {
			continue
		}
		s := &mesh.Service{
			Name:            se.Name,
			Namespace:       se.Namespace,
			Hostname:        host,
			Addresses:       addresses,
			SubjectAltNames: r.subjectAltNames,
			NamespaceOnly:   visible == VisibleNamespace,
			Canonical:       visible == VisiblePublic && c.canonical(se, host, objs),
			LoadBalancing:   entryBalancing(se, objs.Namespace(se.Namespace)),
		}
		if len(se.Spec.GetAddresses()) == 0 {
			s.Addresses = allocated[host]
		}
		for i := range r.ports {
			s.Ports = append(s.Ports, r.ports[i].Port)
		}
		c.BindService(se, s.NamespaceOnly, objs).fill(s)
		out.Services = append(out.Services, s)
	}
	if visible != VisibleNone {
		out.Workloads = c.entryWorkloads(r, objs)
	}
	return out, r.object.err()
}

// entryReader is a ServiceEntry as far as it could be read.
type entryReader struct {
	*networkingv1.ServiceEntry
	object          *object
	hosts           []string // lower case, each once
	ports           []entryPort
	subjectAltNames []string
}

// entryPort is a port with the name by which endpoints say where they serve it.
type entryPort struct {
	name string
	mesh.Port
	own bool // has a target port of its own
}

func (c Config) readEntry(se *networkingv1.ServiceEntry) *entryReader {
	r := &entryReader{ServiceEntry: se, object: &object{kind: "ServiceEntry", namespace: se.Namespace, name: se.Name}}
	for i, h := range se.Spec.GetHosts() {
		host, ok := entryHost(h)
		switch {
		case !ok:
			r.object.bad(index("spec.hosts", i), h, "not a host name")
		case !slices.Contains(r.hosts, host):
			r.hosts = append(r.hosts, host)
		}
	}
	if len(se.Spec.GetHosts()) == 0 {
		r.object.bad("spec.hosts", "", "at least one host must be named")
	}
	for i, p := range se.Spec.GetPorts() {
		field := index("spec.ports", i)
		switch {
		case p.GetNumber() == 0 || p.GetNumber() > 65535:
			r.object.bad(field+".number", strconv.FormatUint(uint64(p.GetNumber()), 10), "not a port number")
			continue
		case p.GetTargetPort() > 65535:
			r.object.bad(field+".targetPort", strconv.FormatUint(uint64(p.GetTargetPort()), 10), "not a port number")
			continue
		}
		e := entryPort{name: p.GetName(), own: p.GetTargetPort() != 0, Port: mesh.Port{
			ServicePort: uint16(p.GetNumber()),
			TargetPort:  uint16(cmp.Or(p.GetTargetPort(), p.GetNumber())),
			AppProtocol: entryProtocol(p.GetProtocol()),
		}}
		if !slices.ContainsFunc(r.ports, func(q entryPort) bool { return q.ServicePort == e.ServicePort }) {
			r.ports = append(r.ports, e)
		}
	}
	for i, san := range se.Spec.GetSubjectAltNames() {
		if san == "" {
			r.object.bad(index("spec.subjectAltNames", i), san, "must not be empty")
			continue
		}
		r.subjectAltNames = append(r.subjectAltNames, san)
	}
	return r
}

// Hosts are the host names of a ServiceEntry that can be honoured, lower case,
// because names in DNS are alike in either.
func Hosts(se *networkingv1.ServiceEntry) []string {
	var out []string
	for _, h := range se.Spec.GetHosts() {
		if host, ok := entryHost(h); ok && !slices.Contains(out, host) {
			out = append(out, host)
		}
	}
	return out
}

// entryHost is a host name, maybe with a wildcard for its first label.
func entryHost(s string) (string, bool) {
	if rest, ok := strings.CutPrefix(s, "*."); ok {
		return strings.ToLower(s), dnsName(rest)
	}
	return strings.ToLower(s), dnsName(s)
}

func wildcard(host string) bool { return strings.HasPrefix(host, "*.") }

// dnsName reports whether s can be asked of a name server. Underscores are in
// use, whatever RFC 1123 says.
func dnsName(s string) bool {
	if len(s) == 0 || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if len(label) == 0 || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, b := range []byte(label) {
			switch {
			case 'a' <= b && b <= 'z', 'A' <= b && b <= 'Z', '0' <= b && b <= '9', b == '-', b == '_':
			default:
				return false
			}
		}
	}
	return true
}

// addresses are those that the entry itself names.
func (r *entryReader) addresses(network string) []mesh.NetworkAddress {
	var out []mesh.NetworkAddress
	for i, text := range r.Spec.GetAddresses() {
		p, ok := prefix(text)
		if !ok || p.IsSingleIP() && (p.Addr().IsUnspecified() || p.Addr().IsMulticast()) {
			r.object.bad(index("spec.addresses", i), text, "not an address or CIDR")
			continue
		}
		if a := (mesh.NetworkAddress{Network: network, Prefix: p}); !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// allocated are the addresses that a controller has chosen, by host. They are
// read no matter who chose them, because clients' name servers hand them out.
func (r *entryReader) allocated(network string) map[string][]mesh.NetworkAddress {
	out := make(map[string][]mesh.NetworkAddress)
	if !Allocates(r.ServiceEntry) {
		return out
	}
	for i, a := range r.Status.GetAddresses() {
		addr, err := netip.ParseAddr(a.GetValue())
		if err != nil || addr.Zone() != "" {
			r.object.bad(index("status.addresses", i)+".value", a.GetValue(), "not an IP address")
			continue
		}
		host, _ := entryHost(a.GetHost())
		if !allocatable(r.ServiceEntry, host) {
			continue
		}
		addr = addr.Unmap()
		na := mesh.NetworkAddress{Network: network, Prefix: netip.PrefixFrom(addr, addr.BitLen())}
		if !slices.Contains(out[host], na) {
			out[host] = append(out[host], na)
		}
	}
	return out
}

func entryProtocol(protocol string) mesh.AppProtocol {
	switch strings.ToLower(protocol) {
	case "http":
		return mesh.AppHTTP11
	case "http2":
		return mesh.AppHTTP2
	case "grpc", "grpc-web":
		return mesh.AppGRPC
	case "https", "tls":
		return mesh.AppTLS
	case "tcp", "mongo", "mysql", "redis":
		return mesh.AppTCP
	}
	return mesh.AppUnknown
}

// entryBalancing of a ServiceEntry: without resolution a connection goes on to
// the address the client chose.
func entryBalancing(se *networkingv1.ServiceEntry, ns *corev1.Namespace) mesh.LoadBalancing {
	var lb mesh.LoadBalancing
	want := se.Annotations[trafficDistribution]
	if want == "" && ns != nil {
		want = ns.Annotations[trafficDistribution]
	}
	lb.Mode, lb.Preference = distribution(want)
	if se.Spec.GetResolution() == networking.ServiceEntry_NONE {
		return mesh.LoadBalancing{Mode: mesh.ModePassthrough, AllowAll: true}
	}
	return lb
}

// visibility of se: what it exports itself to, but not further than the mesh's
// settings say. Nobody can be told a single namespace that may see it, so an
// entry that names some is seen by all, as it is in Istio.
func (c Config) visibility(se *networkingv1.ServiceEntry, o *object, objs Objects) Visibility {
	own := VisiblePublic
	to := se.Spec.GetExportTo()
	if len(to) == 0 {
		to = c.Mesh.DefaultServiceExportTo
		o = nil // of the settings
	}
	if len(to) > 0 {
		own = VisibleNamespace
	}
	for i, ns := range to {
		switch ns {
		case "~":
			return VisibleNone
		case ".", se.Namespace:
		case "*":
			own = VisiblePublic
		default:
			own = VisiblePublic
			if o != nil {
				o.bad(index("spec.exportTo", i), ns, "a namespace cannot be picked out in ambient mode: the entry is visible in all")
			}
		}
	}
	return max(own, c.Mesh.Visibility.Of(labelsOf(objs, se.Namespace)))
}

// counts reports whether se has any effect.
func (c Config) counts(se *networkingv1.ServiceEntry, objs Objects) bool {
	if !c.Reads(se, objs) {
		return false
	}
	visible := c.visibility(se, nil, objs)
	return visible != VisibleNone && !c.unserved(se, visible, objs)
}

// unserved reports whether only a waypoint could say where se is, and there is
// none; its status tells.
func (c Config) unserved(se *networkingv1.ServiceEntry, visible Visibility, objs Objects) bool {
	return se.Spec.GetResolution() == networking.ServiceEntry_DYNAMIC_DNS &&
		c.BindService(se, visible == VisibleNamespace, objs).Waypoint == nil
}

// owns reports whether se is the one that host means in its namespace: a
// Kubernetes service of that name goes before any entry, and the oldest entry
// before others, so that a newcomer takes nobody's traffic.
func (c Config) owns(se *networkingv1.ServiceEntry, host string, objs Objects) bool {
	if svc := c.kubernetesService(host, objs); svc != nil && svc.Namespace == se.Namespace {
		return false
	}
	for _, other := range objs.ServiceEntriesOf(host, se.Namespace) {
		if other.Name == se.Name {
			return true
		}
		if c.counts(other, objs) {
			return false
		}
	}
	return true
}

// CanonicalEntry is the one that host means to clients of namespaces without one
// of their own, nil for none. An entry that is visible in its own namespace
// alone takes that from nobody, however old.
func (c Config) CanonicalEntry(host string, objs Objects) *networkingv1.ServiceEntry {
	if c.kubernetesService(host, objs) != nil {
		return nil
	}
	return objs.Canonical(host, func() (best *networkingv1.ServiceEntry) {
		for _, se := range objs.ServiceEntriesOf(host, "") {
			if (best == nil || Older(se, best) < 0) && c.counts(se, objs) && c.visibility(se, nil, objs) == VisiblePublic {
				best = se
			}
		}
		return best
	})
}

func (c Config) canonical(se *networkingv1.ServiceEntry, host string, objs Objects) bool {
	first := c.CanonicalEntry(host, objs)
	return first != nil && first.Namespace == se.Namespace && first.Name == se.Name
}

// kubernetesService is the Service that is published under host, or nil.
func (c Config) kubernetesService(host string, objs Objects) *corev1.Service {
	namespace, name, ok := c.ServiceOfHost(host)
	if !ok {
		return nil
	}
	if svc := objs.Service(namespace, name); svc != nil && published(svc) && c.Looks(namespace, objs) {
		return svc
	}
	return nil
}

// ServiceOfHost is the namespace and name of the Service that host would be of.
func (c Config) ServiceOfHost(host string) (namespace, name string, ok bool) {
	rest, ok := strings.CutSuffix(host, ".svc."+c.ClusterDomain)
	if !ok {
		return "", "", false
	}
	name, namespace, ok = strings.Cut(rest, ".")
	return namespace, name, ok && !strings.Contains(namespace, ".")
}

// Older orders entries by age, the oldest first, and those of one second by
// name.
func Older(a, b *networkingv1.ServiceEntry) int {
	return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time),
		cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}
