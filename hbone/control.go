package hbone

import (
	"fmt"
	"time"

	"golang.org/x/net/http2"
)

// control handles a frame other than DATA. An http2.StreamError concerns the
// stream, anything else ends the connection.
func (r *reader) control(f http2.Frame) error {
	switch f := f.(type) {
	case *http2.HeadersFrame:
		r.block.begin(f.StreamID, f.StreamEnded())
		if err := r.block.add(f.HeaderBlockFragment()); err != nil {
			return err
		}
		if f.HeadersEnded() {
			return r.headers()
		}
	case *http2.ContinuationFrame:
		if err := r.block.add(f.HeaderBlockFragment()); err != nil {
			return err
		}
		if f.HeadersEnded() {
			return r.headers()
		}
	case *http2.RSTStreamFrame:
		return r.rstStream(f)
	case *http2.SettingsFrame:
		return r.settings(f)
	case *http2.PingFrame:
		if f.IsAck() {
			r.c.pong(f.Data)
			return nil
		}
		if err := r.abuse.take(1); err != nil {
			return err
		}
		data := f.Data
		return r.answer(8, func(w *http2.Framer) error { return w.WritePing(true, data) })
	case *http2.GoAwayFrame:
		r.goAway(f)
		return r.abuse.take(1)
	case *http2.WindowUpdateFrame:
		return r.windowUpdate(f)
	case *http2.PushPromiseFrame:
		return protocolError(http2.ErrCodeProtocol, "PUSH_PROMISE")
	case *http2.PriorityFrame:
		return r.abuse.take(1)
	}
	return nil
}

// headers handles a complete header block.
func (r *reader) headers() error {
	h, err := r.block.finish()
	if err != nil {
		return err
	}
	s := r.c.stream(h.id)
	if r.c.client {
		if s != nil {
			return s.response(h)
		}
		if r.idle(h.id) {
			return protocolError(http2.ErrCodeProtocol, "HEADERS for stream %d, which is not open", h.id)
		}
		return nil
	}
	switch {
	case h.id%2 == 0:
		return protocolError(http2.ErrCodeProtocol, "client opens stream %d", h.id)
	case s != nil:
		return s.trailers(h)
	case h.id <= r.lastID.Load():
		return r.abuse.take(1) // of a stream we have reset
	}
	r.lastID.Store(h.id)
	return r.incoming(h)
}

func (r *reader) rstStream(f *http2.RSTStreamFrame) error {
	s := r.c.stream(f.StreamID)
	if s == nil {
		if r.idle(f.StreamID) {
			return protocolError(http2.ErrCodeProtocol, "RST_STREAM for stream %d, which is not open", f.StreamID)
		}
		return nil // crossed with our own end of the stream
	}
	// Who opens streams only to take them back makes us work for nothing
	// (CVE-2023-44487). Resetting a tunnel that stands is what applications do.
	unanswered := s.in != nil && s.in.pending()
	s.receiveReset(f.ErrCode)
	if unanswered {
		return r.abuse.take(1)
	}
	return nil
}

func (r *reader) settings(f *http2.SettingsFrame) error {
	c := r.c
	if f.IsAck() {
		return nil
	}
	if !r.settled {
		r.settled = true
		if err := c.nc.SetReadDeadline(time.Time{}); err != nil {
			return err
		}
		// A writer that fails meanwhile sets a deadline to stop us, which this may
		// have undone.
		if c.Err() != nil {
			return c.Err()
		}
	} else if err := r.abuse.take(10); err != nil {
		return err
	}
	if f.NumSettings() > 64 {
		return protocolError(http2.ErrCodeEnhanceYourCalm, "%d settings in one frame", f.NumSettings())
	}
	if err := f.ForeachSetting(http2.Setting.Valid); err != nil {
		return err
	}
	var delta int64
	var streams []*Stream
	// One critical section: a stream opened between the new window and the list
	// of those to adjust would be given the difference twice.
	c.mu.Lock()
	_ = f.ForeachSetting(func(s http2.Setting) error {
		switch s.ID {
		case http2.SettingInitialWindowSize:
			delta += int64(s.Val) - c.peerWindow
			c.peerWindow = int64(s.Val)
		case http2.SettingMaxFrameSize:
			c.peerFrame = int64(s.Val)
		case http2.SettingMaxConcurrentStreams:
			c.peerStreams = s.Val
		case settingClient:
			c.readsClient = s.Val == 1
		}
		return nil
	})
	if delta != 0 {
		for _, s := range c.streams {
			streams = append(streams, s)
		}
	}
	if !c.told {
		c.told = true
		close(c.settled)
	}
	notify := c.notify
	c.mu.Unlock()
	for _, s := range streams {
		if !s.credit(delta) {
			return protocolError(http2.ErrCodeFlowControl, "SETTINGS overflow the window of stream %d", s.id)
		}
	}
	if notify != nil {
		notify()
	}
	return r.answer(0, (*http2.Framer).WriteSettingsAck)
}

func (r *reader) windowUpdate(f *http2.WindowUpdateFrame) error {
	c := r.c
	if f.StreamID != 0 {
		s := c.stream(f.StreamID)
		switch {
		case s == nil && r.idle(f.StreamID):
			return protocolError(http2.ErrCodeProtocol, "WINDOW_UPDATE for stream %d, which is not open", f.StreamID)
		case s != nil && !s.credit(int64(f.Increment)):
			return http2.StreamError{StreamID: f.StreamID, Code: http2.ErrCodeFlowControl}
		}
		return nil
	}
	c.mu.Lock()
	c.sendWindow += int64(f.Increment)
	over := c.sendWindow > maxWindow
	waiters := c.sendWaiters
	c.sendWaiters = nil
	c.mu.Unlock()
	if over {
		return protocolError(http2.ErrCodeFlowControl, "WINDOW_UPDATE overflows the connection window")
	}
	wakeSenders(waiters)
	return nil
}

// goAway handles the peer's GOAWAY: streams it will not look at fail, the
// others go on.
func (r *reader) goAway(f *http2.GoAwayFrame) {
	c := r.c
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	if f.ErrCode != http2.ErrCodeNo {
		c.peerGone = fmt.Errorf("peer sent GOAWAY %v %q", f.ErrCode, f.DebugData())
	}
	var refused []*Stream
	if c.client {
		c.draining = true
		for id, s := range c.streams {
			if id > f.LastStreamID {
				refused = append(refused, s)
			}
		}
	}
	last := c.draining && c.active == 0
	notify := c.notify
	c.mu.Unlock()
	for _, s := range refused {
		s.end(&StreamError{Code: http2.ErrCodeRefusedStream, Remote: true, Err: ErrFull}, true)
	}
	if last {
		c.fail(&ConnError{Op: "close", Err: ErrPeerClosed})
	} else if notify != nil {
		notify()
	}
}
