package kube

import (
	"fmt"
	"testing"

	"k8s.io/client-go/util/workqueue"

	"github.com/ambitmesh/ambit/controller/translate"
)

// A replica that does not hold the Lease gathers no names of what comes and
// goes, and one that does gets every one.
func TestDutiesOfTheHolder(t *testing.T) {
	tr, a := allocating(t, "240.240.0.0/16")
	b := newBindings(tr.cfg, tr.caches, tr.metrics)
	w, err := newWriter(tr.cfg, tr.caches, tr.metrics)
	if err != nil {
		t.Fatal(err)
	}
	churn := func() {
		for i := range 100 {
			name := fmt.Sprint("e", i)
			a.want("ns/"+name, []string{"h.example"}, true)
			a.want("ns/"+name, nil, false)
			k := key{kindServiceEntry, "ns", name}
			b.want(k, []translate.Condition{{Type: translate.ConditionWaypointBound}})
			b.want(k, nil)
			w.want(policyVerdict{namespace: "ns", name: name})
			w.want(policyVerdict{namespace: "ns", name: name, deleted: true})
		}
	}
	length := func() [3]int { return [3]int{a.queue.Len(), b.queue.Len(), w.queue.Len()} }
	churn()
	if got := length(); got != [3]int{} {
		t.Errorf("without the Lease %v wait", got)
	}
	for _, leave := range []func(){a.queue.take(), b.queue.take(), w.queue.take()} {
		defer leave()
	}
	churn()
	if got := length(); got != [3]int{100, 100, 100} {
		t.Errorf("with the Lease %v wait", got)
	}
}

// Between terms nothing is taken in.
func TestDutiesAfterATerm(t *testing.T) {
	d := newDuties(workqueue.DefaultTypedControllerRateLimiter[string]())
	leave := d.take()
	d.Add("a")
	leave()
	d.Add("b")
	if d.Len() != 1 {
		t.Errorf("%d wait", d.Len())
	}
}
