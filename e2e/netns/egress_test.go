package netns_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/hbone/hbonetest"
	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// With REGISTRY_ONLY a pod reaches what is registered: by address, by service, or
// by the name that a TLS client asks for. All else is refused, and says why.
//
//ambit:feature egress-registry-only egress-sni egress-allow-any
func TestRegistryOnly(t *testing.T) {
	t.Parallel()
	w := newWorldOf(t, onlyIPv4)
	client, server, host := w.newPod(w.a, "client"), w.newPod(w.b, "server"), w.newPod(w.b, "host")
	// Known neither as a pod nor otherwise, as the world outside is.
	outside := w.newPod(w.b, "outside")
	w.control.apply(mesh.Delta{RemovedWorkloads: []string{outside.meshUID()}})
	host.change = func(rec *mesh.Workload) { rec.HostNetwork = true }
	w.announce(host, false)
	for _, p := range []*pod{server, outside, host} {
		p.listen(9000, echo)
	}
	outside.listen(443, tlsEcho(t))
	outside.listen(8443, tlsEcho(t))
	w.enrol(client, server)
	w.serviceAt("web", w.vip(10), 80, 9000, server)

	refused := func(t *testing.T, to string, parts ...string) {
		t.Helper()
		c, err := client.dial(to)
		if err == nil {
			defer c.Close()
			c.SetDeadline(time.Now().Add(patience))
			_, _ = c.Write([]byte("hello, this is no TLS"))
			_, err = c.Read(make([]byte, 1))
		}
		if err == nil || os.IsTimeout(err) { // a reset may overtake the end of connect()
			t.Fatalf("%s: %v", to, err)
		}
		w.a.zt.wantLog(t, append([]string{`reason="not_registered"`, to}, parts...)...)
	}
	pass := func(t *testing.T, to string) {
		t.Helper()
		c := client.mustDial(t, to)
		defer c.Close()
		pingPong(t, c, "hello")
	}
	hello := func(t *testing.T, name, to string, slow bool) (string, error) {
		t.Helper()
		var c net.Conn = client.mustDial(t, to)
		defer c.Close()
		if slow {
			c = &byByte{c}
		}
		tc := tls.Client(c, &tls.Config{InsecureSkipVerify: true, ServerName: name})
		if _, err := tc.Write([]byte("ping")); err != nil {
			return "", err
		}
		b := make([]byte, 4)
		_, err := io.ReadFull(tc, b)
		return string(b), err
	}

	pass(t, outside.at(9000)) // ALLOW_ANY is the default
	w.control.apply(mesh.Delta{Settings: &mesh.Settings{RegistryOnly: true}})
	w.a.zt.wantLog(t, "settings of the mesh", "registry_only=true")

	t.Run("what is known by its address", func(t *testing.T) {
		pass(t, server.at(9000))
		pass(t, w.vipAt(10, 80))
		pass(t, host.at(9000))
	})
	t.Run("what is not", func(t *testing.T) {
		refused(t, outside.at(9000), "REGISTRY_ONLY", "not TLS")
		if n := w.a.metric(t, "ambit_connections_failed_total", `reason="not_registered"`); n != 1 {
			t.Errorf("counted %v times", n)
		}
	})
	by := func(host string, mode mesh.Mode, a ...netip.Addr) *mesh.Service {
		s := entry(host, a...)
		s.Ports = []mesh.Port{{ServicePort: 443, TargetPort: 443, AppProtocol: mesh.AppTLS}}
		s.LoadBalancing.Mode = mode
		return s
	}
	w.control.apply(mesh.Delta{Services: []*mesh.Service{by("api.example.com", mesh.ModePassthrough), by("*.wild.example.com", mesh.ModePassthrough)}})
	w.control.settled(t)
	t.Run("a registered host by the name a TLS client asks for", func(t *testing.T) {
		for _, name := range []string{"api.example.com", "a.b.wild.example.com"} {
			for _, slow := range []bool{false, true} {
				if got, err := hello(t, name, outside.at(443), slow); got != "ping" {
					t.Errorf("%s, byte by byte %t: %q, %v", name, slow, got, err)
				}
			}
		}
		w.a.zt.wantLog(t, "connection complete", `dst.service="*.wild.example.com"`, outside.at(443))
	})
	t.Run("another name, no name, another port", func(t *testing.T) {
		for name, to := range map[string]string{"other.example.org": outside.at(443), "": outside.at(443), "api.example.com": outside.at(8443)} {
			if got, err := hello(t, name, to, false); err == nil {
				t.Errorf("%q at %s: %q", name, to, got)
			}
		}
		w.a.zt.wantLog(t, `reason="not_registered"`, "other.example.org")
		w.a.zt.wantLog(t, `reason="not_registered"`, "TLS without a server name")
		w.a.zt.wantLog(t, `reason="not_registered"`, "api.example.com with TLS on port 8443")
	})
	t.Run("a client that says nothing", func(t *testing.T) {
		c := client.mustDial(t, outside.at(443))
		c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
			t.Fatal(err)
		}
		w.a.zt.wantLog(t, `reason="not_registered"`, "no complete TLS ClientHello")
	})
	w.control.apply(mesh.Delta{Services: []*mesh.Service{by("ranged.example.com", mesh.ModePassthrough, outside.addr)}})
	w.control.settled(t)
	t.Run("a setting of ztunnel's own wins", func(t *testing.T) {
		w.a.zt.terminate()
		w.a.zt = w.a.startZtunnel([]string{"AMBIT_OUTBOUND_TRAFFIC_POLICY=ALLOW_ANY"})
		w.waitReady(w.a)
		pass(t, outside.at(9000))
		w.a.zt.terminate()
		w.control.apply(mesh.Delta{Settings: &mesh.Settings{}})
		w.a.zt = w.a.startZtunnel([]string{"AMBIT_OUTBOUND_TRAFFIC_POLICY=REGISTRY_ONLY"})
		w.waitReady(w.a)
	})
	t.Run("a registered address and its ports", func(t *testing.T) {
		if got, err := hello(t, "whatever.example.org", outside.at(443), false); got != "ping" {
			t.Errorf("%q, %v", got, err)
		}
		refused(t, outside.at(9000), "not port 9000")
	})
}

// onlyRegistered is what users write about egress, into an API server: the mesh's
// settings, and a host that is known by its name alone.
func onlyRegistered(t *testing.T, w *world, p *plane, client *pod) {
	stranger := w.newPod(w.b, "stranger") // of which the API server knows nothing
	stranger.listen(443, tlsEcho(t))
	reach := func(name string) error {
		c, err := client.dial(stranger.at(443))
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		tc := tls.Client(c, &tls.Config{InsecureSkipVerify: true, ServerName: name})
		if _, err := tc.Write([]byte("x")); err != nil {
			return err
		}
		_, err = tc.Read(make([]byte, 1))
		return err
	}
	refused := func(name string) error {
		if err := reach(name); err == nil || os.IsTimeout(err) {
			return fmt.Errorf("%s: %v", name, err) //nolint:errorlint // it may be nil
		}
		return nil
	}
	eventually(t, "what nobody knows is reached", func() error { return reach("api.partner.example.org") })
	settings := func(mesh string) {
		t.Helper()
		maps := p.client.CoreV1().ConfigMaps("istio-system")
		cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "istio"}, Data: map[string]string{"mesh": mesh}}
		if _, err := maps.Update(p.ctx, cm, metav1.UpdateOptions{}); apierrors.IsNotFound(err) {
			must(maps.Create(p.ctx, cm, metav1.CreateOptions{}))(t)
		} else if err != nil {
			t.Fatal(err)
		}
	}
	settings("outboundTrafficPolicy: {mode: REGISTRY_ONLY}")
	eventually(t, "what nobody knows is refused", func() error { return refused("api.partner.example.org") })
	w.a.zt.wantLog(t, `reason="not_registered"`, "api.partner.example.org")
	must(p.istio.NetworkingV1().ServiceEntries("demo").Create(p.ctx, &networkingv1.ServiceEntry{
		ObjectMeta: metav1.ObjectMeta{Name: "by-name"},
		Spec: networking.ServiceEntry{Hosts: []string{"*.partner.example.org"}, Resolution: networking.ServiceEntry_NONE,
			Ports: []*networking.ServicePort{{Number: 443, Name: "tls", Protocol: "TLS"}}},
	}, metav1.CreateOptions{}))(t)
	eventually(t, "a registered name is reached", func() error { return reach("api.partner.example.org") })
	w.a.zt.wantLog(t, "connection complete", `dst.service="*.partner.example.org"`, stranger.at(443))
	if err := refused("api.example.org"); err != nil {
		t.Error(err)
	}
	settings("outboundTrafficPolicy: {mode: ALLOW_ANY}")
	eventually(t, "what nobody knows is reached again", func() error { return reach("api.example.org") })
}

// byByte sends every byte in a segment of its own.
type byByte struct{ net.Conn }

func (c *byByte) Write(b []byte) (int, error) {
	for i := range b {
		if n, err := c.Conn.Write(b[i : i+1]); err != nil {
			return i + n, err
		}
	}
	return len(b), nil
}

// tlsEcho is a TLS server that sends back what it gets.
func tlsEcho(t *testing.T) func(*net.TCPConn) {
	t.Helper()
	cert := hbonetest.NewCA(t).Issue(hbonetest.ID("server"), hbonetest.IssueOptions{})
	return func(c *net.TCPConn) {
		s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}})
		_, _ = io.Copy(s, s)
	}
}

// Every captured pod has a SOCKS5 proxy on its loopback if that is switched on,
// and connections through it are those of the mesh.
//
//ambit:feature socks-connect socks-off
func TestSOCKS5(t *testing.T) {
	t.Parallel()
	w, client, _, vips := dnsWorld(t)
	if c, err := client.dial("127.0.0.1:15080"); err == nil {
		c.Close()
		t.Fatal("the proxy is there without having been switched on")
	}
	w.a.zt.terminate()
	w.a.zt = w.a.startZtunnel([]string{"UNSTABLE_ENABLE_SOCKS5=true"})
	w.waitReady(w.a)

	ask := func(t *testing.T, request string) (*net.TCPConn, byte) {
		t.Helper()
		c := client.mustDial(t, "127.0.0.1:15080")
		c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Write([]byte("\x05\x01\x00" + request)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 12)
		if n, err := io.ReadFull(c, b); err != nil || string(b[:3]) != "\x05\x00\x05" {
			t.Fatalf("%x, %v", b[:n], err)
		}
		return c, b[3]
	}
	get := func(t *testing.T, c *net.TCPConn) string {
		t.Helper()
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\nX-Token: by-socks\r\nConnection: close\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(c)
		return string(b)
	}
	port := "\x00\x50"
	for name, request := range map[string]string{
		"IPv4":              "\x05\x01\x00\x01" + string(vips[0].AsSlice()) + port,
		"IPv6":              "\x05\x01\x00\x04" + string(vips[1].AsSlice()) + port,
		"name of a service": "\x05\x01\x00\x03\x1aweb.demo.svc.cluster.local" + port,
		"short name":        "\x05\x01\x00\x03\x03web" + port,
	} {
		t.Run(name, func(t *testing.T) {
			c, code := ask(t, request)
			if code != 0 {
				t.Fatalf("reply %d", code)
			}
			if body := get(t, c); !strings.Contains(body, "to server: by-socks") || !strings.Contains(body, client.addrs[0].String()) && !strings.Contains(body, client.addrs[1].String()) {
				t.Errorf("%q", body)
			}
		})
	}
	w.a.zt.wantLog(t, "connection complete", `dst.service="web.demo.svc.cluster.local"`, `src.identity="`+client.id().String()+`"`)
	for name, c := range map[string]struct {
		request string
		code    byte
		reason  string
	}{
		"a name that is not there": {"\x05\x01\x00\x03\x0fmissing.invalid" + port, 4, "bad_socks"},
		"BIND":                     {"\x05\x02\x00\x01\x0a\x00\x00\x01" + port, 7, "bad_socks"},
		"the proxy itself":         {"\x05\x01\x00\x01\x7f\x00\x00\x01\x3a\xe8", 1, "self_call"},
		"the proxy by no address":  {"\x05\x01\x00\x01\x00\x00\x00\x00\x3a\xe8", 1, "self_call"},
	} {
		t.Run(name, func(t *testing.T) {
			conn, code := ask(t, c.request)
			if code != c.code {
				t.Errorf("reply %d, want %d", code, c.code)
			}
			if _, err := conn.Read(make([]byte, 1)); err == nil {
				t.Error("the connection goes on")
			}
			w.a.zt.wantLog(t, `reason="`+c.reason+`"`)
		})
	}
}
