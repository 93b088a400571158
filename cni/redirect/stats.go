package redirect

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/ambitmesh/ambit/cni/bpf"
)

// Stats count what the programs of one pod did since they were first attached,
// by name: outbound_captured, inbound_captured, drop_fragment, ... Every name is
// there, also at zero.
type Stats map[string]uint64

// Dropped is the sum of all packets that were dropped, whatever the reason.
func (s Stats) Dropped() uint64 {
	var n uint64
	for name, v := range s {
		if strings.HasPrefix(name, "drop_") {
			n += v
		}
	}
	return n
}

// Stats reads a pod's counters.
func (r *Redirector) Stats(containerID string) (Stats, error) {
	dir, err := r.dir(containerID)
	if err != nil {
		return nil, err
	}
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, bpf.CaptureMapStats), &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return nil, fmt.Errorf("counters of container %s: %w", containerID, err)
	}
	defer m.Close()
	stats := Stats{}
	for i, name := range r.names {
		var perCPU []uint64
		if err := m.Lookup(uint32(i), &perCPU); err != nil {
			return nil, fmt.Errorf("counter %s of container %s: %w", name, containerID, err)
		}
		for _, n := range perCPU {
			stats[name] += n
		}
	}
	return stats, nil
}

// statNames takes them from the object, so that C alone names them.
func statNames(spec *ebpf.CollectionSpec) ([]string, error) {
	var enum *btf.Enum
	if err := spec.Types.TypeByName("stat", &enum); err != nil {
		return nil, fmt.Errorf("names of the counters: %w", err)
	}
	names := make([]string, bpf.CaptureStatSTAT_COUNT)
	for _, v := range enum.Values {
		if v.Value < uint64(len(names)) {
			names[v.Value] = strings.ToLower(strings.TrimPrefix(v.Name, "STAT_"))
		}
	}
	return names, nil
}
