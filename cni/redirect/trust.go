package redirect

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/ambitmesh/ambit/cni/bpf"
)

// TrustProxies lets sockets of these cgroups carry the proxy's mark in every pod
// there is, before one of their processes is given a pod: to a pod that checks
// and does not know the proxy, the proxy looks like an application. No ids at
// all end the check in every pod, so that the mark alone decides.
func (r *Redirector) TrustProxies(ids []uint64) error {
	return r.everywhere(func(containerID string) error { return r.trustOne(containerID, ids) })
}

// TrustProbers has probes stamped, in every pod there is, for sockets of these
// cgroups and of no others. No ids at all stamp those of every process of the
// node.
func (r *Redirector) TrustProbers(ids []uint64) error {
	return r.everywhere(func(containerID string) error { return r.probersOfOne(containerID, ids) })
}

func (r *Redirector) everywhere(change func(containerID string) error) error {
	entries, err := os.ReadDir(r.opt.PinRoot)
	if err != nil {
		return fmt.Errorf("list pins: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		if err := change(e.Name()); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("container %s: %w", e.Name(), err))
		}
	}
	return errors.Join(errs...)
}

func (r *Redirector) probersOfOne(containerID string, ids []uint64) error {
	defer r.lock(containerID)()
	dir := filepath.Join(r.opt.PinRoot, containerID)
	if len(ids) == 0 {
		return changeSwitches(dir, func(sw *bpf.CaptureSwitches) { sw.Flags &^= flagProbers })
	}
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, bpf.CaptureMapProbers), nil)
	if err != nil {
		return fmt.Errorf("probing cgroups: %w", err)
	}
	defer m.Close()
	if err := syncKeys(m, set(ids)); err != nil {
		return fmt.Errorf("probing cgroups: %w", err)
	}
	return changeSwitches(dir, func(sw *bpf.CaptureSwitches) {
		if sw.Flags&flagStamp != 0 {
			sw.Flags |= flagProbers
		}
	})
}

func (r *Redirector) trustOne(containerID string, ids []uint64) error {
	defer r.lock(containerID)()
	dir := filepath.Join(r.opt.PinRoot, containerID)
	if len(ids) == 0 {
		return changeSwitches(dir, func(sw *bpf.CaptureSwitches) { sw.Flags &^= flagCgroup })
	}
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, bpf.CaptureMapCgroups), nil)
	if err != nil {
		return fmt.Errorf("proxy cgroups: %w", err)
	}
	defer m.Close()
	return trust(m, ids)
}

// trust adds ids. Only when there is no room, those not among them go.
func trust(m *ebpf.Map, ids []uint64) error {
	for _, id := range ids {
		err := m.Put(id, uint8(1))
		if errors.Is(err, unix.E2BIG) {
			if err = forgetOthers(m, ids); err == nil {
				err = m.Put(id, uint8(1))
			}
		}
		if err != nil {
			return fmt.Errorf("proxy cgroup %d: %w", id, err)
		}
	}
	return nil
}

func forgetOthers(m *ebpf.Map, ids []uint64) error {
	have, err := keys[uint64](m)
	if err != nil {
		return err
	}
	for id := range have {
		if slices.Contains(ids, id) {
			continue
		}
		if err := m.Delete(id); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
	}
	return nil
}

func changeSwitches(dir string, change func(*bpf.CaptureSwitches)) error {
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, bpf.CaptureMapSettings), nil)
	if err != nil {
		return fmt.Errorf("switches: %w", err)
	}
	defer m.Close()
	var sw bpf.CaptureSwitches
	if err := m.Lookup(uint32(0), &sw); err != nil {
		return fmt.Errorf("read switches: %w", err)
	}
	change(&sw)
	if err := m.Put(uint32(0), sw); err != nil {
		return fmt.Errorf("write switches: %w", err)
	}
	return nil
}
