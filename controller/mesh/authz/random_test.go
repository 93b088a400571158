package authz

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/hbone/identity"
)

// seed makes the cases; world n of a seed is the same in runs of any length.
const seed = 20261120

// connsPerWorld: building a snapshot costs more than asking it.
const connsPerWorld = 10

func trustDomains() []string { return []string{"td", "td.other"} }

// world makes random policies, a workload and connections out of few names
// that begin, end and contain each other, so that equal and nearly equal ones
// meet.
type world struct {
	*rand.Rand
	namespaces, accounts, principals []string
	peers                            []identity.ID // of the principals
	addrs                            []netip.Addr
}

func newWorld(r *rand.Rand) *world {
	w := &world{Rand: r, namespaces: []string{"a", "ab", "b"}, accounts: []string{"x", "xy", "y"}}
	for range 3 {
		id := identity.ID{TrustDomain: pick(w, trustDomains()), Namespace: pick(w, w.namespaces), ServiceAccount: pick(w, w.accounts)}
		w.peers = append(w.peers, id)
		w.principals = append(w.principals, id.Principal())
	}
	for _, a := range []string{"10.0.0.1", "10.0.0.2", "10.0.1.1", "192.168.0.1", "fd00::1", "fd00::2", "fd00:0:0:1::1", "fe80::1"} {
		w.addrs = append(w.addrs, netip.MustParseAddr(a))
	}
	w.Shuffle(len(w.addrs), func(i, j int) { w.addrs[i], w.addrs[j] = w.addrs[j], w.addrs[i] })
	w.addrs = w.addrs[:4]
	return w
}

func pick[T any](w *world, from []T) T { return from[w.IntN(len(from))] }

// oneIn is true once in n times.
func (w *world) oneIn(n int) bool { return w.IntN(n) == 0 }

// some are one to three values.
func some[T any](w *world, make1 func() T) []T {
	out := []T{make1()}
	for len(out) < 3 && w.oneIn(3) {
		out = append(out, make1())
	}
	return out
}

// text is a pattern of any form for one of the strings, whole or cut anywhere.
func (w *world) text(of []string) mesh.StringMatch {
	v := pick(w, of)
	switch kind := mesh.MatchKind(w.IntN(4)); kind {
	case mesh.Prefix:
		return mesh.StringMatch{Kind: kind, Value: v[:w.IntN(len(v)+1)]}
	case mesh.Suffix:
		return mesh.StringMatch{Kind: kind, Value: v[w.IntN(len(v)+1):]}
	case mesh.Presence:
		return mesh.StringMatch{Kind: kind}
	default:
		if w.oneIn(8) {
			v = ""
		}
		return mesh.StringMatch{Kind: kind, Value: v}
	}
}

func (w *world) namespace() mesh.StringMatch { return w.text(w.namespaces) }

func (w *world) principal() mesh.StringMatch {
	m := w.text(w.principals)
	if m.Kind != mesh.Presence && m.Kind != mesh.Suffix && w.oneIn(8) {
		m.Value = "spiffe://" + m.Value
	}
	return m
}

func (w *world) account() mesh.ServiceAccountMatch {
	if w.oneIn(12) {
		return mesh.ServiceAccountMatch{}
	}
	return mesh.ServiceAccountMatch{Namespace: pick(w, w.namespaces), ServiceAccount: pick(w, w.accounts)}
}

// network is around a known address; half of them keep their host bits.
func (w *world) network() netip.Prefix {
	a := pick(w, w.addrs)
	bits := a.BitLen()
	switch w.IntN(4) {
	case 0:
		bits = 0
	case 1, 2:
		bits = bits * (1 + w.IntN(16)) / 16
		if w.oneIn(3) {
			bits = a.BitLen() - w.IntN(4)
		}
	}
	p := netip.PrefixFrom(a, bits)
	if w.oneIn(2) {
		p = p.Masked()
	}
	return p
}

func (w *world) port() uint16 { return pick(w, []uint16{0, 80, 81, 65535}) }

// match sets up to three attributes; with none it is what HTTP attributes leave
// behind.
func (w *world) match() mesh.Match {
	var m mesh.Match
	for range pick(w, []int{1, 1, 2, 3}) {
		switch w.IntN(13) {
		case 0:
			m.Namespaces = some(w, w.namespace)
		case 1:
			m.NotNamespaces = some(w, w.namespace)
		case 2:
			m.Principals = some(w, w.principal)
		case 3:
			m.NotPrincipals = some(w, w.principal)
		case 4:
			m.SourceIPs = some(w, w.network)
		case 5:
			m.NotSourceIPs = some(w, w.network)
		case 6:
			m.DestinationIPs = some(w, w.network)
		case 7:
			m.NotDestinationIPs = some(w, w.network)
		case 8:
			m.DestinationPorts = some(w, w.port)
		case 9:
			m.NotDestPorts = some(w, w.port)
		case 10:
			m.ServiceAccounts = some(w, w.account)
		case 11:
			m.NotServiceAccounts = some(w, w.account)
		case 12: // none, perhaps
		}
	}
	return m
}

func (w *world) rules() []mesh.Rule {
	var out []mesh.Rule
	for range w.IntN(4) {
		var r mesh.Rule
		for range pick(w, []int{0, 1, 1, 1, 1, 2, 2, 3}) {
			var c mesh.Clause
			for range pick(w, []int{0, 1, 1, 1, 1, 2, 2, 3}) {
				c.Matches = append(c.Matches, w.match())
			}
			r.Clauses = append(r.Clauses, c)
		}
		out = append(out, r)
	}
	return out
}

// strict is one of the forms a PeerAuthentication arrives in.
func (w *world) strict() []mesh.Rule {
	nobody := mesh.Match{NotPrincipals: []mesh.StringMatch{{Kind: mesh.Presence}}}
	except := mesh.Match{NotDestPorts: []uint16{w.port()}}
	clause := func(m mesh.Match) mesh.Clause { return mesh.Clause{Matches: []mesh.Match{m}} }
	switch w.IntN(3) {
	case 0:
		return []mesh.Rule{{Clauses: []mesh.Clause{clause(nobody)}}}
	case 1:
		return []mesh.Rule{{Clauses: []mesh.Clause{clause(nobody), clause(except)}}}
	}
	var out []mesh.Rule
	for _, p := range some(w, w.port) {
		m := nobody
		m.DestinationPorts = []uint16{p}
		out = append(out, mesh.Rule{Clauses: []mesh.Clause{clause(m)}})
	}
	return out
}

func (w *world) policy(name string) *mesh.Policy {
	p := &mesh.Policy{Namespace: pick(w, w.namespaces), Name: name, Scope: mesh.PolicyScope(w.IntN(3)),
		Action: mesh.Action(w.IntN(2)), DryRun: w.oneIn(8)}
	switch {
	case w.oneIn(8):
		p.Action, p.Scope, p.Rules = mesh.Deny, mesh.ScopeWorkloadSelector, w.strict()
	case w.oneIn(8):
		p.Name, p.Action, p.Scope, p.Rules = mesh.NetworkPolicyName([]string{name}, ""), mesh.Deny, mesh.ScopeWorkloadSelector, w.rules()
	default:
		p.Rules = w.rules()
	}
	return p
}

// state is a snapshot's policies and a workload, which lists some of them,
// twice perhaps, and some that are not there.
func (w *world) state() ([]*mesh.Policy, *mesh.Workload) {
	var all []*mesh.Policy
	load := &mesh.Workload{UID: "w", Namespace: pick(w, w.namespaces)}
	for i := range w.IntN(5) {
		p := w.policy(fmt.Sprint(i))
		all = append(all, p)
		for w.oneIn(2) && len(load.Policies) < 8 {
			load.Policies = append(load.Policies, p.Key())
		}
	}
	if w.oneIn(6) {
		load.Policies = append(load.Policies, some(w, func() string { return pick(w, w.namespaces) + "/missing" })...)
	}
	w.Shuffle(len(load.Policies), func(i, j int) {
		load.Policies[i], load.Policies[j] = load.Policies[j], load.Policies[i]
	})
	return all, load
}

// addr is written in any way the address can be.
func (w *world) addr() netip.Addr {
	a := pick(w, w.addrs)
	switch {
	case a.Is4() && w.oneIn(3):
		return netip.AddrFrom16(a.As16())
	case a.IsLinkLocalUnicast() && w.oneIn(2):
		return a.WithZone("eth0")
	}
	return a
}

func (w *world) conn() Conn {
	c := Conn{Src: netip.AddrPortFrom(w.addr(), w.port()), Dst: netip.AddrPortFrom(w.addr(), w.port())}
	if !w.oneIn(4) {
		c.Peer = pick(w, w.peers)
		if w.oneIn(4) { // the same account under the other trust domain
			c.Peer.TrustDomain = pick(w, trustDomains())
		}
	}
	return c
}

// A million random cases are decided as the rules are written, and every
// sentence of the rules, every attribute and every form of its values decides
// some of them.
//
//ambit:feature policy-fields policy-decision-log
func TestDecideAgreesWithTheObvious(t *testing.T) {
	// misread: how many misreadings each case is tried with, in turn. Fewer cases
	// need more, to show them all.
	cases, misread := 1_000_000, 1
	if testing.Short() || raceDetector {
		cases, misread = 50_000, 10
	}
	t.Logf("seed %d, %d cases", seed, cases)
	outcomes := map[string]int{}
	wrong := misreadings()
	decisive := make([]int, len(wrong))
	tried := 0
	for n := range cases / connsPerWorld {
		w := newWorld(rand.New(rand.NewPCG(seed, uint64(n))))
		policies, load := w.state()
		b := mesh.NewBuilder(nil)
		b.Apply(mesh.Delta{Policies: policies})
		s := b.Build()
		for range connsPerWorld {
			c := w.conn()
			o := oracle{policies: policies, workload: load, conn: c}
			want := o.decide()
			if diff := want.differs(Decide(s, load, c)); diff != "" {
				t.Fatalf("seed %d, world %d: %s\nworkload %+v\nconnection %+v\n%s", seed, n, diff, load, c, list(policies))
			}
			if want.outcome != pending {
				if diff := tracesDiffer(&o, Explain(s, load, c)); diff != "" {
					t.Fatalf("seed %d, world %d: %s\nworkload %+v\nconnection %+v\n%s", seed, n, diff, load, c, list(policies))
				}
			}
			outcomes[want.outcome]++
			for range misread {
				i := tried % len(wrong)
				tried++
				o.wrong = wrong[i]
				if o.decide().outcome != want.outcome {
					decisive[i]++
				}
			}
		}
	}
	for _, o := range []string{noAllowPolicy, allowMatched, denied, noneAllowed, pending} {
		t.Logf("%7d %s", outcomes[o], o)
		if outcomes[o] < cases/100 {
			t.Errorf("only %d of %d cases: %s", outcomes[o], cases, o)
		}
	}
	rarest := slices.Min(decisive)
	for i, m := range wrong {
		if decisive[i] == 0 {
			t.Errorf("no case shows the misreading %q %s", m.of, m.form)
		}
		if decisive[i] == rarest {
			t.Logf("of %d misreadings the rarest is shown by %d of %d cases: %q %s", len(wrong), rarest, tried/len(wrong), m.of, m.form)
		}
	}
}

// tracesDiffer says how the steps of a decision are not what the rules ask for.
// Of several policies that match any may be named.
func tracesDiffer(o *oracle, steps []Note) string {
	tried, last := o.trace()
	want := map[string]bool{last: true}
	for _, s := range tried {
		message, _, _ := strings.Cut(s, " match")
		want[strings.TrimSpace(message+" match")] = true
	}
	got := map[string]bool{}
	for i, n := range steps {
		dry := strings.HasPrefix(n.Message, "dry-run")
		if dry == (i == len(steps)-1) || dry && !slices.Contains(tried, n.Message+" "+n.Policy) {
			return fmt.Sprintf("steps %+v, want of %q", steps, tried)
		}
		got[n.Message] = true
	}
	if !maps.Equal(got, want) {
		return fmt.Sprintf("steps %+v, want %v", steps, want)
	}
	return ""
}

func list(policies []*mesh.Policy) (out string) {
	for _, p := range policies {
		out += fmt.Sprintf("%+v\n", *p)
	}
	return out
}
