package hbone

import (
	"context"
	"fmt"

	"golang.org/x/net/http2"

	"github.com/ambitmesh/ambit/hbone/identity"
)

// A waypoint makes connections of its own for those of clients. To a server that has
// said that it reads it, it says in ClientHeader whom it makes one for, with the
// client's address in the "for" of the header "forwarded"; the server decides
// whether it believes that. Nobody else is ever sent the header.
//
// A server says so by a setting, which peers that do not know it ignore (RFC 9113
// 6.5.2). Its number is from the range for experimental use (RFC 7540 11.3).
const (
	ClientHeader  = "x-ambit-client"
	settingClient = http2.SettingID(0xf0a1)
)

// NetworkHeader says on the inner CONNECT of double HBONE which network the client
// is in, as Istio's ztunnel does.
const NetworkHeader = "x-forwarded-network"

// ReadsClient reports whether the server at the other end reads ClientHeader. It
// waits until that has said what it can do, which takes a round trip after the
// handshake.
func (c *Conn) ReadsClient(ctx context.Context) (bool, error) {
	select {
	case <-c.settled:
	case <-c.done:
		return false, c.Err()
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.readsClient, nil
}

// Client is whom the peer says that it makes the connection for; zero if it says
// nothing.
func (r Request) Client() (identity.ID, error) {
	v := r.Values(ClientHeader)
	if len(v) == 0 {
		return identity.ID{}, nil
	}
	if len(v) > 1 {
		return identity.ID{}, fmt.Errorf("%d headers %s", len(v), ClientHeader)
	}
	id, err := identity.Parse(v[0])
	if err != nil {
		return identity.ID{}, fmt.Errorf("header %s: %w", ClientHeader, err)
	}
	return id, nil
}
