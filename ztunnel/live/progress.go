package live

import (
	"log/slog"
	"time"
)

// report writes a line for every connection that has been open for another
// interval: what it has carried so far. Connections that live for days show in
// the log before their end that way.
func (t *Table) report(now time.Time) {
	if t.progress <= 0 || !t.access.Enabled(t.ctx, slog.LevelInfo) {
		return
	}
	for _, c := range t.collect(func(c *Conn) bool { return !c.ended.Load() && now.Sub(c.reportedAt()) >= t.progress }) {
		c.said.Store(now.UnixNano())
		received, sent := c.flush()
		t.access.LogAttrs(t.ctx, slog.LevelInfo, "connection open", c.carried(c.who(make([]slog.Attr, 0, 20)), received, sent, now)...)
	}
}

// reportedAt is when the last line about an open connection was due.
func (c *Conn) reportedAt() time.Time {
	if n := c.said.Load(); n != 0 {
		return time.Unix(0, n)
	}
	return c.start
}

// carried appends what the connection has carried, from the proxied pod's view.
func (c *Conn) carried(attrs []slog.Attr, received, sent uint64, now time.Time) []slog.Attr {
	if c.reporter == Source {
		received, sent = sent, received
	}
	return append(attrs, slog.Uint64("bytes_sent", sent), slog.Uint64("bytes_recv", received), slog.Duration("duration", now.Sub(c.start)))
}
