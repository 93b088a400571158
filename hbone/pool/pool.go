// Package pool owns the reuse of HBONE connections.
package pool

import (
	"context"
	"net/netip"
	"time"

	"github.com/ambitmesh/ambit/hbone"
)

type Key struct {
	SourceUID, DestinationUID string
	Addr                      netip.AddrPort
	Peers                     string
}
type Config struct {
	MaxStreams     int
	Idle           time.Duration
	MaxConnsPerKey int
}
type Pool struct{}

func New(cfg Config) *Pool { panic("soon") }
func (p *Pool) Open(ctx context.Context, k Key, dial func(context.Context) (*hbone.Conn, error), r hbone.Request) (*hbone.Stream, error) {
	panic("soon")
}
func (p *Pool) CloseSource(uid string) { panic("soon") }
func (p *Pool) Close() error           { panic("soon") }
func (p *Pool) Len() int               { panic("soon") }
