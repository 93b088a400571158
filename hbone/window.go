package hbone

// Flow control of a stream (RFC 9113 5.2), both ways. What the peer may send
// grows with an application that takes it, and shrinks while memory is tight.

// consumedLocked notes that the application has n more bytes and returns the credit
// to give, if it is worth a frame by now.
func (s *Stream) consumedLocked(n int) int {
	r := &s.recv
	r.credit += n
	if r.credit < r.window/4 || r.eof {
		return 0
	}
	c := r.credit
	r.credit = 0
	return c + s.resizeLocked(c)
}

// resizeLocked makes the stream's window larger for an application that takes
// what comes, and smaller for one that does not while memory is tight. It returns how
// much more than c, or less, the peer is to get.
func (s *Stream) resizeLocked(c int) int {
	r := &s.recv
	change := 0
	switch {
	case s.c.cfg.Budget.tight():
		if s.held.Load() > 0 {
			change = -max(0, min(c, r.window/2, r.window-minWindow))
		}
	case r.window < int(s.c.cfg.StreamWindow) && s.held.Load() == 0 && (r.relay == nil || r.relay.unsent() <= c/2):
		change = min(r.window, int(s.c.cfg.StreamWindow)-r.window)
	}
	r.window += change
	return change
}

func (s *Stream) giveCredit(n int) {
	if n > 0 {
		s.recvWindow.Add(int64(n))
		s.c.out.windowUpdate(s.id, n)
	}
}

// What we may send.

// credit widens the send window; false means that it overflows.
func (s *Stream) credit(n int64) bool {
	s.send.mu.Lock()
	s.send.window += n
	ok := s.send.window <= maxWindow
	s.send.changed.Broadcast()
	s.send.mu.Unlock()
	return ok
}

// reserveLocked takes up to n bytes of send credit; 0 means there is none and
// somebody will broadcast on changed when there is.
func (s *Stream) reserveLocked(n int64) int {
	n = min(n, s.send.window)
	if n <= 0 {
		return 0
	}
	c := s.c
	c.mu.Lock()
	n = min(n, c.sendWindow, c.peerFrame)
	if c.queueFull() {
		n = 0
	}
	if n > 0 {
		c.sendWindow -= n
	} else if n = 0; !s.send.queuedIn {
		s.send.queuedIn = true
		c.sendWaiters = append(c.sendWaiters, s)
	}
	c.mu.Unlock()
	s.send.window -= n
	return int(n)
}

// refund gives credit back that was not used.
func (s *Stream) refund(n int) {
	if n == 0 {
		return
	}
	s.send.mu.Lock()
	s.send.window += int64(n)
	s.send.mu.Unlock()
	c := s.c
	c.mu.Lock()
	c.sendWindow += int64(n)
	waiters := c.sendWaiters
	c.sendWaiters = nil
	c.mu.Unlock()
	wakeSenders(waiters)
}

func wakeSenders(waiters []*Stream) {
	for _, s := range waiters {
		s.c.mu.Lock()
		s.send.queuedIn = false
		s.c.mu.Unlock()
		s.send.mu.Lock()
		s.send.changed.Broadcast()
		s.send.mu.Unlock()
	}
}
