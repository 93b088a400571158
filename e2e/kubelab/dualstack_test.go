package kubelab

import (
	"context"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestFamiliesOfOptions(t *testing.T) {
	one, both := Options{Nodes: 2}, Options{Nodes: 2, DualStack: true}
	first := Options{Nodes: 2, IPv6First: true}.withDefaults()
	for name, tc := range map[string]struct{ got, want string }{
		"pods, one family":     {strings.Join(one.podNetwork(2), " "), "10.244.2.0/24"},
		"pods, both":           {strings.Join(both.podNetwork(2), " "), "10.244.2.0/24 fd44:0:0:2::/64"},
		"services, both":       {both.joined(serviceCIDR, serviceCIDR6), "10.96.0.0/16,fd96::/112"},
		"services, IPv6 first": {first.joined(serviceCIDR, serviceCIDR6), "fd96::/112,10.96.0.0/16"},
		"pods, IPv6 first":     {strings.Join(first.podNetwork(1), " "), "fd44:0:0:1::/64 10.244.1.0/24"},
		"node, both":           {nodeIP6(2).String(), "fd30::c"},
		"one: no forwarding":   {one.forwarding(map[string]string{})["net/ipv6/conf/all/forwarding"], ""},
	} {
		if tc.got != tc.want {
			t.Errorf("%s: %q, want %q", name, tc.got, tc.want)
		}
	}
	for i := 0; i <= maxNodes; i++ {
		addrs := both.nodeAddresses(i)
		if len(addrs) != 2 || !addrs[0].Addr().Is4() || !addrs[1].Addr().Is6() {
			t.Errorf("addresses of node %d: %v", i, addrs)
		}
		for j := 0; j < i; j++ {
			if nodeIP6(i) == nodeIP6(j) || i > 0 && j > 0 && nodeCIDR6(i).Overlaps(nodeCIDR6(j)) || nodeIP6(i) == controlPlaneIP6 && i > 0 {
				t.Errorf("nodes %d and %d share addresses", i, j)
			}
		}
	}
	if got := len(both.podPaths(1)); got != 2 {
		t.Errorf("%d routes to the pods of one other node, want one per family", got)
	}
}

// TestDualStack: every way of IPv6 that the pods of a mesh can take.
func TestDualStack(t *testing.T) { testDualStack(t, start(t, Options{DNS: true, DualStack: true})) }

// TestIPv6First: also what asks for no family is IPv6, the API server included.
func TestIPv6First(t *testing.T) {
	c := start(t, Options{DNS: true, IPv6First: true})
	testDualStack(t, c)
	if ip := kubectl(t, c, "", "get", "pod", "one", "-o", "jsonpath={.status.podIP}"); !strings.Contains(ip, ":") {
		t.Errorf("status.podIP is %s", ip)
	}
	api := kubectl(t, c, "", "get", "service", "kubernetes", "-o", "jsonpath={.spec.clusterIP}")
	kubectl(t, c, "", "exec", "two", "--", "testapp", "connect", "-timeout=60s", net.JoinHostPort(api, "443"))
}

func testDualStack(t *testing.T, c *Cluster) {
	both := func(name, node string) string {
		return strings.Replace(podManifest(name, node, "kubelab.local/app:1"), "spec: {selector", "spec: {ipFamilyPolicy: RequireDualStack, selector", 1)
	}
	only6 := `
---
apiVersion: v1
kind: Service
metadata: {name: six}
spec: {ipFamilies: [IPv6], selector: {app: two}, ports: [{port: 80, targetPort: 8080}]}
`
	kubectl(t, c, both("one", "node1")+"---"+both("two", "node2")+only6, "create", "--validate=false", "-f", "-")
	kubectl(t, c, "", "wait", "--for=condition=Ready", "pod/one", "pod/two", "--timeout=4m")
	address := func(pod string) string {
		ips := strings.Fields(kubectl(t, c, "", "get", "pod", pod, "-o", "jsonpath={.status.podIPs[*].ip}"))
		i := slices.IndexFunc(ips, func(ip string) bool { return strings.Contains(ip, ":") })
		if len(ips) != 2 || i < 0 {
			t.Fatalf("addresses of %s: %v", pod, ips)
		}
		return ips[i]
	}
	one, two := address("one"), address("two")
	clusterIP := func(service string) string {
		ips := strings.Fields(kubectl(t, c, "", "get", "service", service, "-o", "jsonpath={.spec.clusterIPs[*]}"))
		i := slices.IndexFunc(ips, func(ip string) bool { return strings.Contains(ip, ":") })
		if i < 0 {
			t.Fatalf("addresses of service %s: %v", service, ips)
		}
		return ips[i]
	}
	for name, to := range map[string]string{
		"pod address":            net.JoinHostPort(two, "8080"),
		"address of dual-stack":  net.JoinHostPort(clusterIP("two"), "80"),
		"address of IPv6 only":   net.JoinHostPort(clusterIP("six"), "80"),
		"name with AAAA only":    "six.default.svc.cluster.local",
		"name of a dual service": "two.default.svc.cluster.local",
	} {
		t.Run(name, func(t *testing.T) {
			var out string
			eventually(t, "an answer", func() (string, bool) {
				var err error
				out, err = tryKubectl(t, c, "", "exec", "one", "--", "testapp", "get", "-timeout=2s", "http://"+to+"/")
				return out, err == nil
			})
			// A name with both may be dialled in either family.
			if !strings.Contains(out, "pod=two") || !strings.HasPrefix(name, "name of") && !strings.Contains(out, "client=["+one+"]:") {
				t.Errorf("%s to %s: %s", one, to, out)
			}
		})
	}
	n, err := c.Node("node1")
	if err != nil {
		t.Fatal(err)
	}
	for _, from := range []*Node{n, c.ControlPlane()} { // as the kubelet, and as the API server
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		conn, err := from.Dial(ctx, "tcp", net.JoinHostPort(two, "9090"))
		cancel()
		if err != nil {
			t.Errorf("%s: %v", from.Name, err)
			continue
		}
		conn.Close()
	}
	// After a reboot everything of IPv6 is there again.
	if err := n.Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the pod on the rebooted node", func() (string, bool) {
		out, err := tryKubectl(t, c, "", "exec", "two", "--", "testapp", "get", "-timeout=2s", "http://"+net.JoinHostPort(clusterIP("one"), "80")+"/")
		return out, err == nil && strings.Contains(out, "pod=one")
	})
}
