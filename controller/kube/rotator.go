package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambitmesh/ambit/controller/ca"
	"github.com/ambitmesh/ambit/controller/ca/rotation"
)

// Verbs that are followed by writing the Secret in which the operator says what
// is wanted; the others are ca's.
const (
	commandRotate = "rotate" // a new self-signed root
	commandAbort  = "abort"  // back to what is in force
)

// comeBack is how long the watch may take to bring what was written.
const comeBack = 10 * time.Second

// idle is how often what is settled is looked at without an event; roots that
// go have a time of their own.
const idle = 30 * time.Second

// Lead takes the steps, for as long as this replica holds the Lease.
func (r *Rotation) Lead(term context.Context) {
	if awaitSync(term, r.synced()...) != nil {
		return
	}
	defer r.metrics.waiting.Set(0)
	defer r.metrics.intact.Reset()
	var answer *rotation.Answer
	logged := ""
	began := time.Now()
	for {
		wait, err := r.step(term, time.Since(began), &answer)
		if err != nil && term.Err() == nil && err.Error() != logged {
			r.cfg.Logger.Warn("change of the CA: trying on", "error", err)
		}
		if logged = ""; err != nil {
			logged, wait = err.Error(), glance
		}
		timer := time.NewTimer(wait)
		select {
		case <-term.Done():
			timer.Stop()
			return
		case <-r.lead:
			// Not at once: what was written comes back as an event.
			timer.Reset(glance / 10)
			select {
			case <-timer.C:
			case <-term.Done():
				timer.Stop()
				return
			}
		case <-timer.C:
		}
	}
}

// step looks at everything once and takes the step that is due. leading is for
// how long this replica has done so, answer what became of the last command.
func (r *Rotation) step(ctx context.Context, leading time.Duration, answer **rotation.Answer) (wait time.Duration, err error) {
	record, state, err := r.current()
	if err != nil {
		return glance, r.restore(ctx, record, state)
	}
	cmd, bad := commandOf(state)
	wish := r.wish(record)
	s := ca.Situation{Now: time.Now().UTC(), Wish: wish, Timeout: r.cfg.Timeout, Leading: leading, TTL: r.cfg.Ring.TTL()}
	refused := bad
	switch cmd.Verb {
	case commandRotate:
		var generated bool
		if generated, refused = r.rotate(ctx, record, wish); generated && record.Source == PluggedInSecret {
			again := *record
			again.Source = SelfSignedSecret
			record = &again
		}
		s.Wish = r.wish(record)
	case commandAbort:
		// The old key is wished for from here on; by what was wished for, this
		// very step might switch.
		if refused = r.abort(ctx, record); refused == nil {
			s.Wish = &ca.Wish{Source: SelfSignedSecret, Authority: record.Signer}
		}
	default:
		s.Command = ca.Command{Verb: cmd.Verb, Args: cmd.Args}
	}
	if errors.Is(refused, errLate) || apierrors.ReasonForError(refused) != metav1.StatusReasonUnknown {
		return 0, refused // the API server's word, not ours on the command: it is tried again
	}
	if record.Next != nil {
		s.Lacking = r.cfg.Lacking(r.holders(ca.Hash(record.Bundle())))
	}
	out := record.Step(s)
	refused = errors.Join(refused, out.Refused)
	if err := r.write(ctx, state, out.Record, cmd); err != nil {
		return 0, err
	}
	for _, e := range out.Events {
		r.cfg.Logger.Info("change of the CA: " + e)
	}
	if cmd.ID != "" {
		*answer = &rotation.Answer{ID: cmd.ID, Verb: cmd.Verb}
		if refused != nil {
			(*answer).Refused = refused.Error()
			r.cfg.Logger.Warn("change of the CA: command refused", "command", cmd.Verb, "error", refused)
		}
	}
	r.metrics.waiting.Set(float64(len(out.Waiting)))
	r.metrics.secret(r.wishName(wish, out.Record), wish != nil && wish.Err == nil)
	status := r.status(out, wish, *answer)
	r.sayProblem(status.Problem)
	if err := r.writeStatus(ctx, status); err != nil {
		return 0, err
	}
	if len(out.Events) > 0 {
		return 0, nil // there may be more to do
	}
	return r.untilNext(out.Record), nil
}

// sayProblem logs what is wrong with what is wanted, once.
func (r *Rotation) sayProblem(problem string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case problem == r.problem:
	case problem == "":
		r.cfg.Logger.Info("the CA's Secret can be used again")
	default:
		r.cfg.Logger.Error("the CA's Secret cannot be followed", "error", problem)
	}
	r.problem = problem
}

// untilNext is when something changes by itself.
func (r *Rotation) untilNext(record *ca.Record) time.Duration {
	if record.Next != nil {
		return glance
	}
	wait := idle
	for _, old := range record.Retired {
		wait = min(wait, max(0, time.Until(old.Until)))
	}
	return wait
}

func (r *Rotation) wishName(w *ca.Wish, record *ca.Record) string {
	if w != nil {
		return w.Source
	}
	return record.Source
}

func commandOf(state *corev1.Secret) (cmd rotation.Command, err error) {
	text := state.Annotations[rotation.CommandAnnotation]
	if text == "" {
		return cmd, nil
	}
	if err := json.Unmarshal([]byte(text), &cmd); err != nil {
		return rotation.Command{ID: "unknown"}, fmt.Errorf("annotation %s of Secret %s/%s: %w", rotation.CommandAnnotation, state.Namespace, state.Name, err)
	}
	if cmd.ID == "" {
		cmd.ID = "unnamed"
	}
	return cmd, nil
}

// write puts record into the state Secret unless it is there, and takes the
// command off. That the Secret is still what was decided on is left to the API
// server, so that of two that believe to lead one wins.
func (r *Rotation) write(ctx context.Context, state *corev1.Secret, record *ca.Record, cmd rotation.Command) error {
	if cmd.ID == "" && holds(state, record) {
		return nil
	}
	data, err := record.SecretData()
	if err != nil {
		return err
	}
	next := state.DeepCopy()
	next.Data = data
	delete(next.Annotations, rotation.CommandAnnotation)
	written, err := r.cfg.Client.CoreV1().Secrets(r.cfg.Namespace).Update(ctx, next, metav1.UpdateOptions{FieldManager: fieldManager})
	if err != nil {
		return fmt.Errorf("write Secret %s/%s: %w", r.cfg.Namespace, rotation.StateSecret, err)
	}
	// Not taken up here but when it comes back through the watch: this replica
	// then never acts on what another one has overwritten.
	if err := r.awaitChange(ctx, rotation.StateSecret, state, written); err != nil {
		return err
	}
	_, _, err = r.current()
	return err
}

// errLate says that the watch is behind what was written.
var errLate = errors.New("what was written has not come back")

// awaitChange waits until the watch has brought what was written over have, or
// what somebody has made of it since.
func (r *Rotation) awaitChange(ctx context.Context, name string, have, written *corev1.Secret) error {
	for deadline := time.Now().Add(comeBack); ; {
		now := get[*corev1.Secret](r.secrets[name], r.cfg.Namespace+"/"+name)
		if now != nil && (have == nil || now.ResourceVersion != have.ResourceVersion || now.ResourceVersion == written.ResourceVersion) {
			return nil
		}
		if time.Now().After(deadline) || !pause(ctx, 10*time.Millisecond) {
			return fmt.Errorf("secret %s/%s: %w", r.cfg.Namespace, name, errLate)
		}
	}
}

// restore writes the last good record back.
func (r *Rotation) restore(ctx context.Context, record *ca.Record, state *corev1.Secret) error {
	data, err := record.SecretData()
	if err != nil {
		return err
	}
	secrets := r.cfg.Client.CoreV1().Secrets(r.cfg.Namespace)
	if state == nil {
		_, err = secrets.Create(ctx, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: rotation.StateSecret, Namespace: r.cfg.Namespace}, Type: "ambitmesh.io/ca-state", Data: data,
		}, metav1.CreateOptions{FieldManager: fieldManager})
		if apierrors.IsAlreadyExists(err) {
			return nil // the watch is about to say so
		}
	} else {
		next := state.DeepCopy()
		next.Data = data
		_, err = secrets.Update(ctx, next, metav1.UpdateOptions{FieldManager: fieldManager})
	}
	if err != nil {
		return fmt.Errorf("restore Secret %s/%s: %w", r.cfg.Namespace, rotation.StateSecret, err)
	}
	r.cfg.Logger.Info("the Secret of what is in force was restored", "secret", r.cfg.Namespace+"/"+rotation.StateSecret)
	return nil
}

// rotate makes a new self-signed root the wish. An error of the API server
// leaves the command standing; any other one refuses it.
func (r *Rotation) rotate(ctx context.Context, record *ca.Record, wish *ca.Wish) (bool, error) {
	switch {
	case wish != nil && wish.Source == PluggedInSecret:
		return false, fmt.Errorf("the key is plugged in: put the new one into Secret %s/%s", r.cfg.Namespace, PluggedInSecret)
	case record.Next != nil:
		return false, errors.New("a change is under way already: ambit ca status")
	case wish != nil && wish.Err == nil && wish.Authority.Fingerprint() != record.Signer.Fingerprint():
		return true, nil // a leader before us got as far as this
	}
	data, err := r.cfg.Generate()
	if err != nil {
		return false, fmt.Errorf("make a self-signed CA: %w", err)
	}
	return true, r.writeWish(ctx, data)
}

// abort makes what is in force the wish again.
func (r *Rotation) abort(ctx context.Context, record *ca.Record) error {
	switch {
	case record.Next == nil:
		return errors.New("the new key signs already, or no change is under way: the way back is another change")
	case record.Next.Source == PluggedInSecret:
		return fmt.Errorf("the new key is plugged in: put the old one back into Secret %[1]s/%[2]s, or delete it if the old one was not from there", r.cfg.Namespace, PluggedInSecret)
	}
	return r.writeWish(ctx, record.Signer.SecretData())
}

// writeWish fills the self-signed Secret, and waits until the watch has it.
func (r *Rotation) writeWish(ctx context.Context, data map[string][]byte) error {
	secrets := r.cfg.Client.CoreV1().Secrets(r.cfg.Namespace)
	have := get[*corev1.Secret](r.secrets[SelfSignedSecret], r.cfg.Namespace+"/"+SelfSignedSecret)
	var written *corev1.Secret
	var err error
	if have == nil {
		written, err = secrets.Create(ctx, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: SelfSignedSecret, Namespace: r.cfg.Namespace}, Type: "istio.io/ca-root", Data: data,
		}, metav1.CreateOptions{FieldManager: fieldManager})
	} else {
		next := have.DeepCopy()
		next.Data = data
		written, err = secrets.Update(ctx, next, metav1.UpdateOptions{FieldManager: fieldManager})
	}
	if err != nil {
		return fmt.Errorf("write Secret %s/%s: %w", r.cfg.Namespace, SelfSignedSecret, err)
	}
	return r.awaitChange(ctx, SelfSignedSecret, have, written)
}
