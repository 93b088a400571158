package client_test

import (
	"testing"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/xds/client"
)

// TestSettings: the mesh's settings reach a data plane with the first answer
// and at every change, and stay when the control plane does not know them.
//
//ambit:feature mesh-config-reload
func TestSettings(t *testing.T) {
	ln := listen(t, "127.0.0.1:0")
	c := serve(ln, mesh.NewStore())
	c.apply(mesh.Delta{Workloads: []*mesh.Workload{workload("a", 1)}})
	x, store := run(t, client.Config{Address: ln.Addr().String(), Token: secret})
	<-x.Synced()
	if _, known := store.Load().Settings(); known {
		t.Error("settings that nobody has said are known")
	}
	for _, want := range []mesh.Settings{{RegistryOnly: true}, {TrustDomainAliases: []string{"old.example"}}, {}, {RegistryOnly: true}} {
		c.apply(mesh.Delta{Settings: &want})
		eventually(t, "the settings", func() bool {
			got, known := store.Load().Settings()
			return known && got.Equal(want)
		})
	}
	c.stop()

	// A control plane that has not been able to read them takes nothing back.
	ln = listen(t, ln.Addr().String())
	c = serve(ln, mesh.NewStore())
	defer func() { c.stop() }()
	c.apply(mesh.Delta{Workloads: []*mesh.Workload{workload("b", 2)}})
	eventually(t, "the workload of the new control plane", func() bool { return store.Load().Workload("c//Pod/ns/b") != nil })
	if got, known := store.Load().Settings(); !known || !got.RegistryOnly {
		t.Errorf("settings are %+v, %t", got, known)
	}
	c.apply(mesh.Delta{Settings: &mesh.Settings{}})
	eventually(t, "its settings", func() bool {
		got, _ := store.Load().Settings()
		return !got.RegistryOnly
	})
}

// TestSyncedWithSettings: a data plane whose control plane has settings does
// not count as synced without them, or it would let out for a moment what the
// mesh does not.
//
//ambit:feature mesh-config-first
func TestSyncedWithSettings(t *testing.T) {
	ln := listen(t, "127.0.0.1:0")
	c := serve(ln, mesh.NewStore())
	defer c.stop()
	c.apply(mesh.Delta{Workloads: []*mesh.Workload{workload("a", 1)}, Settings: &mesh.Settings{RegistryOnly: true}})
	for range 30 {
		x, store := run(t, client.Config{Address: ln.Addr().String(), Token: secret})
		<-x.Synced()
		if got, known := store.Load().Settings(); !known || !got.RegistryOnly {
			t.Fatalf("synced with settings %+v, %t", got, known)
		}
	}
}
