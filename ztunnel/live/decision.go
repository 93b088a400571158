package live

import (
	"log/slog"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/mesh/authz"
)

// Decided logs what policy says about a connection and why: what dry-run policies
// would have said, too. s is what was asked. It is at level debug, or info if
// that is set, and costs nothing when that level is off.
func (t *Table) Decided(s *mesh.Snapshot, check *Check) {
	if s == nil || !t.policy.Enabled(t.ctx, t.policyLevel) {
		return
	}
	w := check.Workload
	if cur := s.Workload(w.UID); cur != nil {
		w = cur
	}
	c := &check.Conn
	for _, n := range authz.Explain(s, w, *c) {
		attrs := make([]slog.Attr, 0, 6)
		if n.Policy != "" {
			attrs = append(attrs, slog.String("policy", n.Policy))
		}
		attrs = address(attrs, "src.addr", c.Src)
		if !c.Peer.IsZero() {
			attrs = append(attrs, slog.String("src.identity", c.Peer.String()))
		}
		attrs = address(attrs, "dst.addr", c.Dst)
		attrs = append(attrs, slog.String("dst.workload", w.Name), slog.String("dst.namespace", w.Namespace))
		t.policy.LogAttrs(t.ctx, t.policyLevel, n.Message, attrs...)
	}
}
