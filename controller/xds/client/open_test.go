package client

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/prometheus/client_golang/prometheus"
)

// TestOpenQuestions: what one pod asks while no control plane answers is kept for the
// next stream, and is bounded; other pods are not touched by it.
func TestOpenQuestions(t *testing.T) {
	d := newDemand(mesh.NewStore(), prometheus.NewCounterVec(prometheus.CounterOpts{Name: "questions"}, []string{"answer"}))
	name := func(i int) string {
		return mesh.AddressName("", netip.MustParseAddr(fmt.Sprintf("10.0.%d.%d", i/256, i%256)))
	}
	o, other := d.enter("pod"), d.enter("other")
	for i := range openPerOwner {
		if _, ok := d.ask("pod", o, name(i)); !ok {
			t.Fatalf("question %d was not asked", i)
		}
	}
	if err := d.Fetch(context.Background(), "pod", name(openPerOwner)); !errors.Is(err, ErrUnanswered) {
		t.Errorf("one too many: %v", err)
	}
	if _, ok := d.ask("pod", o, name(0)); !ok {
		t.Error("nobody else may wait for what is asked already")
	}
	if _, ok := d.ask("other", other, name(openPerOwner)); !ok {
		t.Error("another pod was kept from asking")
	}
	if n := len(d.begin()); n != openPerOwner+1 {
		t.Errorf("%d names on the next stream", n)
	}
	d.answered(nil, []string{name(0)})
	if _, ok := d.ask("pod", o, name(openPerOwner+1)); !ok {
		t.Error("an answer made no room")
	}
	d.leave("pod", o)
	d.leave("other", other)
	d.mode(true, true)
	if o.open != 0 || other.open != 0 || len(d.owners) != 0 || len(d.names) != 0 {
		t.Errorf("open %d, %d; %d owners and %d names are left", o.open, other.open, len(d.owners), len(d.names))
	}
}

// TestLessThanEverything: what a server sent that sends everything is not taken for
// everything any more when another one answers, of whatever type its answer is.
func TestLessThanEverything(t *testing.T) {
	d := newDemand(mesh.NewStore(), prometheus.NewCounterVec(prometheus.CounterOpts{Name: "questions"}, []string{"answer"}))
	const name = "/10.0.0.1"
	d.server(true, true)
	if d.Known(name) {
		t.Error("known before anything was sent")
	}
	d.mode(true, false)
	d.begin()
	d.server(true, true)
	if !d.Known(name) {
		t.Error("a server that sends everything again is asked")
	}
	d.begin()
	d.server(false, false)
	if d.Known(name) {
		t.Error("what another server sent counts as everything")
	}
}
