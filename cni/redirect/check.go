package redirect

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/ambitmesh/ambit/cni/bpf"
	"github.com/ambitmesh/ambit/cni/netns"
)

// Problem is one thing that is not as Set left it.
type Problem struct {
	Object, Want, Have string
}

func (p *Problem) Error() string {
	return fmt.Sprintf("%s: want %s, have %s", p.Object, p.Want, p.Have)
}

// problems collects; a failure to look is an error among them.
type problems []error

func (ps *problems) add(object, want, have string) {
	*ps = append(*ps, &Problem{object, want, have})
}

func (ps *problems) fail(err error) {
	if err != nil {
		*ps = append(*ps, err)
	}
}

// Check compares the pod with cfg and changes nothing. It returns nil or a join
// of *Problem and of errors met while looking; Set repairs all of it.
func (r *Redirector) Check(cfg Config) error {
	defer r.lock(cfg.ContainerID)()
	var ps problems
	if err := r.check(cfg, &ps); err != nil {
		ps.fail(err)
	}
	if err := errors.Join(ps...); err != nil {
		return fmt.Errorf("capture of pod %s (container %s): %w", cfg.UID, cfg.ContainerID, err)
	}
	return nil
}

func (r *Redirector) check(cfg Config, ps *problems) error {
	dir, err := r.dir(cfg.ContainerID)
	if err != nil {
		return err
	}
	if cfg.NS == nil {
		return errors.New("no network namespace")
	}
	var found *inventory
	if err := cfg.NS.Do(func() error {
		checkRouting(ps)
		found, err = takeInventory()
		return err
	}); err != nil {
		return err
	}
	s := &state{dir: dir, clsact: r.clsact, version: r.version}
	defer s.Close()
	sw, err := readSwitches(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		ps.add("pins", dir, "none")
		return nil
	case err != nil:
		return err
	case sw.Version != r.version:
		ps.add("programs", fmt.Sprintf("version %016x", r.version), fmt.Sprintf("%016x", sw.Version))
		return nil
	case !s.adopt(r.version):
		ps.add("pins", "all maps and programs", "some")
		return nil
	}
	if err := s.checkStamp(cfg, ps); err != nil {
		return err
	}
	if want := s.flags(cfg, sw.Flags); sw.Flags != want {
		ps.add("switches", flagNames(want), flagNames(sw.Flags))
	}
	ps.fail(s.checkMaps(cfg, found, ps))
	ps.fail(s.checkLookup(cfg.NS, ps))
	return cfg.NS.Do(func() error {
		for _, dev := range found.devices {
			for _, d := range directions() {
				if err := s.checkDevice(dev, d, ps); err != nil {
					return fmt.Errorf("%s on device %s: %w", d.name, dev.name, err)
				}
			}
		}
		return nil
	})
}

func flagNames(flags uint32) string {
	names := []struct {
		bit  uint32
		name string
	}{{flagOutbound, "outbound"}, {flagInbound, "inbound"}, {flagDNS, "dns"}, {flagDrain, "drain"}, {flagCgroup, "cgroup"}, {flagStamp, "stamp"}, {flagProbers, "probers"}, {flagReroute, "reroute"}}
	out := ""
	for _, n := range names {
		if flags&n.bit == 0 {
			continue
		}
		if out != "" {
			out += "+"
		}
		out += n.name
	}
	if out == "" {
		return "off"
	}
	return out
}

func checkRouting(ps *problems) {
	on, err := acceptsLocal()
	ps.fail(err)
	if err == nil && !on {
		ps.add("sysctl net.ipv4.conf.lo.accept_local", "1", "0")
	}
	for _, family := range families() {
		rule, err := hasRule(family)
		ps.fail(err)
		if err == nil && !rule {
			ps.add(familyName(family)+" rule", fmt.Sprintf("fwmark %#x/%#x pref %d lookup %d", netns.CaptureMark, netns.MarkMask, rulePriority, table), "none")
		}
		route, err := hasRoute(family)
		ps.fail(err)
		if err == nil && !route {
			ps.add(fmt.Sprintf("%s route in table %d", familyName(family), table), "local default dev lo", "none")
		}
	}
}

func (s *state) checkMaps(cfg Config, found *inventory, ps *problems) error {
	have, err := keys[bpf.CaptureAddress](s.Addresses)
	if err != nil {
		return fmt.Errorf("pod addresses: %w", err)
	}
	seen := map[netip.Addr]bool{}
	for _, a := range append(append([]netip.Addr(nil), cfg.Addrs...), found.addrs...) {
		if !have[mapped(a)] && !seen[a] {
			ps.add("pod address "+a.String(), "known", "unknown")
		}
		seen[a] = true
	}
	rerouted, err := keys[uint32](s.Reroutes)
	if err != nil {
		return fmt.Errorf("rerouted devices: %w", err)
	}
	if want := rerouteKeys(cfg, found); !maps.Equal(rerouted, want) {
		ps.add("rerouted devices", fmt.Sprintf("%d of %v", len(want), cfg.Reroute), fmt.Sprintf("%d", len(rerouted)))
	}
	ports, err := keys[uint16](s.Probes)
	if err != nil {
		return fmt.Errorf("probe ports: %w", err)
	}
	for _, p := range cfg.ProbePorts {
		if !ports[networkOrder(p)] {
			ps.add(fmt.Sprintf("probe port %d", p), "open to probes", "captured")
		}
	}
	ps.fail(s.checkProbers(cfg, ps))
	trusted, err := keys[uint64](s.Cgroups)
	if err != nil {
		return fmt.Errorf("proxy cgroups: %w", err)
	}
	for _, id := range cfg.ProxyCgroups {
		if !trusted[id] {
			ps.add(fmt.Sprintf("proxy cgroup %d", id), "trusted", "unknown")
		}
	}
	for slot, f := range slots(cfg.Listeners) {
		want, err := socketCookie(f)
		if err != nil {
			return fmt.Errorf("listener %s: %w", f.Name(), err)
		}
		var cookie uint64
		if err := s.Listeners.Lookup(uint32(slot), &cookie); err != nil {
			ps.add(fmt.Sprintf("listener slot %d", slot), f.Name(), "empty")
		} else if cookie != want {
			ps.add(fmt.Sprintf("listener slot %d", slot), f.Name(), "another socket")
		}
	}
	return nil
}

// checkProbers compares who may probe: one too many is as wrong as one missing.
func (s *state) checkProbers(cfg Config, ps *problems) error {
	if s.stamped {
		have, err := keys[uint64](s.Probers)
		if err != nil {
			return fmt.Errorf("probing cgroups: %w", err)
		}
		if want := set(cfg.ProbeCgroups); len(want) > 0 && !maps.Equal(have, want) {
			ps.add("probing cgroups", listed(want), listed(have))
		}
		return nil
	}
	have, err := keys[bpf.CaptureSource](s.Sources)
	if err != nil {
		return fmt.Errorf("probe sources: %w", err)
	}
	if want := sourceKeys(cfg.ProbeSources); !maps.Equal(have, want) {
		ps.add("probe sources", fmt.Sprint(cfg.ProbeSources), fmt.Sprintf("%d others", len(have)))
	}
	return nil
}

func listed(ids map[uint64]bool) string { return fmt.Sprint(slices.Sorted(maps.Keys(ids))) }

func (s *state) checkLookup(ns *netns.NS, ps *problems) error {
	l, err := link.LoadPinnedLink(filepath.Join(s.dir, bpf.CaptureProgLookup), nil)
	if errors.Is(err, os.ErrNotExist) {
		ps.add("sk_lookup link", "attached", "none")
		return nil
	}
	if err != nil {
		return fmt.Errorf("sk_lookup link: %w", err)
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return fmt.Errorf("sk_lookup link: %w", err)
	}
	if n := info.NetNs(); n == nil || uint64(n.NetnsInode) != ns.ID().Ino {
		ps.add("sk_lookup link", "attached to "+ns.String(), "attached elsewhere or detached")
	}
	return s.checkProgram("sk_lookup link", s.Lookup, info.Program, ps)
}

func (s *state) checkProgram(object string, want *ebpf.Program, have ebpf.ProgramID, ps *problems) error {
	id, err := programID(want)
	if err != nil {
		return err
	}
	if id != have {
		ps.add(object, fmt.Sprintf("program %d", id), fmt.Sprintf("program %d", have))
	}
	return nil
}

func (s *state) checkStamp(cfg Config, ps *problems) error {
	if s.clsact || len(cfg.ProbePorts) == 0 {
		return nil
	}
	ends, err := stampEnds(cfg.Host, cfg.NS, cfg.Addrs)
	if err != nil || len(ends) == 0 {
		return err
	}
	s.stamped = true
	return cfg.Host.Do(func() error {
		for _, dev := range ends {
			if err := s.checkDevice(dev.device, stamping(), ps); err != nil {
				return fmt.Errorf("stamp on host device %s: %w", dev.name, err)
			}
		}
		return nil
	})
}

// checkDevice runs inside the device's namespace.
func (s *state) checkDevice(dev device, d direction, ps *problems) error {
	object := d.name + " on device " + dev.name
	if s.clsact {
		f, first, err := findFilter(dev.index, d)
		if err != nil {
			return err
		}
		if f == nil {
			ps.add(object, "a clsact filter", "none")
			return nil
		}
		if !first {
			ps.add(object, "first in the list of filters", "behind another")
		}
		return s.checkProgram(object, d.program(s), ebpf.ProgramID(f.Id), ps)
	}
	l, err := link.LoadPinnedLink(d.pin(s.dir, dev.index), nil)
	if errors.Is(err, os.ErrNotExist) {
		ps.add(object, "a tcx link", "none")
		return nil
	}
	if err != nil {
		return err
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return err
	}
	if x := info.TCX(); x == nil || int(x.Ifindex) != dev.index {
		ps.add(object, "attached", "detached")
		return nil
	}
	first, err := isFirst(dev, d, info.Program)
	if err != nil {
		return err
	}
	if !first {
		ps.add(object, "first in the list of programs", "behind another")
	}
	return s.checkProgram(object, d.program(s), info.Program, ps)
}
