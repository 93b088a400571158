package main

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

func env(kv ...string) map[string]string {
	m := map[string]string{}
	for i := 0; i < len(kv); i += 2 {
		m[kv[i]] = kv[i+1]
	}
	return m
}

func nofile(string) ([]byte, error) { return nil, os.ErrNotExist }

func TestConfig(t *testing.T) {
	c := readConfig(env(), nofile)
	if err := c.Validate(); err != nil {
		t.Errorf("defaults: %v", err)
	}
	if c.Socket != "/var/run/ztunnel/ztunnel.sock" || c.SecretTTL != 24*time.Hour || c.Grace != 5*time.Second || c.ClusterID != "Kubernetes" {
		t.Errorf("defaults: %+v", c)
	}
	c = readConfig(env("XDS_ADDRESS", "ctrl:15012", "ISTIO_META_CLUSTER_ID", "c2", "CLUSTER_ID", "c1", "POD_NAME", "z", "POD_NAMESPACE", "ns", "INSTANCE_IP", "10.0.0.1",
		"TERMINATION_GRACE_PERIOD_SECONDS", "30", "HTTP2_PING_INTERVAL", "1s", "HTTP2_PING_TIMEOUT", "2s"), nofile)
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	if c.CAAddress != "ctrl:15012" || c.ClusterID != "c2" || c.nodeID() != "ztunnel~10.0.0.1~z.ns~ns.svc.cluster.local" || c.Grace != 25*time.Second ||
		c.HBONE.PingInterval != time.Second || c.HBONE.PingTimeout != 2*time.Second {
		t.Errorf("%+v", c)
	}

	err := readConfig(env("XDS_ADDRESS", "ftp://x", "SECRET_TTL", "forever", "LOG_FORMAT", "xml", "RUST_LOG", "loud", "ADMIN_ADDR", "0.0.0.0:15000",
		"HTTP2_FRAME_SIZE", "-1"), nofile).Validate()
	for _, name := range []string{"XDS_ADDRESS", "SECRET_TTL", "LOG_FORMAT", "RUST_LOG", "ADMIN_ADDR", "HTTP2_FRAME_SIZE"} {
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s is not named in: %v", name, err)
		}
	}
}

func TestGrace(t *testing.T) {
	for _, tt := range []struct {
		period   uint64
		deadline time.Duration
		want     time.Duration
	}{{0, 0, 5 * time.Second}, {30, 0, 25 * time.Second}, {10, 0, 9 * time.Second}, {1, 0, time.Second}, {30, time.Minute, time.Minute}} {
		if got := grace(tt.period, tt.deadline); got != tt.want {
			t.Errorf("%d, %s: %s", tt.period, tt.deadline, got)
		}
	}
}

func TestEndpoint(t *testing.T) {
	for in, want := range map[string]string{"a:1": "a:1 tls", "https://a:1": "a:1 tls", "http://a:1": "a:1 plain", "https://[fd00::1]:1": "[fd00::1]:1 tls",
		"a": "", "https://a": "", "://": "", "ftp://a:1": ""} {
		got := ""
		if addr, secure, err := endpoint(in); err == nil {
			got = addr + map[bool]string{true: " tls", false: " plain"}[secure]
		}
		if got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestToken(t *testing.T) {
	if got, err := token("literal")(); err != nil || got != "literal" {
		t.Errorf("%q %v", got, err)
	}
	f := t.TempDir() + "/token"
	os.WriteFile(f, []byte(" one\n"), 0o600)
	read := token(f)
	if got, err := read(); err != nil || got != "one" {
		t.Errorf("%q %v", got, err)
	}
	os.WriteFile(f, nil, 0o600)
	if _, err := read(); err == nil || !strings.Contains(err.Error(), f) {
		t.Errorf("empty file: %v", err)
	}
}

func TestMemoryLimit(t *testing.T) {
	file := func(path, content string) func(string) ([]byte, error) {
		return func(p string) ([]byte, error) {
			if p == path {
				return []byte(content), nil
			}
			return nil, errors.New("not there")
		}
	}
	if n, ok := memoryLimit(file("/sys/fs/cgroup/memory.max", "1048576\n")); !ok || n != 1<<20 {
		t.Error(n, ok)
	}
	for _, read := range []func(string) ([]byte, error){file("/sys/fs/cgroup/memory.max", "max\n"), file("", ""),
		file("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712")} {
		if n, ok := memoryLimit(read); ok {
			t.Error(n)
		}
	}
}
