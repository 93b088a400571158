// Command ambit shows what the mesh is doing: what is captured, what is not
// and why, and which components answer. And it takes the mesh away.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set by the build.
var version = "unknown"

// Exit codes, so that a script can tell "no" from "do not know".
const (
	exitHealthy   = 0
	exitUnhealthy = 1
	exitUnknown   = 2
)

// errUnhealthy ends a command whose answer was printed and is "no".
var errUnhealthy = errors.New("not healthy")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is main with its surroundings handed in.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	cmd := root()
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	switch err := cmd.ExecuteContext(ctx); {
	case err == nil:
		return exitHealthy
	case errors.Is(err, errUnhealthy):
		return exitUnhealthy
	default:
		fmt.Fprintln(stderr, "ambit:", err)
		return exitUnknown
	}
}

func root() *cobra.Command {
	var c connection
	cmd := &cobra.Command{
		Use:   "ambit",
		Short: "Look at an Ambit mesh",
		Long: "Look at an Ambit mesh.\n\nInstalling is applying manifests: kubectl apply -k deploy/ambit, or what precheck names.\n" +
			"Meshing a namespace is a label: kubectl label namespace NAME istio.io/dataplane-mode=ambient.",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	f := cmd.PersistentFlags()
	f.StringVar(&c.kubeconfig, "kubeconfig", "", "kubeconfig file (default: $KUBECONFIG, then ~/.kube/config, then the pod's own account)")
	f.StringVar(&c.context, "context", "", "context of the kubeconfig file")
	f.StringVar(&c.systemNamespace, "system-namespace", "ambit-system", "namespace Ambit runs in")
	cmd.AddCommand(precheckCommand(&c), statusCommand(&c), caCommand(&c), versionCommand(&c), uninstallCommand(&c),
		ztunnelConfigCommand(&c), proxyStatusCommand(&c))
	return cmd
}
