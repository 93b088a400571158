package server_test

import (
	"testing"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambitmesh/ambit/controller/wire"
)

// TestClientsSayTheirVersion: it is what ambit proxy-status shows beside a NACK.
func TestClientsSayTheirVersion(t *testing.T) {
	l := newLab(t)
	r := l.dial("node-1")
	err := r.stream.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: wire.TypeAddress, Node: &core.Node{Id: "ztunnel~1.1.1.1~z.ns",
		Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{"ISTIO_VERSION": structpb.NewStringValue("1.2.3")}}}})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the version is known", func() bool {
		c := l.server.Clients()
		return len(c) == 1 && c[0].Version == "1.2.3" && c[0].NodeID == "ztunnel~1.1.1.1~z.ns" && c[0].Cluster == "c1"
	})
}
