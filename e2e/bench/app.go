package main

import (
	"encoding/binary"
	"io"
	"net"
	"sync"
	"time"
)

// block is larger than any proxy's unit, so the ends never set the pace.
const block = 256 << 10

func sink(c *net.TCPConn) {
	var n uint64
	buf := make([]byte, block)
	for {
		k, err := c.Read(buf)
		n += uint64(k)
		if err != nil {
			break
		}
	}
	_, _ = c.Write(binary.BigEndian.AppendUint64(nil, n))
}

func source(c *net.TCPConn) {
	var head [8]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return
	}
	buf := make([]byte, block)
	end := time.Now().Add(time.Duration(binary.BigEndian.Uint64(head[:])) * time.Millisecond)
	for time.Now().Before(end) {
		if _, err := c.Write(buf); err != nil {
			return
		}
	}
}

func echo(c *net.TCPConn) {
	buf := make([]byte, 4096)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		if _, err := c.Write(buf[:n]); err != nil {
			return
		}
	}
}

// twoWay is the plain proxy: one hop to a fixed address.
func twoWay(to string, carry func(dst, src *net.TCPConn)) func(*net.TCPConn) {
	return func(down *net.TCPConn) {
		c, err := net.Dial("tcp4", to)
		if err != nil {
			_ = down.SetLinger(0)
			return
		}
		up := c.(*net.TCPConn)
		defer up.Close()
		var wg sync.WaitGroup
		wg.Go(func() { carry(up, down); _ = up.CloseWrite() })
		carry(down, up)
		_ = down.CloseWrite()
		wg.Wait()
	}
}

// buffers are those of the copying proxy. 60 000 bytes, because 65 536 become
// one full segment and a tiny one, each with its own wake-up.
var buffers = sync.Pool{New: func() any { return new([60000]byte) }}

func userCopy(dst, src *net.TCPConn) {
	b := buffers.Get().(*[60000]byte)
	defer buffers.Put(b)
	for {
		n, err := src.Read(b[:])
		if n > 0 {
			if _, err := dst.Write(b[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// spliceCopy stays in the kernel: this is what io.Copy does between sockets.
func spliceCopy(dst, src *net.TCPConn) { _, _ = io.Copy(dst, src) }
