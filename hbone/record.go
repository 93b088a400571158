package hbone

import (
	"cmp"
	"crypto/tls"
	"errors"
)

// record is the encrypted byte pipe under a connection. Reading and writing may
// go on at the same time, by one goroutine each.
type record interface {
	// Wait blocks until Read has something to say.
	Wait() error
	// Read fills p, at least maxPlaintext long, with what is at hand. It never
	// blocks: 0, nil means Wait first.
	Read(p []byte) (int, error)
	// Write encrypts and sends bufs in as few system calls as it can, along
	// with anything the record layer has to say for itself.
	Write(bufs [][]byte) error
	// CloseWrite tells the peer that nothing follows.
	CloseWrite() error
}

// tlsRecord is the record layer of crypto/tls on a gathering connection.
type tlsRecord struct {
	tls *tls.Conn
	b   *gatherConn
}

// flushSize is how many encrypted bytes are gathered before they are sent
// although more follow.
const flushSize = 192 << 10

func (t *tlsRecord) Wait() error {
	for !t.b.haveRecord() {
		if err := t.b.fill(); err != nil {
			return err
		}
	}
	return nil
}

func (t *tlsRecord) Read(p []byte) (n int, err error) {
	// With a whole record at hand and room for it tls.Conn keeps nothing back,
	// so the loop ends with all of it delivered.
	for err == nil && len(p)-n >= maxPlaintext && t.b.haveRecord() {
		var k int
		k, err = t.tls.Read(p[n:])
		n += k
	}
	if errors.Is(err, errNotReady) {
		err = nil // the last record was a handshake message or empty
	} else if err != nil {
		err = cmp.Or(t.b.refused(), err)
	}
	t.b.release()
	return n, err
}

func (t *tlsRecord) Write(bufs [][]byte) error {
	t.b.begin()
	for _, x := range bufs {
		if _, err := t.tls.Write(x); err != nil {
			return err
		}
		if err := t.b.flush(flushSize); err != nil {
			return err
		}
	}
	return t.b.end()
}

func (t *tlsRecord) CloseWrite() error {
	t.b.begin()
	if err := t.tls.CloseWrite(); err != nil {
		return err
	}
	return t.b.end()
}
