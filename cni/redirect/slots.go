package redirect

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/ambitmesh/ambit/cni/bpf"
)

// slots says which socket belongs where.
func slots(l *Listeners) map[bpf.CaptureSlot]*os.File {
	at := map[bpf.CaptureSlot]*os.File{}
	if l == nil {
		return at
	}
	put := func(slot bpf.CaptureSlot, f *os.File) {
		if f != nil && at[slot] == nil {
			at[slot] = f
		}
	}
	put(bpf.CaptureSlotSLOT_OUTBOUND, l.Outbound)
	put(bpf.CaptureSlotSLOT_INBOUND, l.Inbound)
	put(bpf.CaptureSlotSLOT_DNS_TCP, l.DNSTCP)
	put(bpf.CaptureSlotSLOT_DNS_UDP, l.DNSUDP)
	for _, f := range l.HBONE {
		if f == nil {
			continue
		}
		switch socketFamily(f) {
		case unix.AF_INET:
			put(bpf.CaptureSlotSLOT_HBONE4, f)
		case unix.AF_INET6:
			put(bpf.CaptureSlotSLOT_HBONE6, f)
			if dualStack(f) {
				put(bpf.CaptureSlotSLOT_HBONE4, f)
			}
		}
	}
	return at
}

func socketFamily(f *os.File) int {
	var family int
	_ = withFd(f, func(fd int) (err error) {
		family, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
		return err
	})
	return family
}

// dualStack: a socket of IPv6 that takes IPv4 too. Ours never do.
func dualStack(f *os.File) bool {
	only := 1
	_ = withFd(f, func(fd int) (err error) {
		only, err = unix.GetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY)
		return err
	})
	return only == 0
}

func socketCookie(f *os.File) (uint64, error) {
	var cookie uint64
	err := withFd(f, func(fd int) (err error) {
		cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
		return err
	})
	return cookie, err
}

func putSocket(m *ebpf.Map, slot bpf.CaptureSlot, f *os.File) error {
	return withFd(f, func(fd int) error { return m.Put(uint32(slot), uint64(fd)) })
}

// withFd keeps f open and non-blocking, which f.Fd() would not.
func withFd(f *os.File, fn func(fd int) error) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := rc.Control(func(fd uintptr) { inner = fn(int(fd)) }); err != nil {
		return errors.Join(err, inner)
	}
	return inner
}

// mapped is the form addresses have in the maps: IPv4 as ::ffff:a.b.c.d, bytes
// in network order.
func mapped(a netip.Addr) bpf.CaptureAddress {
	b := a.As16()
	var out bpf.CaptureAddress
	for i := range out.Word {
		out.Word[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return out
}

func networkOrder(port uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], port)
	return binary.NativeEndian.Uint16(b[:])
}
