package pool

import (
	"time"

	"github.com/ambitmesh/ambit/hbone"
)

// load is how much goes over a connection, looked at only when a stream is
// opened. Guarded by Pool.mu.
type load struct {
	at    time.Time
	bytes uint64
	rate  int // bytes per second over the last sample
}

const (
	// sampleTime is how long a sample is at least; shorter ones say nothing.
	sampleTime = 50 * time.Millisecond
	// busyRate is about a quarter of what one core encrypts and decrypts.
	busyRate = 250 << 20
)

func (l *load) sample(now time.Time, s hbone.Stats) {
	total := s.BytesIn + s.BytesOut
	if l.at.IsZero() {
		l.at, l.bytes = now, total
		return
	}
	d := now.Sub(l.at)
	if d < sampleTime {
		return
	}
	l.rate = int(float64(total-l.bytes) / d.Seconds())
	l.at, l.bytes = now, total
}

func (l *load) busy() bool { return l.rate >= busyRate }
