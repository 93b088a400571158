package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/ambitmesh/ambit/ztunnel/live"
	wire "github.com/miekg/dns"
)

const (
	// transferIdle is how long a server of a zone may be silent, and a client may
	// leave what it is sent unread. A zone is not looked up but read and written.
	transferIdle = 30 * time.Second
	// transferTime bounds a whole transfer.
	transferTime = time.Hour
)

// transfer passes on a zone, message by message as they come: only such as are
// part of the answer to this question, and none behind the zone's last record.
// Port 53 is where anything may be listening, and what is allowed is DNS. The
// error, if not nil, is that the client has not had all.
func (s *Server) transfer(ctx context.Context, x *exchange, reply func([]byte) error) error {
	x.series.upstream.Inc()
	parts, err := s.zone(ctx, x, reply)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil:
		s.told(x, "forwarded", nil)
		return nil
	}
	x.series.failures.Inc()
	s.told(x, "forwarding failed ("+err.Error()+")", nil)
	if parts == 0 {
		return reply(x.failure(x.raw))
	}
	return err
}

// zone gives how many messages it has passed on.
func (s *Server) zone(ctx context.Context, x *exchange, reply func([]byte) error) (parts int, err error) {
	if err := s.cfg.Share.Take(live.CostConn); err != nil {
		return 0, err
	}
	defer s.cfg.Share.Give(live.CostConn)
	ctx, cancel := context.WithTimeout(ctx, transferTime)
	defer cancel()
	var up *net.TCPConn
	err = errNoResolver
	for _, server := range s.resolvers(x) {
		dial, cancel := context.WithTimeout(ctx, upstreamTimeout)
		up, err = s.cfg.Namespace.DialTCP(dial, netip.AddrPort{}, server, socketOptions)
		cancel()
		if err == nil {
			break
		}
	}
	if err != nil {
		return 0, err
	}
	defer up.Close()
	defer context.AfterFunc(ctx, func() { _ = up.Close() })()
	_ = up.SetWriteDeadline(time.Now().Add(upstreamTimeout))
	if err := writeFrame(up, x.raw); err != nil {
		return 0, err
	}
	progress := x.progress()
	for {
		_ = up.SetReadDeadline(time.Now().Add(transferIdle))
		m, err := readFrame(up)
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				err = fmt.Errorf("the server of the zone has sent nothing for %s", transferIdle)
			}
			return parts, err
		}
		done, err := progress.take(m)
		if err != nil {
			return parts, err
		}
		if err := reply(m); err != nil {
			return parts, err
		}
		parts++
		if done {
			return parts, nil
		}
	}
}

// progress is how far a transfer has come: RFC 5936 2.2, RFC 1995 4.
type progress struct {
	query  []byte
	form   zoneForm
	held   uint32 // the serial that the client has, of IXFR
	holds  bool   // it has said so
	seen   bool   // the first record
	serial uint32 // of the first record
	soas   int    // SOA records behind the first one
}

// zoneForm is what the records behind the first one are.
type zoneForm int

const (
	whole   zoneForm = iota // up to the first record once more
	unknown                 // of IXFR: the second record tells
	changes                 // each of what goes and what comes, between SOA records
)

func (x *exchange) progress() *progress {
	p := &progress{query: x.raw}
	if x.msg.Question[0].Qtype == wire.TypeIXFR {
		p.form = unknown
		if len(x.msg.Ns) > 0 {
			if soa, ok := x.msg.Ns[0].(*wire.SOA); ok {
				p.held, p.holds = soa.Serial, true
			}
		}
	}
	return p
}

var errNoPart = errors.New("the server of the zone has sent what is no part of the answer")

// take looks at the next message. done says that nothing follows it.
func (p *progress) take(m []byte) (done bool, err error) {
	// All but the first may leave the question out (RFC 5936 2.2.1).
	if len(m) < headerSize || m[2]&0x80 == 0 || (m[2]^p.query[2])&0x78 != 0 || m[0] != p.query[0] || m[1] != p.query[1] ||
		m[4]|m[5] != 0 && !answers(m, p.query, binary.BigEndian.Uint16(p.query)) {
		return false, errNoPart
	}
	at := questionEnd(m)
	if at == 0 {
		return false, errNoPart
	}
	if m[3]&0xf != wire.RcodeSuccess {
		done = true
	}
	records := int(binary.BigEndian.Uint16(m[6:]))
	all := records + int(binary.BigEndian.Uint16(m[8:])) + int(binary.BigEndian.Uint16(m[10:]))
	for i := range all {
		kind, data, next := record(m, at)
		if next == 0 {
			return false, errNoPart
		}
		at = next
		if i < records && !done {
			done = p.record(kind, data)
		}
	}
	if at != len(m) {
		return false, errNoPart
	}
	return done || !p.seen, nil // an answer that does not begin with SOA is no zone
}

// record takes the next record. done says that it is the last.
func (p *progress) record(kind uint16, data []byte) (done bool) {
	soa := kind == wire.TypeSOA && len(data) >= 20
	var serial uint32
	if soa {
		serial = binary.BigEndian.Uint32(data[len(data)-20:]) // behind two names, which may be of any length
	}
	if !p.seen {
		p.seen, p.serial = true, serial
		// The version that the client has, or an older one: there is nothing new.
		return !soa || p.holds && int32(serial-p.held) <= 0 // RFC 1982
	}
	if p.form == unknown {
		p.form = whole
		if soa && serial != p.serial {
			p.form = changes
		}
	}
	if !soa {
		return false
	}
	p.soas++
	// What goes comes under the serial it was added with, never under the newest:
	// there, where a further change would begin, is the end.
	return p.form == whole || p.soas%2 == 1 && serial == p.serial
}

// record reads the record at an offset; next is where it ends, 0 if it does not.
func record(m []byte, at int) (kind uint16, data []byte, next int) {
	at = nameEnd(m, at)
	if at == 0 || at+10 > len(m) {
		return 0, nil, 0
	}
	kind = binary.BigEndian.Uint16(m[at:])
	next = at + 10 + int(binary.BigEndian.Uint16(m[at+8:]))
	if next > len(m) {
		return 0, nil, 0
	}
	return kind, m[at+10 : next], next
}
