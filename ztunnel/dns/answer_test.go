package dns

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/ambitmesh/ambit/controller/mesh"
)

func vip(network, a string) mesh.NetworkAddress {
	if p, err := netip.ParsePrefix(a); err == nil {
		return mesh.NetworkAddress{Network: network, Prefix: p}
	}
	ip := netip.MustParseAddr(a)
	return mesh.NetworkAddress{Network: network, Prefix: netip.PrefixFrom(ip, ip.BitLen())}
}

// service is <namespace>/<host> with addresses.
func service(key string, change func(*mesh.Service), vips ...string) *mesh.Service {
	ns, host, _ := strings.Cut(key, "/")
	v := &mesh.Service{Name: host, Namespace: ns, Hostname: host}
	for _, a := range vips {
		v.Addresses = append(v.Addresses, vip("", a))
	}
	if change != nil {
		change(v)
	}
	return v
}

func endpoint(name, svc, network string, addrs ...string) *mesh.Workload {
	w := &mesh.Workload{UID: "c//Pod/ns1/" + name, Name: name, Namespace: "ns1", Network: network, Services: map[string][]mesh.Port{svc: nil}}
	for _, a := range addrs {
		w.Addresses = append(w.Addresses, netip.MustParseAddr(a))
	}
	return w
}

func snapshot(objects ...any) *mesh.Snapshot {
	var d mesh.Delta
	for _, o := range objects {
		switch o := o.(type) {
		case *mesh.Service:
			d.Services = append(d.Services, o)
		case *mesh.Workload:
			d.Workloads = append(d.Workloads, o)
		}
	}
	b := mesh.NewBuilder(nil)
	b.Apply(d)
	return b.Build()
}

// TestFind: which names are the mesh's, for whom, and with which addresses.
//
//ambit:feature dns-services dns-visibility dns-preference dns-families dns-networks dns-not-owned
func TestFind(t *testing.T) {
	const D = ".svc.cluster.local"
	here := client{namespace: "ns1"}
	only := func(v *mesh.Service) { v.NamespaceOnly = true }
	canonical := func(v *mesh.Service) { v.Canonical = true }
	families := func(f mesh.IPFamilies) func(*mesh.Service) { return func(v *mesh.Service) { v.IPFamilies = f } }
	far := func(v *mesh.Service) { v.Addresses = append(v.Addresses, vip("far", "10.9.9.9")) }
	unhealthy := endpoint("sick", "ns1/pods.ns1"+D, "", "10.0.0.7")
	unhealthy.Health = mesh.Unhealthy
	for _, c := range []struct {
		name    string
		objects []any
		client  client
		rules   rules
		ask     string // "<name> <type>"
		want    string // "<key> [<- target] addresses", "" when forwarded
	}{
		{name: "a service", objects: []any{service("ns1/web.ns1"+D, nil, "10.1.0.1")}, ask: "web.ns1" + D + " A", want: "ns1/web.ns1" + D + " 10.1.0.1"},
		{name: "short", objects: []any{service("ns1/web.ns1"+D, nil, "10.1.0.1")}, ask: "web A", want: "ns1/web.ns1" + D + " 10.1.0.1"},
		{name: "short, for another namespace", objects: []any{service("ns1/web.ns1"+D, nil, "10.1.0.1")}, client: client{namespace: "ns2"}, ask: "web A"},
		{name: "with namespace", objects: []any{service("ns1/web.ns1"+D, nil, "10.1.0.1")}, client: client{namespace: "ns2"}, ask: "web.ns1 A", want: "ns1/web.ns1" + D + " 10.1.0.1"},
		{name: "through a search domain", objects: []any{service("ns1/web.ns1"+D, nil, "10.1.0.1")}, client: client{namespace: "ns2"}, ask: "web.ns1.ns2" + D + " A",
			want: "ns1/web.ns1" + D + " <- web.ns1 10.1.0.1"},
		{name: "a host through a search domain", objects: []any{service("ns1/api.example.com", nil, "240.0.0.1")}, ask: "api.example.com.ns1" + D + " A",
			want: "ns1/api.example.com <- api.example.com 240.0.0.1"},
		{name: "a wildcard through a search domain keeps the name", objects: []any{service("ns1/*.example.com", nil, "240.0.0.1")}, ask: "api.example.com.ns1" + D + " A",
			want: "ns1/*.example.com 240.0.0.1"},
		{name: "the most specific wildcard", objects: []any{service("ns1/*.example.com", nil, "240.0.0.1"), service("ns1/*.b.example.com", nil, "240.0.0.2")}, ask: "a.b.example.com A",
			want: "ns1/*.b.example.com 240.0.0.2"},
		{name: "exact before wildcard", objects: []any{service("ns1/*.example.com", nil, "240.0.0.1"), service("ns1/a.example.com", nil, "240.0.0.2")}, ask: "a.example.com A",
			want: "ns1/a.example.com 240.0.0.2"},
		{name: "not what the wildcard begins with", objects: []any{service("ns1/*.example.com", nil, "240.0.0.1")}, ask: "example.com A"},
		{name: "an invisible wildcard uncovers the next", objects: []any{service("ns2/*.b.example.com", only, "240.0.0.2"), service("ns2/*.example.com", nil, "240.0.0.1")}, ask: "a.b.example.com A",
			want: "ns2/*.example.com 240.0.0.1"},
		{name: "unknown", ask: "example.com A"},
		{name: "of another namespace alone", objects: []any{service("ns2/own.example.com", only, "240.0.0.1")}, ask: "own.example.com A"},
		{name: "of its own namespace alone", objects: []any{service("ns1/own.example.com", only, "240.0.0.1")}, ask: "own.example.com A", want: "ns1/own.example.com 240.0.0.1"},
		{name: "own namespace first", objects: []any{service("ns1/x.com", nil, "240.0.0.1"), service("ns0/x.com", canonical, "240.0.0.2")}, ask: "x.com A", want: "ns1/x.com 240.0.0.1"},
		{name: "canonical next", objects: []any{service("ns0/x.com", nil, "240.0.0.1"), service("ns2/x.com", canonical, "240.0.0.2")}, rules: rules{preferred: "ns0"}, ask: "x.com A", want: "ns2/x.com 240.0.0.2"},
		{name: "then the preferred namespace", objects: []any{service("ns0/x.com", nil, "240.0.0.1"), service("ns2/x.com", nil, "240.0.0.2")}, rules: rules{preferred: "ns2"}, ask: "x.com A", want: "ns2/x.com 240.0.0.2"},
		{name: "then the first", objects: []any{service("ns2/x.com", nil, "240.0.0.2"), service("ns0/x.com", nil, "240.0.0.1")}, ask: "x.com A", want: "ns0/x.com 240.0.0.1"},
		{name: "a range is no address", objects: []any{service("ns1/x.com", nil, "240.0.0.0/24")}, ask: "x.com A"},
		{name: "a range beside an address", objects: []any{service("ns1/x.com", nil, "240.0.0.0/24", "240.0.1.1")}, ask: "x.com A", want: "ns1/x.com 240.0.1.1"},
		{name: "a host without addresses", objects: []any{service("ns1/x.com", nil)}, ask: "x.com A"},
		{name: "and does not hide one with", objects: []any{service("ns1/x.com", nil), service("ns2/x.com", nil, "240.0.0.1")}, ask: "x.com A", want: "ns2/x.com 240.0.0.1"},
		{name: "other family", objects: []any{service("ns1/x.com", nil, "240.0.0.1")}, ask: "x.com AAAA", want: "ns1/x.com"},
		{name: "both families", objects: []any{service("ns1/x.com", nil, "240.0.0.1", "fd00::1")}, ask: "x.com AAAA", want: "ns1/x.com fd00::1"},
		{name: "IPv4 alone", objects: []any{service("ns1/x.com", families(mesh.FamiliesIPv4), "240.0.0.1", "fd00::1")}, ask: "x.com AAAA", want: "ns1/x.com"},
		{name: "IPv6 alone", objects: []any{service("ns1/x.com", families(mesh.FamiliesIPv6), "240.0.0.1", "fd00::1")}, ask: "x.com A", want: "ns1/x.com"},
		{name: "no IPv6 here", objects: []any{service("ns1/x.com", nil, "240.0.0.1", "fd00::1")}, rules: rules{noIPv6: true}, ask: "x.com AAAA", want: "ns1/x.com"},
		{name: "of the client's network", objects: []any{service("ns1/x.com", far, "240.0.0.1")}, client: client{namespace: "ns1", network: "far"}, ask: "x.com A", want: "ns1/x.com 10.9.9.9"},
		{name: "not of others", objects: []any{service("ns1/x.com", far, "240.0.0.1")}, client: client{namespace: "ns1", network: "third"}, ask: "x.com A", want: "ns1/x.com"},
		{name: "headless", objects: []any{service("ns1/pods.ns1"+D, nil), endpoint("a", "ns1/pods.ns1"+D, "", "10.0.0.1", "fd00::1"), endpoint("b", "ns1/pods.ns1"+D, "", "10.0.0.2", "10.0.0.3"), unhealthy},
			ask: "pods A", want: "ns1/pods.ns1" + D + " 10.0.0.1 10.0.0.2"},
		{name: "headless, IPv6", objects: []any{service("ns1/pods.ns1"+D, nil), endpoint("a", "ns1/pods.ns1"+D, "", "10.0.0.1", "fd00::1"), endpoint("b", "ns1/pods.ns1"+D, "", "10.0.0.2")},
			ask: "pods AAAA", want: "ns1/pods.ns1" + D + " fd00::1"},
		{name: "headless, not ready ones too", objects: []any{service("ns1/pods.ns1"+D, func(v *mesh.Service) { v.LoadBalancing.AllowAll = true }), unhealthy}, ask: "pods A", want: "ns1/pods.ns1" + D + " 10.0.0.7"},
		{name: "headless, other network", objects: []any{service("ns1/pods.ns1"+D, nil), endpoint("a", "ns1/pods.ns1"+D, "far", "10.0.0.1")}, ask: "pods A", want: "ns1/pods.ns1" + D},
		{name: "headless without endpoints is the cluster's to answer", objects: []any{service("ns1/pods.ns1"+D, nil), unhealthy}, ask: "pods.ns1" + D + " A"},
		{name: "a pod of a headless service", objects: []any{service("ns1/pods.ns1"+D, nil), endpoint("a-0", "ns1/pods.ns1"+D, "", "10.0.0.1")}, ask: "a-0.pods.ns1" + D + " A"},
		{name: "mapped addresses", objects: []any{service("ns1/x.com", nil, "::ffff:10.1.0.1")}, ask: "x.com A", want: "ns1/x.com 10.1.0.1"},
		{name: "another cluster domain", objects: []any{service("ns1/web.ns1.svc.k8s.example", nil, "10.1.0.1")}, rules: rules{domain: "k8s.example"}, ask: "web A", want: "ns1/web.ns1.svc.k8s.example 10.1.0.1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.client == (client{}) {
				c.client = here
			}
			if c.rules.domain == "" {
				c.rules.domain = "cluster.local"
			}
			name, kind, _ := strings.Cut(c.ask, " ")
			if got := found2text(find(snapshot(c.objects...), c.client, c.rules, name, kind == "AAAA")); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

func found2text(f found) string {
	if f.service == nil {
		return ""
	}
	parts := []string{f.service.Key()}
	if f.target != "" {
		parts = append(parts, "<- "+f.target)
	}
	for _, a := range f.addrs {
		parts = append(parts, a.String())
	}
	return strings.Join(parts, " ")
}

// slow answers as the documentation says it, without any index: every service is
// looked at for every name that may be meant.
func slow(s *mesh.Snapshot, c client, r rules, name string, v6 bool) string {
	labels := func(n string) int { return len(strings.Split(n, ".")) }
	expansions := func(n string) []string {
		out := []string{n}
		k8s := ".svc." + r.domain
		switch labels(n) {
		case 1:
			out = append(out, n+"."+c.namespace+k8s)
		case 2:
			out = append(out, n+k8s, n+"."+c.namespace+k8s)
		case 3:
			if strings.HasSuffix(n, ".svc") {
				out = append(out, n+"."+r.domain)
			}
			out = append(out, n+k8s)
		case 4:
			if strings.HasSuffix(n, ".svc") {
				out = append(out, n+"."+r.domain)
			}
		}
		return out
	}
	type candidate struct{ name, target string }
	var candidates []candidate
	for _, n := range expansions(name) {
		candidates = append(candidates, candidate{n, ""})
	}
	for _, search := range []string{c.namespace + ".svc." + r.domain, "svc." + r.domain, r.domain} {
		if strings.HasSuffix(name, "."+search) {
			short := strings.TrimSuffix(name, "."+search)
			for _, n := range expansions(short) {
				candidates = append(candidates, candidate{n, short})
			}
		}
	}
	covers := func(host, n string, depth int) bool {
		if depth == 0 {
			return host == n
		}
		parts := strings.Split(n, ".")
		return depth < len(parts) && host == "*."+strings.Join(parts[depth:], ".")
	}
	for _, cand := range candidates {
		for depth := range labels(cand.name) {
			var fits []*mesh.Service
			for v := range s.AllServices() {
				if !covers(v.Hostname, cand.name, depth) || v.NamespaceOnly && v.Namespace != c.namespace {
					continue
				}
				usable := len(v.Addresses) == 0 && strings.HasSuffix(v.Hostname, ".svc."+r.domain)
				if usable {
					usable = false
					for _, e := range s.Endpoints(v.Key()) {
						usable = usable || len(e.Workload.Addresses) > 0
					}
				}
				for _, a := range v.Addresses {
					usable = usable || a.IsSingle()
				}
				if usable {
					fits = append(fits, v)
				}
			}
			if len(fits) == 0 {
				continue
			}
			slices.SortFunc(fits, func(a, b *mesh.Service) int { return strings.Compare(a.Key(), b.Key()) })
			pick := func(ok func(*mesh.Service) bool) *mesh.Service {
				if i := slices.IndexFunc(fits, ok); i >= 0 {
					return fits[i]
				}
				return nil
			}
			best := pick(func(v *mesh.Service) bool { return v.Namespace == c.namespace })
			if best == nil {
				best = pick(func(v *mesh.Service) bool { return v.Canonical })
			}
			if best == nil {
				best = pick(func(v *mesh.Service) bool { return v.Namespace == r.preferred })
			}
			if best == nil {
				best = fits[0]
			}
			f := found{service: best, addrs: addresses(s, c, r, best, v6)}
			if depth == 0 {
				f.target = cand.target
			}
			return found2text(f)
		}
	}
	return ""
}

// TestFindAgainstOracle compares with the rules as written, on random meshes.
func TestFindAgainstOracle(t *testing.T) {
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 1))
	pick := func(of ...string) string { return of[rnd.IntN(len(of))] }
	label := func() string { return pick("a", "b", "svc", "ns1", "ns2", "local") }
	name := func() string {
		n := label()
		for range rnd.IntN(4) {
			n += "." + label()
		}
		return n + pick("", "", ".ns1.svc.local", ".svc.local", ".local", ".ns2.svc.local")
	}
	for range 300 {
		var objects []any
		for i := range 1 + rnd.IntN(12) {
			host := pick("", "", "*.") + name()
			key := pick("ns1", "ns2", "ns3") + "/" + host
			objects = append(objects, service(key, func(v *mesh.Service) {
				v.NamespaceOnly, v.Canonical = rnd.IntN(4) == 0, rnd.IntN(3) == 0
				for range rnd.IntN(3) {
					v.Addresses = append(v.Addresses, vip(pick("", "", "far"), pick("10.0.0.0/8", fmt.Sprintf("10.1.0.%d", i), fmt.Sprintf("fd00::%x", i))))
				}
			}))
			if rnd.IntN(2) == 0 {
				objects = append(objects, endpoint(fmt.Sprint("w", i), key, pick("", "far"), fmt.Sprintf("10.2.0.%d", i)))
			}
		}
		s := snapshot(objects...)
		for range 50 {
			c := client{namespace: pick("ns1", "ns2", "ns4"), network: pick("", "far")}
			r := rules{domain: "local", preferred: pick("", "ns3")}
			n, v6 := name(), rnd.IntN(2) == 0
			if got, want := found2text(find(s, c, r, n, v6)), slow(s, c, r, n, v6); got != want {
				t.Fatalf("seed %d: %s (v6 %t) of %+v with %+v: %q, want %q", seed, n, v6, c, r, got, want)
			}
		}
	}
}

func BenchmarkFind(b *testing.B) {
	var objects []any
	for i := range 1000 {
		objects = append(objects, service(fmt.Sprintf("ns%d/web%d.ns%d.svc.cluster.local", i%50, i, i%50), nil, "10.1.0.1"))
	}
	s := snapshot(objects...)
	for name, ask := range map[string]string{"own": "web7.ns7.svc.cluster.local", "search": "www.example.com.ns1.svc.cluster.local", "external": "www.example.com"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				find(s, client{namespace: "ns1"}, rules{domain: "cluster.local"}, ask, false)
			}
		})
	}
}
