package kubelab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Dump writes what one wants to read after a failure to the folder out: the
// components' logs, events, pods with their logs, and each machine's network
// state. dir is the cluster's state folder. It goes on after an error.
func Dump(ctx context.Context, dir, out string) error {
	s, err := ReadState(dir)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	var errs []error
	logs, _ := filepath.Glob(filepath.Join(dir, "log", "*.log"))
	more, _ := filepath.Glob(filepath.Join(dir, "*", "rootfs/var/log", "*.log"))
	for _, f := range slices.Concat(logs, more) {
		rel, err := filepath.Rel(dir, f)
		if err != nil {
			return err
		}
		name := strings.ReplaceAll(strings.Replace(rel, "rootfs/var/log/", "", 1), "/", "-")
		errs = append(errs, copyFile(f, filepath.Join(out, name), 0o644))
	}
	capture := func(file string, cmd *exec.Cmd) {
		b, err := cmd.CombinedOutput()
		if err != nil {
			b = fmt.Appendf(b, "\n%v\n", err)
		}
		errs = append(errs, os.WriteFile(filepath.Join(out, file), b, 0o644))
	}
	for file, args := range map[string][]string{
		"events.txt": {"get", "events", "-A", "--sort-by=.metadata.creationTimestamp"},
		"pods.txt":   {"get", "pods", "-A", "-o", "wide"},
		"pods.yaml":  {"get", "pods,services,endpointslices,nodes", "-A", "-o", "yaml"},
	} {
		cmd := exec.CommandContext(ctx, filepath.Join(s.Cache, "kube"), append([]string{"kubectl", "--request-timeout=10s"}, args...)...)
		cmd.Env = []string{"KUBECONFIG=" + s.Kubeconfig, "HOME=/nonexistent"}
		capture(file, cmd)
	}
	for name, h := range s.Nodes {
		if !h.Alive() {
			continue
		}
		for file, argv := range map[string][]string{
			"network.txt": {"sh", "-c", "ip -d addr; ip rule; ip route show table all; ip neigh; for n in /run/netns/*; do test -e $n || continue; echo \"== $n\"; nsenter --net=$n sh -c 'ip -br addr; ip rule; ip route; ss -tulpne'; done"},
			"nft.txt":     {"nft", "list", "ruleset"},
			"process.txt": {"ps", "auxww"},
		} {
			if name == "cp" && file != "network.txt" {
				continue
			}
			capture(name+"-"+file, nodeCommand(ctx, h.PID, argv...))
		}
		pods, _ := filepath.Glob(filepath.Join(dir, name, "rootfs/var/log/pods/*/*/*.log"))
		for _, f := range pods {
			pod, container := filepath.Base(filepath.Dir(filepath.Dir(f))), filepath.Base(filepath.Dir(f))
			errs = append(errs, copyFile(f, filepath.Join(out, fmt.Sprintf("pod-%s-%s-%s", pod, container, filepath.Base(f))), 0o644))
		}
	}
	return errors.Join(errs...)
}
