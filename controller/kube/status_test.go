package kube

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"istio.io/api/meta/v1alpha1"

	"github.com/ambitmesh/ambit/controller/translate"
)

func TestWithCondition(t *testing.T) {
	then, now := timestamppb.New(time.Unix(1, 0)), timestamppb.New(time.Unix(2, 0))
	others := &v1alpha1.IstioCondition{Type: "WaypointAccepted", Status: "True"}
	ours := func(status, message string, generation int64) *v1alpha1.IstioCondition {
		return &v1alpha1.IstioCondition{Type: "ZtunnelAccepted", Status: status, Reason: "Accepted", Message: message, ObservedGeneration: generation, LastTransitionTime: then}
	}
	want := &translate.Condition{Type: "ZtunnelAccepted", True: true, Reason: "Accepted", Message: "m"}
	for _, c := range []struct {
		name    string
		have    []*v1alpha1.IstioCondition
		want    *translate.Condition
		changed bool
		types   int
		since   *timestamppb.Timestamp // of ours
	}{
		{"none yet", nil, want, true, 1, now},
		{"beside another's", []*v1alpha1.IstioCondition{others}, want, true, 2, now},
		{"already so", []*v1alpha1.IstioCondition{ours("True", "m", 3), others}, want, false, 2, then},
		{"of an older generation", []*v1alpha1.IstioCondition{ours("True", "m", 2)}, want, true, 1, then},
		{"another message", []*v1alpha1.IstioCondition{ours("True", "x", 3)}, want, true, 1, then},
		{"turns true", []*v1alpha1.IstioCondition{ours("False", "m", 3)}, want, true, 1, now},
		{"no longer applies", []*v1alpha1.IstioCondition{ours("True", "m", 3), others}, nil, true, 1, nil},
		{"never applied", []*v1alpha1.IstioCondition{others}, nil, false, 1, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, changed := withCondition(c.have, translate.ConditionZtunnelAccepted, c.want, 3, now)
			if changed != c.changed || len(out) != c.types {
				t.Errorf("changed %t, %d conditions; want %t, %d", changed, len(out), c.changed, c.types)
			}
			for _, o := range out {
				if o.Type == "ZtunnelAccepted" && o.LastTransitionTime != c.since {
					t.Errorf("transition at %v, want %v", o.LastTransitionTime, c.since)
				}
			}
		})
	}
}
