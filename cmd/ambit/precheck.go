package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/ambitmesh/ambit/controller/diagnose"
)

// checkup is the command's answer.
type checkup struct {
	OK       bool                   `json:"ok"` // no finding of level error
	Counts   map[diagnose.Level]int `json:"counts"`
	Findings []diagnose.Finding     `json:"findings"`
}

func precheckCommand(conn *connection) *cobra.Command {
	var output string
	var o diagnose.Options
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "precheck",
		Short: "What the cluster lacks, before Ambit is installed and after",
		Long: `What the cluster lacks, before Ambit is installed and after: versions, kernels,
runtimes, definitions, other meshes, settings of the network, policies that
would keep mesh traffic out, quotas, permissions. It only reads, and says what
it may not read. The platform and its overlay in deploy/overlays are named.

With -n it also says what would happen to namespaces that are not labelled yet.

Exit code: 0 nothing of level error, 1 something, 2 could not tell.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, ctx, cancel, err := conn.begin(cmd.Context(), output, timeout)
			if err != nil {
				return err
			}
			defer cancel()
			o.System = conn.systemNamespace
			all, err := c.survey(ctx)
			if err != nil {
				return err
			}
			r := checkup{OK: true, Counts: map[diagnose.Level]int{}, Findings: diagnose.Precheck(all, o)}
			for _, f := range r.Findings {
				r.Counts[f.Level]++
				r.OK = r.OK && f.Level != diagnose.Error
			}
			if err := printCheckup(cmd.OutOrStdout(), output, r); err != nil {
				return err
			}
			if !r.OK {
				return errUnhealthy
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVarP(&output, "output", "o", "table", "table, json or yaml")
	f.StringSliceVarP(&o.Namespaces, "namespace", "n", nil, "namespaces that you are about to label, besides those that are")
	f.BoolVar(&o.BesideIstio, "beside-istio", false, "an Istio control plane is in the cluster on purpose")
	f.DurationVar(&timeout, "timeout", time.Minute, "how long to ask")
	return cmd
}

func printCheckup(w io.Writer, output string, r checkup) error {
	if output != "table" {
		return encode(w, output, r)
	}
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(tw, "LEVEL\tCHECK\tOBJECT\tWHAT")
	for _, f := range r.Findings {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", f.Level, f.Check, f.Object, f.What)
		if f.Do != "" {
			fmt.Fprintf(tw, "\t\t\t  > %s\n", f.Do)
		}
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	verdict := "Nothing here keeps Ambit from working."
	switch {
	case !r.OK:
		verdict = "Ambit would not work as it should here."
	case slices.ContainsFunc(r.Findings, func(f diagnose.Finding) bool { return f.Check == "reading" }):
		verdict = "Nothing of what could be asked keeps Ambit from working."
	}
	_, err := fmt.Fprintf(w, "\n%s %s, %s.\n", verdict,
		count(r.Counts[diagnose.Error], "error", "errors"), count(r.Counts[diagnose.Warning], "warning", "warnings"))
	return err
}
