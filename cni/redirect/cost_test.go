package redirect

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/ambitmesh/ambit/cni/netns"
)

// BenchmarkSetCold enrols fresh namespaces; BenchmarkSetHot repeats the call.
func BenchmarkSetCold(b *testing.B) {
	needRoot(b)
	r, err := New(Options{PinRoot: pinRoot(b)})
	if err != nil {
		b.Fatal(err)
	}
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		ns, err := netns.New()
		if err != nil {
			b.Fatal(err)
		}
		cfg := Config{ContainerID: fmt.Sprint("c", i), UID: "u", NS: ns, Addrs: []netip.Addr{podAddr4}}
		b.StartTimer()
		if err := r.Set(cfg); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := r.Clear(cfg.ContainerID, ns); err != nil {
			b.Fatal(err)
		}
		ns.Close()
		b.StartTimer()
	}
}

// BenchmarkSetFifty enrols fifty fresh namespaces at once.
func BenchmarkSetFifty(b *testing.B) {
	needRoot(b)
	r, err := New(Options{PinRoot: pinRoot(b)})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		b.StopTimer()
		spaces := make([]*netns.NS, 50)
		for i := range spaces {
			if spaces[i], err = netns.New(); err != nil {
				b.Fatal(err)
			}
		}
		b.StartTimer()
		var wg sync.WaitGroup
		for i, ns := range spaces {
			wg.Go(func() {
				if err := r.Set(Config{ContainerID: fmt.Sprint("c", i), UID: "u", NS: ns, Addrs: []netip.Addr{podAddr4}}); err != nil {
					b.Error(err)
				}
			})
		}
		wg.Wait()
		b.StopTimer()
		for i, ns := range spaces {
			if err := r.Clear(fmt.Sprint("c", i), ns); err != nil {
				b.Error(err)
			}
			ns.Close()
		}
		b.StartTimer()
	}
}

func BenchmarkSetHot(b *testing.B) {
	c := newCaptured(b)
	for b.Loop() {
		if err := c.r.Set(c.cfg); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkMemory reports what the kernel charges for one pod's maps and
// programs.
func BenchmarkMemory(b *testing.B) {
	c := newCaptured(b)
	dir := filepath.Join(c.r.opt.PinRoot, c.cfg.ContainerID)
	s := &state{dir: dir}
	if !s.adopt(c.r.version) {
		b.Fatal("pins are not whole")
	}
	defer s.Close()
	var maps, programs uint64
	for name, m := range s.maps() {
		info, err := (*m).Info()
		if err != nil {
			b.Fatal(err)
		}
		n, _ := info.Memlock()
		b.Logf("map %s: %d bytes", name, n)
		maps += n
	}
	for name, p := range s.programs() {
		info, err := (*p).Info()
		if err != nil {
			b.Fatal(err)
		}
		n, _ := info.Memlock()
		b.Logf("program %s: %d bytes", name, n)
		programs += n
	}
	for b.Loop() {
	}
	b.ReportMetric(float64(maps), "map-bytes/pod")
	b.ReportMetric(float64(programs), "program-bytes/pod")
}

// The two below are one connection and one byte there and back: captured, and on
// plain loopback, which is the floor.
func BenchmarkConnectCaptured(b *testing.B) {
	c := prepareCaptured(b)
	byteEcho(b, c.pod, c.cfg.Listeners.Outbound.Name(), func() (net.Listener, error) { return net.FileListener(c.cfg.Listeners.Outbound) })
	c.set(b)
	connectLoop(b, c.pod, at(peerAddr4, 8080))
}

func BenchmarkConnectLoopback(b *testing.B) {
	c := prepareCaptured(b)
	f, err := c.pod.ListenTCP(at(netip.MustParseAddr("127.0.0.1"), 8080), netns.SocketOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	byteEcho(b, c.pod, f.Name(), func() (net.Listener, error) { return net.FileListener(f) })
	connectLoop(b, c.pod, at(netip.MustParseAddr("127.0.0.1"), 8080))
}

func byteEcho(b *testing.B, ns *netns.NS, name string, listen func() (net.Listener, error)) {
	b.Helper()
	l, err := listen()
	if err != nil {
		b.Fatalf("%s in %s: %v", name, ns, err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			var one [1]byte
			if _, err := io.ReadFull(c, one[:]); err == nil {
				_, _ = c.Write(one[:])
			}
			c.Close()
		}
	}()
	b.Cleanup(func() { l.Close(); <-done })
}

func connectLoop(b *testing.B, ns *netns.NS, to netip.AddrPort) {
	b.Helper()
	one := []byte{1}
	for b.Loop() {
		c, err := ns.DialTCP(context.Background(), netip.AddrPort{}, to, netns.SocketOptions{})
		if err != nil {
			b.Fatal(err)
		}
		_, err = c.Write(one)
		if err == nil {
			_, err = io.ReadFull(c, one)
		}
		if err != nil {
			b.Fatal(err)
		}
		_ = c.SetLinger(0)
		c.Close()
	}
}

// BenchmarkLoad is the part of a cold Set that a pool could save.
func BenchmarkLoad(b *testing.B) {
	needRoot(b)
	r, err := New(Options{PinRoot: pinRoot(b)})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		coll, err := ebpf.NewCollection(unpinned(r.spec))
		if err != nil {
			b.Fatal(err)
		}
		coll.Close()
	}
}

func unpinned(spec *ebpf.CollectionSpec) *ebpf.CollectionSpec {
	spec = spec.Copy()
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinNone
	}
	return spec
}
