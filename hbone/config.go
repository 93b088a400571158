package hbone

import (
	"crypto/x509"
	"time"
)

// Config tunes one connection. The zero value means the figures Istio's ztunnel
// uses, so both ends of a mixed mesh behave alike.
type Config struct {
	// StreamWindow and ConnWindow are the receive windows we advertise, at
	// least 65 535 (what HTTP/2 gives a peer before it has read our SETTINGS).
	// StreamWindow also bounds what a stalled reader makes us hold.
	StreamWindow uint32 // 4 MiB
	// FirstWindow is the window a stream begins with. It grows to StreamWindow as
	// long as the application takes what comes.
	FirstWindow uint32 // 256 KiB
	ConnWindow  uint32 // 16 MiB
	// MaxFrame is the largest frame we accept. What we send never exceeds
	// 60 000 bytes of payload nor the peer's own limit.
	MaxFrame uint32 // 1 MiB
	// MaxStreams is how many streams at once a server announces; beyond twice as
	// many they are refused with REFUSED_STREAM. On a client it is the limit assumed until the peer's
	// SETTINGS arrive.
	MaxStreams uint32 // server 200, client 100
	// MaxHeaderList bounds a header block, compressed and not.
	MaxHeaderList uint32 // server 65 536, client 16 384
	// PingInterval after the start and after every answer a PING is sent; no
	// answer within PingTimeout ends the connection.
	PingInterval time.Duration // 10 s
	PingTimeout  time.Duration // 20 s
	// HandshakeTimeout covers TLS, preface and first SETTINGS together.
	HandshakeTimeout time.Duration // 10 s
	// ReadsClient makes a server say that it reads ClientHeader.
	ReadsClient bool
	// Watch, if set, is told of every connection that stands: by whom it was
	// made, the peer's certificates as presented, and a function that ends it with all its
	// streams, for a cause they all get. What it returns is called at the end.
	Watch func(client bool, chain []*x509.Certificate, end func(error)) (unwatch func())
	// Budget, shared by many connections, bounds what they hold together; nil: nothing does.
	Budget *Budget
}

const (
	minWindow     = 65535 // RFC 9113 6.5.2: initial value until SETTINGS are acknowledged
	minFrame      = 16384 // RFC 9113 6.5.2: lowest legal SETTINGS_MAX_FRAME_SIZE
	maxFrame      = 1<<24 - 1
	maxWindow     = 1<<31 - 1
	defaultWindow = 4 << 20
)

// filled returns cfg with defaults in place of zeros and illegal values clamped.
func (cfg Config) filled(client bool) Config {
	def := func(v *uint32, d, lo, hi uint32) {
		if *v == 0 {
			*v = d
		}
		*v = min(max(*v, lo), hi)
	}
	streams, headers := uint32(200), uint32(65536)
	if client {
		streams, headers = 100, 16384
	}
	def(&cfg.StreamWindow, defaultWindow, minWindow, maxWindow)
	def(&cfg.FirstWindow, 256<<10, minWindow, maxWindow)
	cfg.FirstWindow = min(cfg.FirstWindow, cfg.StreamWindow)
	def(&cfg.ConnWindow, 4*defaultWindow, minWindow, maxWindow)
	def(&cfg.MaxFrame, 1<<20, minFrame, maxFrame)
	def(&cfg.MaxStreams, streams, 1, maxWindow)
	def(&cfg.MaxHeaderList, headers, 1024, 65536)
	dur := func(v *time.Duration, d time.Duration) {
		if *v <= 0 {
			*v = d
		}
	}
	dur(&cfg.PingInterval, 10*time.Second)
	dur(&cfg.PingTimeout, 20*time.Second)
	dur(&cfg.HandshakeTimeout, 10*time.Second)
	return cfg
}
