package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func noEnv(string) (string, bool) { return "", false }

func TestFlagsAndEnvironment(t *testing.T) {
	env := map[string]string{
		"POD_NAMESPACE": "mesh", "POD_NAME": "c-1", "TRUST_DOMAIN": "example.org", "CLUSTER_ID": "east",
		"EXCLUDE_NAMESPACES": "kube-system, infra", "KUBECONFIG": "/from/env",
	}
	c, err := parse([]string{"--cluster-id", "west", "--istio-names"}, func(k string) (string, bool) { v, ok := env[k]; return v, ok }, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	if c.namespace != "mesh" || c.replica != "c-1" || c.trustDomain != "example.org" || c.kubeconfig != "/from/env" {
		t.Errorf("environment is not read: %+v", c)
	}
	if c.clusterID != "west" {
		t.Errorf("cluster id %q: a flag comes before the environment", c.clusterID)
	}
	if !slices.Equal(c.excluded, []string{"kube-system", "infra"}) || !slices.Equal(c.nodeAccounts, []string{"mesh/ztunnel"}) {
		t.Errorf("excluded %v, node accounts %v", c.excluded, c.nodeAccounts)
	}
	if got := c.serverNames(); !slices.Contains(got, "istiod.istio-system.svc") || !slices.Contains(got, "ambit-controller.mesh.svc") {
		t.Errorf("server names %v", got)
	}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	if c, _ = parse(nil, noEnv, t.Output()); slices.Contains(c.serverNames(), "istiod.istio-system.svc") {
		t.Error("Istio's name without --istio-names")
	}
}

func TestValidateNamesEverything(t *testing.T) {
	c, err := parse([]string{"--replica", "a/b", "--trust-domain", "a b", "--address", "nonsense", "--trusted-node-accounts", "x", "--self-signed-ca-lifetime", "1s"}, noEnv, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	got := c.Validate().Error()
	for _, want := range []string{
		`--replica "a/b": must be a name`, `--trust-domain "a b": must be a name`, `--address "nonsense": not a host:port`,
		`--trusted-node-accounts "x": not of the form`, `--self-signed-ca-lifetime "1s": shorter`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in\n%s", want, got)
		}
	}
}

func TestProgramStopsBeforeTheCluster(t *testing.T) {
	kubeconfig := filepath.Join(t.TempDir(), "config")
	text := `{"apiVersion":"v1","kind":"Config","clusters":[{"name":"c","cluster":{"server":"https://192.0.2.1"}}],"contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],"users":[{"name":"u","user":{}}],"current-context":"c"}`
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args           []string
		code           int
		stdout, stderr string
	}{
		{[]string{"--version"}, 0, version, ""},
		{[]string{"--help"}, 0, "", "--kubeconfig"},
		{[]string{"--nonsense"}, 2, "", "-nonsense"},
		{[]string{"extra"}, 2, "", `unexpected argument "extra"`},
		{[]string{"--check"}, 2, "", `--replica "": must be a name`},
		{[]string{"--check", "--replica", "r", "--kubeconfig", "/does/not/exist"}, 2, "", "/does/not/exist"},
		{[]string{"--check", "--replica", "r", "--kubeconfig", kubeconfig}, 0, "configuration is valid", ""},
	} {
		var stdout, stderr bytes.Buffer
		code := program(c.args, noEnv, &stdout, &stderr)
		if code != c.code || !strings.Contains(stdout.String(), c.stdout) || !strings.Contains(strings.ReplaceAll(stderr.String(), " -k", " --k"), c.stderr) {
			t.Errorf("%q: code %d, stdout %q, stderr %q", c.args, code, stdout.String(), stderr.String())
		}
	}
}
