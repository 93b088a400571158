package netns_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestExternalServices is a captured pod that connects to services outside the
// cluster, at the addresses the controller gave them. It runs where the API
// server is.
//
//ambit:feature traffic-external-service workload-allocate workload-external-static workload-external-selector workload-entry workload-external-none egress-mesh-config
func TestExternalServices(t *testing.T) {
	w, p := newPlaneWorld(t)
	client, server := p.meshed(w, w.a, "client"), p.meshed(w, w.b, "server")
	machine := w.newPod(w.b, "machine") // of which the API server knows nothing
	ext := w.outside(t)
	// Two services at one real address.
	for at, who := range map[uint16]*pod{8080: ext, 8081: ext, 9000: server, 9001: machine} {
		name := fmt.Sprintf("%s:%d", who.name, at)
		who.serveWith(at, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			io.WriteString(rw, r.RemoteAddr+" "+name+" "+r.Header.Get("X-Token"))
		}))
	}
	port := func(name string, target uint32) []*networking.ServicePort {
		return []*networking.ServicePort{{Number: 80, Name: name, Protocol: "HTTP", TargetPort: target}}
	}
	at := func(target uint32) []*networking.WorkloadEntry {
		return []*networking.WorkloadEntry{{Address: ext.addr.String(), Ports: map[string]uint32{"http": target}}}
	}
	partner := p.entry("partner", &networking.ServiceEntry{Hosts: []string{"partner.example.com"},
		Resolution: networking.ServiceEntry_STATIC, Ports: port("http", 0), Endpoints: at(8080)})
	other := p.entry("other", &networking.ServiceEntry{Hosts: []string{"other.example.com"},
		Resolution: networking.ServiceEntry_STATIC, Ports: port("http", 0), Endpoints: at(8081)})
	mixed := p.entry("mixed", &networking.ServiceEntry{Hosts: []string{"mixed.example.com"}, Location: networking.ServiceEntry_MESH_INTERNAL,
		Resolution: networking.ServiceEntry_STATIC, Ports: port("web", 9000), WorkloadSelector: &networking.WorkloadSelector{Labels: map[string]string{"app": "server"}}})

	// asks until some answer is from who.
	reaches := func(t *testing.T, to, who string) (body string) {
		t.Helper()
		eventually(t, to+" is answered by "+who, func() (err error) {
			if body, err = client.curl(to, "token"); err != nil {
				return err
			}
			if _, by, token := cutAnswer(body); by != who || token != "token" {
				return fmt.Errorf("%q", body)
			}
			return nil
		})
		return body
	}
	t.Run("two at one address", func(t *testing.T) {
		for to, who := range map[string]string{partner: "outside:8080", other: "outside:8081"} {
			if body := reaches(t, to, who); !client.sent(body) {
				t.Errorf("the server sees %q, not the pod's address", body)
			}
		}
		w.a.zt.wantLog(t, "connection complete", `dst.service="partner.example.com"`, "dst.addr="+ext.at(8080), `direction="outbound"`)
		w.a.zt.wantLog(t, "connection complete", `dst.service="other.example.com"`, "dst.addr="+ext.at(8081), `direction="outbound"`)
	})
	t.Run("a pod", func(t *testing.T) {
		if body := reaches(t, mixed, "server:9000"); !client.sent(body) {
			t.Errorf("the server sees %q, not the pod's address", body)
		}
		w.b.zt.wantLog(t, "connection complete", `dst.workload="server"`, `direction="inbound"`, `src.identity="spiffe://cluster.local/ns/demo/sa/client"`)
	})
	t.Run("a machine beside it", func(t *testing.T) {
		entries := p.istio.NetworkingV1().WorkloadEntries("demo")
		must(entries.Create(p.ctx, &networkingv1.WorkloadEntry{
			ObjectMeta: metav1.ObjectMeta{Name: "machine"},
			Spec: networking.WorkloadEntry{Address: machine.addr.String(), Ports: map[string]uint32{"web": 9001},
				Labels: map[string]string{"app": "server"}},
		}, metav1.CreateOptions{}))(t)
		reaches(t, mixed, "machine:9001")
		reaches(t, mixed, "server:9000")
		if err := entries.Delete(p.ctx, "machine", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the machine is no endpoint any more", func() error {
			for range 20 {
				body, err := client.curl(mixed, "token")
				if err != nil {
					return err
				}
				if _, by, _ := cutAnswer(body); by != "server:9000" {
					return fmt.Errorf("%q", body)
				}
			}
			return nil
		})
	})
	t.Run("not resolved", func(t *testing.T) {
		for _, name := range []string{"partner", "other"} { // whose endpoint is in the block
			if err := p.istio.NetworkingV1().ServiceEntries("demo").Delete(p.ctx, name, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		must(p.istio.NetworkingV1().ServiceEntries("demo").Create(p.ctx, &networkingv1.ServiceEntry{
			ObjectMeta: metav1.ObjectMeta{Name: "block"},
			Spec: networking.ServiceEntry{Hosts: []string{"block.example.com"}, Resolution: networking.ServiceEntry_NONE,
				Addresses: []string{netip.PrefixFrom(ext.addr, 30).Masked().String()},
				Ports:     []*networking.ServicePort{{Number: 8081, Name: "http", Protocol: "HTTP"}}},
		}, metav1.CreateOptions{}))(t)
		eventually(t, "what is in the block is known by its host", func() error {
			if body, err := client.curl(ext.at(8081), "token"); err != nil || !client.sent(body) {
				return fmt.Errorf("%q: %w", body, err)
			}
			if _, ok := w.a.zt.log("connection complete", `dst.service="block.example.com"`, "dst.addr="+ext.at(8081)); !ok {
				return errors.New("the log does not name it")
			}
			return nil
		})
	})
	t.Run("only what is registered", func(t *testing.T) { onlyRegistered(t, w, p, client) })
}

// cutAnswer is who asked, who answers, and the token.
func cutAnswer(body string) (from, by, token string) {
	from, rest, _ := strings.Cut(body, " ")
	by, token, _ = strings.Cut(rest, " ")
	return from, by, token
}

// entry makes a ServiceEntry and returns where its host is at port 80.
func (p *plane) entry(name string, spec *networking.ServiceEntry) string {
	p.t.Helper()
	entries := p.istio.NetworkingV1().ServiceEntries("demo")
	se := &networkingv1.ServiceEntry{ObjectMeta: metav1.ObjectMeta{Name: name}}
	spec.DeepCopyInto(&se.Spec)
	must(entries.Create(p.ctx, se, metav1.CreateOptions{}))(p.t)
	var at string
	eventually(p.t, name+" has an address", func() error {
		se, err := entries.Get(p.ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, a := range se.Status.GetAddresses() {
			if addr, err := netip.ParseAddr(a.GetValue()); err == nil && addr.Is4() {
				at = netip.AddrPortFrom(addr, 80).String()
				return nil
			}
		}
		return fmt.Errorf("status is %v", se.Status.String())
	})
	return at
}
