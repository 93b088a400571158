package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambitmesh/ambit/controller/ca"
	"github.com/ambitmesh/ambit/controller/ca/rotation"
)

// replicaPrefix begins a replica's key of rotation.ConfigMap; holders is its value.
const replicaPrefix = "replica-"

// holders is a replica's key.
type holders struct {
	Roots string   `json:"roots"` // hash
	Pods  []string `json:"pods"`  // UIDs, sorted
}

// maxNamed bounds how many of those that lack the roots are listed.
const maxNamed = 200

func (r *Rotation) status(out ca.Outcome, wish *ca.Wish, answer *rotation.Answer) rotation.Status {
	rec := out.Record
	_, expires := rec.Signer.Expiry()
	s := rotation.Status{Phase: rec.Phase(), Source: rec.Source, Signer: rec.Signer.Fingerprint(), Expires: expires.UTC(),
		Roots: ca.Hash(rec.Bundle()), Command: answer}
	if n := rec.Next; n != nil {
		waiting := out.Waiting
		if len(waiting) > maxNamed {
			waiting = append(slices.Clone(waiting[:maxNamed]), fmt.Sprintf("%d more", len(waiting)-maxNamed))
		}
		s.Next = &rotation.Next{Source: n.Source, Signer: n.Fingerprint, Began: n.Began, Deadline: n.Deadline, Waiting: waiting, Without: n.Without}
	}
	for _, old := range rec.Retired {
		s.Retired = append(s.Retired, rotation.Retired{Serial: fmt.Sprintf("%x", old.Root.SerialNumber), Until: old.Until})
	}
	switch {
	case wish == nil:
		s.Problem = fmt.Sprintf("secret %s/%s is gone; its key goes on signing from Secret %s", r.cfg.Namespace, rec.Source, rotation.StateSecret)
	case wish.Err != nil:
		s.Problem = strings.ReplaceAll(wish.Err.Error(), "\n", "; ") + "; the key in force goes on signing"
	}
	return s
}

// writeStatus publishes s, and takes off the reports of replicas when nobody
// waits for them.
func (r *Rotation) writeStatus(ctx context.Context, s rotation.Status) error {
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	patch := map[string]any{}
	have := get[*corev1.ConfigMap](r.report, r.cfg.Namespace+"/"+rotation.ConfigMap)
	if have == nil || have.Data[rotation.StatusKey] != string(text) {
		patch[rotation.StatusKey] = string(text)
	}
	if have != nil && s.Next == nil {
		for k := range have.Data {
			if strings.HasPrefix(k, replicaPrefix) {
				patch[k] = nil
			}
		}
	}
	return r.patchReport(ctx, patch)
}

// reportHolders publishes which of this replica's clients have the roots of
// record.
func (r *Rotation) reportHolders(ctx context.Context, record *ca.Record) {
	h := holders{Roots: ca.Hash(record.Bundle()), Pods: []string{}}
	for uid, hash := range r.cfg.Holders() {
		if hash == h.Roots && uid != "" {
			h.Pods = append(h.Pods, uid)
		}
	}
	slices.Sort(h.Pods)
	text, err := json.Marshal(h)
	if err != nil {
		return
	}
	k := replicaPrefix + r.cfg.Replica
	if have := get[*corev1.ConfigMap](r.report, r.cfg.Namespace+"/"+rotation.ConfigMap); have != nil && have.Data[k] == string(text) {
		return
	}
	if err := r.patchReport(ctx, map[string]any{k: string(text)}); err != nil && ctx.Err() == nil {
		r.cfg.Logger.Warn("cannot report which clients have the new root, trying on", "error", err)
	}
}

// holders says of a pod whether any replica has reported it to have the roots
// of that hash. What a replica that is gone has said stays true: a data plane
// does not lose roots but by ending.
func (r *Rotation) holders(hash string) func(podUID string) bool {
	all := map[string]bool{}
	if have := get[*corev1.ConfigMap](r.report, r.cfg.Namespace+"/"+rotation.ConfigMap); have != nil {
		for k, text := range have.Data {
			var h holders
			if !strings.HasPrefix(k, replicaPrefix) || json.Unmarshal([]byte(text), &h) != nil || h.Roots != hash {
				continue
			}
			for _, uid := range h.Pods {
				all[uid] = true
			}
		}
	}
	for uid, has := range r.cfg.Holders() {
		if has == hash {
			all[uid] = true
		}
	}
	return func(uid string) bool { return all[uid] }
}

func (r *Rotation) patchReport(ctx context.Context, data map[string]any) error {
	if len(data) == 0 {
		return nil
	}
	body, err := json.Marshal(map[string]any{"data": data})
	if err != nil {
		return err
	}
	client := r.cfg.Client.CoreV1().ConfigMaps(r.cfg.Namespace)
	_, err = client.Patch(ctx, rotation.ConfigMap, types.MergePatchType, body, metav1.PatchOptions{FieldManager: fieldManager})
	if apierrors.IsNotFound(err) {
		m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: rotation.ConfigMap, Namespace: r.cfg.Namespace}, Data: map[string]string{}}
		for k, v := range data {
			if text, ok := v.(string); ok {
				m.Data[k] = text
			}
		}
		_, err = client.Create(ctx, m, metav1.CreateOptions{FieldManager: fieldManager})
	}
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("ConfigMap %s/%s: %w", r.cfg.Namespace, rotation.ConfigMap, err)
	}
	return nil
}
