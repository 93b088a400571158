package authz

import "github.com/ambitmesh/ambit/controller/mesh"

// Note is one step of a decision, in the words of Istio's ztunnel. Policy is the
// <namespace>/<name> it is about, if it is about one.
type Note struct{ Message, Policy string }

// Explain lists what leads to the decision of Decide, and what policies that are
// dry-run would have decided. It is for the log: slower than Decide, and it
// decides nothing.
func Explain(s *mesh.Snapshot, w *mesh.Workload, c Conn) []Note {
	f := facts{src: canonical(c.Src.Addr()), dst: canonical(c.Dst.Addr()), port: c.Dst.Port(), peer: c.Peer, through: c.Through}
	f.principal = appendPrincipal(nil, c.Peer)
	var all []*mesh.Policy
	all = append(append(all, s.GlobalPolicies()...), s.NamespacePolicies(w.Namespace)...)
	for _, key := range w.Policies {
		if p := s.Policy(key); p != nil {
			all = append(all, p)
		}
	}
	// which goes through the policies of a kind: how many there are, and the first
	// that is about the connection.
	which := func(action mesh.Action, dryRun bool) (n int, met *mesh.Policy) {
		for _, p := range all {
			if p.Action != action || p.DryRun != dryRun {
				continue
			}
			if n++; met == nil && f.meets(p) {
				met = p
			}
		}
		return n, met
	}
	var out []Note
	if _, p := which(mesh.Deny, true); p != nil {
		out = append(out, Note{"dry-run: deny policy match", p.Key()})
	}
	if _, p := which(mesh.Deny, false); p != nil {
		return append(out, Note{"deny policy match", p.Key()})
	}
	allows, allowed := which(mesh.Allow, false)
	if n, p := which(mesh.Allow, true); p != nil {
		out = append(out, Note{"dry-run: allow policy match", p.Key()})
	} else if n > 0 && allows == 0 {
		out = append(out, Note{"dry-run: no allow policies match", ""})
	}
	switch {
	case allows == 0:
		return append(out, Note{"no allow policies, allow", ""})
	case allowed != nil:
		return append(out, Note{"allow policy match", allowed.Key()})
	}
	return append(out, Note{"no allow policies matched", ""})
}
