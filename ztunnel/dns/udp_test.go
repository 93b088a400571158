package dns

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"

	"github.com/ambitmesh/ambit/cni/netns"
	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/ztunnel/live"
	wire "github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

func TestUninvited(t *testing.T) {
	const own = 15053
	question, answer := asked(t, "x.", wire.TypeA, nil), asked(t, "x.", wire.TypeA, func(m *wire.Msg) { m.Response = true })
	for _, c := range []struct {
		name, from, to string
		message        []byte
		want           bool
	}{
		{"captured question", "10.0.0.2:4000", "10.0.0.10:53", question, false},
		{"captured answer", "10.0.0.2:53", "10.0.0.10:53", answer, false},
		{"the pod's question by loopback", "127.0.0.1:4000", "127.0.0.1:15053", question, false},
		{"the pod's question by its address", "10.0.0.2:4000", "10.0.0.2:15053", question, false},
		{"the pod's question of IPv6", "[fd00::2]:4000", "[fd00::2]:15053", question, false},
		{"answer by loopback", "127.0.0.1:4000", "127.0.0.1:15053", answer, true},
		{"answer by the pod's address", "10.0.0.2:4000", "10.0.0.2:15053", answer, true},
		{"answer as from ourselves", "127.0.0.1:15053", "127.0.0.1:15053", answer, true},
		{"too short for a question", "10.0.0.2:4000", "10.0.0.2:15053", []byte("x"), true},
		{"answer from outside", "10.0.9.9:53", "10.0.0.2:15053", answer, true},
		{"question from outside", "10.0.9.9:4000", "10.0.0.2:15053", question, true},
	} {
		d := datagram{message: c.message, from: netip.MustParseAddrPort(c.from), to: netip.MustParseAddrPort(c.to)}
		if got := uninvited(d, own); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

// mute sends nothing, and says what had been asked when something was to be sent.
type mute struct {
	here
	sends chan int
	asked func() int
}

var errMute = errors.New("mute")

func (m mute) Impostor(bool, uint32) (*netns.Impostor, error) {
	m.sends <- m.asked()
	return nil, errMute
}

// TestNothingComesBack: what is no question, sent to our own port, is not sent on
// to that same port.
func TestNothingComesBack(t *testing.T) {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var set error
	if err := raw.Control(func(fd uintptr) { set = syscall.SetsockoptInt(int(fd), syscall.SOL_IP, ipOrigDstAddr, 1) }); err != nil || set != nil {
		t.Fatal(err, set)
	}
	metrics := NewMetrics(prometheus.NewRegistry())
	ns := mute{sends: make(chan int), asked: func() int {
		kinds := make(chan prometheus.Metric, 8)
		metrics.requests.Collect(kinds)
		return len(kinds)
	}}
	store := mesh.NewStore()
	store.Swap(snapshot(self(), service("ns1/web.ns1.svc.cluster.local", nil, "10.1.0.1")))
	cfg := Config{
		Pod: &live.Pod{UID: "uid", Name: "client", Namespace: "ns1", ServiceAccount: "default"}, Namespace: ns,
		Store: store, Metrics: metrics, Logger: slog.New(slog.DiscardHandler),
	}
	s := New(cfg)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.ServeUDP(context.Background(), conn); err != nil {
			t.Error(err)
		}
	})
	client, err := net.Dial("udp4", conn.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for _, m := range [][]byte{asked(t, "web.", wire.TypeA, func(m *wire.Msg) { m.Response = true }), []byte("x"), asked(t, "web.", wire.TypeA, nil)} {
		if _, err := client.Write(m); err != nil {
			t.Fatal(err)
		}
	}
	// Datagrams are read in order: the first to be answered is the question.
	if n := <-ns.sends; n != 1 {
		t.Errorf("something is sent before a question was read")
		<-ns.sends
		<-ns.sends
	}
	conn.Close()
	wg.Wait()
	s.Close()
}
