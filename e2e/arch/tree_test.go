package arch

import (
	"bufio"
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestTopLevelFolders(t *testing.T) {
	entries, err := os.ReadDir(root(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		// Hidden folders belong to tools; out is where everything built goes.
		if !e.IsDir() || strings.HasPrefix(e.Name(), ".") || e.Name() == "out" {
			continue
		}
		if !slices.Contains(folders, e.Name()) {
			t.Errorf("%s/: the top-level folders are fixed: %s", e.Name(), strings.Join(folders, ", "))
		}
	}
}

func TestMakefileStaysOnAPage(t *testing.T) {
	if n := lines(t, filepath.Join(root(t), "Makefile")); n >= 80 {
		t.Errorf("Makefile has %d lines; under 80, or the work belongs in a program", n)
	}
}

func TestMainStaysOnAPage(t *testing.T) {
	mains, err := filepath.Glob(filepath.Join(root(t), "cmd", "*", "main.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mains {
		if n := lines(t, m); n > 150 {
			t.Errorf("%s has %d lines; main is flags, Config, Validate, New, Run in at most 150", m, n)
		}
	}
}

// sourceRule is something only a few folders may contain.
type sourceRule struct {
	name  string
	re    *regexp.Regexp
	allow []string
	why   string
}

func TestSourceRules(t *testing.T) {
	rules := []sourceRule{
		{"setns", regexp.MustCompile(`\bSetns\(|SYS_SETNS`), []string{"cni/netns", "e2e/..."},
			"a thread in the wrong namespace that returns to the scheduler breaks everything after it; one package owns that"},
		{"environment", regexp.MustCompile(`\bos\.(Getenv|LookupEnv|Environ)\(`), []string{"cmd/...", "e2e/...", "deploy/..."},
			"hidden inputs: the environment is read in cmd only and becomes a Config"},
		{"iptables", regexp.MustCompile(`"(ip6?tables|nft|ipset)(-save|-restore)?"`), []string{"e2e/..."},
			"capture is eBPF only"},
		{"log.Fatal", regexp.MustCompile(`\b(log|klog)\.Fatal`), nil,
			"return the error to main"},
		{"SO_REUSEPORT", regexp.MustCompile(`\bSO_REUSEPORT\b`), []string{"cni/handoff"},
			"a process of the same user could join the group and receive plaintext"},
		{"a TLS key log", regexp.MustCompile(`\bKeyLogWriter\b|SSLKEYLOGFILE`), nil,
			"whoever gets the file reads the traffic; there is no debugging worth that"},
		{"init", regexp.MustCompile(`(?m)^func init\(\)`), []string{"e2e/..."},
			"no effects at import"},
	}
	base := root(t)
	err := filepath.WalkDir(base, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(base, path)
		if d.IsDir() {
			if rel == "out" || strings.HasPrefix(d.Name(), ".") && rel != "." || d.Name() == "testdata" {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(rel, ".go") || strings.HasSuffix(rel, "_test.go") {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if bytes.Contains(b[:min(len(b), 2048)], []byte("Code generated ")) {
			return nil
		}
		code := stripComments(b)
		for _, r := range rules {
			dir := filepath.ToSlash(filepath.Dir(rel))
			if slices.ContainsFunc(r.allow, func(p string) bool { return match(p, dir) }) {
				continue
			}
			if r.re.Match(code) {
				t.Errorf("%s uses %s: %s", rel, r.name, r.why)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// stripComments blanks whole-line comments, which may name what code may not do.
func stripComments(b []byte) []byte {
	var out bytes.Buffer
	s := bufio.NewScanner(bytes.NewReader(b))
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		if line := s.Bytes(); !bytes.HasPrefix(bytes.TrimSpace(line), []byte("//")) {
			out.Write(line)
		}
		out.WriteByte('\n')
	}
	return out.Bytes()
}

func lines(t *testing.T, path string) int {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Count(b, []byte("\n"))
}
