package dualstack

import (
	_ "embed"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

//go:embed app.yaml
var app string

const strict = `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
`

const noClient = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-client, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  action: DENY
  rules: [{from: [{source: {ipBlocks: ["%s"]}}]}]
`

// TestDualStack takes a namespace into the mesh and out again, over IPv6.
func TestDualStack(t *testing.T) {
	l := start(t)
	l.input(t, app, "kubectl", "apply", "-f", "-")
	l.run(t, "kubectl", "wait", "--for=condition=Ready", "pod", "--all", "-n", "shop", "--timeout=90s")
	l.run(t, "kubectl", "wait", "--for=condition=Ready", "pod", "--all", "-n", "outside", "--timeout=90s")
	_, client := l.addresses(t, "shop", "client")
	server4, server := l.addresses(t, "shop", "server")
	_, near := l.addresses(t, "shop", "near")
	at := func(ip string) string { return net.JoinHostPort(ip, "8080") }
	targets := map[string]string{
		"pod address on another node": at(server), "pod address on the same node": at(near),
		"Service of IPv6 on another node": l.vip(t, "six"), "Service of IPv6 on the same node": l.vip(t, "near"),
		"Service of both families": l.vip(t, "dual"), "name of an IPv6 Service": "six.shop", "name of a headless Service": "headless.shop:8080",
	}
	every := func(t *testing.T, word string) {
		t.Helper()
		for name, to := range targets {
			out, err := l.get("shop", "client", to, token(word))
			if err != nil || !strings.Contains(out, "client=["+client+"]:") {
				t.Errorf("%s (%s): %v: %s", name, to, err, out)
			}
		}
	}
	for name, to := range targets { // rules of the last kube-proxy
		until(t, name, func() (string, bool) { out, err := l.get("shop", "client", to, "ready"); return out, err == nil })
	}
	readable := token("before")
	if out, err := l.get("shop", "client", at(server), readable); err != nil {
		t.Fatal(out)
	}
	until(t, "plaintext in the recording", func() (string, bool) { return "", l.recorded(readable) })

	l.run(t, "kubectl", "label", "namespace", "shop", "istio.io/dataplane-mode=ambient")
	l.run(t, l.cli, "status", "-n", "shop", "--wait", "--timeout", "2m")

	t.Run("meshed", func(t *testing.T) {
		every(t, "meshed")
		until(t, "the server's ztunnel to name the client", func() (string, bool) {
			out := l.run(t, "kubectl", "logs", "-n", "ambit-system", "-l", "app=ztunnel", "--tail=200")
			return "", strings.Contains(out, `dst.hbone_addr=`+at(server)) && strings.Contains(out, `src.identity="spiffe://cluster.local/ns/shop/sa/client"`)
		})
	})
	t.Run("policy by source address", func(t *testing.T) {
		l.input(t, fmt.Sprintf(noClient, client), "kubectl", "apply", "-f", "-")
		l.refused(t, "the client by its IPv6 address", "shop", "client", at(server))
		if out, err := l.get("shop", "client", at(server4), token("other")); err != nil {
			t.Errorf("refused by an address it does not have here: %s", out)
		}
		l.run(t, "kubectl", "delete", "authorizationpolicy", "-n", "shop", "no-client")
		until(t, "the client to be let in again", func() (string, bool) {
			out, err := l.get("shop", "client", at(server), token("again"))
			return out, err == nil
		})
	})
	t.Run("addresses and devices that come later", func(t *testing.T) { late(t, l, server) })

	// The recording is in order, and a moment late: a call after all of it that
	// shows in it says that it is complete.
	l.run(t, "kubectl", "label", "namespace", "shop", "istio.io/dataplane-mode-")
	var left []string
	until(t, "calls to go direct again", func() (string, bool) {
		left = append(left, token("left"))
		out, err := l.get("shop", "client", at(server), left[len(left)-1])
		if err != nil {
			t.Errorf("a call failed while the namespace left: %s", out)
		}
		return out, slices.ContainsFunc(left, l.recorded)
	})
	for _, word := range []string{"meshed-", "again-", "other-", "shop-refused-"} {
		if l.recorded("/" + word) {
			t.Errorf("a call with %q crossed a link in plaintext", word)
		}
	}
	every(t, "direct")
}

// late gives a running pod an address and a device: plaintext to them is
// accepted, as to the others, until STRICT refuses it.
func late(t *testing.T, l *lab, server string) {
	const extra, second = "fd44:0:0:2::ff99", "fd55::2"
	l.onNode2(t, `
		for n in /run/netns/*; do
			if nsenter --net=$n ip -6 addr show eth0 2>/dev/null | grep -q ' `+server+`/'; then ns=$n; fi
		done
		dev=$(ip -6 route get `+server+` | sed 's/.* dev \([^ ]*\).*/\1/')
		nsenter --net=$ns ip -6 addr add `+extra+`/128 dev eth0 nodad
		ip -6 route add `+extra+`/128 dev $dev
		ip link add second0 type veth peer name second1
		ip link set second1 netns ${ns##*/}
		nsenter --net=$ns ip -6 addr add `+second+`/64 dev second1 nodad
		nsenter --net=$ns ip link set second1 up
		ip -6 addr add fd55::1/64 dev second0 nodad
		ip link set second0 up`)
	if out, err := l.cluster.Nodes()[0].Command(t.Context(), "ip", "-6", "route", "add", "fd55::/64", "via", l.cluster.Nodes()[1].IP6.String()).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, to := range []string{extra, second} {
		to = net.JoinHostPort(to, "8080")
		until(t, to+" to answer a stranger", func() (string, bool) {
			out, err := l.get("outside", "stranger", to, "hello")
			return out, err == nil
		})
		until(t, "the connection to "+to+" in the log", func() (string, bool) {
			out := l.run(t, "kubectl", "logs", "-n", "ambit-system", "-l", "app=ztunnel", "--tail=200")
			return "", strings.Contains(out, "dst.addr="+to)
		})
	}
	l.input(t, strict, "kubectl", "apply", "-f", "-")
	for _, to := range []string{server, extra, second} {
		l.refused(t, "plaintext to "+to, "outside", "stranger", net.JoinHostPort(to, "8080"))
	}
	if out, err := l.get("shop", "client", net.JoinHostPort(server, "8080"), token("meshed")); err != nil {
		t.Errorf("the meshed client: %s", out)
	}
	// Probes come over IPv6 here, and are not plaintext of a stranger. One that
	// failed would show within two periods of a second.
	began := time.Now()
	until(t, "probes of five seconds", func() (string, bool) {
		ready := l.run(t, "kubectl", "get", "pod", "-n", "shop", "server", "near", "-o",
			`jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}`)
		if ready != "True True" {
			t.Errorf("under STRICT, readiness of the servers: %s", ready)
		}
		return ready, time.Since(began) > 5*time.Second || ready != "True True"
	})
	l.run(t, "kubectl", "delete", "peerauthentication", "-n", "shop", "default")
}
