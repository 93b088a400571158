package hbone

import "sync"

const (
	frameHeaderLen = 9
	// maxPayload is the most we put into one DATA frame and so into one write.
	// Just under 64 KiB: above it the kernel splits every write into a full
	// segment and a tiny one, each with its own wake-up.
	maxPayload = 60000
	// maxPlaintext is the most a TLS record carries (RFC 8446 5.1).
	maxPlaintext = 16384
	// readSize is how much is read from the network, and parsed, at a time.
	readSize = 256 << 10
	// smallFrame is the size up to which a frame is copied next to its
	// neighbours instead of being queued by reference.
	smallFrame = 4096
	// chunkSize is the unit a backlog grows by.
	chunkSize = 16 << 10
	// frameBufSize is what a queued buffer takes, however little is in it.
	frameBufSize = frameHeaderLen + maxPayload
)

// frameBuf holds one DATA frame (header and payload), or several small frames.
type frameBuf struct {
	b     [frameBufSize]byte
	owner *Stream // whose queue allowance the buffer counts against while queued; nil: nobody's
}

var (
	frameBufs = sync.Pool{New: func() any { return new(frameBuf) }}
	readBufs  = sync.Pool{New: func() any { return new([readSize]byte) }}
	chunks    = sync.Pool{New: func() any { return new(chunk) }}
)

// chunk is a piece of a backlog: b[r:w] is still to be delivered.
type chunk struct {
	next *chunk
	r, w int
	b    [chunkSize]byte
}

// backlog is a queue of bytes. The zero value is empty.
type backlog struct {
	head, tail *chunk
	n          int
	budget     *Budget // what chunks are taken from; may be nil
}

func (q *backlog) append(p []byte) {
	q.n += len(p)
	for len(p) > 0 {
		if q.tail == nil || q.tail.w == chunkSize {
			c := chunks.Get().(*chunk)
			q.budget.add(chunkSize)
			c.next, c.r, c.w = nil, 0, 0
			if q.tail == nil {
				q.head = c
			} else {
				q.tail.next = c
			}
			q.tail = c
		}
		k := copy(q.tail.b[q.tail.w:], p)
		q.tail.w += k
		p = p[k:]
	}
}

// read moves up to len(p) bytes out.
func (q *backlog) read(p []byte) int {
	n := 0
	for n < len(p) && q.head != nil {
		k := copy(p[n:], q.head.b[q.head.r:q.head.w])
		n += k
		q.drop(k)
	}
	return n
}

// drop removes the first n bytes, all of them in the first chunk.
func (q *backlog) drop(n int) {
	c := q.head
	c.r += n
	q.n -= n
	if c.r == c.w {
		q.head = c.next
		if q.head == nil {
			q.tail = nil
		}
		c.next = nil
		q.budget.add(-chunkSize)
		chunks.Put(c)
	}
}

func (q *backlog) clear() {
	for q.head != nil {
		q.drop(q.head.w - q.head.r)
	}
}
