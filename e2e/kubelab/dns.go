package kubelab

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"os/exec"
)

//go:embed dns.yaml
var dnsManifest []byte

// dnsManifest gives the Service an address of each family.
func (o Options) dnsManifest() []byte {
	if !o.DualStack {
		return dnsManifest
	}
	ips := o.families(dnsIP, dnsIP6)
	return bytes.Replace(dnsManifest, []byte("  clusterIP: "+dnsIP+"\n"),
		fmt.Appendf(nil, "  clusterIP: %s\n  ipFamilyPolicy: RequireDualStack\n  clusterIPs: [%q, %q]\n", ips[0], ips[0], ips[1]), 1)
}

func (c *Cluster) startDNS(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, c.KubeBinary(), "kubectl", "--kubeconfig="+c.kubeconfig, "create", "-f", "-")
	cmd.Stdin = bytes.NewReader(c.opt.dnsManifest())
	cmd.Env = []string{"HOME=/nonexistent"} // no discovery cache in the user's home
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("create: %w: %s", err, out)
	}
	return c.allTrue(ctx, "/api/v1/namespaces/kube-system/pods?labelSelector=k8s-app%3Dkube-dns", "Ready", 1)
}
