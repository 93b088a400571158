// Command crds renders the custom resource definitions Ambit reads from the
// pinned modules that define them, so that the schema a cluster validates with
// is always the one the controller was compiled against.
package main

//go:generate go run .

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// istioKinds are the definitions of istio.io/api that Ambit acts on. A kind that
// nothing reads is left out: an object that is accepted and then honoured by
// nobody misleads the one who wrote it.
var istioKinds = []string{
	"authorizationpolicies.security.istio.io",
	"peerauthentications.security.istio.io",
	"serviceentries.networking.istio.io",
	"workloadentries.networking.istio.io",
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "crds:", err)
		os.Exit(1)
	}
}

func run() error {
	var written []string
	for _, m := range []struct {
		path, folder string
		render       func(dir string) (map[string][]byte, error)
	}{
		{"istio.io/api", "istio", istio},
		{"sigs.k8s.io/gateway-api", "gateway-api", gateway},
	} {
		mod, err := download(m.path)
		if err != nil {
			return err
		}
		files, err := m.render(mod.Dir)
		if err != nil {
			return fmt.Errorf("%s %s: %w", mod.Path, mod.Version, err)
		}
		header := fmt.Sprintf("# Rendered by `make generate` from %s %s (Apache-2.0). Do not edit.\n", mod.Path, mod.Version)
		if err := os.RemoveAll(m.folder); err != nil {
			return err
		}
		if err := os.Mkdir(m.folder, 0o755); err != nil {
			return err
		}
		for name, text := range files {
			path := filepath.Join(m.folder, name)
			if err := os.WriteFile(path, append([]byte(header), text...), 0o644); err != nil {
				return err
			}
			written = append(written, path)
		}
	}
	slices.Sort(written)
	var k bytes.Buffer
	k.WriteString("# Rendered by `make generate`. Do not edit.\n" +
		"# Separate from deploy/ambit, so that removing Ambit does not remove its users' objects.\n" +
		"# Apply with --server-side: the larger definitions do not fit into the annotation of a plain apply.\n" +
		"apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n  - root-namespace.yaml\n")
	for _, w := range written {
		fmt.Fprintf(&k, "  - %s\n", w)
	}
	return os.WriteFile("kustomization.yaml", k.Bytes(), 0o644)
}

// module is what `go mod download -json` says of one module.
type module struct{ Path, Version, Dir string }

// download makes sure the module is in the cache at the version go.mod pins.
func download(path string) (module, error) {
	out, err := exec.Command("go", "mod", "download", "-json", path).Output()
	if err != nil {
		return module{}, fmt.Errorf("go mod download %s: %w", path, err)
	}
	var m module
	return m, json.Unmarshal(out, &m)
}

// istio picks the wanted definitions out of the one file that holds all.
func istio(dir string) (map[string][]byte, error) {
	all, err := os.ReadFile(filepath.Join(dir, "kubernetes", "customresourcedefinitions.gen.yaml"))
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{}
	for doc := range strings.SplitSeq(string(all), "\n---\n") {
		for _, kind := range istioKinds {
			if strings.Contains(doc, "\n  name: "+kind+"\n") {
				files[kind+".yaml"] = []byte(strings.TrimSpace(stripComments(doc)) + "\n")
			}
		}
	}
	if len(files) != len(istioKinds) {
		return nil, fmt.Errorf("found %d of the %d definitions %v", len(files), len(istioKinds), istioKinds)
	}
	return files, nil
}

func stripComments(doc string) string {
	var out strings.Builder
	for line := range strings.Lines(doc) {
		if !strings.HasPrefix(line, "#") && strings.TrimSpace(line) != "---" {
			out.WriteString(line)
		}
	}
	return out.String()
}

// gateway takes the standard channel whole: it is one release, with one
// admission policy that guards against mixing channels.
func gateway(dir string) (map[string][]byte, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "config", "crd", "standard", "*.yaml"))
	if err != nil {
		return nil, err
	}
	if len(paths) == 0 {
		return nil, errors.New("no definitions in config/crd/standard")
	}
	files := map[string][]byte{}
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			return nil, err
		}
		files[filepath.Base(p)] = b
	}
	return files, nil
}
