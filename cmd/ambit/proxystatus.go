package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"
)

// debugClient is one element of the controller's /debug/clients.
type debugClient struct {
	Caller struct{ Namespace, PodName, PodUID, Node string }
	// Version is what the client says of itself.
	Version   string
	Cluster   string
	Connected time.Time
	Types     []struct {
		TypeURL      string
		Sent, Acked  uint64
		AckedTime    time.Time
		LastNACK     string
		LastNACKTime time.Time
	}
}

// replica is one controller and what it says.
type replica struct {
	Pod     string
	Clients []debugClient
	Err     error
}

// proxyState is how far one data plane is.
type proxyState struct {
	Name       string               `json:"name"`
	Node       string               `json:"node"`
	Cluster    string               `json:"cluster,omitempty"`
	Controller string               `json:"controller,omitempty"`
	Version    string               `json:"version,omitempty"`
	Connected  *time.Time           `json:"connected,omitempty"`
	Types      map[string]typeState `json:"types,omitempty"`
	Problem    string               `json:"problem,omitempty"`
}

type typeState struct {
	State  string     `json:"state"` // SYNCED, STALE, NOT SENT, ERROR
	Sent   uint64     `json:"sent"`
	Acked  uint64     `json:"acked"`
	Reason string     `json:"reason,omitempty"`
	At     *time.Time `json:"at,omitempty"` // of its last answer
}

// typeNames are istioctl's short names; ours for the type that is ours.
var typeNames = map[string]string{
	"type.googleapis.com/istio.workload.Address":       "WDS",
	"type.googleapis.com/istio.security.Authorization": "WADS",
	"type.googleapis.com/ambit.trust.Bundle":           "TRUST",
}

func proxyStatusCommand(conn *connection) *cobra.Command {
	var output, namespace string
	var timeout time.Duration
	var verbosity int
	cmd := &cobra.Command{
		Use:     "proxy-status [POD]",
		Aliases: []string{"ps"},
		Short:   "Which configuration each ztunnel has, and which it refused",
		Long: "Which configuration each ztunnel has, and which it refused: asked of every controller replica through the\n" +
			"API server (create on pods/portforward in the system namespace). ISTIOD is the replica.\n\n" +
			"With -v 1 there is a column for each type, with the time since the last answer:\n" +
			"SYNCED: it has confirmed all it was sent. STALE: it has not yet. NOT SENT: it asked and got nothing yet.\n" +
			"ERROR: it refused what it was sent last, and why; it goes on with what it had. -: it did not ask.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, ctx, cancel, err := conn.begin(cmd.Context(), output, timeout)
			if err != nil {
				return err
			}
			defer cancel()
			replicas, err := c.replicas(ctx)
			if err != nil {
				return err
			}
			ztunnels, err := c.ztunnels(ctx)
			if err != nil {
				return err
			}
			states, failed := mergeReplicas(replicas, ztunnels)
			if len(args) > 0 {
				if states, err = onlyPod(states, args[0], namespace, c.system); err != nil {
					return errors.Join(err, failed)
				}
			}
			// What is known is printed even when a replica did not answer.
			if err := printProxyStates(cmd.OutOrStdout(), output, states, verbosity > 0, time.Now()); err != nil {
				return err
			}
			return failed
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table, json or yaml")
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "namespace of POD (default: the system namespace)")
	cmd.Flags().IntVarP(&verbosity, "verbosity", "v", 0, "1: a column for each type of configuration")
	cmd.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "how long to ask")
	return cmd
}

// onlyPod leaves one data plane.
func onlyPod(states []proxyState, arg, namespace, system string) ([]proxyState, error) {
	pod, err := podArgument(arg, namespace)
	if err != nil {
		return nil, err
	}
	name := pod.name + "." + cmp.Or(pod.namespace, system)
	for _, s := range states {
		if s.Name == name {
			return []proxyState{s}, nil
		}
	}
	return nil, fmt.Errorf("%s is no data plane of this mesh: ambit proxy-status lists them", name)
}

// replicas asks every controller that runs: a data plane is connected to one.
func (c *cluster) replicas(ctx context.Context) ([]replica, error) {
	list, err := c.core.Pods(c.system).List(ctx, metav1.ListOptions{LabelSelector: "app=ambit-controller"})
	if err != nil {
		return nil, fmt.Errorf("list pods app=ambit-controller in %s: %w", c.system, err)
	}
	var out []replica
	for i := range list.Items {
		if p := &list.Items[i]; p.Status.Phase == corev1.PodRunning {
			out = append(out, replica{Pod: p.Name})
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no controller runs in %s, so nobody knows: kubectl get pods -n %s -l app=ambit-controller", c.system, c.system)
	}
	var wg sync.WaitGroup
	for i := range out {
		wg.Go(func() {
			r := &out[i]
			b, err := c.askPod(ctx, r.Pod, 15014, http.MethodGet, "/debug/clients")
			if err == nil {
				if err = json.Unmarshal(b, &r.Clients); err != nil {
					err = fmt.Errorf("pod %s/%s: /debug/clients: %w", c.system, r.Pod, err)
				}
			}
			r.Err = err
		})
	}
	wg.Wait()
	for i := range out {
		if errors.Is(out[i].Err, errForward) {
			return nil, out[i].Err
		}
	}
	return out, nil
}

// mergeReplicas is one line for each data plane: of its newest stream, because
// the end of an older one may not have been noticed. A ztunnel that no replica
// knows has a line too.
func mergeReplicas(replicas []replica, ztunnels []corev1.Pod) ([]proxyState, error) {
	newest := map[string]proxyState{}
	var failed []error
	for _, r := range replicas {
		if r.Err != nil {
			failed = append(failed, r.Err)
		}
		for _, c := range r.Clients {
			name := c.Caller.PodName + "." + c.Caller.Namespace
			if old, ok := newest[name]; ok && !c.Connected.After(*old.Connected) {
				continue
			}
			newest[name] = stateOf(name, r.Pod, c)
		}
	}
	for i := range ztunnels {
		p := &ztunnels[i]
		name := p.Name + "." + p.Namespace
		if _, ok := newest[name]; ok || p.DeletionTimestamp != nil {
			continue
		}
		why := "connected to no controller; it goes on with what it had"
		if ready, problem := readiness(p); !ready {
			why = "connected to no controller; " + problem
		}
		if len(failed) > 0 {
			why = "unknown: not every controller answered"
		}
		newest[name] = proxyState{Name: name, Node: p.Spec.NodeName, Problem: why}
	}
	out := []proxyState{}
	for _, s := range newest {
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b proxyState) int { return cmp.Compare(a.Name, b.Name) })
	return out, errors.Join(failed...)
}

func stateOf(name, controller string, c debugClient) proxyState {
	s := proxyState{Name: name, Node: c.Caller.Node, Controller: controller, Version: c.Version, Cluster: c.Cluster, Connected: &c.Connected, Types: map[string]typeState{}}
	for _, t := range c.Types {
		v := typeState{Sent: t.Sent, Acked: t.Acked}
		if !t.AckedTime.IsZero() {
			v.At = &t.AckedTime
		}
		switch {
		case t.LastNACK != "":
			v.State, v.Reason, v.At = "ERROR", t.LastNACK, &t.LastNACKTime
		case t.Sent == 0:
			v.State = "NOT SENT"
		case t.Acked < t.Sent:
			v.State = "STALE"
		default:
			v.State = "SYNCED"
		}
		s.Types[cmp.Or(typeNames[t.TypeURL], t.TypeURL[strings.LastIndexByte(t.TypeURL, '/')+1:])] = v
	}
	return s
}

func printProxyStates(w io.Writer, output string, states []proxyState, detailed bool, now time.Time) error {
	if output != "table" {
		return encode(w, output, states)
	}
	types := []string{"WDS", "WADS"}
	for _, s := range states {
		for t := range s.Types {
			if !slices.Contains(types, t) {
				types = append(types, t)
			}
		}
	}
	slices.Sort(types[2:])
	titles := "NAME\tCLUSTER\tISTIOD\tVERSION\tSUBSCRIBED TYPES"
	if detailed {
		titles = "NAME\tCLUSTER\t" + strings.Join(types, "\t") + "\tISTIOD\tVERSION"
	}
	var rows [][]string
	var problems []string
	for _, s := range states {
		r := []string{s.Name, cmp.Or(s.Cluster, "-")}
		for _, t := range types {
			v := s.Types[t]
			if detailed {
				r = append(r, v.cell(now))
			}
			if v.Reason != "" {
				problems = append(problems, fmt.Sprintf("%s refused %s at %s: %s", s.Name, t, v.At.UTC().Format(time.RFC3339), plain(v.Reason)))
			} else if v.State == "STALE" && v.At != nil && now.Sub(*v.At) > staleFor {
				problems = append(problems, fmt.Sprintf("%s has not confirmed %s for %s", s.Name, t, now.Sub(*v.At).Round(time.Second)))
			}
		}
		if s.Problem != "" {
			problems = append(problems, s.Name+": "+s.Problem)
		}
		r = append(r, cmp.Or(s.Controller, "-"), cmp.Or(s.Version, "-"))
		if !detailed {
			r = append(r, subscribed(s))
		}
		rows = append(rows, r)
	}
	if err := table(w, titles, rows); err != nil {
		return err
	}
	printList(w, "Problems", problems)
	return nil
}

// staleFor is how long a data plane may take to confirm before it is a problem.
const staleFor = time.Minute

// cell is the state with the time since its last answer, in the CLI's usual form.
func (v typeState) cell(now time.Time) string {
	switch {
	case v.State == "":
		return "-"
	case v.At == nil:
		return v.State
	}
	return v.State + " (" + duration.HumanDuration(now.Sub(*v.At)) + ")"
}

// subscribed is as istioctl writes it: 2 (WADS,WDS).
func subscribed(s proxyState) string {
	var all []string
	for t := range s.Types {
		all = append(all, t)
	}
	slices.Sort(all)
	if len(all) == 0 {
		return "0"
	}
	return fmt.Sprintf("%d (%s)", len(all), strings.Join(all, ","))
}
