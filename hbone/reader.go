package hbone

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// reader is the receiving half of a connection: one goroutine, which never
// blocks on anything but the network. DATA is parsed in place and passed on as it
// arrives; every other frame is short, is waited for whole and goes through
// http2.Framer.
type reader struct {
	c      *Conn
	lastID atomic.Uint32 // server: highest stream number seen

	// Everything below is owned by the reader goroutine.
	framer *http2.Framer
	frame  bytes.Reader // what framer reads: exactly one frame
	hpack  *hpack.Decoder
	block  headerBlock

	prefaced bool // the peer's preface has been read (server)
	settled  bool // the peer's first SETTINGS have been read

	// The DATA frame being received.
	dataLeft int     // payload bytes to come
	padLeft  int     // padding bytes to come after those; also unknown frames
	dataEnd  bool    // END_STREAM follows
	data     *Stream // nil: discard

	// Neighbouring pieces of payload for one stream, not delivered yet.
	pieces   [][]byte
	piecesN  int
	piecesOf *Stream
	tail     int // where the last piece ends in the buffer

	short [64]byte // room for what is kept most often: less than a frame's header

	window   int // connection window the peer has left
	received int // bytes received and not credited yet
	abuse    bucket
}

// maxPieces is how many pieces one delivery has; that many the kernel's vector
// is built for without an allocation.
const maxPieces = 8

// maxControl is the longest frame other than DATA that is accepted: a header
// block of the largest header list and its padding.
const maxControl = 65536 + 512

func (r *reader) init(c *Conn) {
	r.c = c
	r.framer = http2.NewFramer(nil, &r.frame)
	r.framer.SetMaxReadFrameSize(c.cfg.MaxFrame)
	r.hpack = hpack.NewDecoder(4096, nil)
	r.block.init(r.hpack, c.cfg.MaxHeaderList)
	r.window = int(c.cfg.ConnWindow)
	r.pieces = make([][]byte, 0, maxPieces)
	r.prefaced = c.client
}

// loop reads until the connection ends, and says why.
func (r *reader) loop() error {
	c := r.c
	if err := c.nc.SetReadDeadline(c.settleBy); err != nil {
		return err
	}
	var buf *[readSize]byte
	defer func() {
		if buf != nil {
			readBufs.Put(buf)
		}
	}()
	w := 0
	var rest []byte // what was read and not used, while there is no buffer
	for {
		if buf == nil {
			held := int64(len(rest)) + r.block.held()
			c.holdIn(held)
			err := c.rec.Wait()
			c.holdIn(-held)
			if err != nil {
				return r.readError(err)
			}
			buf = readBufs.Get().(*[readSize]byte)
			w = copy(buf[:], rest)
		}
		n, err := c.rec.Read(buf[w:])
		if n > 0 {
			c.bytesIn.Add(uint64(n))
			w += n
			used, perr := r.parse(buf[:w])
			if perr != nil {
				return perr
			}
			w = copy(buf[:], buf[used:w])
		}
		switch {
		case err != nil:
			return r.readError(err)
		case w == 0 || n == 0:
			// A connection that waits holds no buffer, whatever its peer has begun.
			rest = append(r.short[:0], buf[:w]...)
			readBufs.Put(buf)
			buf = nil
		}
	}
}

func (r *reader) readError(err error) error {
	if isEnd(err) {
		err = fmt.Errorf("%w: %w", ErrPeerClosed, err)
	}
	if !r.settled {
		err = fmt.Errorf("waiting for the peer's preface: %w", err)
	}
	return &ConnError{Op: "read", Err: err}
}

func protocolError(code http2.ErrCode, format string, a ...any) error {
	return &ConnError{Op: "protocol", Code: code, Err: fmt.Errorf(format, a...)}
}

// parse handles what is complete in b and returns how much that was. Payload
// of DATA counts as complete byte by byte.
func (r *reader) parse(b []byte) (int, error) {
	i := 0
	if !r.prefaced {
		n := min(len(b), len(http2.ClientPreface))
		if string(b[:n]) != http2.ClientPreface[:n] {
			return 0, protocolError(http2.ErrCodeProtocol, "peer does not speak HTTP/2: it began with %q", b[:min(n, 16)])
		}
		if n < len(http2.ClientPreface) {
			return 0, nil
		}
		i, r.prefaced = n, true
	}
	for i < len(b) {
		if r.dataLeft > 0 {
			n := min(r.dataLeft, len(b)-i)
			r.addPiece(b, i, i+n)
			i += n
			if r.dataLeft -= n; r.dataLeft == 0 && r.padLeft == 0 {
				r.endData()
			}
			continue
		}
		if r.padLeft > 0 {
			n := min(r.padLeft, len(b)-i)
			i += n
			if r.padLeft -= n; r.padLeft == 0 {
				r.endData()
			}
			continue
		}
		if len(b)-i < frameHeaderLen {
			break
		}
		n, err := r.parseFrame(b[i:])
		if err != nil {
			return i, err
		}
		if n == 0 {
			break
		}
		i += n
	}
	r.deliver()
	r.creditConn()
	return i, nil
}

// parseFrame handles one frame at the start of b, or of DATA only the header, and
// returns its length; 0 means that more must arrive first.
func (r *reader) parseFrame(b []byte) (int, error) {
	length := int(b[0])<<16 | int(b[1])<<8 | int(b[2])
	typ, flags := http2.FrameType(b[3]), http2.Flags(b[4])
	id := binary.BigEndian.Uint32(b[5:]) & (1<<31 - 1)
	if length > int(r.c.cfg.MaxFrame) {
		return 0, protocolError(http2.ErrCodeFrameSize, "%v frame of %d bytes, %d were agreed", typ, length, r.c.cfg.MaxFrame)
	}
	if !r.settled && typ != http2.FrameSettings {
		return 0, protocolError(http2.ErrCodeProtocol, "first frame is %v, not SETTINGS", typ)
	}
	if r.block.stream != 0 && (typ != http2.FrameContinuation || id != r.block.stream) {
		return 0, protocolError(http2.ErrCodeProtocol, "%v frame for stream %d inside the header block of stream %d", typ, id, r.block.stream)
	}
	switch {
	case typ == http2.FrameData:
		return r.parseData(b, length, flags, id)
	case typ > http2.FrameContinuation:
		// RFC 9113 5.5: unknown types are ignored.
		r.padLeft, r.data, r.dataEnd = length, nil, false
		return frameHeaderLen, r.abuse.take(1)
	case length > maxControl:
		return 0, protocolError(http2.ErrCodeEnhanceYourCalm, "%v frame of %d bytes", typ, length)
	case len(b) < frameHeaderLen+length:
		return 0, nil
	}
	r.deliver()
	n := frameHeaderLen + length
	r.frame.Reset(b[:n])
	f, err := r.framer.ReadFrame() // of which it has a copy
	r.frame.Reset(nil)             // or it would keep the whole buffer while the connection is idle
	var se http2.StreamError
	switch {
	case err == nil:
		err = r.control(f)
	case typ == http2.FrameHeaders && errors.As(err, &se):
		// Its header block was not decoded: later ones could not be (RFC 9113 4.3, 6.2).
		err = protocolError(se.Code, "%v", err)
	}
	return n, r.frameError(err)
}

// frameError turns a Framer's or our own stream error into a RST_STREAM and
// passes on what concerns the connection.
func (r *reader) frameError(err error) error {
	var se http2.StreamError
	var ce http2.ConnectionError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &se):
		if s := r.c.stream(se.StreamID); s != nil {
			s.refuse(se.Code, fmt.Errorf("protocol: %w", err))
			return nil
		}
		return r.answerReset(se.StreamID, se.Code)
	case errors.As(err, &ce):
		if d := r.framer.ErrorDetail(); d != nil {
			err = d
		}
		return protocolError(http2.ErrCode(ce), "%w", err)
	}
	var own *ConnError
	if errors.As(err, &own) {
		return err
	}
	return protocolError(http2.ErrCodeProtocol, "%w", err)
}

// answerReset refuses something about a stream that is not in the table.
func (r *reader) answerReset(id uint32, code http2.ErrCode) error {
	if err := r.abuse.take(1); err != nil {
		return err
	}
	return r.answer(4, func(f *http2.Framer) error { return f.WriteRSTStream(id, code) })
}

func (r *reader) answer(size int, write func(*http2.Framer) error) error {
	if !r.c.out.answer(size, write) {
		return protocolError(http2.ErrCodeEnhanceYourCalm, "peer does not read the answers it asks for")
	}
	return nil
}

// idle reports whether a stream number has not been used yet (RFC 9113 5.1.1).
func (r *reader) idle(id uint32) bool {
	if !r.c.client {
		return id%2 == 0 || id > r.lastID.Load()
	}
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	return id%2 == 0 || id >= r.c.nextID
}

func (r *reader) parseData(b []byte, length int, flags http2.Flags, id uint32) (int, error) {
	n, pad := frameHeaderLen, 0
	if flags.Has(http2.FlagDataPadded) {
		if length == 0 {
			return 0, protocolError(http2.ErrCodeFrameSize, "padded DATA frame without a padding length")
		}
		if len(b) == n {
			return 0, nil
		}
		pad = int(b[n])
		n++
		if pad >= length {
			return 0, protocolError(http2.ErrCodeProtocol, "DATA frame of %d bytes with %d of padding", length, pad)
		}
	}
	if id == 0 || r.idle(id) {
		return 0, protocolError(http2.ErrCodeProtocol, "DATA for stream %d, which is not open", id)
	}
	if length > r.window {
		return 0, protocolError(http2.ErrCodeFlowControl, "DATA frame of %d bytes with a connection window of %d", length, r.window)
	}
	r.window -= length
	r.received += length
	payload := length - (n - frameHeaderLen) - pad
	end := flags.Has(http2.FlagDataEndStream)
	if payload == 0 && !end {
		if err := r.abuse.take(1); err != nil {
			return 0, err
		}
	}
	if r.piecesOf == nil || r.piecesOf.id != id {
		r.deliver()
	}
	s := r.c.stream(id)
	if s != nil && !s.receive(length, length-payload) {
		r.deliver()
		s = nil
	}
	r.data, r.dataLeft, r.padLeft, r.dataEnd = s, payload, pad, end
	if payload == 0 && pad == 0 {
		r.endData()
	}
	return n, nil
}

// endData is called when a DATA frame has been received to its last byte.
func (r *reader) endData() {
	if r.data != nil && r.dataEnd {
		r.deliver()
		r.data.receiveEnd()
	}
	r.data = nil
}

// addPiece notes b[from:to] as payload of the current stream. A short piece
// behind another one is moved next to it, over the frame header between them.
func (r *reader) addPiece(b []byte, from, to int) {
	s := r.data
	if s == nil {
		return
	}
	if s != r.piecesOf {
		r.deliver()
		r.piecesOf = s
	}
	n := to - from
	if k := len(r.pieces); k > 0 && n <= smallFrame {
		last := r.pieces[k-1]
		copy(b[r.tail:], b[from:to])
		r.pieces[k-1] = last[:len(last)+n]
		r.tail += n
	} else {
		if k == maxPieces {
			r.deliver()
			r.piecesOf = s
		}
		r.pieces = append(r.pieces, b[from:to])
		r.tail = to
	}
	r.piecesN += n
}

func (r *reader) deliver() {
	if r.piecesN > 0 {
		r.piecesOf.deliver(r.pieces, r.piecesN)
		clear(r.pieces)
		r.pieces, r.piecesN = r.pieces[:0], 0
	}
	r.piecesOf = nil
}

// creditConn gives connection credit for what was received, whoever it was for:
// one slow application must not use up the window of all others.
func (r *reader) creditConn() {
	if r.received >= int(r.c.cfg.ConnWindow)/4 {
		r.c.out.windowUpdate(0, r.received)
		r.window += r.received
		r.received = 0
	}
}

// bucket limits what costs us work and a well-behaved peer hardly ever sends:
// PING, SETTINGS, refused streams and those taken back unanswered, empty and
// unknown frames.
type bucket struct {
	left int
	last time.Time
}

const (
	abuseBurst = 1000
	abuseRate  = 100 // per second
)

func (k *bucket) take(n int) error {
	now := time.Now()
	if k.last.IsZero() {
		k.left = abuseBurst
		k.last = now
	} else if more := int(now.Sub(k.last) * abuseRate / time.Second); more > 0 {
		k.left = min(k.left+more, abuseBurst)
		k.last = now
	}
	if k.left < n {
		return protocolError(http2.ErrCodeEnhanceYourCalm, "peer sends too many frames without use")
	}
	k.left -= n
	return nil
}
