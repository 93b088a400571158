package redirect

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/ambitmesh/ambit/cni/bpf"
	"github.com/ambitmesh/ambit/cni/netns"
)

// migrate has a listener that closes leave its queue to another of its port
// (Linux 5.14). The ztunnels of others share their ports, old and new.
const migrate = "/proc/sys/net/ipv4/tcp_migrate_req"

// Fill puts the listeners of a ztunnel that is not ours into the slots of a pod.
// Those that are there already stay. The files remain the caller's, the kernel
// keeps the sockets for as long as ztunnel has them.
func (r *Redirector) Fill(containerID string, ns *netns.NS, l *Listeners) error {
	defer r.lock(containerID)()
	err := r.fillSlots(containerID, slots(l))
	if err == nil && ns != nil {
		err = ns.Do(func() error {
			if err := os.WriteFile(migrate, []byte("1"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("let queues of closed listeners move: %w", err)
			}
			return nil
		})
	}
	if err != nil {
		return fmt.Errorf("listeners of container %s: %w", containerID, err)
	}
	return nil
}

func (r *Redirector) fillSlots(containerID string, want map[bpf.CaptureSlot]*os.File) error {
	m, err := r.slotMap(containerID)
	if err != nil {
		return err
	}
	defer m.Close()
	for slot, f := range want {
		cookie, err := socketCookie(f)
		if err != nil {
			return fmt.Errorf("listener %s: %w", f.Name(), err)
		}
		var have uint64
		if err := m.Lookup(uint32(slot), &have); err == nil && have == cookie {
			continue
		}
		if err := putSocket(m, slot, f); err != nil {
			return fmt.Errorf("listener %s into slot %d: %w", f.Name(), slot, err)
		}
	}
	return nil
}

// Empty takes every listener out of its slot. From then on new connections are
// dropped, so that clients try again; nothing goes past capture.
func (r *Redirector) Empty(containerID string) error {
	defer r.lock(containerID)()
	m, err := r.slotMap(containerID)
	if err == nil {
		for slot := range bpf.CaptureSlotSLOT_COUNT {
			if e := m.Delete(uint32(slot)); e != nil && !errors.Is(e, ebpf.ErrKeyNotExist) && !errors.Is(e, unix.EINVAL) { // what a SOCKMAP says of an empty one
				err = errors.Join(err, fmt.Errorf("slot %d: %w", slot, e))
			}
		}
		m.Close()
	}
	if err != nil {
		return fmt.Errorf("take listeners of container %s out: %w", containerID, err)
	}
	return nil
}

// Filled reports whether the slots that the pod's addresses need have listeners.
// A socket that its last owner closes is in no slot any more.
func (r *Redirector) Filled(containerID string, addrs []netip.Addr) (bool, error) {
	defer r.lock(containerID)()
	m, err := r.slotMap(containerID)
	if err != nil {
		return false, fmt.Errorf("listeners of container %s: %w", containerID, err)
	}
	defer m.Close()
	need := []bpf.CaptureSlot{bpf.CaptureSlotSLOT_OUTBOUND, bpf.CaptureSlotSLOT_INBOUND}
	for _, a := range addrs {
		if a.Unmap().Is4() {
			need = append(need, bpf.CaptureSlotSLOT_HBONE4)
		} else {
			need = append(need, bpf.CaptureSlotSLOT_HBONE6)
		}
	}
	for _, slot := range need {
		var cookie uint64
		if err := m.Lookup(uint32(slot), &cookie); errors.Is(err, ebpf.ErrKeyNotExist) {
			return false, nil
		} else if err != nil {
			return false, fmt.Errorf("listeners of container %s: slot %d: %w", containerID, slot, err)
		}
	}
	return true, nil
}

func (r *Redirector) slotMap(containerID string) (*ebpf.Map, error) {
	dir, err := r.dir(containerID)
	if err != nil {
		return nil, err
	}
	return ebpf.LoadPinnedMap(filepath.Join(dir, bpf.CaptureMapListeners), nil)
}
