package main

import (
	"bytes"
	"testing"
	"time"
)

// foreignDump is what Istio's ztunnel answers: a network in addresses, optional
// objects null or missing, a map where others have a list, words that we do not
// use.
const foreignDump = `{
 "workloads": [
  {"workloadIps": ["10.0.0.1"], "protocol": "HBONE", "networkMode": "Standard", "uid": "east//Pod/shop/cart-1", "name": "cart-1", "namespace": "shop",
   "trustDomain": "td", "serviceAccount": "cart", "network": "net1", "node": "n1", "waypoint": {"destination": "net1/10.1.0.9", "hboneMtlsPort": 15008},
   "authorizationPolicies": ["shop/own"], "status": "Healthy", "clusterId": "east", "locality": {"region": "r"}, "services": ["shop/cart.shop.svc.cluster.local"], "capacity": 1},
  {"workloadIps": [], "protocol": "TCP", "networkMode": "HostNetwork", "uid": "east/networking.istio.io/WorkloadEntry/shop/vm", "name": "vm", "namespace": "shop",
   "hostname": "vm.example", "networkGateway": {"destination": "net2/192.0.2.1", "hboneMtlsPort": 15008}, "status": "Unhealthy", "clusterId": "east", "capacity": 3}
 ],
 "services": {"shop/cart.shop.svc.cluster.local":
  {"name": "cart", "namespace": "shop", "hostname": "cart.shop.svc.cluster.local", "vips": ["net1/10.1.0.1"], "ports": {"80": 8080}, "loadBalancer": null, "ipFamilies": "IPv4",
   "endpoints": {"east//Pod/shop/cart-1": {"workloadUid": "east//Pod/shop/cart-1", "service": "", "port": {"80": 8080}, "status": "Healthy"}}, "waypoint": {"destination": "shop/waypoint.shop.svc.cluster.local", "hboneMtlsPort": 15008}},
  "shop/waypoint.shop.svc.cluster.local":
  {"name": "waypoint", "namespace": "shop", "hostname": "waypoint.shop.svc.cluster.local", "vips": ["net1/10.1.0.9"], "ports": {}, "endpoints": {}, "subjectAltNames": []}},
 "policies": [{"name": "own", "namespace": "shop", "scope": "WorkloadSelector", "action": "Allow", "rules": [[[{"principals": [{"Exact": "a"}]}]]], "dryRun": true}],
 "stagedServices": {}, "staticConfig": {}, "version": {"rustVersion": "1.90"}, "config": {"secretTtl": {"secs": 86400, "nanos": 0}},
 "certificates": [{"identity": "spiffe://td/ns/shop/sa/cart", "state": "Available",
   "certChain": [{"pem": "eA==", "serialNumber": "11", "validFrom": "2026-01-01T00:00:00Z", "expirationTime": "2026-01-02T00:00:00Z"}], "rootCerts": []},
  {"identity": "spiffe://td/ns/shop/sa/new", "state": "Initializing", "certChain": null, "rootCerts": null}],
 "workloadState": {"uid": {"state": "Up", "connections": {"inbound": [{"src": "10.0.0.2:1", "originalDst": null, "actualDst": "10.0.0.1:15008", "protocol": "HBONE"}], "outbound": []},
   "info": {"name": "cart-1", "namespace": "shop", "serviceAccount": "cart"}}}
}`

// TestForeignDump: the dump of Istio's ztunnel is shown in the same tables.
//
//ambit:feature cli-foreign-ztunnel
func TestForeignDump(t *testing.T) {
	d, err := parseDump([]byte(foreignDump))
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := allTables(&b, d.filter(dumpFilter{}), namesOf(d), tableOptions{headers: true, now: time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)}); err != nil {
		t.Fatal(err)
	}
	const want = `WORKLOAD INFO
NAMESPACE|POD NAME|ADDRESS|NODE|WAYPOINT|PROTOCOL
shop|cart-1|10.0.0.1|n1|waypoint|HBONE
shop|vm|None|TCP

SERVICE INFO
NAMESPACE|SERVICE NAME|SERVICE VIP|WAYPOINT|ENDPOINTS
shop|cart|10.1.0.1|waypoint|1/1
shop|waypoint|10.1.0.9|None|0/0

POLICY INFO
NAMESPACE|POLICY NAME|ACTION|SCOPE
shop|own|Allow|WorkloadSelector

SECRET INFO
CERTIFICATE NAME|TYPE|STATUS|VALID CERT|SERIAL NUMBER|NOT AFTER|NOT BEFORE
spiffe://td/ns/shop/sa/cart|Leaf|Available|true|b|2026-01-02T00:00:00Z|2026-01-01T00:00:00Z
spiffe://td/ns/shop/sa/new|NA|Initializing|false|NA|NA|NA

CONNECTIONS INFO
WORKLOAD|DIRECTION|LOCAL|REMOTE|REMOTE TARGET|PROTOCOL
cart-1.shop|Inbound|cart-1.shop:15008|10.0.0.2:1|HBONE`
	if got := cells(b.String()); got != want {
		t.Errorf("\n%s\nwant\n%s", got, want)
	}
}
