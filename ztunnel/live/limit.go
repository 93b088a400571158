package live

import (
	"sync"
	"time"
)

// limiter bounds the log lines of each pod and reason: a burst, then a rate.
// Lines of connections that ended in order are never limited.
type limiter struct {
	burst float64
	rate  float64 // lines per second

	mu      sync.Mutex
	buckets map[limitKey]*bucket // guarded by mu
}

type limitKey struct {
	pod    string
	reason Reason
}

type bucket struct {
	tokens     float64
	last       time.Time
	suppressed uint64
}

func newLimiter(burst, rate float64) *limiter {
	return &limiter{burst: burst, rate: rate, buckets: map[limitKey]*bucket{}}
}

// allow says whether a line may be written and how many were left out since
// the last one.
func (l *limiter) allow(k limitKey, now time.Time) (ok bool, suppressed uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.buckets[k]
	if b == nil {
		b = &bucket{tokens: l.burst, last: now}
		l.buckets[k] = b
	}
	b.tokens = min(l.burst, b.tokens+now.Sub(b.last).Seconds()*l.rate)
	b.last = now
	if b.tokens < 1 {
		b.suppressed++
		return false, 0
	}
	b.tokens--
	suppressed, b.suppressed = b.suppressed, 0
	return true, suppressed
}

// leftover is a number of lines that were left out.
type leftover struct {
	limitKey
	suppressed uint64
}

// sweep forgets buckets that are full again and returns what they had left out
// without a later line to say so.
func (l *limiter) sweep(now time.Time) []leftover {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []leftover
	for k, b := range l.buckets {
		if b.tokens+now.Sub(b.last).Seconds()*l.rate < l.burst {
			continue
		}
		if b.suppressed > 0 {
			out = append(out, leftover{k, b.suppressed})
		}
		delete(l.buckets, k)
	}
	return out
}
