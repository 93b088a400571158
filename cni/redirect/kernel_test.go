package redirect

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"

	"github.com/ambitmesh/ambit/cni/bpf"
	"github.com/ambitmesh/ambit/cni/netns"
)

// TestOneSetOfNumbers: cni/netns has no business importing the programs.
func TestOneSetOfNumbers(t *testing.T) {
	if netns.Mark != bpf.CaptureMarkMARK_PROXY || netns.CaptureMark != bpf.CaptureMarkMARK_CAPTURE || netns.MarkMask != bpf.CaptureMarkMARK_MASK {
		t.Fatal("marks of cni/netns and cni/bpf differ")
	}
}

//ambit:feature redirect-host-bpffs
func TestPinRootMustBeTheHosts(t *testing.T) {
	needRoot(t)
	if _, err := New(Options{PinRoot: filepath.Join(t.TempDir(), "ambit")}); err == nil || !strings.Contains(err.Error(), "not a bpffs") {
		t.Errorf("a plain folder: %v", err)
	}
	root := pinRoot(t)
	if _, err := New(Options{PinRoot: root, HostRoot: "/"}); err != nil {
		t.Errorf("the host's own: %v", err)
	}
	// The host has another bpffs at the same path.
	host := t.TempDir()
	there := filepath.Join(host, filepath.Dir(root))
	if err := os.MkdirAll(there, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("bpf", there, "bpf", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(there, 0) })
	if _, err := New(Options{PinRoot: root, HostRoot: host}); err == nil {
		t.Error("taken although the host has no such folder")
	}
	if err := os.Mkdir(filepath.Join(there, "ambit"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := New(Options{PinRoot: root, HostRoot: host}); err == nil || !strings.Contains(err.Error(), "private") {
		t.Errorf("a private bpffs: %v", err)
	}
}

// TestMissingFeatures: a kernel without something is refused by name, all of it
// at once, and the one that runs here is not.
//
//ambit:feature redirect-kernel
func TestMissingFeatures(t *testing.T) {
	needRoot(t)
	have := func(lacks ...asm.BuiltinFunc) error {
		return missing(features.HaveProgramType, features.HaveMapType, func(p ebpf.ProgramType, h asm.BuiltinFunc) error {
			if slices.Contains(lacks, h) {
				return ebpf.ErrNotSupported
			}
			return features.HaveProgramHelper(p, h)
		})
	}
	if err := have(); err != nil {
		t.Errorf("this kernel: %v", err)
	}
	err := have(asm.FnSkbCgroupId, asm.FnFibLookup)
	if !errors.Is(err, ebpf.ErrNotSupported) || !strings.Contains(err.Error(), "FnSkbCgroupId") || !strings.Contains(err.Error(), "FnFibLookup") {
		t.Errorf("without two helpers: %v", err)
	}
}
