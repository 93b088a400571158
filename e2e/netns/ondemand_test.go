package netns_test

import (
	"errors"
	"io"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A ztunnel that knows no workloads but those of its node: it asks when a pod dials
// one. What nobody has goes out as it is, what cannot be asked about does not.
//
//ambit:feature xds-on-demand-lookup
func TestOnDemand(t *testing.T) { each(t, onDemand, onlyIPv4, onlyIPv6) }

func onDemand(t *testing.T, f families) {
	w := newWorldOf(t, f)
	w.a.zt.kill()
	w.a.zt = w.a.startZtunnel([]string{"XDS_ON_DEMAND=true", "ISTIO_META_DNS_CAPTURE=false"})
	w.waitReady(w.a)
	client, server, other, quiet := w.newPod(w.a, "client"), w.newPod(w.b, "server"), w.newPod(w.b, "other"), w.newPod(w.b, "quiet")
	ext := w.outside(t)
	for _, p := range []*pod{server, other, ext} {
		p.listen(9000, echo)
	}
	w.serviceAt("shop", f.vip(1), 80, 9000, other)
	w.enrol(client, server, other, quiet)
	holds := func(name string) bool {
		t.Helper()
		dump, err := w.a.get("127.0.0.1:15000", "/config_dump")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(dump, `"name": "`+name+`"`)
	}
	if !holds("client") || holds("server") || holds("other") {
		t.Fatal("node a's ztunnel should know its own pods and no others")
	}
	c := client.mustDial(t, server.at(9000))
	pingPong(t, c, "asked for")
	c.Close()
	w.a.zt.wantLog(t, "connection complete", "dst.hbone_addr="+server.at(9000), `dst.identity="`+server.id().String())
	c = client.mustDial(t, f.vipAt(1, 80))
	pingPong(t, c, "by a service")
	c.Close()
	w.a.zt.wantLog(t, "connection complete", "dst.hbone_addr="+other.at(9000), `dst.service="shop.demo.svc.cluster.local"`)
	c = client.mustDial(t, ext.at(9000))
	pingPong(t, c, "outside")
	c.Close()
	if !holds("server") || !holds("other") || holds("quiet") {
		t.Error("node a's ztunnel should know what was dialled and nothing else")
	}
	if n := w.a.metric(t, "ambit_xds_on_demand_total", `answer="found"`); n != 2 {
		t.Errorf("%v names were found", n)
	}
	if n := w.a.metric(t, "ambit_xds_on_demand_total", `answer="absent"`); n != 1 {
		t.Errorf("%v names were absent", n)
	}

	// Without a control plane: what is known goes on, what is not is refused.
	w.control.stop()
	for _, known := range []*pod{server, ext} {
		c = client.mustDial(t, known.at(9000))
		pingPong(t, c, "known before")
		c.Close()
	}
	refused := func(to string) error {
		c, err := client.dial(to)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		_, err = io.ReadFull(c, make([]byte, 1))
		return err
	}
	if err := refused(quiet.at(9000)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a workload that cannot be asked for: %v, not a reset", err)
	}
	w.a.zt.wantLog(t, "dst.addr="+quiet.at(9000), `reason="lookup_unanswered"`)
	if n := w.b.metric(t, "istio_tcp_connections_opened_total", `destination_workload="quiet"`); n != 0 {
		t.Error("it was connected to all the same")
	}
	w.control.start()
	quiet.listen(9000, echo)
	eventually(t, "the control plane answers again", func() error {
		c, err := client.dial(quiet.at(9000))
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		return exchange(c, "asked again")
	})
	w.a.zt.wantLog(t, "connection complete", "dst.hbone_addr="+quiet.at(9000), `dst.identity="`+quiet.id().String())
}
