package cri

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

func TestParseInfo(t *testing.T) {
	for _, c := range []struct {
		name, info string
		want       Detail
		wantErr    string
	}{
		{"containerd", `{"runtimeType":"io.containerd.runc.v2","runtimeSpec":{"linux":{"namespaces":[{"type":"pid"},{"type":"network","path":"/var/run/netns/cni-1"}]}}}`,
			Detail{"/var/run/netns/cni-1", "io.containerd.runc.v2"}, ""},
		{"crio", `{"runtimeSpec":{"linux":{"namespaces":[{"type":"network","path":"/var/run/netns/abc"}]}}}`, Detail{"/var/run/netns/abc", ""}, ""},
		{"host network", `{"runtimeSpec":{"linux":{"namespaces":[{"type":"pid"}]}}}`, Detail{}, "verbose status: runtimeSpec.linux.namespaces has no network entry with a path"},
		{"none", ``, Detail{}, "verbose status has no info"},
		{"cut", `{"runtimeSpec`, Detail{}, "verbose status: unexpected end of JSON input"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := parseInfo(c.info)
			if got != c.want || (err == nil) != (c.wantErr == "") || err != nil && err.Error() != c.wantErr {
				t.Errorf("got %+v, %v; want %+v, %q", got, err, c.want, c.wantErr)
			}
		})
	}
}

func TestOwnStack(t *testing.T) {
	for name, want := range map[string]bool{
		"": false, "runc": false, "crun": false, "io.containerd.runc.v2": false, "nvidia": false,
		"runsc": true, "io.containerd.runsc.v1": true, "gvisor": true, "kata-qemu": true, "io.containerd.kata.v2": true,
	} {
		if _, got := OwnStack("", name); got != want {
			t.Errorf("OwnStack(%q) = %v, want %v", name, got, want)
		}
	}
}

func TestProbe(t *testing.T) {
	root := t.TempDir()
	if _, err := Probe(root, []string{"/a.sock", "/b.sock"}); err == nil || err.Error() != "no container runtime socket: tried /a.sock, /b.sock" {
		t.Fatalf("err = %v", err)
	}
	// A plain file of that name is not a runtime.
	if err := os.WriteFile(filepath.Join(root, "a.sock"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(root, "b.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got, err := Probe(root, []string{"/a.sock", "/b.sock"})
	if want := filepath.Join(root, "b.sock"); got != want || err != nil {
		t.Fatalf("got %q, %v; want %q", got, err, want)
	}
}

func FuzzParseInfo(f *testing.F) {
	f.Add(`{"runtimeSpec":{"linux":{"namespaces":[{"type":"network","path":"/x"}]}}}`)
	f.Add(`{"runtimeSpec":null}`)
	f.Add(`[]`)
	f.Fuzz(func(t *testing.T, s string) {
		d, err := parseInfo(s)
		if err == nil && d.Netns == "" {
			t.Fatal("no error and no namespace")
		}
	})
}
