package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// PID names the process to the kernel.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Descriptors are the open ones of a process, by what they are of.
type Descriptors struct{ All, Sockets, Namespaces, BPF int }

// DescriptorsOf counts; "self" is this process.
func DescriptorsOf(pid string) (Descriptors, error) {
	dir := filepath.Join("/proc", pid, "fd")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return Descriptors{}, fmt.Errorf("descriptors: %w", err)
	}
	var d Descriptors
	for _, e := range entries {
		to, err := os.Readlink(filepath.Join(dir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // closed meanwhile, or that of ReadDir
		} else if err != nil {
			return d, err
		}
		d.All++
		switch {
		case strings.HasPrefix(to, "socket:"):
			d.Sockets++
		case strings.HasPrefix(to, "net:"):
			d.Namespaces++
		case strings.HasPrefix(to, "anon_inode:bpf"):
			d.BPF++
		}
	}
	return d, nil
}

// Devices counts those of the node: two for each pod's pair would be one left.
func (n *Node) Devices() (int, error) { return devices(n.NS) }

// KernelBPF are the eBPF objects of the whole machine, whoever has them.
type KernelBPF struct{ Programs, Maps, Links int }

// CountBPF counts them.
func CountBPF() (KernelBPF, error) {
	var k KernelBPF
	errs := []error{
		count(&k.Programs, func(id uint32) (uint32, error) {
			next, err := ebpf.ProgramGetNextID(ebpf.ProgramID(id))
			return uint32(next), err
		}),
		count(&k.Maps, func(id uint32) (uint32, error) {
			next, err := ebpf.MapGetNextID(ebpf.MapID(id))
			return uint32(next), err
		}),
	}
	var it link.Iterator // opens each; one that goes meanwhile is passed over
	for it.Next() {
		k.Links++
	}
	it.Close()
	return k, errors.Join(append(errs, it.Err())...)
}

func count(n *int, next func(uint32) (uint32, error)) error {
	for id := uint32(0); ; *n++ {
		var err error
		if id, err = next(id); errors.Is(err, os.ErrNotExist) {
			return nil
		} else if err != nil {
			return fmt.Errorf("count eBPF objects: %w", err)
		}
	}
}
