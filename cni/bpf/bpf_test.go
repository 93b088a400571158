package bpf

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestObjectsAreOfTheSource rebuilds the programs as go generate does and
// compares every byte.
//
//ambit:feature security-bpf-objects
func TestObjectsAreOfTheSource(t *testing.T) {
	for _, tool := range []string{"clang-14", "llvm-strip-14"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
	if _, err := os.Stat("/usr/include/bpf/bpf_helpers.h"); err != nil {
		t.Skip("libbpf-dev is not installed")
	}
	source, err := os.ReadFile("bpf.go")
	if err != nil {
		t.Fatal(err)
	}
	_, line, ok := strings.Cut(string(source), "//go:generate go run ")
	if !ok {
		t.Fatal("bpf.go has no go:generate line")
	}
	line, _, _ = strings.Cut(line, "\n")
	dir := t.TempDir()
	args := append([]string{"run"}, strings.Fields(line)...)
	args = append(args[:2:2], append([]string{"-output-dir", dir}, args[2:]...)...)
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "GOPACKAGE=bpf")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	built, err := filepath.Glob(filepath.Join(dir, "capture_*"))
	if err != nil || len(built) != 4 {
		t.Fatalf("built %v, error %v", built, err)
	}
	for _, path := range built {
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		have, err := os.ReadFile(filepath.Base(path))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(have, want) {
			t.Errorf("%s is not what capture.c builds: run go generate ./cni/bpf", filepath.Base(path))
		}
	}
}
