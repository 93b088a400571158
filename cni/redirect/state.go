package redirect

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/ambitmesh/ambit/cni/bpf"
)

const (
	flagOutbound = uint32(bpf.CaptureFlagFLAG_OUTBOUND)
	flagInbound  = uint32(bpf.CaptureFlagFLAG_INBOUND)
	flagDNS      = uint32(bpf.CaptureFlagFLAG_DNS)
	flagDrain    = uint32(bpf.CaptureFlagFLAG_DRAIN)
	flagCgroup   = uint32(bpf.CaptureFlagFLAG_CGROUP)
	flagStamp    = uint32(bpf.CaptureFlagFLAG_STAMP)
	flagProbers  = uint32(bpf.CaptureFlagFLAG_PROBERS)
	flagReroute  = uint32(bpf.CaptureFlagFLAG_REROUTE)
)

// hintLife is far longer than the stack takes from ingress to lookup, so an
// older hint belongs to a SYN that never got there.
const hintLife = time.Minute

// state is the programs and maps of one pod, found in its pins or made.
type state struct {
	dir    string
	clsact bool
	// version of the programs below.
	version uint64
	// reload makes new programs over the same maps, and is counted.
	reload  func() error
	reloads int
	// stamped: the host's ends of the pod's devices carry the stamp program.
	stamped bool

	bpf.CaptureMaps
	bpf.CapturePrograms
}

func (s *state) Close() {
	_ = s.CaptureMaps.Close()
	_ = s.CapturePrograms.Close()
}

func loadSpec(k kernel) (*ebpf.CollectionSpec, error) {
	spec, err := bpf.LoadCapture()
	if err != nil {
		return nil, err
	}
	if !k.ingressIfindex {
		if err := spec.Variables[bpf.CaptureVarHasIngressIfindex].Set(uint32(0)); err != nil {
			return nil, err
		}
	}
	for name, m := range spec.Maps {
		if name[0] != '.' { // .rodata belongs to its programs
			m.Pinning = ebpf.PinByName
		}
	}
	return spec, nil
}

func programPin(dir, name string) string { return filepath.Join(dir, "program-"+name) }

// open takes what is pinned when it is of this version and whole, else loads
// new programs over the pinned maps.
func (r *Redirector) open(dir string) (*state, error) {
	s := &state{dir: dir, clsact: r.clsact, version: r.version}
	s.reload = func() error {
		s.reloads++
		s.Close()
		s.CaptureMaps, s.CapturePrograms = bpf.CaptureMaps{}, bpf.CapturePrograms{}
		return s.load(r.spec)
	}
	if s.adopt(r.version) {
		return s, nil
	}
	err := s.reload()
	if errors.Is(err, ebpf.ErrMapIncompatible) {
		// Another layout. The attached programs keep their maps until they
		// are replaced; ours start with their switches, and Set fills the
		// rest before it replaces them.
		old, oldErr := readSwitches(dir)
		if err := s.forgetMaps(r.spec); err != nil {
			return nil, err
		}
		if err = s.reload(); err == nil && oldErr == nil {
			old.Version = 0
			err = s.Settings.Put(uint32(0), old)
		}
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// adopt reports whether everything was there.
func (s *state) adopt(version uint64) bool {
	sw, err := readSwitches(s.dir)
	if err != nil || sw.Version != version {
		return false
	}
	for name, m := range s.maps() {
		if *m, err = ebpf.LoadPinnedMap(filepath.Join(s.dir, name), nil); err != nil {
			return false
		}
	}
	for name, p := range s.programs() {
		if *p, err = ebpf.LoadPinnedProgram(programPin(s.dir, name), nil); err != nil {
			return false
		}
	}
	return true
}

func (s *state) load(spec *ebpf.CollectionSpec) error {
	var objects bpf.CaptureObjects
	err := spec.Copy().LoadAndAssign(&objects, &ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: s.dir}})
	if err != nil {
		return fmt.Errorf("load capture programs: %w", err)
	}
	s.CaptureMaps, s.CapturePrograms = objects.CaptureMaps, objects.CapturePrograms
	for name, p := range s.programs() {
		path := programPin(s.dir, name)
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("replace pin of program %s: %w", name, err)
		}
		if err := (*p).Pin(path); err != nil {
			return fmt.Errorf("pin program %s: %w", name, err)
		}
	}
	return nil
}

func (s *state) forgetMaps(spec *ebpf.CollectionSpec) error {
	for name := range spec.Maps {
		if err := os.Remove(filepath.Join(s.dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("replace map %s: %w", name, err)
		}
	}
	return nil
}

func (s *state) maps() map[string]**ebpf.Map {
	return map[string]**ebpf.Map{
		bpf.CaptureMapAddresses: &s.Addresses,
		bpf.CaptureMapCgroups:   &s.Cgroups,
		bpf.CaptureMapHints:     &s.Hints,
		bpf.CaptureMapListeners: &s.Listeners,
		bpf.CaptureMapProbers:   &s.Probers,
		bpf.CaptureMapProbes:    &s.Probes,
		bpf.CaptureMapReroutes:  &s.Reroutes,
		bpf.CaptureMapSettings:  &s.Settings,
		bpf.CaptureMapSources:   &s.Sources,
		bpf.CaptureMapStats:     &s.Stats,
		bpf.CaptureMapVerdicts:  &s.Verdicts,
	}
}

func (s *state) programs() map[string]**ebpf.Program {
	return map[string]**ebpf.Program{
		bpf.CaptureProgEgress:  &s.Egress,
		bpf.CaptureProgIngress: &s.Ingress,
		bpf.CaptureProgLookup:  &s.Lookup,
		bpf.CaptureProgStamp:   &s.Stamp,
	}
}

// fill makes the maps as wanted, all but the switches.
func (s *state) fill(cfg Config, found *inventory) error {
	addrs := map[bpf.CaptureAddress]bool{}
	for _, a := range append(append([]netip.Addr(nil), cfg.Addrs...), found.addrs...) {
		addrs[mapped(a)] = true
	}
	if err := syncKeys(s.Addresses, addrs); err != nil {
		return fmt.Errorf("pod addresses: %w", err)
	}
	if err := syncKeys(s.Reroutes, rerouteKeys(cfg, found)); err != nil {
		return fmt.Errorf("rerouted devices: %w", err)
	}
	ports := map[uint16]bool{}
	for _, p := range cfg.ProbePorts {
		ports[networkOrder(p)] = true
	}
	if err := syncKeys(s.Probes, ports); err != nil {
		return fmt.Errorf("probe ports: %w", err)
	}
	// None is said by the switch alone: until it is thrown those known so far
	// go on to be let in.
	if len(cfg.ProbeCgroups) > 0 {
		if err := syncKeys(s.Probers, set(cfg.ProbeCgroups)); err != nil {
			return fmt.Errorf("probing cgroups: %w", err)
		}
	}
	if err := syncKeys(s.Sources, sourceKeys(cfg.ProbeSources)); err != nil {
		return fmt.Errorf("probe sources: %w", err)
	}
	if err := trust(s.Cgroups, cfg.ProxyCgroups); err != nil {
		return err
	}
	if err := s.forgetHints(); err != nil {
		return fmt.Errorf("hints: %w", err)
	}
	for slot, f := range slots(cfg.Listeners) {
		cookie, err := socketCookie(f)
		if err != nil {
			return fmt.Errorf("listener %s: %w", f.Name(), err)
		}
		var have uint64
		if err := s.Listeners.Lookup(uint32(slot), &have); err == nil && have == cookie {
			continue
		}
		if err := putSocket(s.Listeners, slot, f); err != nil {
			return fmt.Errorf("listener %s into slot %d: %w", f.Name(), slot, err)
		}
	}
	return nil
}

func set[K comparable](list []K) map[K]bool {
	m := make(map[K]bool, len(list))
	for _, k := range list {
		m[k] = true
	}
	return m
}

// rerouteKeys are the indexes of those devices that are there.
func rerouteKeys(cfg Config, found *inventory) map[uint32]bool {
	m := map[uint32]bool{}
	for _, d := range found.devices {
		if slices.Contains(cfg.Reroute, d.name) {
			m[uint32(d.index)] = true
		}
	}
	return m
}

func sourceKeys(prefixes []netip.Prefix) map[bpf.CaptureSource]bool {
	m := make(map[bpf.CaptureSource]bool, len(prefixes))
	for _, p := range prefixes {
		bits := p.Bits()
		if p.Addr().Is4() {
			bits += 96
		}
		m[bpf.CaptureSource{Prefix: uint32(bits), Address: mapped(p.Masked().Addr())}] = true
	}
	return m
}

// enable writes the switches, which is when capture begins.
func (s *state) enable(cfg Config) error {
	var sw bpf.CaptureSwitches
	if err := s.Settings.Lookup(uint32(0), &sw); err != nil {
		return fmt.Errorf("read switches: %w", err)
	}
	want := sw
	want.Flags = s.flags(cfg, sw.Flags)
	want.Version = s.version
	if want.Stamp == ([6]uint8{}) {
		if _, err := rand.Read(want.Stamp[:]); err != nil {
			return fmt.Errorf("probe stamp: %w", err)
		}
		want.Stamp[0] = want.Stamp[0]&^1 | 2 // unicast, locally administered
	}
	if want == sw {
		return nil
	}
	if err := s.Settings.Put(uint32(0), want); err != nil {
		return fmt.Errorf("write switches: %w", err)
	}
	return nil
}

func (s *state) flags(cfg Config, now uint32) uint32 {
	flags := flagOutbound
	if !cfg.InboundDirect {
		flags |= flagInbound
	}
	if len(cfg.Reroute) > 0 {
		flags |= flagReroute
	}
	switch {
	case cfg.Foreign:
	case cfg.Listeners == nil:
		flags |= now & flagDNS
	case cfg.Listeners.DNSTCP != nil && cfg.Listeners.DNSUDP != nil:
		flags |= flagDNS
	}
	if len(cfg.ProxyCgroups) > 0 {
		flags |= flagCgroup
	}
	if s.stamped {
		flags |= flagStamp
		if len(cfg.ProbeCgroups) > 0 {
			flags |= flagProbers
		}
	}
	return flags
}

func readSwitches(dir string) (bpf.CaptureSwitches, error) {
	var sw bpf.CaptureSwitches
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, bpf.CaptureMapSettings), &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return sw, fmt.Errorf("switches: %w", err)
	}
	defer m.Close()
	if err := m.Lookup(uint32(0), &sw); err != nil {
		return sw, fmt.Errorf("switches: %w", err)
	}
	return sw, nil
}

func drain(dir string) error {
	return changeSwitches(dir, func(sw *bpf.CaptureSwitches) { sw.Flags = flagDrain | sw.Flags&(flagCgroup|flagReroute) })
}

// forgetHints drops those whose SYN never came to lookup, so that they do not
// fill the map: a full one drops connections.
func (s *state) forgetHints() error {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return err
	}
	var h bpf.CaptureHint
	var born uint64
	var old []bpf.CaptureHint
	it := s.Hints.Iterate()
	for it.Next(&h, &born) {
		if uint64(now.Nano())-born > uint64(hintLife) {
			old = append(old, h)
		}
	}
	if err := it.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return err
	}
	for _, h := range old {
		if err := s.Hints.Delete(h); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
	}
	return nil
}

// syncKeys adds first: what is wanted is never missing in between.
func syncKeys[K comparable](m *ebpf.Map, want map[K]bool) error {
	have, err := keys[K](m)
	if err != nil {
		return err
	}
	for k := range want {
		if !have[k] {
			if err := m.Put(k, uint8(1)); err != nil {
				return err
			}
		}
	}
	for k := range have {
		if !want[k] {
			if err := m.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				return err
			}
		}
	}
	return nil
}

func keys[K comparable](m *ebpf.Map) (map[K]bool, error) {
	have := map[K]bool{}
	var k K
	var v uint8
	it := m.Iterate()
	for it.Next(&k, &v) {
		have[k] = true
	}
	return have, it.Err()
}
