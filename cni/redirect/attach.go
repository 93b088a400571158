package redirect

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/ambitmesh/ambit/cni/bpf"
	"github.com/ambitmesh/ambit/cni/netns"
)

// direction of one program on one device.
type direction struct {
	name    string // of the program and of the pin's beginning
	attach  ebpf.AttachType
	program func(*state) *ebpf.Program
}

func directions() []direction {
	return []direction{
		{bpf.CaptureProgEgress, ebpf.AttachTCXEgress, func(s *state) *ebpf.Program { return s.Egress }},
		{bpf.CaptureProgIngress, ebpf.AttachTCXIngress, func(s *state) *ebpf.Program { return s.Ingress }},
	}
}

func (d direction) pin(dir string, index int) string {
	return filepath.Join(dir, d.name+"-"+strconv.Itoa(index))
}

// attach makes all links as wanted. When one of them needed new programs on the
// way, those attached before get the same in a second round.
func (s *state) attach(cfg Config, devices []device) error {
	for range 3 {
		before := s.reloads
		if err := s.attachLookup(cfg.NS); err != nil {
			return err
		}
		if err := s.dropDeadLinks(); err != nil {
			return err
		}
		if err := cfg.NS.Do(func() error { return s.attachDevices(devices) }); err != nil {
			return err
		}
		if err := s.attachStamp(cfg); err != nil {
			return err
		}
		if s.reloads == before {
			return nil
		}
	}
	return errors.New("attached programs keep changing: somebody else is replacing them")
}

// attachLookup puts lookup on the namespace.
func (s *state) attachLookup(ns *netns.NS) error {
	path := filepath.Join(s.dir, bpf.CaptureProgLookup)
	l, err := link.LoadPinnedLink(path, nil)
	switch {
	case err == nil:
		defer l.Close()
		info, err := l.Info()
		if err != nil {
			return fmt.Errorf("sk_lookup link: %w", err)
		}
		if n := info.NetNs(); n != nil && uint64(n.NetnsInode) == ns.ID().Ino {
			return update(l, info, s.Lookup)
		}
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("sk_lookup link of another namespace: %w", err)
		}
	case !errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("sk_lookup link: %w", err)
	}
	var fresh *link.NetNsLink
	if err := withFd(ns.File(), func(fd int) (err error) {
		fresh, err = link.AttachNetNs(fd, s.Lookup)
		return err
	}); err != nil {
		return fmt.Errorf("attach sk_lookup: %w", err)
	}
	defer fresh.Close()
	if err := fresh.Pin(path); err != nil {
		return fmt.Errorf("pin sk_lookup link: %w", err)
	}
	return nil
}

// update replaces the program of a link, if it is another, in one step.
func update(l link.Link, info *link.Info, p *ebpf.Program) error {
	id, err := programID(p)
	if err != nil {
		return err
	}
	if info.Program == id {
		return nil
	}
	if err := l.Update(p); err != nil {
		return fmt.Errorf("replace attached program: %w", err)
	}
	return nil
}

func programID(p *ebpf.Program) (ebpf.ProgramID, error) {
	info, err := p.Info()
	if err != nil {
		return 0, fmt.Errorf("program: %w", err)
	}
	id, _ := info.ID()
	return id, nil
}

// attachDevices runs inside the namespace.
func (s *state) attachDevices(devices []device) error {
	if s.clsact {
		return s.attachFilters(devices)
	}
	for _, dev := range devices {
		for _, d := range directions() {
			if err := s.attachTCX(dev, d); err != nil {
				return fmt.Errorf("%s on device %s: %w", d.name, dev.name, err)
			}
		}
	}
	return nil
}

// dropDeadLinks removes pins of devices that are gone, whose number may come
// back.
func (s *state) dropDeadLinks() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("list pins: %w", err)
	}
	for _, e := range entries {
		for _, d := range append(directions(), stamping()) {
			if !strings.HasPrefix(e.Name(), d.name+"-") {
				continue
			}
			path := filepath.Join(s.dir, e.Name())
			l, err := link.LoadPinnedLink(path, nil)
			if err != nil {
				return fmt.Errorf("link %s: %w", e.Name(), err)
			}
			info, err := l.Info()
			_ = l.Close()
			if err != nil {
				return fmt.Errorf("link %s: %w", e.Name(), err)
			}
			if x := info.TCX(); x == nil || x.Ifindex == 0 {
				if err := os.Remove(path); err != nil {
					return fmt.Errorf("link %s of a device that is gone: %w", e.Name(), err)
				}
			}
		}
	}
	return nil
}

func (s *state) attachTCX(dev device, d direction) error {
	path := d.pin(s.dir, dev.index)
	old, err := link.LoadPinnedLink(path, nil)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if old != nil {
		defer old.Close()
		info, err := old.Info()
		if err != nil {
			return err
		}
		first, err := isFirst(dev, d, info.Program)
		if err != nil {
			return err
		}
		if first {
			return update(old, info, d.program(s))
		}
		// Somebody attached in front. A link cannot be moved and one program
		// not be attached twice, so new programs go in front and the old link
		// after that.
		id, err := programID(d.program(s))
		if err != nil {
			return err
		}
		if id == info.Program {
			if err := s.reload(); err != nil {
				return err
			}
		}
	}
	fresh, err := s.attachHead(dev, d)
	if errors.Is(err, os.ErrExist) {
		// A link of this program that lost its pin is still being taken down.
		if err := s.reload(); err != nil {
			return err
		}
		fresh, err = s.attachHead(dev, d)
	}
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	defer fresh.Close()
	if old == nil {
		return fresh.Pin(path)
	}
	next := path + "-next"
	if err := fresh.Pin(next); err != nil {
		return fmt.Errorf("pin: %w", err)
	}
	return os.Rename(next, path)
}

func (s *state) attachHead(dev device, d direction) (link.Link, error) {
	return link.AttachTCX(link.TCXOptions{Interface: dev.index, Program: d.program(s), Attach: d.attach, Anchor: link.Head()})
}

// isFirst asks the kernel's list: what runs before us could let packets pass.
func isFirst(dev device, d direction, id ebpf.ProgramID) (bool, error) {
	list, err := link.QueryPrograms(link.QueryOptions{Target: dev.index, Attach: d.attach})
	if err != nil {
		return false, fmt.Errorf("list programs: %w", err)
	}
	return len(list.Programs) > 0 && list.Programs[0].ID == id, nil
}
