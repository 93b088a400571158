package hbone

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"time"
)

// keepalive is the PING state of a connection; guarded by Conn.mu.
type keepalive struct {
	timer   *time.Timer
	waiting bool        // a keepalive PING has not been answered
	data    [8]byte     // its payload; random, so that who answers has read it
	goAway  *time.Timer // a server's GoAway is in its first half
}

// pingGoAway is the payload of the PING between the two halves of a GoAway.
var pingGoAway = [8]byte{'g', 'o', 'a', 'w', 'a', 'y'}

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
	binary.BigEndian.PutUint64(c.ping.data[:], rand.Uint64())
	data := c.ping.data
	c.ping.timer.Reset(c.cfg.PingTimeout)
	c.mu.Unlock()
	c.out.sendPing(data)
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
	c.mu.Lock()
	if c.ping.waiting && data == c.ping.data && c.err == nil {
		c.ping.waiting = false
		c.ping.timer.Reset(c.cfg.PingInterval)
	}
	goAway := c.ping.goAway != nil && data == pingGoAway
	c.mu.Unlock()
	if goAway {
		c.lastGoAway()
	}
}
