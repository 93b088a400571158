package hbone

import (
	"sync"
	"time"
)

// deadline is one of a stream's two. It is guarded by the half's lock; its timer
// only wakes those who wait.
type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

func (d *deadline) setLocked(t time.Time, changed *sync.Cond) {
	d.at = t
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	if !t.IsZero() {
		d.timer = time.AfterFunc(time.Until(t), func() {
			changed.L.Lock()
			changed.Broadcast()
			changed.L.Unlock()
		})
	}
	changed.Broadcast()
}

// SetReadDeadline implements net.Conn.
func (s *Stream) SetReadDeadline(t time.Time) error {
	s.recv.mu.Lock()
	s.recv.deadline.setLocked(t, &s.recv.changed)
	s.recv.mu.Unlock()
	return nil
}

// SetWriteDeadline implements net.Conn.
func (s *Stream) SetWriteDeadline(t time.Time) error {
	s.send.mu.Lock()
	s.send.deadline.setLocked(t, &s.send.changed)
	s.send.mu.Unlock()
	return nil
}

// SetDeadline implements net.Conn.
func (s *Stream) SetDeadline(t time.Time) error {
	_ = s.SetReadDeadline(t)
	return s.SetWriteDeadline(t)
}
