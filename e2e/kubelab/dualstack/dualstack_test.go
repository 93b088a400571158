package dualstack

import (
	_ "embed"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ambitmesh/ambit/e2e/kubelab"
	"github.com/ambitmesh/ambit/e2e/kubelab/ambitlab"
)

func TestMain(m *testing.M) { os.Exit(ambitlab.Main(m)) }

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
	l := ambitlab.Start(t, kubelab.Options{Nodes: 2, DNS: true, IPv6First: true})
	l.Apply(t, app)
	l.Kubectl(t, "wait", "--for=condition=Ready", "pod", "--all", "-n", "shop", "--timeout=90s")
	l.Kubectl(t, "wait", "--for=condition=Ready", "pod", "--all", "-n", "outside", "--timeout=90s")
	_, client := addresses(t, l, "shop", "client")
	server4, server := addresses(t, l, "shop", "server")
	_, near := addresses(t, l, "shop", "near")
	at := func(ip string) string { return net.JoinHostPort(ip, "8080") }
	targets := map[string]string{
		"pod address on another node": at(server), "pod address on the same node": at(near),
		"Service of IPv6 on another node": vip(t, l, "six"), "Service of IPv6 on the same node": vip(t, l, "near"),
		"Service of both families": vip(t, l, "dual"), "name of an IPv6 Service": "six.shop", "name of a headless Service": "headless.shop:8080",
	}
	every := func(t *testing.T, word string) {
		t.Helper()
		for name, to := range targets {
			out, err := once(t, l, "client", to, ambitlab.Token(word))
			if err != nil || !strings.Contains(out, "client=["+client+"]:") {
				t.Errorf("%s (%s): %v: %s", name, to, err, out)
			}
		}
	}
	for name, to := range targets { // rules of the last kube-proxy
		ambitlab.Until(t, name, func() (string, bool) {
			_, err := get(t, l, "shop", "client", to, "ready")
			return fmt.Sprint(err), err == nil
		})
	}
	readable := ambitlab.Token("before")
	if out, err := once(t, l, "client", at(server), readable); err != nil {
		t.Fatal(out, err)
	}
	ambitlab.Until(t, "plaintext in the recording", func() (string, bool) { return "", l.Wire.Has(readable) })

	l.Kubectl(t, "label", "namespace", "shop", "istio.io/dataplane-mode=ambient")
	if out, code := l.Ambit(t, "status", "-n", "shop", "--wait", "--timeout", "6m"); code != 0 {
		t.Fatalf("the namespace did not become captured:\n%s", out)
	}

	t.Run("meshed", func(t *testing.T) {
		every(t, "meshed")
		ambitlab.Until(t, "the server's ztunnel to name the client", func() (string, bool) {
			out := l.Kubectl(t, "logs", "-n", "ambit-system", "-l", "app=ztunnel", "--tail=200")
			return "", strings.Contains(out, `dst.hbone_addr=`+at(server)) && strings.Contains(out, `src.identity="spiffe://cluster.local/ns/shop/sa/client"`)
		})
	})
	t.Run("policy by source address", func(t *testing.T) {
		l.Apply(t, fmt.Sprintf(noClient, client))
		l.Refused(t, "the client by its IPv6 address", "shop", "client", "http://"+at(server)+"/"+ambitlab.Token("shop"+"-refused"))
		if _, err := once(t, l, "client", at(server4), ambitlab.Token("other")); err != nil {
			t.Errorf("refused by an address it does not have here: %v", err)
		}
		l.Kubectl(t, "delete", "authorizationpolicy", "-n", "shop", "no-client")
		ambitlab.Until(t, "the client to be let in again", func() (string, bool) {
			_, err := get(t, l, "shop", "client", at(server), ambitlab.Token("again"))
			return fmt.Sprint(err), err == nil
		})
	})
	t.Run("addresses and devices that come later", func(t *testing.T) { late(t, l, server) })

	// The recording is in order, and a moment late: a call after all of it that
	// shows in it says that it is complete.
	l.Kubectl(t, "label", "namespace", "shop", "istio.io/dataplane-mode-")
	var left []string
	ambitlab.Until(t, "calls to go direct again", func() (string, bool) {
		left = append(left, ambitlab.Token("left"))
		_, err := once(t, l, "client", at(server), left[len(left)-1])
		if err != nil {
			t.Errorf("a call failed while the namespace left: %v", err)
		}
		return "", slices.ContainsFunc(left, l.Wire.Has)
	})
	for _, word := range []string{"meshed-", "again-", "other-", "shop-refused-"} {
		if l.Wire.Has("/" + word) {
			t.Errorf("a call with %q crossed a link in plaintext", word)
		}
	}
	every(t, "direct")
}

// late gives a running pod an address and a device: plaintext to them is
// accepted, as to the others, until STRICT refuses it.
func late(t *testing.T, l *ambitlab.Lab, server string) {
	const extra, second = "fd44:0:0:2::ff99", "fd55::2"
	l.OnNode(t, "node2", `set -e
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
	if out, err := l.Cluster.Nodes()[0].Command(t.Context(), "ip", "-6", "route", "add", "fd55::/64", "via", l.Cluster.Nodes()[1].IP6.String()).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, to := range []string{extra, second} {
		to = net.JoinHostPort(to, "8080")
		ambitlab.Until(t, to+" to answer a stranger", func() (string, bool) {
			_, err := get(t, l, "outside", "stranger", to, "hello")
			return fmt.Sprint(err), err == nil
		})
		ambitlab.Until(t, "the connection to "+to+" in the log", func() (string, bool) {
			out := l.Kubectl(t, "logs", "-n", "ambit-system", "-l", "app=ztunnel", "--tail=200")
			return "", strings.Contains(out, "dst.addr="+to)
		})
	}
	l.Apply(t, strict)
	for _, to := range []string{server, extra, second} {
		l.Refused(t, "plaintext to "+to, "outside", "stranger", "http://"+net.JoinHostPort(to, "8080")+"/"+ambitlab.Token("outside"+"-refused"))
	}
	if _, err := once(t, l, "client", net.JoinHostPort(server, "8080"), ambitlab.Token("meshed")); err != nil {
		t.Errorf("the meshed client: %v", err)
	}
	// Probes come over IPv6 here, and are not plaintext of a stranger. One that
	// failed would show within two periods of a second.
	began := time.Now()
	ambitlab.Until(t, "probes of five seconds", func() (string, bool) {
		ready := l.Kubectl(t, "get", "pod", "-n", "shop", "server", "near", "-o",
			`jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}`)
		if ready != "True True" {
			t.Errorf("under STRICT, readiness of the servers: %s", ready)
		}
		return ready, time.Since(began) > 5*time.Second || ready != "True True"
	})
	l.Kubectl(t, "delete", "peerauthentication", "-n", "shop", "default")
}

// once makes a request from a pod of shop that must succeed, get one that is made
// again until it does; the path is a token to look for.
func once(t *testing.T, l *ambitlab.Lab, pod, to, token string) (string, error) {
	return l.GetOnce(t, "shop", pod, "http://"+to+"/"+token)
}

func get(t *testing.T, l *ambitlab.Lab, namespace, pod, to, token string) (string, error) {
	return l.Get(t, namespace, pod, "http://"+to+"/"+token)
}

// addresses are those of a pod. The cluster's first family is IPv6.
func addresses(t *testing.T, l *ambitlab.Lab, namespace, pod string) (v4, v6 string) {
	t.Helper()
	ips := strings.Fields(l.Kubectl(t, "get", "pod", "-n", namespace, pod, "-o", "jsonpath={.status.podIPs[*].ip}"))
	if len(ips) != 2 || strings.Contains(ips[1], ":") || !strings.Contains(ips[0], ":") {
		t.Fatalf("addresses of %s: %v", pod, ips)
	}
	return ips[1], ips[0]
}

// vip is a Service's IPv6 address with its port.
func vip(t *testing.T, l *ambitlab.Lab, name string) string {
	t.Helper()
	for _, ip := range strings.Fields(l.Kubectl(t, "get", "service", "-n", "shop", name, "-o", "jsonpath={.spec.clusterIPs[*]}")) {
		if strings.Contains(ip, ":") {
			return net.JoinHostPort(ip, "80")
		}
	}
	t.Fatalf("Service %s has no IPv6 address", name)
	return ""
}
