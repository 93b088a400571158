package client

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambitmesh/ambit/controller/mesh"
)

// A pod that dials every address there is makes us remember only so many, and
// only its own are forgotten for it; the server is told.
func TestAbsentNamesAreBounded(t *testing.T) {
	d := New(Config{Store: mesh.NewStore(), OnDemand: true}).Demand()
	d.mode(false, true)
	var sent []string
	fetch := func(of, name string) {
		t.Helper()
		done := make(chan error, 1)
		go func() { done <- d.Fetch(context.Background(), of, name) }()
		for asked := false; !asked; {
			<-d.wake
			asks, giveUps := d.take()
			sent = append(sent, giveUps...)
			asked = slices.Contains(asks, name)
		}
		d.answered(nil, []string{name})
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	fetch("quiet", "/192.0.2.1")
	name := func(i int) string { return fmt.Sprintf("/10.1.%d.%d", i/250, i%250) }
	for i := range absentPerOwner + 100 {
		fetch("scanner", name(i))
	}
	if !d.Known("/192.0.2.1") || d.Known(name(0)) || !d.Known(name(absentPerOwner+99)) {
		t.Error("somebody else's names were forgotten, or not the oldest")
	}
	d.mu.Lock()
	n := len(d.names)
	d.mu.Unlock()
	_, giveUps := d.take()
	if sent = append(sent, giveUps...); n != absentPerOwner+1 || len(sent) != 100 || sent[0] != name(0) {
		t.Errorf("%d names, %d given up", n, len(sent))
	}
}

// The word of a server that may not tell when a name appears counts for a
// short time only.
func TestAbsenceWithoutWord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := New(Config{Store: mesh.NewStore(), OnDemand: true}).Demand()
		go func() { _ = d.Fetch(t.Context(), "pod", "/10.0.0.1") }()
		synctest.Wait()
		d.answered(nil, []string{"/10.0.0.1"})
		synctest.Wait()
		if !d.Known("/10.0.0.1") {
			t.Fatal("not remembered")
		}
		time.Sleep(absentFor)
		if d.Known("/10.0.0.1") {
			t.Error("remembered too long")
		}
		d.mode(false, true)
		if !d.Known("/10.0.0.1") {
			t.Error("a server that tells is not believed")
		}
		d.mode(true, false)
		if !d.Known("/10.0.0.7") {
			t.Error("a mesh that is sent whole is asked for single names")
		}
	})
}

// A question ends by itself, and an open one of another owner takes no turn of
// its own.
func TestFetchEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := New(Config{Store: mesh.NewStore(), OnDemand: true}).Demand()
		started := time.Now()
		errs := make(chan error)
		for i := range 3 * perOwner {
			go func() { errs <- d.Fetch(t.Context(), "pod", fmt.Sprintf("/10.0.0.%d", i)) }()
		}
		synctest.Wait()
		asks, _ := d.take()
		if len(asks) != perOwner {
			t.Errorf("%d names asked at once for one pod", len(asks))
		}
		go func() { errs <- d.Fetch(t.Context(), "other", "/10.0.1.1") }()
		synctest.Wait()
		if asks, _ := d.take(); len(asks) != 1 {
			t.Errorf("another pod's question waits: %v", asks)
		}
		for range 3*perOwner + 1 {
			if err := <-errs; err == nil {
				t.Error("no error")
			}
		}
		if took := time.Since(started); took != fetchLimit {
			t.Errorf("took %v", took)
		}
	})
}
