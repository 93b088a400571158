package server

import (
	"strings"
	"testing"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"
)

func TestKindOf(t *testing.T) {
	node := func(id, version string) *core.Node {
		return &core.Node{Id: id, Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{"ISTIO_VERSION": structpb.NewStringValue(version)}}}
	}
	for _, c := range []struct {
		node          *core.Node
		kind, version string
	}{
		{nil, "unknown", "unknown"},
		{&core.Node{Id: "ztunnel~10.0.0.1~z.ns~ns.svc.cluster.local"}, "ztunnel", "unknown"},
		{node("waypoint~1.1.1.1~w.ns~x", "1.29.2-dev+abc"), "waypoint", "1.29.2-dev+abc"},
		{node("somebody~1.1.1.1", "a b\nc"), "unknown", "unknown"},
		{node("ztunnel", strings.Repeat("1", 65)), "ztunnel", "unknown"},
	} {
		if k, v := kindOf(c.node); k != c.kind || v != c.version {
			t.Errorf("%v: %q, %q", c.node, k, v)
		}
	}
}
