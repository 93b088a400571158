package install

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const list = `{
  "cniVersion": "0.4.0",
  "name": "net",
  "x-unknown": {"b": 1, "a": [2]},
  "plugins": [
    {"type": "ptp", "mtu": 1500, "z": 1, "a": 2},
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
`

// setup makes a host with the given configuration files.
func setup(t *testing.T, files map[string]string) (*Installer, string, string) {
	t.Helper()
	root := t.TempDir()
	bin, conf, source := filepath.Join(root, "bin"), filepath.Join(root, "net.d"), filepath.Join(root, "source")
	if err := os.Mkdir(conf, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, source, "program")
	for name, content := range files {
		write(t, filepath.Join(conf, name), content)
	}
	return New(Config{Source: source, BinDir: bin, ConfDir: conf, Logger: slog.New(slog.DiscardHandler),
		Entry: Entry{ExcludeNamespaces: []string{"kube-system"}}}), bin, conf
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o640); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func types(t *testing.T, content string) string {
	t.Helper()
	var c struct {
		Plugins []struct {
			Type string `json:"type"`
		} `json:"plugins"`
	}
	if err := json.Unmarshal([]byte(content), &c); err != nil {
		t.Fatalf("%v: %s", err, content)
	}
	var out []string
	for _, p := range c.Plugins {
		out = append(out, p.Type)
	}
	return strings.Join(out, " ")
}

func TestInstallChains(t *testing.T) {
	i, bin, conf := setup(t, map[string]string{"10-net.conflist": list, "20-other.conflist": list, "readme.txt": "x"})
	path := filepath.Join(conf, "10-net.conflist")
	changes, err := i.Install()
	if err != nil || len(changes) != 2 {
		t.Fatalf("%v, %v", changes, err)
	}
	got := read(t, path)
	if types(t, got) != "ptp portmap ambit-cni" {
		t.Errorf("plugins %s", types(t, got))
	}
	for _, kept := range []string{`"cniVersion": "0.4.0"`, `"x-unknown"`, `"excludeNamespaces"`} {
		if !strings.Contains(got, kept) {
			t.Errorf("%s is missing in %s", kept, got)
		}
	}
	if a, b := strings.Index(got, `"z"`), strings.Index(got, `"a": 2`); a < 0 || b < a {
		t.Error("the order of another plugin's fields changed")
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v; want that of before", st.Mode(), err)
	}
	if st, err := os.Stat(filepath.Join(bin, Binary)); err != nil || st.Mode().Perm() != 0o755 || read(t, filepath.Join(bin, Binary)) != "program" {
		t.Errorf("plugin: %v", err)
	}
	if read(t, filepath.Join(conf, "20-other.conflist")) != list {
		t.Error("a configuration the runtime does not use was changed")
	}
	if changes, err := i.Install(); err != nil || len(changes) != 0 {
		t.Errorf("second pass: %v, %v", changes, err)
	}
	if err := i.Uninstall(); err != nil {
		t.Fatal(err)
	}
	if got := read(t, path); types(t, got) != "ptp portmap" || strings.Contains(got, "ambit") {
		t.Errorf("after uninstall: %s", got)
	}
	if _, err := os.Stat(filepath.Join(bin, Binary)); !os.IsNotExist(err) {
		t.Errorf("plugin is still there: %v", err)
	}
	if err := i.Uninstall(); err != nil {
		t.Errorf("second uninstall: %v", err)
	}
}

func TestWrappedConf(t *testing.T) {
	const single = "{\n  \"cniVersion\": \"0.3.1\",\n  \"name\": \"solo\",\n  \"type\": \"bridge\",\n  \"ipam\": {\n    \"type\": \"host-local\"\n  }\n}\n"
	i, _, conf := setup(t, map[string]string{"05-solo.conf": single, "10-net.conflist": list})
	if _, err := i.Install(); err != nil {
		t.Fatal(err)
	}
	got := read(t, filepath.Join(conf, "05-solo.conflist"))
	if types(t, got) != "bridge ambit-cni" || !strings.Contains(got, `"cniVersion": "0.3.1"`) || !strings.Contains(got, `"name": "solo"`) {
		t.Errorf("wrapped: %s", got)
	}
	if _, err := os.Stat(filepath.Join(conf, "05-solo.conf")); !os.IsNotExist(err) {
		t.Error("the single configuration is still there and would be used first")
	}
	if changes, err := i.Install(); err != nil || len(changes) != 0 {
		t.Errorf("second pass: %v, %v", changes, err)
	}
	if err := i.Uninstall(); err != nil {
		t.Fatal(err)
	}
	if got := read(t, filepath.Join(conf, "05-solo.conf")); got != single {
		t.Errorf("after uninstall %s, want %s", got, single)
	}
	if _, err := os.Stat(filepath.Join(conf, "05-solo.conflist")); !os.IsNotExist(err) {
		t.Error("the list is still there")
	}
}

func TestBrokenFiles(t *testing.T) {
	for _, c := range []struct{ name, content, want string }{
		{"cut", list[:60], "not JSON: unexpected end of JSON input"},
		{"empty", "", "file is empty"},
		{"array", "[]", "not a JSON object"},
		{"no name", `{"plugins":[{"type":"a"}]}`, "name: missing"},
		{"no plugins", `{"name":"n","plugins":[]}`, "plugins: empty"},
		{"no type", `{"name":"n","plugins":[{"type":"a"},{}]}`, "plugins[1]: type: missing"},
		{"neither", `{"name":"n"}`, "neither plugins nor type: not a network configuration"},
		{"ours alone", `{"name":"n","plugins":[{"type":"ambit-cni"}]}`, "plugins: nothing but our own entry"},
	} {
		t.Run(c.name, func(t *testing.T) {
			i, _, conf := setup(t, map[string]string{"10-net.conflist": c.content})
			path := filepath.Join(conf, "10-net.conflist")
			_, err := i.Install()
			if err == nil || !strings.Contains(err.Error(), path+": "+c.want) || !strings.Contains(err.Error(), "no valid CNI network configuration") {
				t.Errorf("err = %v, want %q", err, c.want)
			}
			if read(t, path) != c.content {
				t.Error("a file that cannot be read was changed")
			}
			// The runtime uses the next valid one, so that one is chained;
			// the broken one is still named.
			write(t, filepath.Join(conf, "20-next.conflist"), list)
			_, err = i.Install()
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("err = %v, want %q", err, c.want)
			}
			if got := read(t, filepath.Join(conf, "20-next.conflist")); types(t, got) != "ptp portmap ambit-cni" {
				t.Errorf("next: %s", got)
			}
		})
	}
}

func TestEntryIsMovedToTheEndAndUpdated(t *testing.T) {
	i, _, conf := setup(t, map[string]string{"10-net.conflist": `{"name":"n","plugins":[{"type":"ptp"},{"type":"ambit-cni","excludeNamespaces":["old"],"wrappedFrom":"10-net.conf"},{"type":"late"}]}`})
	if _, err := i.Install(); err != nil {
		t.Fatal(err)
	}
	got := read(t, filepath.Join(conf, "10-net.conflist"))
	if types(t, got) != "ptp late ambit-cni" || strings.Contains(got, "old") || !strings.Contains(got, "wrappedFrom") {
		t.Errorf("%s", got)
	}
}

// TestRunRepairs: another tool rewrites the configuration, breaks it, mends it
// and removes the plugin; each time all is as it should be soon after.
func TestRunRepairs(t *testing.T) {
	i, bin, conf := setup(t, nil)
	path := filepath.Join(conf, "10-net.conflist")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- i.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	chained := func() bool {
		b, err := os.ReadFile(path)
		return err == nil && strings.Contains(string(b), Binary) && i.Ready()
	}
	eventually(t, "plugin copied", func() bool { _, err := os.Stat(filepath.Join(bin, Binary)); return err == nil })
	if i.Ready() {
		t.Error("ready without a configuration")
	}
	write(t, path, list)
	eventually(t, "chained when the configuration appears", chained)
	write(t, path, list) // as Cilium or Calico do at their start
	eventually(t, "repaired after a rewrite", chained)
	write(t, path, list[:40])
	eventually(t, "not ready while it is broken", func() bool { return !i.Ready() })
	if read(t, path) != list[:40] {
		t.Error("the broken file was touched")
	}
	write(t, path, list)
	eventually(t, "repaired after it was mended", chained)
	if err := os.Remove(filepath.Join(bin, Binary)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "plugin is back", func() bool { _, err := os.Stat(filepath.Join(bin, Binary)); return err == nil })
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("not in time: %s", what)
		case <-tick.C:
		}
	}
}

func FuzzChain(f *testing.F) {
	f.Add([]byte(list))
	f.Add([]byte(`{"name":"n","type":"bridge"}`))
	f.Add([]byte(`{"name":"n","plugins":[{"type":"ambit-cni"},{"type":"a"}],"name":"m"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		out, as, err := chain(b, "x.conf", Entry{})
		if err != nil {
			return
		}
		// What we write we accept, unchanged; and without us it is valid.
		again, name, err := chain(out, as, Entry{})
		if err != nil || string(again) != string(out) || name != as {
			t.Fatalf("second pass: %v\n%s\n%s", err, out, again)
		}
		rest, _, err := unchain(out)
		if err != nil || !json.Valid(rest) {
			t.Fatalf("unchain: %v: %s", err, rest)
		}
	})
}
