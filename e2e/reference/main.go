// Command reference writes the pages of docs/reference that only repeat what
// the code says, so that they cannot say anything else.
package main

//go:generate go run .

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/ambitmesh/ambit/ztunnel/live"
)

const generated = "<!-- Written by `make generate`. Do not edit. -->\n"

func main() {
	if err := run("../.."); err != nil {
		fmt.Fprintln(os.Stderr, "reference:", err)
		os.Exit(1)
	}
}

func run(root string) error {
	flags, err := flagsPage(root)
	if err != nil {
		return err
	}
	settings, err := settingsPage(root)
	if err != nil {
		return err
	}
	for name, text := range map[string]string{"flags.md": flags, "ztunnel.md": settings, "reasons.md": reasonsPage()} {
		if err := os.WriteFile(filepath.Join(root, "docs", "reference", name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// helps are the programs whose help text is the reference. ztunnel takes its
// settings from the environment only and has a page of its own.
var helps = [][]string{
	{"ambit", "ca", "status", "--help"},
	{"ambit", "ca", "rotate", "--help"},
	{"ambit", "ca", "continue", "--help"},
	{"ambit", "ca", "abort", "--help"},
	{"ambit", "ca", "retire", "--help"},
	{"ambit", "precheck", "--help"},
	{"ambit", "proxy-status", "--help"},
	{"ambit", "status", "--help"},
	{"ambit", "uninstall", "--help"},
	{"ambit", "version", "--help"},
	{"ambit", "ztunnel-config", "workload", "--help"},
	{"ambit", "ztunnel-config", "service", "--help"},
	{"ambit", "ztunnel-config", "policy", "--help"},
	{"ambit", "ztunnel-config", "certificate", "--help"},
	{"ambit", "ztunnel-config", "connections", "--help"},
	{"ambit", "ztunnel-config", "log", "--help"},
	{"ambit", "ztunnel-config", "all", "--help"},
	{"ambit-controller", "-h"},
	{"ambit-cni-node", "-h"},
}

func flagsPage(root string) (string, error) {
	var b strings.Builder
	b.WriteString(generated + "\n# Flags\n\nA flag that names a variable takes its default from it.\n" +
		"ztunnel has no flags: [ztunnel.md](ztunnel.md).\n")
	for _, h := range helps {
		cmd := exec.Command("go", append([]string{"run", "./cmd/" + h[0]}, h[1:]...)...)
		cmd.Dir = root
		// The help must not depend on who generates it.
		cmd.Env = append(os.Environ(), "KUBECONFIG=", "POD_NAME=", "POD_NAMESPACE=", "NODE_NAME=", "CLUSTER_ID=", "TRUST_DOMAIN=", "NETWORK=")
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		// Asking for help is an error to some flag packages; an empty answer is
		// one to us.
		err := cmd.Run()
		text := strings.ReplaceAll(out.String(), "\nexit status 2\n", "\n")
		// "# package" is how the go command begins when the program does not build.
		if !strings.Contains(text, "-") || strings.HasPrefix(text, "# ") {
			return "", fmt.Errorf("%s: no help: %w: %s", strings.Join(h, " "), err, text)
		}
		fmt.Fprintf(&b, "\n## %s\n\n```\n%s\n```\n", strings.TrimSuffix(strings.Join(h[:len(h)-1], " "), " -h"), strings.TrimSpace(text))
	}
	return b.String(), nil
}

// settingsPage is what ztunnel says of itself.
func settingsPage(root string) (string, error) {
	cmd := exec.Command("go", "run", "./cmd/ambit-ztunnel", "help")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("ambit-ztunnel help: %w", err)
	}
	return generated + "\n" + string(out), nil
}

func reasonsPage() string {
	var b strings.Builder
	b.WriteString(generated + `
# Reasons

A connection that failed, was refused or was cut has one reason. It is the
field ` + "`reason`" + ` of its line in ztunnel's access log, after ` + "`error`" + `, and the label
` + "`reason`" + ` of ` + "`ambit_connections_failed_total`" + `. The flag is what
` + "`istio_tcp_connections_*`" + ` carry in ` + "`response_flags`" + `.

| Reason | Flag | What happened | Likely cause | Cure |
|---|---|---|---|---|
`)
	for _, m := range live.Reasons() {
		a := m.Reason.Advice()
		fmt.Fprintf(&b, "| `%s` | `%s` | %s | %s | %s |\n", m.Reason, m.Flag, m.Text, a.Cause, a.Cure)
	}
	return b.String()
}
