// Package redirect owns the capture of a pod's traffic: the routing rules,
// programs, maps and listening sockets inside the pod's network namespace that
// turn its TCP (and DNS) over to the proxy, and the pins that keep them alive.
//
// Everything is declarative. Set reads what is there and makes it so; the same
// call enrols a pod, updates its programs under running connections and repairs
// drift. Nothing is kept in memory between calls: a new agent finds all of it
// in the pins and in the namespace.
//
// What capture is not: a boundary against CAP_NET_RAW, because a packet socket
// with PACKET_QDISC_BYPASS sends past every tc program; and it does not cover a
// device added to the pod between its appearance and the Set that Watch calls
// for. New TCP connections over a device without an Ethernet header (tun,
// wireguard) are dropped, not captured. Connections to IPv6 link-local addresses
// (fe80::/10) go direct, because lo cannot answer for another device's link.
// Where the CNI plugin hands frames straight to the pod (redirect_peer), probes
// are not stamped and count as any other plaintext.
package redirect

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/cilium/ebpf"

	"github.com/ambitmesh/ambit/cni/bpf"
	"github.com/ambitmesh/ambit/cni/netns"
)

// DefaultPinRoot is where the pins are unless told otherwise.
const DefaultPinRoot = "/sys/fs/bpf/ambit"

// Options are the same for all pods of a node.
type Options struct {
	// PinRoot is a folder in the host's bpffs; made when missing.
	PinRoot string
	// HostRoot is the host's root folder seen from here, /proc/1/root with
	// hostPID. The bpffs of PinRoot must be the one found there: pins in a
	// private mount vanish with it, and capture with them. "" skips the check.
	HostRoot string
	// Clsact attaches by clsact qdiscs even where the kernel has tcx.
	Clsact bool
	Logger *slog.Logger
}

// Config is the wanted state of one pod.
type Config struct {
	// ContainerID is the CNI container ID, the name of the pins.
	ContainerID string
	// UID of the pod, for logs and errors.
	UID string
	NS  *netns.NS
	// Addrs the cluster knows the pod by. Addresses found on the devices of
	// the namespace are added to them at every Set.
	Addrs []netip.Addr
	// Listeners to put into their slots. nil leaves the slots as they are.
	Listeners *Listeners
	// Foreign: a ztunnel that is not ours makes the listeners, and Fill puts
	// them into the slots. DNS is not captured then: such a ztunnel answers
	// under the address it was asked at, which takes NAT.
	Foreign bool
	// InboundDirect captures only what the pod dials. HBONE reaches its
	// listener by its port.
	InboundDirect bool
	// Reroute names devices behind which others live, machines or containers:
	// what they dial counts as dialled by the pod. Those that are missing are
	// waited for: Set again when devices change.
	Reroute []string
	// ProbePorts are open, past the proxy, to probes of the node.
	ProbePorts []uint16
	// Host is the namespace that holds the other end of the pod's veth; there
	// connections of the node's own processes to ProbePorts are stamped. nil,
	// or a pod whose devices have no such end, leaves ProbeSources, and without
	// those too Set fails with ErrProbes.
	Host *netns.NS
	// ProbeCgroups are the cgroup v2 ids whose processes may be stamped, the
	// kubelet's; empty takes every process of the node.
	ProbeCgroups []uint64
	// ProbeSources say where probes come from when they cannot be stamped.
	ProbeSources []netip.Prefix
	// ProxyCgroups are cgroup v2 ids whose sockets may carry the proxy's mark.
	// Empty trusts the mark alone. Ids are only ever added, see TrustProxies.
	ProxyCgroups []uint64
}

// Redirector sets pods up. Its methods may be called concurrently; calls for
// one container wait for each other.
type Redirector struct {
	// Immutable.
	opt     Options
	spec    *ebpf.CollectionSpec // copied for every pod
	names   []string             // of the stats, in key order
	clsact  bool
	version uint64

	mu    sync.Mutex
	calls map[string]*call // guarded by mu: containers being worked on
}

type call struct {
	sync.Mutex
	waiting int // guarded by Redirector.mu
}

// New checks that this kernel and this mount namespace can do it. The error
// names everything that is missing.
func New(opt Options) (*Redirector, error) {
	if opt.PinRoot == "" {
		opt.PinRoot = DefaultPinRoot
	}
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	if err := checkPinRoot(opt.PinRoot, opt.HostRoot); err != nil {
		return nil, err
	}
	kernel, err := probeKernel()
	if err != nil {
		return nil, fmt.Errorf("this kernel cannot capture pods: %w", err)
	}
	if !kernel.tcx && !opt.Clsact {
		opt.Logger.Warn("kernel without tcx (Linux 6.6): programs are attached by clsact, which a privileged pod can remove")
		opt.Clsact = true
	}
	spec, err := loadSpec(kernel)
	if err != nil {
		return nil, fmt.Errorf("capture programs: %w", err)
	}
	names, err := statNames(spec)
	if err != nil {
		return nil, fmt.Errorf("capture programs: %w", err)
	}
	return &Redirector{opt: opt, spec: spec, names: names, clsact: opt.Clsact, version: bpf.Version(), calls: map[string]*call{}}, nil
}

// Clsact reports whether programs are attached by clsact, asked for or because
// the kernel has nothing better.
func (r *Redirector) Clsact() bool { return r.clsact }

// Set makes the pod as cfg says, and is cheap when it already is. Connections
// that are open go on as they began. When it fails on a new pod nothing is
// captured; on a captured pod what was captured stays so.
func (r *Redirector) Set(cfg Config) error {
	defer r.lock(cfg.ContainerID)()
	if err := r.set(cfg); err != nil {
		return fmt.Errorf("capture pod %s (container %s): %w", cfg.UID, cfg.ContainerID, err)
	}
	return nil
}

func (r *Redirector) set(cfg Config) error {
	dir, err := r.dir(cfg.ContainerID)
	if err != nil {
		return err
	}
	if cfg.NS == nil {
		return errors.New("no network namespace")
	}
	var found *inventory
	if err := cfg.NS.Do(func() error {
		if err := ensureRouting(); err != nil {
			return err
		}
		found, err = takeInventory()
		return err
	}); err != nil {
		return err
	}
	if room := r.spec.Maps[bpf.CaptureMapProbes].MaxEntries; len(cfg.ProbePorts) > int(room) {
		return fmt.Errorf("its probes are on %d ports, %d is the most that can be told from other traffic", len(cfg.ProbePorts), room)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("pin folder: %w", err)
	}
	s, err := r.open(dir)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.fill(cfg, found); err != nil {
		return err
	}
	if err := s.attach(cfg, found.devices); err != nil {
		return err
	}
	if !s.stamped && len(cfg.ProbePorts) > 0 && len(cfg.ProbeSources) == 0 {
		return ErrProbes
	}
	return s.enable(cfg)
}

// Drain sends new connections direct, both ways, from this moment. Those that
// were captured stay so until they end.
func (r *Redirector) Drain(containerID string) error {
	defer r.lock(containerID)()
	dir, err := r.dir(containerID)
	if err == nil {
		err = drain(dir)
	}
	if err != nil {
		return fmt.Errorf("drain container %s: %w", containerID, err)
	}
	return nil
}

// Clear takes everything away; ns is nil when the namespace is gone. Captured
// connections do not survive it: Drain first and let them end. Clearing what is
// not there is no error.
func (r *Redirector) Clear(containerID string, ns *netns.NS) error {
	defer r.lock(containerID)()
	if err := r.clear(containerID, ns); err != nil {
		return fmt.Errorf("release container %s: %w", containerID, err)
	}
	return nil
}

func (r *Redirector) clear(containerID string, ns *netns.NS) error {
	dir, err := r.dir(containerID)
	if err != nil {
		return err
	}
	// Flags first, or new connections would be turned around with nobody to
	// take them; rule and route last, or what is still turned around would
	// have no way.
	if err := drain(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if ns != nil {
		if err := ns.Do(detachFilters); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove pins: %w", err)
	}
	if ns != nil {
		return ns.Do(removeRouting)
	}
	return nil
}

// Collect removes the pins of every container that keep does not name, and
// returns their IDs. A namespace that still lives is released by it: call it
// only when all pods of the node are known.
func (r *Redirector) Collect(keep func(containerID string) bool) ([]string, error) {
	entries, err := os.ReadDir(r.opt.PinRoot)
	if err != nil {
		return nil, fmt.Errorf("list pins: %w", err)
	}
	var gone []string
	var errs []error
	for _, e := range entries {
		id := e.Name()
		if !e.IsDir() || keep(id) {
			continue
		}
		unlock := r.lock(id)
		if err := os.RemoveAll(filepath.Join(r.opt.PinRoot, id)); err != nil {
			errs = append(errs, fmt.Errorf("remove pins of container %s: %w", id, err))
		} else {
			gone = append(gone, id)
		}
		unlock()
	}
	return gone, errors.Join(errs...)
}

func (r *Redirector) lock(containerID string) (unlock func()) {
	r.mu.Lock()
	c := r.calls[containerID]
	if c == nil {
		c = &call{}
		r.calls[containerID] = c
	}
	c.waiting++
	r.mu.Unlock()
	c.Lock()
	return func() {
		c.Unlock()
		r.mu.Lock()
		if c.waiting--; c.waiting == 0 {
			delete(r.calls, containerID)
		}
		r.mu.Unlock()
	}
}

// dir refuses what is not a plain name: it becomes a path that is removed.
func (r *Redirector) dir(containerID string) (string, error) {
	if containerID == "" || containerID[0] == '.' || strings.ContainsRune(containerID, '/') {
		return "", fmt.Errorf("container ID %q is not a name", containerID)
	}
	return filepath.Join(r.opt.PinRoot, containerID), nil
}
