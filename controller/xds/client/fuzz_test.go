package client

import (
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/wire"
)

// Whatever a server says, the client answers it and keeps what it had, unless
// it was validly replaced or removed.
func FuzzHandle(f *testing.F) {
	kept := &mesh.Workload{UID: "kept", Namespace: "ns", Name: "kept"}
	b, err := wire.MarshalWorkload(&mesh.Workload{UID: "c//Pod/ns/a", Namespace: "ns", Name: "a"})
	if err != nil {
		f.Fatal(err)
	}
	p, err := wire.MarshalPolicy(&mesh.Policy{Namespace: "ns", Name: "p"})
	if err != nil {
		f.Fatal(err)
	}
	for _, r := range []*discovery.DeltaDiscoveryResponse{
		{},
		{TypeUrl: wire.TypeAddress, Nonce: "1", RemovedResources: []string{"", "x", "a/b", "kept"},
			Resources: []*discovery.Resource{{Name: "c//Pod/ns/a", Version: "1", Resource: &anypb.Any{TypeUrl: wire.TypeAddress, Value: b}}}},
		{TypeUrl: wire.TypeAuthorization, Nonce: "2", RemovedResources: []string{"ns/q"},
			Resources: []*discovery.Resource{{Name: "ns/p", Version: "1", Resource: &anypb.Any{TypeUrl: wire.TypeAuthorization, Value: p}}, nil}},
		{TypeUrl: wire.TypeAddress, Resources: []*discovery.Resource{{Name: "kept", Resource: &anypb.Any{TypeUrl: wire.TypeAddress, Value: []byte{0xff}}}}},
	} {
		b, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)/2])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var r discovery.DeltaDiscoveryResponse
		if proto.Unmarshal(b, &r) != nil {
			return
		}
		store := mesh.NewStore()
		first := mesh.NewBuilder(store.Load())
		first.Apply(mesh.Delta{Workloads: []*mesh.Workload{kept}})
		store.Swap(first.Build())
		c := New(Config{Store: store})
		a := c.handle(&r)
		if a.GetTypeUrl() != r.GetTypeUrl() || a.GetResponseNonce() != r.GetNonce() {
			t.Fatalf("answer %v to %v", a, &r)
		}
		if r.GetTypeUrl() != wire.TypeAddress && store.Load().Workload("kept") != kept {
			t.Fatal("a response of another type took a workload away")
		}
		if a.GetErrorDetail() != nil && len(r.GetRemovedResources()) == 0 && store.Load().Workload("kept") == nil {
			t.Fatal("a refused resource took a workload away")
		}
	})
}
