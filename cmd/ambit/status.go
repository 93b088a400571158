package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

func statusCommand(conn *connection) *cobra.Command {
	var namespace, output string
	var wait bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "status",
		Short: "What is captured, what is not and why, and who answers",
		Long: "What is captured, what is not and why, and which components answer with which version.\n\n" +
			"Exit code: 0 healthy, 1 not, 2 could not tell.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, ctx, cancel, err := conn.begin(cmd.Context(), output, timeout)
			if err != nil {
				return err
			}
			defer cancel()
			r, err := ask(ctx, c, namespace, wait)
			if err != nil {
				return err
			}
			if err := printReport(cmd.OutOrStdout(), output, r); err != nil {
				return err
			}
			if !r.Healthy {
				return errUnhealthy
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "only pods of this namespace (default: all)")
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table, json or yaml")
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until healthy, at most --timeout")
	cmd.Flags().DurationVar(&timeout, "timeout", time.Minute, "how long to ask, or to wait")
	return cmd
}

// ask judges the cluster once, or until the answer is "healthy" or the time is
// up; then the last answer counts.
func ask(ctx context.Context, c *cluster, namespace string, wait bool) (report, error) {
	var last *report
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		f, err := c.facts(ctx, namespace)
		switch {
		case err == nil:
			r := judge(f)
			if r.Healthy || !wait {
				return r, nil
			}
			last = &r
		case last == nil:
			return report{}, err
		}
		// A cluster that has answered once is asked again after an error: it
		// passes, or it is that the time is nearly up.
		select {
		case <-ctx.Done():
			return *last, nil
		case <-tick.C:
		}
	}
}

func printReport(w io.Writer, output string, r report) error {
	if output != "table" {
		return encode(w, output, r)
	}
	if r.Healthy {
		fmt.Fprintln(w, "Ambit is healthy.")
	} else {
		fmt.Fprintln(w, "Ambit is NOT healthy.")
	}
	fmt.Fprintln(w)
	tw := tabwriter.NewWriter(w, 0, 4, 3, ' ', 0)
	for _, part := range parts {
		e, ok := r.Installed[part]
		if !ok {
			fmt.Fprintf(tw, "%s\tnot installed\t\n", part)
			continue
		}
		v := versions(part, r.Components)
		if v != "" {
			v = "version " + v
		}
		fmt.Fprintf(tw, "%s\t%d of %d ready\t%s\n", part, e.Ready, e.Want, v)
	}
	fmt.Fprintf(tw, "pods\t%d of %d captured\t%s\n", r.Counts[stateCaptured], r.Counts[stateCaptured]+r.Counts[stateMissing], others(r.Counts))
	if err := tw.Flush(); err != nil {
		return err
	}
	printList(w, "Problems", r.Problems)
	printList(w, "Notes", r.Notes)
	return printPods(w, r.Pods)
}

func others(counts map[state]int) string {
	s := ""
	for _, st := range []state{stateStarting, stateLeaving, stateRefused} {
		if n := counts[st]; n > 0 {
			s += fmt.Sprintf("%d %s ", n, st)
		}
	}
	return s
}

func printList(w io.Writer, title string, lines []string) {
	if len(lines) == 0 {
		return
	}
	fmt.Fprintf(w, "\n%s:\n", title)
	for _, l := range lines {
		fmt.Fprintf(w, "  %s\n", l)
	}
}

// printPods shows the pods that somebody should look at; -o json has them all.
func printPods(w io.Writer, pods []podReport) error {
	tw := tabwriter.NewWriter(w, 0, 4, 3, ' ', 0)
	title := "\nNAMESPACE\tPOD\tNODE\tSTATE\tWHY\n"
	for _, p := range pods {
		if p.State == stateCaptured || p.State == stateOutside {
			continue
		}
		fmt.Fprintf(tw, "%s%s\t%s\t%s\t%s\t%s\n", title, p.Namespace, p.Pod, p.Node, p.State, p.Reason)
		title = ""
	}
	return tw.Flush()
}
