package hbone

import (
	"fmt"
	"time"
)

// keepalive is the PING state of a connection; guarded by Conn.mu.
type keepalive struct {
	timer   *time.Timer
	waiting bool        // a keepalive PING has not been answered
	goAway  *time.Timer // a server's GoAway is in its first half
}

// The payloads tell our PINGs apart.
var (
	pingKeepalive = [8]byte{'k', 'e', 'e', 'p'}
	pingGoAway    = [8]byte{'g', 'o', 'a', 'w', 'a', 'y'}
)

// goAwayWait bounds the round trip between the two halves of a server's GoAway.
const goAwayWait = time.Second

func (k *keepalive) stop() {
	if k.timer != nil {
		k.timer.Stop()
	}
	if k.goAway != nil {
		k.goAway.Stop()
	}
}

func (c *Conn) startPing() {
	c.mu.Lock()
	c.ping.timer = time.AfterFunc(c.cfg.PingInterval, c.pingDue)
	c.mu.Unlock()
}

func (c *Conn) pingDue() {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	if c.ping.waiting {
		c.mu.Unlock()
		c.fail(&ConnError{Op: "ping", Err: fmt.Errorf("no answer from %v within %v", c.remote, c.cfg.PingTimeout)})
		return
	}
	c.ping.waiting = true
	c.ping.timer.Reset(c.cfg.PingTimeout)
	c.mu.Unlock()
	c.out.sendPing(pingKeepalive)
}

func (c *Conn) pingForGoAway() {
	c.mu.Lock()
	if c.err != nil || c.ping.goAway != nil {
		c.mu.Unlock()
		return
	}
	c.ping.goAway = time.AfterFunc(goAwayWait, c.lastGoAway)
	c.mu.Unlock()
	c.out.sendPing(pingGoAway)
}

// pong handles the answer to one of our PINGs.
func (c *Conn) pong(data [8]byte) {
	switch data {
	case pingKeepalive:
		c.mu.Lock()
		if c.ping.waiting && c.err == nil {
			c.ping.waiting = false
			c.ping.timer.Reset(c.cfg.PingInterval)
		}
		c.mu.Unlock()
	case pingGoAway:
		c.mu.Lock()
		ours := c.ping.goAway != nil
		c.mu.Unlock()
		if ours {
			c.lastGoAway()
		}
	}
}
