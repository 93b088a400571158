package node

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/ambitmesh/ambit/cni/netns"
)

// DefaultKubeletPort is where the kubelet serves its API; the clusters that
// change it are few.
const DefaultKubeletPort = 10250

// kubelet knows in which cgroup (v2) the node's kubelet makes its sockets: the
// only ones whose connections to a probe port are probes.
//
// It is the process that listens on the kubelet's port in the node's network
// namespace, whatever its name is and whoever started it: a systemd unit, k3s, a
// container. It must be root's and in no pod's cgroup, because while the kubelet
// is away a pod in the node's network could have the port. Where its cgroup says
// nothing, every process of the node passes for the kubelet.
type kubelet struct {
	port      uint16                              // immutable
	listeners func() ([]netns.Socket, error)      // immutable: of the node
	find      func(inode uint32) []int            // immutable: processes that have the socket
	follow    func(pid int) (*process, error)     // immutable
	podOf     func(pid int) string                // immutable: "" unless it is in a known pod's cgroup
	folder    func(pid int) (string, error)       // immutable: of its cgroup
	idOf      func(folder string) (uint64, error) // immutable
	trust     func(ids []uint64) error            // immutable: tells the pods there are
	changed   func(context.Context)               // immutable: ids are to be kept for the next agent
	log       *slog.Logger                        // immutable
	self      func() (uint64, error)              // immutable: the agent's own cgroup

	seen []*process // owned by begin, then by run: those the ids are of

	// folders of the cgroups that were found last; owned like seen. A unit gets
	// a new cgroup of the same name at every start, before its process runs.
	folders []string

	// mu is held for reading while a pod is made to know the ids, so that none
	// is left out of a pod that is being set up.
	mu  sync.RWMutex
	ids []uint64 // guarded by mu; none: everybody
	why string   // guarded by mu; why there are none
}

const (
	kubeletLook  = time.Second            // is it the same process in the same cgroup?
	kubeletAway  = 100 * time.Millisecond // it ended, the next one will come and probe soon
	kubeletAgain = 10 * time.Second       // it is there and cannot be told
)

// look finds the kubelet. The error is about this look alone.
func (k *kubelet) look() (ids []uint64, why string, none bool, err error) {
	k.forget()
	all, err := k.listeners()
	if err != nil {
		return nil, "", false, fmt.Errorf("listeners of the node: %w", err)
	}
	var found []candidate
	for _, s := range all {
		if s.Local.Port() != k.port {
			continue
		}
		for _, pid := range k.find(s.Inode) {
			if slices.ContainsFunc(found, func(c candidate) bool { return c.pid == pid }) {
				continue
			}
			p, err := k.follow(pid)
			if err != nil {
				continue // it has just ended
			}
			c := candidate{pid: pid, uid: p.uid, pod: k.podOf(pid)}
			c.cgroup, c.err = p.cgroup()
			if !p.alive() {
				p.close()
				continue
			}
			found = append(found, c)
			p.last = c.cgroup
			k.seen = append(k.seen, p)
		}
	}
	own, err := k.self()
	if err != nil {
		own = 0 // that of no process: a kubelet with a cgroup of its own can be told all the same
	}
	ids, why, none = tell(k.port, found, own)
	if len(ids) > 0 {
		k.folders = nil
		for _, p := range k.seen {
			if dir, err := k.folder(p.pid); err == nil && slices.Contains(ids, p.last) {
				k.folders = append(k.folders, dir)
			}
		}
	}
	return ids, why, none, nil
}

// coming is what has the kubelet's place while nobody listens yet: cgroups that
// were made anew where its own was. Only root can make them there.
func (k *kubelet) coming() []uint64 {
	ids := k.list()
	for _, dir := range k.folders {
		if id, err := k.idOf(dir); err == nil && id != rootCgroup && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids
}

// same reports whether the processes that were found are there and where they were.
func (k *kubelet) same() bool {
	for _, p := range k.seen {
		if id, err := p.cgroup(); err != nil || id != p.last {
			return false
		}
	}
	return len(k.seen) > 0
}

func (k *kubelet) forget() {
	for _, p := range k.seen {
		p.close()
	}
	k.seen = nil
}

// begin looks for the first time. before is what the last agent knew: a
// kubelet that is being restarted just now is in a cgroup of the same name, if
// not the same, and there are no probes without it.
func (k *kubelet) begin(before []uint64) {
	ids, why, none, err := k.look()
	if err != nil {
		why = err.Error()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ids, k.why = ids, why
	if (none || err != nil) && len(before) > 0 {
		k.ids, k.why = slices.Clone(before), ""
	}
	k.report()
	if err := k.trust(k.ids); err != nil {
		k.log.Error("captured pods do not know the kubelet that runs now", "err", err)
	}
}

// report logs what holds from now on. mu is held.
func (k *kubelet) report() {
	if k.why != "" {
		k.log.Warn("every process of the node can reach the probe ports of its pods: the kubelet cannot be told from others", "reason", k.why)
		return
	}
	k.log.Info("probes are taken from the kubelet's cgroup only", "cgroups", k.ids)
}

// run keeps it current until ctx ends.
func (k *kubelet) run(ctx context.Context) error {
	defer k.forget()
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		t.Reset(k.step(ctx))
	}
}

// step looks once and returns when to look again.
func (k *kubelet) step(ctx context.Context) time.Duration {
	k.mu.RLock()
	told := k.why == ""
	k.mu.RUnlock()
	if told && k.same() {
		return kubeletLook
	}
	ids, why, none, err := k.look()
	switch {
	case err != nil:
		k.log.Warn("cannot look for the kubelet", "err", err)
		return kubeletLook
	case none && told:
		// Without a kubelet there is nothing to let in; the next one may have
		// pods to probe as soon as it listens.
		if err := k.set(ctx, k.coming(), ""); err != nil {
			k.log.Error("captured pods do not know the kubelet that starts now", "err", err)
		}
		return kubeletAway
	}
	if err := k.set(ctx, ids, why); err != nil {
		k.log.Error("captured pods do not know the kubelet that runs now", "err", err)
		k.forget() // so that it is tried again
		return kubeletLook
	}
	switch {
	case none:
		return kubeletLook
	case why != "":
		return kubeletAgain
	}
	return kubeletLook
}

// set makes every pod know.
func (k *kubelet) set(ctx context.Context, ids []uint64, why string) error {
	k.mu.Lock()
	same := slices.Equal(ids, k.ids) && why == k.why
	var err error
	if !same {
		if err = k.trust(ids); err == nil {
			k.ids, k.why = ids, why
			k.report()
		}
	}
	k.mu.Unlock()
	if err == nil && !same {
		k.changed(ctx)
	}
	return err
}

// open says why every process of the node passes for the kubelet, "" when none does.
func (k *kubelet) open() string {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.why
}

// with runs do with what a pod is to know; none lets every process of the node in.
func (k *kubelet) with(do func(ids []uint64) error) error {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return do(k.ids)
}

// list is what a later agent is to know.
func (k *kubelet) list() []uint64 {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return slices.Clone(k.ids)
}

// newKubelet finds it among the processes of the node.
func (a *Agent) newKubelet() *kubelet {
	return &kubelet{
		port:      cmp.Or(a.cfg.KubeletPort, DefaultKubeletPort),
		listeners: a.cfg.Host.Listeners,
		find:      func(inode uint32) []int { return holders("/proc", inode) },
		follow:    func(pid int) (*process, error) { return openProcess(pid, a.cfg.HostRoot.cgroupOf) },
		podOf:     a.podOf,
		folder:    a.cfg.HostRoot.cgroupPath,
		idOf:      a.cfg.HostRoot.cgroupID,
		trust:     a.cfg.Redirector.TrustProbers,
		changed:   func(ctx context.Context) { a.tell(ctx, event{changed: ""}) }, // which has the intent file written
		self: func() (uint64, error) {
			p, err := openProcess(os.Getpid(), a.cfg.HostRoot.cgroupOf)
			if err != nil {
				return 0, err
			}
			defer p.close()
			return p.cgroup()
		},
		log: a.log,
	}
}

// podOf names the pod in whose cgroup a process is.
func (a *Agent) podOf(pid int) string {
	content, err := cgroupFile(pid)
	if err != nil {
		return ""
	}
	uid, ok := cgroupPod(content)
	if !ok {
		return ""
	}
	if p := a.kube.pod(uid); p != nil {
		return podName(p)
	}
	return "" // a pod around the whole node, as with kind inside a pod
}
