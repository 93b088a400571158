package live

import (
	"errors"
	"net"
	"sync"
	"syscall"
	"time"
)

// AcceptLoop serves every connection of ln on a goroutine of its own until ln
// is closed, and returns when all of them have. Running out of descriptors or
// memory is waited out; connections queue in the kernel meanwhile.
func AcceptLoop(ln net.Listener, serve func(*net.TCPConn)) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	pause := time.Millisecond
	for {
		c, err := ln.Accept()
		if err != nil {
			switch {
			case errors.Is(err, net.ErrClosed):
				return nil
			case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE),
				errors.Is(err, syscall.ENOBUFS), errors.Is(err, syscall.ENOMEM),
				errors.Is(err, syscall.ECONNABORTED), errors.Is(err, syscall.EINTR):
				time.Sleep(pause)
				pause = min(2*pause, 100*time.Millisecond)
				continue
			}
			return err
		}
		pause = time.Millisecond
		tcp := c.(*net.TCPConn)
		wg.Go(func() { serve(tcp) })
	}
}
