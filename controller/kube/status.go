package kube

import (
	"context"
	"encoding/json"
	"fmt"

	"google.golang.org/protobuf/types/known/timestamppb"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"istio.io/api/meta/v1alpha1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/ambitmesh/ambit/controller/translate"
)

// writeStatus brings the conditions of one AuthorizationPolicy to the
// translator's verdict.
//
// The CRD's condition list is atomic, so server-side apply by two managers
// would overwrite one another's conditions. A merge patch of the whole list
// with the resource version it was read at keeps the others' and loses no race.
func (w *writer) writeStatus(ctx context.Context, j job) error {
	w.mu.Lock()
	v, ok := w.verdicts[j]
	w.mu.Unlock()
	ap := get[*securityv1.AuthorizationPolicy](w.caches.policies, j.namespace+"/"+j.name)
	if !ok || ap == nil || ap.Generation != v.generation {
		return nil // gone, or a verdict on this version is on its way
	}
	conditions, changed := withCondition(ap.Status.Conditions, translate.ConditionZtunnelAccepted, v.condition, v.generation, timestamppb.Now())
	if !v.foreign {
		var more bool
		conditions, more = withCondition(conditions, translate.ConditionWaypointAccepted, v.waypoint, v.generation, timestamppb.Now())
		changed = changed || more
	}
	if !changed {
		return nil
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": ap.ResourceVersion},
		"status":   map[string]any{"conditions": conditions},
	})
	if err == nil {
		_, err = w.cfg.Istio.SecurityV1().AuthorizationPolicies(j.namespace).Patch(ctx, j.name, types.MergePatchType, patch,
			metav1.PatchOptions{FieldManager: fieldManager}, "status")
	}
	if apierrors.IsNotFound(err) {
		return nil
	}
	w.metrics.wrote("authorizationpolicy_status", err)
	if err != nil {
		return fmt.Errorf("status of AuthorizationPolicy %s/%s: %w", j.namespace, j.name, err)
	}
	return nil
}

// withCondition is have with want in place of the condition of that type, or
// without it when want is nil, and whether that differs.
func withCondition(have []*v1alpha1.IstioCondition, of string, want *translate.Condition, generation int64, now *timestamppb.Timestamp) ([]*v1alpha1.IstioCondition, bool) {
	out := []*v1alpha1.IstioCondition{} // not nil: a merge patch would drop the field
	var old *v1alpha1.IstioCondition
	for _, c := range have {
		if c.GetType() == of {
			old = c
		} else {
			out = append(out, c)
		}
	}
	if want == nil {
		return out, old != nil
	}
	status := "False"
	if want.True {
		status = "True"
	}
	c := &v1alpha1.IstioCondition{
		Type: want.Type, Status: status, Reason: want.Reason, Message: want.Message,
		ObservedGeneration: generation, LastTransitionTime: now,
	}
	if old.GetStatus() == status {
		c.LastTransitionTime = old.GetLastTransitionTime()
	}
	same := old != nil && old.GetStatus() == status && old.GetReason() == c.Reason &&
		old.GetMessage() == c.Message && old.GetObservedGeneration() == generation
	return append(out, c), !same
}
