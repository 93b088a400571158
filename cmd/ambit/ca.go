package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambitmesh/ambit/controller/ca/rotation"
)

func caCommand(conn *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ca",
		Short: "Look at the certificate authority, and change its root",
		Long: "Look at the certificate authority, and change its root.\n\n" +
			"A change goes in four steps, while the mesh runs: the new root is made known, every ztunnel reports\n" +
			"that it has it, the new key signs, the old root is removed. A key of your own is changed by putting\n" +
			"the new one into Secret cacerts; the steps are the same.",
	}
	cmd.AddCommand(caStatusCommand(conn), caRotateCommand(conn), caContinueCommand(conn), caAbortCommand(conn), caRetireCommand(conn))
	return cmd
}

func caStatusCommand(conn *connection) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Which key signs, which roots are trusted, and what a change waits for",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := validOutput(output); err != nil {
				return err
			}
			c, err := conn.open()
			if err != nil {
				return err
			}
			s, err := c.caStatus(cmd.Context())
			if err != nil {
				return err
			}
			if s == nil {
				return fmt.Errorf("configmap %s/%s is not there: is a controller of this version running?", c.system, rotation.ConfigMap)
			}
			if output != "table" {
				return encode(cmd.OutOrStdout(), output, s)
			}
			return printCA(cmd.OutOrStdout(), *s)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table, json or yaml")
	return cmd
}

func printCA(w io.Writer, s rotation.Status) error {
	tw := tabwriter.NewWriter(w, 0, 4, 3, ' ', 0)
	when := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	fmt.Fprintf(tw, "phase\t%s\n", s.Phase)
	fmt.Fprintf(tw, "signs\t%s of Secret %s, until %s\n", s.Signer, s.Source, when(s.Expires))
	fmt.Fprintf(tw, "trusted\t%s\n", s.Roots)
	if n := s.Next; n != nil {
		fmt.Fprintf(tw, "next\t%s of Secret %s, begun at %s\n", n.Signer, n.Source, when(n.Began))
		if s.Phase == rotation.PhaseStalled {
			fmt.Fprintf(tw, "stalled\tnot everybody had the new root by %s; ambit ca continue\n", when(n.Deadline))
		}
		for _, who := range n.Waiting {
			fmt.Fprintf(tw, "waiting for\t%s\n", who)
		}
		if len(n.Without) > 0 {
			fmt.Fprintf(tw, "not waiting for\t%s\n", strings.Join(n.Without, ", "))
		}
	}
	for _, old := range s.Retired {
		fmt.Fprintf(tw, "old root\t%s, trusted until %s\n", old.Serial, when(old.Until))
	}
	if s.Problem != "" {
		fmt.Fprintf(tw, "problem\t%s\n", s.Problem)
	}
	return tw.Flush()
}

// caWait are the flags of the commands that can wait for their end.
type caWait struct {
	wait    bool
	timeout time.Duration
}

func (f *caWait) add(cmd *cobra.Command, until string) {
	cmd.Flags().BoolVar(&f.wait, "wait", false, "wait until "+until)
	cmd.Flags().DurationVar(&f.timeout, "timeout", 15*time.Minute, "how long to wait")
}

func caRotateCommand(conn *connection) *cobra.Command {
	var f caWait
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Replace the self-signed root with a new one",
		Long: "Replace the self-signed root with a new one.\n\nRefused while a change is under way, and when the key is plugged in:\n" +
			"then put the new key into Secret cacerts.\n\nExit code: 0 done, 1 refused, stalled or given up, 2 could not tell.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runCA(cmd, conn, f, "rotate") },
	}
	f.add(cmd, "the new key signs; the old root is trusted for a while after that")
	return cmd
}

func caContinueCommand(conn *connection) *cobra.Command {
	var f caWait
	var without []string
	cmd := &cobra.Command{
		Use:   "continue",
		Short: "Go on with a change that is stalled",
		Long: "Go on with a change that is stalled: wait again for those that lack the new root.\n\n" +
			"Who is named with --without, as ambit ca status names him, is not waited for. His connections fail from\n" +
			"the switch on, until he has heard of the new root.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(without) > 0 {
				return runCA(cmd, conn, f, "without", without...)
			}
			return runCA(cmd, conn, f, "continue")
		},
	}
	cmd.Flags().StringArrayVar(&without, "without", nil, "who need not have the new root; may be given several times")
	f.add(cmd, "the new key signs")
	return cmd
}

func caAbortCommand(conn *connection) *cobra.Command {
	return &cobra.Command{
		Use:   "abort",
		Short: "Give up a change of the self-signed root before the new key signs",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return runCA(cmd, conn, caWait{}, "abort") },
	}
}

func caRetireCommand(conn *connection) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "retire",
		Short: "Remove the old root now, before the last certificate of it has ended",
		Long: "Remove the old root now, before the last certificate of it has ended.\n\n" +
			"It is removed by itself when no certificate of it can be alive any more. Before that, connections\n" +
			"of workloads whose certificate is still of the old root fail until it is renewed. This is for an old key that\n" +
			"somebody else has.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !force {
				return errors.New("this breaks connections of workloads whose certificate is of the old root; --force if that is meant")
			}
			return runCA(cmd, conn, caWait{}, "retire")
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "break what still uses the old root")
	return cmd
}

// errRefused ends a command that the controller did not follow.
type errRefused struct{ why string }

func (e errRefused) Error() string { return "refused: " + e.why }
func (e errRefused) Unwrap() error { return errUnhealthy }

// runCA gives a command to the controller that leads, waits for its answer and,
// if that is asked for, for the switch.
func runCA(cmd *cobra.Command, conn *connection, f caWait, verb string, args ...string) error {
	c, err := conn.open()
	if err != nil {
		return err
	}
	ctx := cmd.Context()
	// Who may not read the answer gives no command: it would be followed unseen.
	if _, err := c.caStatus(ctx); err != nil {
		return err
	}
	answered, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	s, err := c.commandCA(answered, verb, args)
	if err != nil {
		return err
	}
	if s.Command.Refused != "" {
		fmt.Fprintln(cmd.ErrOrStderr(), "ambit:", errRefused{s.Command.Refused})
		return errUnhealthy
	}
	target := ""
	if s.Next != nil {
		target = s.Next.Signer
	}
	if f.wait {
		ctx, cancel := context.WithTimeout(ctx, f.timeout)
		defer cancel()
		if s, err = c.awaitSwitch(ctx, cmd.ErrOrStderr()); err != nil {
			return err
		}
	}
	if err := printCA(cmd.OutOrStdout(), s); err != nil {
		return err
	}
	switch {
	case !f.wait:
	case s.Phase == rotation.PhaseStalled, s.Phase == rotation.PhaseDistributing:
		return errUnhealthy
	case target != "" && s.Signer != target:
		fmt.Fprintf(cmd.ErrOrStderr(), "ambit: the change was given up: %s signs, and not %s\n", s.Signer, target)
		return errUnhealthy
	}
	return nil
}

// commandCA writes the command down and waits until the controller says what
// became of it.
func (c *cluster) commandCA(ctx context.Context, verb string, args []string) (rotation.Status, error) {
	id := rand.Text()
	text, err := json.Marshal(rotation.Command{ID: id, Verb: verb, Args: args})
	if err != nil {
		return rotation.Status{}, err
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]any{rotation.CommandAnnotation: string(text)}}})
	if err != nil {
		return rotation.Status{}, err
	}
	_, err = c.core.Secrets(c.system).Patch(ctx, rotation.StateSecret, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "ambit"})
	if err != nil {
		return rotation.Status{}, fmt.Errorf("secret %s/%s: %w", c.system, rotation.StateSecret, err)
	}
	for {
		s, err := c.caStatus(ctx)
		if err == nil && s != nil && s.Command != nil && s.Command.ID == id {
			return *s, nil
		}
		if !pause(ctx, 300*time.Millisecond) {
			return rotation.Status{}, fmt.Errorf("no controller has taken the command up: does one hold the Lease ambit-controller-leader? (%w)", errors.Join(err, ctx.Err()))
		}
	}
}

// awaitSwitch follows a change until the new key signs or it is stalled, and
// says on the way whom it waits for.
func (c *cluster) awaitSwitch(ctx context.Context, progress io.Writer) (rotation.Status, error) {
	said := ""
	var last rotation.Status
	for {
		s, err := c.caStatus(ctx)
		if err == nil && s != nil {
			last = *s
			if s.Phase != rotation.PhaseDistributing {
				return last, nil
			}
			if text := waitingFor(s.Next); text != said {
				said = text
				fmt.Fprintln(progress, text)
			}
		}
		if !pause(ctx, 500*time.Millisecond) {
			if last.Phase == "" {
				return last, errors.Join(err, ctx.Err())
			}
			return last, nil
		}
	}
}

// waitingFor is one line, however many there are.
func waitingFor(n *rotation.Next) string {
	const named = 5
	if n == nil || len(n.Waiting) == 0 {
		return "the new root is being made known"
	}
	text := "waiting for " + strings.Join(n.Waiting[:min(named, len(n.Waiting))], ", ")
	if more := len(n.Waiting) - named; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// rotation.Status is nil without an error when no controller has written it.
func (c *cluster) caStatus(ctx context.Context) (*rotation.Status, error) {
	cm, err := c.core.ConfigMaps(c.system).Get(ctx, rotation.ConfigMap, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || err == nil && cm.Data["status"] == "" {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("configmap %s/%s: %w", c.system, rotation.ConfigMap, err)
	}
	var s rotation.Status
	if err := json.Unmarshal([]byte(cm.Data["status"]), &s); err != nil {
		return nil, fmt.Errorf("configmap %s/%s: key status: %w", c.system, rotation.ConfigMap, err)
	}
	return &s, nil
}

// judgeCA is what ambit status says of the CA.
func judgeCA(s *rotation.Status, r *report) {
	if s == nil {
		return
	}
	if s.Problem != "" {
		r.Problems = append(r.Problems, "certificate authority: "+s.Problem)
	}
	switch s.Phase {
	case rotation.PhaseStalled:
		r.Problems = append(r.Problems, fmt.Sprintf("the change of the root certificate is stalled, %s: ambit ca status", waitingFor(s.Next)))
	case rotation.PhaseDistributing:
		r.Notes = append(r.Notes, "the root certificate is being changed: "+waitingFor(s.Next))
	case rotation.PhaseRetiring:
		var until time.Time
		for _, old := range s.Retired {
			if old.Until.After(until) {
				until = old.Until
			}
		}
		r.Notes = append(r.Notes, "the root certificate was changed; the old one is trusted until "+until.UTC().Format(time.RFC3339))
	}
}

// overdue folds what ztunnels say of their certificates into one note.
func overdue(cs []component) string {
	n, where := 0, ""
	for _, c := range cs {
		if c.Overdue > 0 {
			n += c.Overdue
			where = c.Node
		}
	}
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%s could not be had or renewed, on %s for one: the log of its ztunnel says why; an old one works until it ends",
		count(n, "certificate", "certificates"), where)
}

// pause waits for d and reports whether ctx is still alive.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
