package authz

import (
	"net/netip"
	"strings"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/hbone/identity"
)

// Conn is what a decision looks at.
type Conn struct {
	Peer     identity.ID // verified; zero means unauthenticated
	Src, Dst netip.AddrPort
	// Through is the connection's own peer when that is the destination's waypoint
	// and Peer the client it speaks for; zero otherwise. A policy that names it
	// exactly means it; any other is about the client, so that a waypoint
	// widens nothing that was written of clients.
	Through identity.ID
}

// Verdict is a decision. Policy is the <namespace>/<name> that decided it, if
// a single one did.
type Verdict struct {
	Allow bool
	// Pending says that the workload names a policy that is not here yet and
	// nothing else denies: the caller holds the connection for a while and
	// asks again. A live connection is never closed for it.
	Pending bool
	Policy  string
	// Direct says that what was refused is the way: it leads past the waypoint.
	Direct bool
	Reason string // empty when allowed
}

const (
	reasonDenied     = "explicitly denied by: "
	reasonNotAllowed = "allow policies exist, but none allowed"
	reasonPending    = "policy not received yet: "
)

// Decide applies to c every policy of s that concerns w: the global ones,
// those of w's namespace and those w names. Any DENY that matches refuses; if
// there is an ALLOW, one must match. Dry-run policies never decide. Decide
// does not allocate unless it refuses.
func Decide(s *mesh.Snapshot, w *mesh.Workload, c Conn) Verdict {
	// The longest namespace (63) and service account (253) with any sane trust
	// domain fit; append moves to the heap otherwise.
	var principal [512]byte
	f := facts{src: canonical(c.Src.Addr()), dst: canonical(c.Dst.Addr()), port: c.Dst.Port(), peer: c.Peer, through: c.Through}
	f.principal = appendPrincipal(principal[:0], c.Peer)

	var t tally
	t.list(s.GlobalPolicies(), &f)
	if t.denied == nil {
		t.list(s.NamespacePolicies(w.Namespace), &f)
	}
	missing := ""
	for _, key := range w.Policies {
		if t.denied != nil {
			break
		}
		if p := s.Policy(key); p != nil {
			t.one(p, &f)
		} else if missing == "" {
			missing = key
		}
	}
	switch {
	case t.denied != nil:
		key := t.denied.Key()
		return Verdict{Policy: key, Direct: t.denied.RequiresWaypoint(), Reason: reasonDenied + nameOf(t.denied)}
	case missing != "":
		return Verdict{Pending: true, Policy: missing, Reason: reasonPending + missing}
	case t.allows && t.allowed == nil:
		return Verdict{Reason: reasonNotAllowed}
	}
	return Verdict{Allow: true}
}

// nameOf is what users know p by.
func nameOf(p *mesh.Policy) string {
	if !mesh.FromNetworkPolicies(p) {
		return p.Key()
	}
	return "networkpolicy " + strings.Join(mesh.NetworkPolicies(p.Key()), ", ")
}

func appendPrincipal(b []byte, id identity.ID) []byte {
	if id.IsZero() {
		return b
	}
	b = append(b, id.TrustDomain...)
	b = append(b, "/ns/"...)
	b = append(b, id.Namespace...)
	b = append(b, "/sa/"...)
	return append(b, id.ServiceAccount...)
}

// tally is what the policies seen so far add up to.
type tally struct {
	denied  *mesh.Policy // first DENY that matched
	allowed *mesh.Policy // first ALLOW that matched
	allows  bool         // an ALLOW exists
}

func (t *tally) list(policies []*mesh.Policy, f *facts) {
	for _, p := range policies {
		if t.one(p, f); t.denied != nil {
			return
		}
	}
}

func (t *tally) one(p *mesh.Policy, f *facts) {
	if p.DryRun {
		return
	}
	if p.Action == mesh.Deny {
		if f.meets(p) {
			t.denied = p
		}
		return
	}
	t.allows = true
	if t.allowed == nil && f.meets(p) {
		t.allowed = p
	}
}

// meets is whether p is about the connection.
func (f *facts) meets(p *mesh.Policy) bool {
	if p.Action == mesh.Deny {
		if f.src == f.dst && mesh.FromNetworkPolicies(p) {
			return false // a pod cannot be kept from itself
		}
		if !f.through.IsZero() && p.RequiresWaypoint() {
			f = f.ofWaypoint()
		}
	}
	return f.policy(p)
}
