package kubelab

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Captured counts a capture's packets; Lost were dropped by the kernel because
// the reader was too slow.
type Captured struct{ Packets, Lost uint64 }

// Capture writes every packet that crosses a link between machines of a cluster
// as a pcap file to w, until ctx ends. ns is the control plane's network
// namespace, where all links meet. ready is called once nothing can be missed.
//
// A packet is taken once: where it enters the bridge from a node, or where the
// control plane itself sends it.
func Capture(ctx context.Context, ns string, w io.Writer, ready func()) (Captured, error) {
	fd, ports, err := captureSocket(ns)
	if err != nil {
		return Captured{}, fmt.Errorf("capture: %w", err)
	}
	defer unix.Close(fd)
	out := bufio.NewWriterSize(w, 1<<20)
	// pcap file header, libpcap's pcap-savefile(5): microseconds, Ethernet.
	head := binary.LittleEndian.AppendUint32(nil, 0xa1b2c3d4)
	head = binary.LittleEndian.AppendUint16(head, 2)
	head = binary.LittleEndian.AppendUint16(head, 4)
	head = append(head, make([]byte, 8)...)
	head = binary.LittleEndian.AppendUint32(head, 262144)
	head = binary.LittleEndian.AppendUint32(head, 1)
	if _, err := out.Write(head); err != nil {
		return Captured{}, err
	}
	if err := out.Flush(); err != nil {
		return Captured{}, err
	}
	ready()
	var n Captured
	buf := make([]byte, 262144)
	for ctx.Err() == nil {
		// A time limit instead of a wake-up descriptor: ctx is looked at often enough.
		pfd := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		got, err := unix.Poll(pfd, 100)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return n, err
		}
		if got == 0 {
			if err := out.Flush(); err != nil {
				return n, err
			}
			continue
		}
		// All that is queued, before ctx is asked again: what was on the wire
		// before the end belongs to the file.
		for {
			size, from, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT|unix.MSG_TRUNC)
			if errors.Is(err, unix.EAGAIN) {
				break
			}
			if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENETDOWN) {
				continue
			}
			if err != nil {
				return n, err
			}
			ll, ok := from.(*unix.SockaddrLinklayer)
			if !ok || !ports.wanted(ll.Ifindex, ll.Pkttype) {
				continue
			}
			n.Packets++
			if err := writePacket(out, buf[:min(size, len(buf))], size); err != nil {
				return n, err
			}
		}
	}
	stats, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err == nil {
		n.Lost = uint64(stats.Drops)
	}
	return n, out.Flush()
}

func writePacket(w io.Writer, b []byte, size int) error {
	now := time.Now()
	var h [16]byte
	binary.LittleEndian.PutUint32(h[0:], uint32(now.Unix()))
	binary.LittleEndian.PutUint32(h[4:], uint32(now.Nanosecond()/1000))
	binary.LittleEndian.PutUint32(h[8:], uint32(len(b)))
	binary.LittleEndian.PutUint32(h[12:], uint32(size))
	if _, err := w.Write(h[:]); err != nil {
		return err
	}
	_, err := w.Write(b)
	return err
}

// ports knows the interfaces of the namespace by index. A rebooted node comes
// back with a new one, so an unknown index is looked up.
type ports struct {
	fd   int
	name map[int]string
}

func (p *ports) wanted(index int, kind uint8) bool {
	name, ok := p.name[index]
	if !ok {
		// SIOCGIFNAME asks the namespace of the socket, not that of the caller.
		name = interfaceName(p.fd, index)
		p.name[index] = name
	}
	if name == "br0" {
		return kind == unix.PACKET_OUTGOING
	}
	return strings.HasPrefix(name, "v") && kind != unix.PACKET_OUTGOING
}

// captureSocket opens a packet socket on all interfaces of the namespace.
func captureSocket(path string) (int, *ports, error) {
	type result struct {
		fd  int
		err error
	}
	out := make(chan result, 1)
	go func() {
		r := result{fd: -1}
		defer func() { out <- r }()
		runtime.LockOSThread() // never unlocked, see DialIn
		ns, err := netns.GetFromPath(path)
		if err != nil {
			r.err = err
			return
		}
		defer ns.Close()
		if r.err = unix.Setns(int(ns), unix.CLONE_NEWNET); r.err != nil {
			return
		}
		if _, err := net.InterfaceByName("br0"); err != nil {
			r.err = fmt.Errorf("%s is not the control plane's namespace: %w", path, err)
			return
		}
		all := int(htons(unix.ETH_P_ALL))
		r.fd, r.err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all)
	}()
	r := <-out
	if r.err != nil {
		return -1, nil, r.err
	}
	// etcd and the API server talk a lot on lo; a small filter keeps it out of
	// the queue: drop what has interface index 1 (SKF_AD_IFINDEX).
	const skfAdOff, skfAdIfindex = 0xfffff000, 8 // <linux/filter.h>
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: skfAdOff + skfAdIfindex},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 0, Jf: 1, K: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.SetsockoptSockFprog(r.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog); err != nil {
		unix.Close(r.fd)
		return -1, nil, fmt.Errorf("packet filter: %w", err)
	}
	_ = unix.SetsockoptInt(r.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
	return r.fd, &ports{fd: r.fd, name: map[int]string{}}, nil
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

func interfaceName(fd, index int) string {
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return ""
	}
	ifr.SetUint32(uint32(index))
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFNAME, ifr); err != nil {
		return ""
	}
	return ifr.Name()
}
