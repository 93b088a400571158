package arch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/ambitmesh/ambit"

// pkg is what the rules need of `go list -json`.
type pkg struct {
	ImportPath string
	Dir        string
	Name       string
	Doc        string
	Standard   bool
	GoFiles    []string
	Imports    []string
	Deps       []string
	Error      *struct{ Err string }
}

// ours returns the path below the module, or "" for somebody else's package.
func (p pkg) ours() string { return below(p.ImportPath) }

func below(path string) string {
	if rest, ok := strings.CutPrefix(path, module+"/"); ok {
		return rest
	}
	return ""
}

// load lists every package of the module with everything it links.
func load(t *testing.T) map[string]pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-deps", "-json=ImportPath,Dir,Name,Doc,Standard,GoFiles,Imports,Deps,Error", "./...")
	cmd.Dir = root(t)
	// The product is Linux without cgo; listing it any other way would check
	// a program that is never built.
	cmd.Env = append(os.Environ(), "GOOS=linux", "CGO_ENABLED=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.Bytes())
	}
	all := map[string]pkg{}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		if p.Error != nil && p.ours() != "" {
			t.Errorf("%s cannot be listed: %s", p.ImportPath, p.Error.Err)
		}
		all[p.ImportPath] = p
	}
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// match says whether path is covered by a pattern of the table.
func match(pattern, path string) bool {
	if pattern == "..." {
		return true
	}
	if tree, ok := strings.CutSuffix(pattern, "/..."); ok {
		return path == tree || strings.HasPrefix(path, tree+"/")
	}
	return pattern == path
}

// library names the notable library an import belongs to, the longest prefix
// first so that a part of a module can have a name of its own.
func library(path string) string {
	best, name := 0, ""
	for lib, prefixes := range libraries {
		for _, p := range prefixes {
			if (path == p || strings.HasPrefix(path, p+"/")) && len(p) > best {
				best, name = len(p), lib
			}
		}
	}
	return name
}

// find returns the row for a package: an exact one before one that covers a tree.
func find(path string) (row, bool) {
	tree := -1
	for i, r := range table {
		if r.pkg == path {
			return r, true
		}
		if match(r.pkg, path) {
			tree = i
		}
	}
	if tree < 0 {
		return row{}, false
	}
	return table[tree], true
}

// judge returns what is wrong with one import, or "".
func judge(from, to string) string {
	target, lib := below(to), library(to)
	if target == "" && lib == "" {
		return ""
	}
	r, ok := find(from)
	if !ok {
		return fmt.Sprintf("%s is not in the table of e2e/arch: add a row that says what it may import, and why", from)
	}
	if match("e2e/...", from) {
		if match("cmd/...", target) {
			return fmt.Sprintf("%s imports %s: tests drive programs as programs", from, target)
		}
		return ""
	}
	allowed := false
	if target != "" {
		allowed = slices.ContainsFunc(r.may, func(p string) bool { return match(p, target) }) && target != "hbone/hbonetest"
	} else {
		allowed = slices.Contains(r.ext, lib)
	}
	if allowed {
		return ""
	}
	name, why := target, r.why
	if target == "" {
		name = to + " (" + lib + ")"
	}
	for _, e := range edges {
		if match(e.from, from) && (e.to == lib && lib != "" || target != "" && match(e.to, target)) {
			why = e.why
			break
		}
	}
	return fmt.Sprintf("%s imports %s: %s", from, name, why)
}

func TestImportsPointDownward(t *testing.T) {
	for _, p := range load(t) {
		if p.ours() == "" {
			continue
		}
		for _, imp := range p.Imports {
			if wrong := judge(p.ours(), imp); wrong != "" {
				t.Error(wrong)
			}
		}
	}
}

func TestProgramsStayInBudget(t *testing.T) {
	all := load(t)
	for _, b := range budgets {
		p, ok := all[module+"/"+b.cmd]
		if !ok {
			t.Errorf("%s has a budget but does not exist", b.cmd)
			continue
		}
		outside := 0
		for _, dep := range p.Deps {
			if d, ok := all[dep]; ok && d.Standard {
				continue
			}
			outside++
			if lib := library(dep); lib != "" && slices.Contains(b.forbid, lib) {
				t.Errorf("%s links %s (%s): %s", b.cmd, dep, lib, b.why)
			}
		}
		if b.max > 0 && outside > b.max {
			t.Errorf("%s links %d packages outside the standard library, budget %d: %s", b.cmd, outside, b.max, b.why)
		}
	}
}

func TestEveryPackageSaysWhatItOwns(t *testing.T) {
	for _, p := range load(t) {
		if p.ours() == "" || len(p.GoFiles) == 0 || generated(t, p) {
			continue
		}
		want := "Package " + p.Name + " owns "
		if p.Name == "main" {
			want = "Command " + filepath.Base(p.ImportPath) + " "
		}
		if !strings.HasPrefix(p.Doc, want) {
			t.Errorf("%s: package comment should begin %q, has %q", p.ours(), want, p.Doc)
		}
	}
}

// generated says whether every file of a package was written by a program,
// which cannot know what the package owns.
func generated(t *testing.T, p pkg) bool {
	t.Helper()
	for _, f := range p.GoFiles {
		b, err := os.ReadFile(filepath.Join(p.Dir, f))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(b[:min(len(b), 2048)], []byte("Code generated ")) {
			return false
		}
	}
	return true
}

func TestPackageNamesAreNouns(t *testing.T) {
	drawers := []string{"util", "utils", "common", "helper", "helpers", "manager", "constants", "types", "interfaces", "misc", "shared"}
	for _, p := range load(t) {
		if p.ours() != "" && slices.Contains(drawers, p.Name) {
			t.Errorf("%s: %q names a drawer, not a thing", p.ours(), p.Name)
		}
	}
}

// TestTableIsWellFormed keeps the rules themselves honest.
func TestTableIsWellFormed(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range table {
		if seen[r.pkg] {
			t.Errorf("%s has two rows", r.pkg)
		}
		seen[r.pkg] = true
		if r.why == "" {
			t.Errorf("%s has no reason", r.pkg)
		}
		for _, e := range r.ext {
			if _, ok := libraries[e]; !ok && e != "*" {
				t.Errorf("%s names unknown library %q", r.pkg, e)
			}
		}
		for _, m := range r.may {
			if _, ok := find(strings.TrimSuffix(m, "/...")); !ok && m != "..." && !slices.ContainsFunc(table, func(o row) bool {
				return strings.HasPrefix(o.pkg, strings.TrimSuffix(m, "..."))
			}) {
				t.Errorf("%s may import %s, which has no row", r.pkg, m)
			}
		}
	}
}

func TestJudge(t *testing.T) {
	for _, c := range []struct{ from, to, want string }{
		{"hbone/pool", module + "/hbone", ""},
		{"hbone", module + "/hbone/pool", "tunnel is a protocol"},
		{"hbone", module + "/controller/mesh", "the floor"},
		{"hbone", "golang.org/x/net/http2", ""},
		{"hbone/pool", "google.golang.org/protobuf/proto", "keyed by values"},
		{"ztunnel/outbound", "k8s.io/client-go/kubernetes", "no API access"},
		{"ztunnel/inbound", module + "/cni/redirect", "capture belongs to the agent"},
		{"controller/translate", "istio.io/client-go/pkg/apis/security/v1", ""},
		{"controller/translate", "istio.io/client-go/pkg/clientset/versioned", "pure"},
		{"controller/xds/server", "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3", ""},
		{"controller/xds/server", "github.com/envoyproxy/go-control-plane/envoy/config/route/v3", "streams snapshots"},
		{"cmd/ambit-controller", module + "/hbone/hbonetest", "security bug"},
		{"cni/plugin", "k8s.io/client-go/rest", "exec'd"},
		{"ztunnel/live", "net/netip", ""},
		{"new/package", module + "/hbone", "not in the table"},
		{"e2e/netns", module + "/ztunnel", ""},
		{"e2e/netns", module + "/cmd/ambit", "as programs"},
	} {
		got := judge(c.from, c.to)
		if (c.want == "") != (got == "") || !strings.Contains(got, c.want) {
			t.Errorf("judge(%s, %s) = %q, want %q", c.from, c.to, got, c.want)
		}
	}
}
