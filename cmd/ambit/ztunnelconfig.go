package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/spf13/cobra"
)

// dumpSource is where a dump comes from, as the flags say it.
type dumpSource struct {
	conn                          *connection
	node, namespace, file, output string
	port                          int
	timeout                       time.Duration
}

// dumpView is one kind of what is in a dump.
type dumpView struct {
	name    string
	aliases []string
	short   string
	single  bool // says something of one ztunnel only: which must be named
	flags   func(*cobra.Command, *dumpFilter)
	objects func(*configDump) any // for -o json
	table   func(io.Writer, *configDump, names, tableOptions) error
}

type tableOptions struct {
	now       time.Time
	direction string
	raw       bool
	headers   bool
}

func ztunnelConfigCommand(conn *connection) *cobra.Command {
	s := &dumpSource{conn: conn}
	cmd := &cobra.Command{
		Use:     "ztunnel-config",
		Aliases: []string{"zc"},
		Short:   "What a node's ztunnel knows and does",
		Long: "What a node's ztunnel knows and does, asked of its own administration port through the API server\n" +
			"(create on pods/portforward in the system namespace), or read from a saved config_dump.\n\n" +
			"POD is a ztunnel, or any pod: then its node's ztunnel is asked, and only what concerns the pod is shown.\n" +
			"It is NAME, NAME.NAMESPACE or NAMESPACE/NAME.",
		Args: cobra.NoArgs, // or a misspelt command is help, and no error
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	f := cmd.PersistentFlags()
	f.StringVar(&s.node, "node", "", "the ztunnel of this node")
	f.StringVarP(&s.namespace, "namespace", "n", "", "namespace of POD (default: the system namespace, then \"default\")")
	f.StringVarP(&s.file, "file", "f", "", "a saved config_dump instead of a cluster; - for standard input")
	f.StringVarP(&s.output, "output", "o", "short", "short (or table), json or yaml")
	f.IntVar(&s.port, "proxy-admin-port", 15000, "port of ztunnel's administration, on its loopback")
	f.DurationVar(&s.timeout, "timeout", 30*time.Second, "how long to ask")
	for _, v := range dumpViews {
		cmd.AddCommand(s.command(v))
	}
	cmd.AddCommand(s.logCommand())
	return cmd
}

var dumpViews = []dumpView{
	{"workload", []string{"workloads", "w"}, "Workloads it can reach, and how", false,
		func(c *cobra.Command, f *dumpFilter) {
			c.Flags().StringVar(&f.address, "address", "", "only the workload with this address")
			c.Flags().StringVar(&f.workload, "workload", "", "only workloads of this name")
			c.Flags().StringVar(&f.workloadNamespace, "workload-namespace", "", "only workloads of this namespace")
			c.Flags().StringVar(&f.workloadNode, "workload-node", "", "only workloads on this node")
		},
		func(d *configDump) any { return d.Workloads },
		func(w io.Writer, d *configDump, n names, _ tableOptions) error { return workloadTable(w, d, n) }},
	{"service", []string{"services", "svc", "s"}, "Services, with how many of their endpoints are healthy", false,
		func(c *cobra.Command, f *dumpFilter) {
			c.Flags().StringVar(&f.svc, "service", "", "only services of this name")
			c.Flags().StringVar(&f.serviceNamespace, "service-namespace", "", "only services of this namespace")
		},
		func(d *configDump) any { return d.Services },
		func(w io.Writer, d *configDump, n names, _ tableOptions) error { return serviceTable(w, d, n) }},
	{"policy", []string{"policies", "pol", "p"}, "Authorization policies", false,
		func(c *cobra.Command, f *dumpFilter) {
			c.Flags().StringVar(&f.pol, "policy", "", "only policies of this name")
			c.Flags().StringVar(&f.policyNamespace, "policy-namespace", "", "only policies of this namespace")
		},
		func(d *configDump) any { return d.Policies },
		func(w io.Writer, d *configDump, _ names, _ tableOptions) error { return policyTable(w, d) }},
	{"certificate", []string{"certificates", "certs", "cert"}, "Certificates it holds for its node's pods", true, nil,
		func(d *configDump) any { return d.Certificates },
		func(w io.Writer, d *configDump, _ names, o tableOptions) error { return certificateTable(w, d, o.now) }},
	{"connections", []string{"cons"}, "Connections that are open", true,
		func(c *cobra.Command, f *dumpFilter) {
			c.Flags().StringVar(&f.direction, "direction", "", "only inbound or outbound ones (short output)")
			c.Flags().StringVar(&f.workloadNamespace, "workload-namespace", "", "only those of pods of this namespace")
		},
		func(d *configDump) any { return d.WorkloadState },
		func(w io.Writer, d *configDump, n names, o tableOptions) error {
			return connectionTable(w, d, n, o.direction, o.raw)
		}},
	{"all", nil, "All of these", false, nil, func(d *configDump) any { return d }, allTables},
}

func allTables(w io.Writer, d *configDump, n names, o tableOptions) error {
	for i, part := range []struct {
		title string
		write func() error
	}{
		{"WORKLOAD INFO", func() error { return workloadTable(w, d, n) }},
		{"SERVICE INFO", func() error { return serviceTable(w, d, n) }},
		{"POLICY INFO", func() error { return policyTable(w, d) }},
		{"SECRET INFO", func() error { return certificateTable(w, d, o.now) }},
		{"CONNECTIONS INFO", func() error { return connectionTable(w, d, n, o.direction, o.raw) }},
	} {
		if i > 0 {
			fmt.Fprintln(w)
		}
		if o.headers {
			fmt.Fprintln(w, part.title)
		}
		if err := part.write(); err != nil {
			return err
		}
	}
	return nil
}

func (s *dumpSource) command(v dumpView) *cobra.Command {
	var f dumpFilter
	var o tableOptions
	cmd := &cobra.Command{
		Use:     v.name + " [POD]",
		Aliases: v.aliases,
		Short:   v.short,
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if s.output == "short" {
				s.output = "table"
			}
			if err := validOutput(s.output); err != nil {
				return err
			}
			switch f.direction {
			case "", "inbound", "outbound":
			default:
				return fmt.Errorf("--direction %s: want inbound or outbound", f.direction)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), s.timeout)
			defer cancel()
			d, pod, err := s.read(ctx, cmd.InOrStdin(), args, v.single)
			if err != nil {
				return err
			}
			f.pod = pod
			shown := d.filter(f)
			if s.output != "table" {
				return encode(cmd.OutOrStdout(), s.output, v.objects(shown))
			}
			o.now, o.direction = time.Now(), f.direction
			return v.table(cmd.OutOrStdout(), shown, namesOf(d), o)
		},
	}
	if v.flags != nil {
		v.flags(cmd, &f)
	}
	if v.name == "connections" || v.name == "all" {
		cmd.Flags().BoolVar(&o.raw, "raw", false, "connections with addresses, not names")
	}
	if v.name == "all" {
		cmd.Flags().BoolVar(&o.headers, "with-headers", false, "a heading above each table")
	}
	return cmd
}

// selected is how many ways a ztunnel was named.
func (s *dumpSource) selected(args []string) int {
	n := len(args)
	for _, v := range []string{s.node, s.file} {
		if v != "" {
			n++
		}
	}
	return n
}

func (s *dumpSource) read(ctx context.Context, stdin io.Reader, args []string, single bool) (*configDump, podName, error) {
	switch n := s.selected(args); {
	case n > 1:
		return nil, podName{}, errors.New("at most one of POD, --node and --file")
	case n == 0 && single:
		return nil, podName{}, errors.New("ztunnel pod name or --node must be set: this differs from node to node")
	}
	if s.file != "" {
		d, err := readDump(s.file, stdin)
		return d, podName{}, err
	}
	pod, err := s.pod(args)
	if err != nil {
		return nil, pod, err
	}
	c, err := s.conn.open()
	if err != nil {
		return nil, pod, err
	}
	z, pod, err := c.ztunnelOf(ctx, pod, s.node)
	if err != nil {
		return nil, pod, err
	}
	b, err := c.askPod(ctx, z, s.port, http.MethodGet, "/config_dump")
	if err != nil {
		return nil, pod, err
	}
	d, err := parseDump(b)
	if err != nil {
		return nil, pod, fmt.Errorf("pod %s/%s port %d: %w", c.system, z, s.port, err)
	}
	if !d.knows(pod) {
		return nil, pod, fmt.Errorf("ztunnel %s/%s does not know pod %s/%s: did the change arrive? ambit proxy-status", c.system, z, pod.namespace, pod.name)
	}
	return d, pod, nil
}

func (s *dumpSource) pod(args []string) (podName, error) {
	if len(args) == 0 {
		return podName{}, nil
	}
	return podArgument(args[0], s.namespace)
}

func readDump(file string, stdin io.Reader) (*configDump, error) {
	var b []byte
	var err error
	if file == "-" {
		file = "standard input"
		b, err = io.ReadAll(stdin)
	} else {
		b, err = os.ReadFile(file)
	}
	if err != nil {
		return nil, err
	}
	d, err := parseDump(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return d, nil
}
