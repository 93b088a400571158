package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

func validOutput(o string) error {
	switch o {
	case "table", "json", "yaml":
		return nil
	}
	return fmt.Errorf("-o %s: want table, json or yaml", o)
}

// encode writes v for a program to read. YAML is made from the JSON, so the
// field names are the same.
func encode(w io.Writer, output string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	if output == "yaml" {
		if b, err = yaml.JSONToYAML(b); err != nil {
			return err
		}
	} else {
		b = append(b, '\n')
	}
	_, err = w.Write(b)
	return err
}

type versionReport struct {
	Client     string      `json:"client"`
	Components []component `json:"components,omitempty"`
}

func versionCommand(conn *connection) *cobra.Command {
	var output string
	var clientOnly bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Version of this program and of the components that answer",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := validOutput(output); err != nil {
				return err
			}
			v := versionReport{Client: version}
			var failed error
			if !clientOnly {
				ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
				defer cancel()
				v.Components, failed = serverVersions(ctx, conn)
			}
			// What is known is printed even when the cluster did not answer.
			if err := printVersions(cmd.OutOrStdout(), output, v); err != nil {
				return err
			}
			return failed
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table, json or yaml")
	cmd.Flags().BoolVar(&clientOnly, "client", false, "do not ask the cluster")
	cmd.Flags().DurationVar(&timeout, "timeout", 15*time.Second, "how long to ask")
	return cmd
}

func serverVersions(ctx context.Context, conn *connection) ([]component, error) {
	c, err := conn.open()
	if err != nil {
		return nil, err
	}
	return c.components(ctx)
}

func printVersions(w io.Writer, output string, v versionReport) error {
	if output != "table" {
		return encode(w, output, v)
	}
	tw := tabwriter.NewWriter(w, 0, 4, 3, ' ', 0)
	fmt.Fprintf(tw, "client\t%s\n", v.Client)
	for _, c := range v.Components {
		if c.Part == partAgent {
			continue
		}
		text := c.Version
		if text == "" {
			text = c.Problem + c.Unasked
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", c.Part, text, c.Node, c.Pod)
	}
	return tw.Flush()
}
