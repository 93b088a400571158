package outbound

import (
	"context"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/hbone"
	"github.com/ambitmesh/ambit/hbone/identity"
	"github.com/ambitmesh/ambit/ztunnel/live"
)

// nested is a tunnel inside a tunnel. The inner one belongs to a single
// connection, as with Istio's ztunnel: who is at its end is the gateway's choice,
// and different each time.
type nested struct {
	tunnelled
	inner *hbone.Conn
	share *live.Share
}

func (u nested) close() {
	u.inner.Close()
	u.share.Give(live.CostTunnel)
}

// through makes the inner tunnel of r inside outer, and opens the stream in it. It
// owns outer.
func (p *Proxy) through(ctx context.Context, outer *hbone.Stream, r *Route, self *mesh.Workload, req hbone.Request) (carrier, error) {
	if err := p.cfg.Share.Take(live.CostTunnel); err != nil {
		outer.Cancel()
		return nil, err
	}
	c, err := hbone.NewClient(ctx, outer, identity.ClientConfig(p.cfg.Source, self.Identity(), r.Inner), p.cfg.HBONE)
	if err != nil {
		p.cfg.Share.Give(live.CostTunnel)
		return nil, live.Errorf(live.HandshakeReason(err), "inner tunnel through gateway %s: %w", r.Addr, err)
	}
	u := nested{inner: c, share: p.cfg.Share}
	if u.s, err = c.Open(ctx, req); err != nil {
		u.close()
		return nil, openError(err, req.Authority)
	}
	return u, nil
}

// beyond is who is at the other end of a connection through a gateway: what that
// says of itself, which the gateway did not see, and who it has proved to be.
// Before it has said anything it is what the mesh knows of the other network.
func beyond(r *Route, up carrier) (*mesh.Workload, identity.ID) {
	u, ok := up.(nested)
	if !ok {
		return r.Remote, identity.ID{}
	}
	peer := u.inner.Peer()
	if w := live.ParseBaggage(u.s.ResponseHeader("baggage")).Record(peer); w != nil {
		return w, peer
	}
	return r.Remote, peer
}
