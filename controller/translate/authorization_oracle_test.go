package translate

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/mesh/authz"
	"github.com/ambitmesh/ambit/hbone/identity"
)

// apOracle reads AuthorizationPolicies as they are documented, from their text,
// for one connection. What only somebody who sees requests can tell is told
// against the connection.
type apOracle struct {
	domains []string // the mesh's and its aliases
	conn    authz.Conn
}

func (o *apOracle) allows(policies []*securityv1.AuthorizationPolicy) bool {
	some, allowed := false, false
	for _, ap := range policies {
		if ap.Annotations["istio.io/dry-run"] == "true" {
			continue
		}
		matched := slices.ContainsFunc(ap.Spec.Rules, func(r *v1beta1.Rule) bool { return o.rule(r, ap.Spec.Action) })
		switch {
		case ap.Spec.Action == v1beta1.AuthorizationPolicy_DENY && matched:
			return false
		case ap.Spec.Action == v1beta1.AuthorizationPolicy_ALLOW:
			some, allowed = true, allowed || matched
		}
	}
	return !some || allowed
}

func (o *apOracle) rule(r *v1beta1.Rule, action v1beta1.AuthorizationPolicy_Action) bool {
	unknown := action == v1beta1.AuthorizationPolicy_DENY
	from, to := len(r.From) == 0, len(r.To) == 0
	for _, f := range r.From {
		s := f.Source
		from = from || o.all(
			o.values(s.Principals, o.principal), o.none(s.NotPrincipals, o.principal),
			o.values(s.Namespaces, o.namespace), o.none(s.NotNamespaces, o.namespace),
			o.values(s.ServiceAccounts, o.account), o.none(s.NotServiceAccounts, o.account),
			o.values(s.IpBlocks, o.source), o.none(s.NotIpBlocks, o.source),
			len(s.RequestPrincipals) == 0 || unknown, len(s.NotRemoteIpBlocks) == 0 || unknown)
	}
	for _, t := range r.To {
		op := t.Operation
		to = to || o.all(o.values(op.Ports, o.port), o.none(op.NotPorts, o.port), len(op.Methods) == 0 || unknown, len(op.NotPaths) == 0 || unknown)
	}
	when := true
	for _, w := range r.When {
		match := map[string]func(string) bool{"source.ip": o.source, "destination.ip": o.destination, "source.namespace": o.namespace,
			"source.principal": o.principal, "destination.port": o.port}[w.Key]
		if match == nil {
			when = when && unknown
			continue
		}
		when = when && o.values(w.Values, match) && o.none(w.NotValues, match)
	}
	if !unknown && hasHTTP(r) {
		return false // whichever of its entries it is in
	}
	return from && to && when
}

func hasHTTP(r *v1beta1.Rule) bool {
	for _, f := range r.From {
		if len(f.Source.RequestPrincipals)+len(f.Source.NotRemoteIpBlocks) > 0 {
			return true
		}
	}
	for _, t := range r.To {
		if len(t.Operation.Methods)+len(t.Operation.NotPaths) > 0 {
			return true
		}
	}
	return slices.ContainsFunc(r.When, func(w *v1beta1.Condition) bool { return w.Key == "request.headers[x]" })
}

func (o *apOracle) all(holds ...bool) bool { return !slices.Contains(holds, false) }

func (o *apOracle) values(list []string, match func(string) bool) bool {
	return len(list) == 0 || slices.ContainsFunc(list, match)
}

func (o *apOracle) none(list []string, match func(string) bool) bool {
	return !slices.ContainsFunc(list, match)
}

func (o *apOracle) port(s string) bool { return s == strconv.Itoa(int(o.conn.Dst.Port())) }

func (o *apOracle) in(block string, a netip.Addr) bool {
	if p, err := netip.ParsePrefix(block); err == nil {
		return p.Contains(a)
	}
	return netip.MustParseAddr(block) == a
}

func (o *apOracle) source(s string) bool      { return o.in(s, o.conn.Src.Addr()) }
func (o *apOracle) destination(s string) bool { return o.in(s, o.conn.Dst.Addr()) }
func (o *apOracle) namespace(s string) bool   { return o.text(s, o.conn.Peer.Namespace) }

func (o *apOracle) account(s string) bool {
	ns, name, ok := strings.Cut(s, "/")
	if !ok {
		ns, name = "ns", s // the policies are in
	}
	return !o.conn.Peer.IsZero() && ns == o.conn.Peer.Namespace && name == o.conn.Peer.ServiceAccount
}

// principal: what a policy says of one of the mesh's trust domains, or of
// cluster.local, it says of all of them.
func (o *apOracle) principal(s string) bool {
	id := o.conn.Peer
	if id.IsZero() {
		return false
	}
	of := func(domain string) string { return domain + "/ns/" + id.Namespace + "/sa/" + id.ServiceAccount }
	if o.text(s, of(id.TrustDomain)) {
		// As it stands; but cluster.local is not a domain of its own.
		return !strings.HasPrefix(s, "cluster.local/") || slices.Contains(o.domains, "cluster.local") || strings.Count(s, "/") != 4
	}
	if !slices.Contains(o.domains, id.TrustDomain) || strings.Count(s, "/") != 4 || strings.HasPrefix(s, "*/") {
		return false
	}
	for _, d := range append([]string{"cluster.local"}, o.domains...) {
		named, _, _ := strings.Cut(s, "/")
		if (named == d || strings.HasPrefix(named, "*") && strings.HasSuffix(d, named[1:]) && d != "cluster.local") && o.text(s, of(d)) {
			return true
		}
	}
	return false
}

func (o *apOracle) text(pattern, s string) bool {
	switch {
	case pattern == "*":
		return s != ""
	case strings.HasPrefix(pattern, "*"):
		return strings.HasSuffix(s, pattern[1:])
	case strings.HasSuffix(pattern, "*"):
		return strings.HasPrefix(s, pattern[:len(pattern)-1])
	}
	return s == pattern
}

// apWorld writes policies.
type apWorld struct{ npWorld }

func (w apWorld) some(of ...string) []string {
	var out []string
	for range w.IntN(3) {
		out = append(out, of[w.IntN(len(of))])
	}
	return out
}

func (w apWorld) oneIn(n int) bool { return w.IntN(n) == 0 }

func (w apWorld) principals() []string {
	return w.some("cluster.local/ns/a/sa/x", "new.example/ns/a/sa/x", "old.example/ns/a/sa/x", "foreign.example/ns/a/sa/x", "*/ns/a/sa/x", "*", "*x", "new*",
		"old.example/ns/a/sa/*", "*.example/ns/a/sa/x", "*d.example/ns/a/sa/y", "cluster.local/ns/b/sa/*", "cluster.local*", "spiffe://old.example/ns/a/sa/x", "old.example/ns/b/sa/y")
}

func (w apWorld) rule() *v1beta1.Rule {
	r := &v1beta1.Rule{}
	ips := func() []string { return w.some("10.0.0.1", "10.0.0.0/31", "0.0.0.0/0", "2001:db8::/32", "::/0") }
	names := func() []string { return w.some("a", "b", "a*", "*b", "*") }
	accounts := func() []string { return w.some("a/x", "b/y", "x", "ns/x") }
	maybe := func(list []string) []string {
		if w.oneIn(3) {
			return list
		}
		return nil
	}
	for range w.IntN(3) {
		s := &v1beta1.Source{Principals: maybe(w.principals()), NotPrincipals: maybe(w.principals()), Namespaces: maybe(names()), NotNamespaces: maybe(names()),
			ServiceAccounts: maybe(accounts()), NotServiceAccounts: maybe(accounts()), IpBlocks: maybe(ips()), NotIpBlocks: maybe(ips())}
		if w.oneIn(10) {
			s.RequestPrincipals = []string{"*"}
		}
		if w.oneIn(10) {
			s.NotRemoteIpBlocks = []string{"10.0.0.0/8"}
		}
		if len(s.String()) > 0 {
			r.From = append(r.From, &v1beta1.Rule_From{Source: s})
		}
	}
	for range w.IntN(2) {
		op := &v1beta1.Operation{Ports: maybe(w.some("80", "81")), NotPorts: maybe(w.some("80", "82"))}
		if w.oneIn(8) {
			op.Methods = []string{"GET"}
		}
		if w.oneIn(8) {
			op.NotPaths = []string{"/x"}
		}
		if len(op.String()) > 0 {
			r.To = append(r.To, &v1beta1.Rule_To{Operation: op})
		}
	}
	for range w.IntN(2) {
		c := &v1beta1.Condition{Key: oneOf(w.npWorld, "source.ip", "destination.ip", "source.namespace", "source.principal", "destination.port", "request.headers[x]")}
		of := map[string]func() []string{"source.ip": ips, "destination.ip": ips, "source.namespace": names, "source.principal": w.principals,
			"destination.port": func() []string { return w.some("80", "81") }, "request.headers[x]": names}[c.Key]
		c.Values, c.NotValues = of(), maybe(of())
		if len(c.Values)+len(c.NotValues) > 0 {
			r.When = append(r.When, c)
		}
	}
	return r
}

// A million connections are decided by translated policies as the policies'
// text says: every field and wildcard, trust-domain aliases, attributes of HTTP
// and dry-run policies among them.
//
//ambit:feature policy-fields policy-trust-domain-aliases policy-http-attributes
func TestAuthorizationAgreesWithTheObvious(t *testing.T) {
	const seed = 20261121
	worlds := 20_000
	if testing.Short() || raceDetector {
		worlds = 1_000
	}
	c := testConfig()
	c.TrustDomain, c.Mesh.TrustDomainAliases = "new.example", []string{"old.example"}
	allowed, tried, http := 0, 0, 0
	for n := range worlds {
		w := apWorld{npWorld{rand.New(rand.NewPCG(seed, uint64(n)))}}
		var policies []*securityv1.AuthorizationPolicy
		var d mesh.Delta
		load := &mesh.Workload{UID: "w", Namespace: "ns"}
		for i := range 1 + w.IntN(3) {
			ap := &securityv1.AuthorizationPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: strconv.Itoa(i)}}
			ap.Spec.Action = v1beta1.AuthorizationPolicy_Action(w.IntN(2)) // ALLOW, DENY
			if w.oneIn(6) {
				ap.Annotations = map[string]string{"istio.io/dry-run": "true"}
			}
			for range w.IntN(3) {
				ap.Spec.Rules = append(ap.Spec.Rules, w.rule())
			}
			a := c.AuthorizationPolicy(ap)
			if a.Err != nil {
				t.Fatalf("world %d: %v", n, a.Err)
			}
			if a.Condition.Reason == ReasonUnsupportedValue {
				http++
			}
			if c.Listed(ap) {
				load.Policies = append(load.Policies, a.Policy.Key())
			}
			policies, d.Policies = append(policies, ap), append(d.Policies, a.Policy)
		}
		b := mesh.NewBuilder(nil)
		b.Apply(d)
		snap := b.Build()
		for range 50 {
			conn := authz.Conn{
				Src: netip.AddrPortFrom(netip.MustParseAddr(oneOf(w.npWorld, "10.0.0.1", "10.0.0.9", "2001:db8::1")), 4000),
				Dst: netip.AddrPortFrom(netip.MustParseAddr(oneOf(w.npWorld, "10.0.0.1", "2001:db8::2")), oneOf[uint16](w.npWorld, 80, 81, 82)),
			}
			if !w.oneIn(4) {
				conn.Peer = identity.ID{TrustDomain: oneOf(w.npWorld, "new.example", "old.example", "foreign.example"),
					Namespace: oneOf(w.npWorld, "a", "b", "ns"), ServiceAccount: oneOf(w.npWorld, "x", "y")}
			}
			o := apOracle{domains: c.TrustDomains(), conn: conn}
			want, got := o.allows(policies), authz.Decide(snap, load, conn)
			if got.Allow != want {
				for _, ap := range policies {
					t.Logf("%v %s", ap.Annotations, ap.Spec.String())
				}
				t.Fatalf("world %d: %+v, want %t: %+v", n, got, want, conn)
			}
			if tried++; want {
				allowed++
			}
		}
	}
	t.Logf("%d of %d allowed, %d policies with attributes of HTTP", allowed, tried, http)
	if allowed < tried/10 || allowed > tried*9/10 || http < worlds/10 {
		t.Errorf("%d of %d allowed, %d policies with attributes of HTTP", allowed, tried, http)
	}
}

// BenchmarkAuthorizationPolicy is one policy of a usual size, from object to
// what is sent.
func BenchmarkAuthorizationPolicy(b *testing.B) {
	c := testConfig()
	ap := &securityv1.AuthorizationPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p"}}
	for range 10 {
		ap.Spec.Rules = append(ap.Spec.Rules, &v1beta1.Rule{
			From: []*v1beta1.Rule_From{{Source: &v1beta1.Source{Principals: []string{"cluster.local/ns/a/sa/x", "cluster.local/ns/b/sa/*"}, IpBlocks: []string{"10.0.0.0/8"}}}},
			To:   []*v1beta1.Rule_To{{Operation: &v1beta1.Operation{Ports: []string{"80", "443"}}}},
		})
	}
	b.ReportAllocs()
	for b.Loop() {
		if c.AuthorizationPolicy(ap).Policy == nil {
			b.Fatal("no policy")
		}
	}
}
