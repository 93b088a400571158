package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

func (s *dumpSource) logCommand() *cobra.Command {
	var level string
	var reset bool
	cmd := &cobra.Command{
		Use:     "log [POD]",
		Aliases: []string{"o"},
		Short:   "Log levels: show them, or set them until ztunnel restarts",
		Long: "Log levels: show them, or set them until ztunnel restarts.\n\n" +
			"Without POD or --node every ztunnel is asked, or told.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case s.file != "":
				return errors.New("--file has no log levels: name a POD or --node")
			case s.selected(args) > 1:
				return errors.New("at most one of POD and --node")
			case reset && level != "":
				return errors.New("at most one of --level and --reset")
			}
			path, err := loggingPath(level, reset)
			if err != nil {
				return err
			}
			pod, err := s.pod(args)
			if err != nil {
				return err
			}
			c, err := s.conn.open()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), s.timeout)
			defer cancel()
			pods, err := s.talkers(ctx, c, pod)
			if err != nil {
				return err
			}
			var failed []error
			for _, z := range pods {
				answer, err := c.askPod(ctx, z, s.port, http.MethodPost, path)
				if errors.Is(err, errForward) {
					return err // of the caller, not of this pod
				}
				if err != nil {
					failed = append(failed, err)
					continue
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", z, strings.TrimSpace(string(answer)))
			}
			return errors.Join(failed...)
		},
	}
	cmd.Flags().StringVar(&level, "level", "", "off, error, warn, info, debug or trace; or SCOPE=LEVEL; several with commas")
	cmd.Flags().BoolVarP(&reset, "reset", "r", false, "back to the levels ztunnel was started with")
	return cmd
}

// talkers are the ztunnels that are meant: one, or without a selector all.
func (s *dumpSource) talkers(ctx context.Context, c *cluster, pod podName) ([]string, error) {
	if pod.name != "" || s.node != "" {
		z, _, err := c.ztunnelOf(ctx, pod, s.node)
		return []string{z}, err
	}
	all, err := c.ztunnels(ctx)
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		_, err := c.ztunnelOn(ctx, "")
		return nil, err
	}
	var out []string
	for i := range all {
		out = append(out, all[i].Name)
	}
	slices.Sort(out)
	return out, nil
}

// loggingPath is the request for a level list in istioctl's words: SCOPE:LEVEL
// too, and its names of levels.
func loggingPath(level string, reset bool) (string, error) {
	q := url.Values{}
	if reset {
		q.Set("reset", "")
	}
	var list []string
	for part := range strings.SplitSeq(level, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		// A scope may be a path with "::", so the last sign counts.
		scope, l := "", part
		if i := strings.LastIndexAny(part, ":="); i >= 0 {
			if scope, l = part[:i], part[i+1:]; scope == "" {
				return "", fmt.Errorf("--level %s: no scope before %q", level, part[i:])
			}
			scope += "="
		}
		switch l {
		case "warning":
			l = "warn"
		case "critical":
			l = "error"
		case "off", "error", "warn", "info", "debug", "trace":
		default:
			return "", fmt.Errorf("--level %s: %q is none of off, error, warn, info, debug, trace", level, l)
		}
		list = append(list, scope+l)
	}
	if len(list) > 0 {
		q.Set("level", strings.Join(list, ","))
	}
	if len(q) == 0 {
		return "/logging", nil
	}
	return "/logging?" + q.Encode(), nil
}
