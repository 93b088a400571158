package redirect

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/ambitmesh/ambit/cni/netns"
)

// checkPinRoot makes the folder and proves that it is in the host's bpffs.
func checkPinRoot(root, hostRoot string) error {
	parent := filepath.Dir(root)
	if err := isBPFFS(parent); err != nil && isBPFFS(root) != nil {
		return fmt.Errorf("pin folder %s: %w", root, err)
	}
	if err := os.MkdirAll(root, 0o700); err != nil {
		return fmt.Errorf("pin folder: %w", err)
	}
	if hostRoot == "" {
		return nil
	}
	var here, there unix.Stat_t
	if err := unix.Stat(root, &here); err != nil {
		return fmt.Errorf("pin folder %s: %w", root, err)
	}
	seen := filepath.Join(hostRoot, root)
	if err := unix.Stat(seen, &there); err != nil {
		return fmt.Errorf("pin folder as the host sees it, %s: %w", seen, err)
	}
	// One bpffs has one device number wherever it is mounted.
	if here.Dev != there.Dev {
		return fmt.Errorf("pin folder %s is not in the host's bpffs but in a private one (device %d, the host's is %d): captured pods would be released when this container ends; mount the host's /sys/fs/bpf", root, here.Dev, there.Dev)
	}
	return nil
}

func isBPFFS(path string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return fmt.Errorf("statfs %s: %w", path, err)
	}
	if uint32(fs.Type) != unix.BPF_FS_MAGIC {
		return fmt.Errorf("%s is not a bpffs; mount -t bpf bpf %s on the host", path, path)
	}
	return nil
}

// kernel is what may be missing without making capture impossible.
type kernel struct {
	tcx            bool // Linux 6.6
	ingressIfindex bool // Linux 5.17
}

// probeKernel tries things instead of looking at version numbers, because
// distributions port features back.
func probeKernel() (kernel, error) {
	if err := missing(features.HaveProgramType, features.HaveMapType, features.HaveProgramHelper); err != nil {
		return kernel{}, err
	}
	var k kernel
	tcx, err := tryTCX()
	if err != nil {
		return kernel{}, fmt.Errorf("try tcx: %w", err)
	}
	k.tcx = tcx
	k.ingressIfindex = tryIngressIfindex()
	return k, nil
}

// missing names everything at once: whoever looks for a kernel wants the whole
// list.
func missing(program func(ebpf.ProgramType) error, maps func(ebpf.MapType) error, helper func(ebpf.ProgramType, asm.BuiltinFunc) error) error {
	var errs []error
	for _, t := range []ebpf.ProgramType{ebpf.SchedCLS, ebpf.SkLookup} {
		if err := program(t); err != nil {
			errs = append(errs, fmt.Errorf("program type %s: %w", t, err))
		}
	}
	for _, t := range []ebpf.MapType{ebpf.SockMap, ebpf.SkStorage, ebpf.LPMTrie, ebpf.PerCPUArray} {
		if err := maps(t); err != nil {
			errs = append(errs, fmt.Errorf("map type %s: %w", t, err))
		}
	}
	for _, h := range []asm.BuiltinFunc{asm.FnSkcLookupTcp, asm.FnSkAssign, asm.FnSkStorageGet, asm.FnSkFullsock, asm.FnFibLookup, asm.FnSkbLoadBytesRelative, asm.FnSkbCgroupId, asm.FnRedirect} {
		if err := helper(ebpf.SchedCLS, h); err != nil {
			errs = append(errs, fmt.Errorf("helper %s for tc: %w", h, err))
		}
	}
	if err := helper(ebpf.SkLookup, asm.FnSkAssign); err != nil {
		errs = append(errs, fmt.Errorf("helper %s for sk_lookup: %w", asm.FnSkAssign, err))
	}
	return errors.Join(errs...)
}

// tryTCX attaches a program that does nothing to lo of a throw-away namespace.
func tryTCX() (bool, error) {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "try_tcx", Type: ebpf.SchedCLS, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()},
	})
	if err != nil {
		return false, err
	}
	defer prog.Close()
	ns, err := netns.New()
	if err != nil {
		return false, err
	}
	defer ns.Close()
	var attached bool
	err = ns.Do(func() error {
		l, err := link.AttachTCX(link.TCXOptions{Interface: ifindexLo, Program: prog, Attach: ebpf.AttachTCXIngress, Anchor: link.Head()})
		if err != nil {
			return nil // whatever the reason, tcx is no use here
		}
		attached = true
		return l.Close()
	})
	return attached, err
}

// tryIngressIfindex reads the last field of struct bpf_sk_lookup.
func tryIngressIfindex() bool {
	const offset = 64
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "try_ifindex", Type: ebpf.SkLookup, AttachType: ebpf.AttachSkLookup, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.LoadMem(asm.R0, asm.R1, offset, asm.Word),
			asm.Mov.Imm(asm.R0, 1),
			asm.Return(),
		},
	})
	if err != nil {
		return false
	}
	_ = prog.Close()
	return true
}
