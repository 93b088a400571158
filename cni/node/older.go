package node

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/ambitmesh/ambit/cni/netns"
)

// older watches the connections that were open when their pod was captured:
// they bypass the mesh until they end.
type older struct {
	say  func(ctx context.Context, uid string, count int) error // immutable: onto the pod
	log  *slog.Logger                                           // immutable
	list func(*netns.NS) ([]netns.Socket, error)                // immutable

	mu   sync.Mutex
	pods map[string]*olderPod // guarded by mu; only pods that have some, or still have to say that they have none
}

type olderPod struct {
	ns      *netns.NS
	cookies []uint64  // of the sockets
	said    int       // on the pod
	next    time.Time // not said again before, unless there are none left
}

const (
	// sayPause spaces what is written about one pod: every write reaches
	// everybody who watches pods.
	sayPause = 30 * time.Second
	// askPause spaces the looks: each walks the kernel's table of connections.
	askPause = 10 * time.Second
)

// track begins with what enrolment has found. The namespace stays the
// caller's, who says when it goes.
func (o *older) track(uid string, ns *netns.NS, cookies []uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(cookies) == 0 {
		delete(o.pods, uid)
		return
	}
	if o.pods == nil {
		o.pods = make(map[string]*olderPod)
	}
	o.pods[uid] = &olderPod{ns: ns, cookies: cookies}
}

func (o *older) forget(uid string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.pods, uid)
}

// of are the connections of a pod as last seen.
func (o *older) of(uid string) []uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	if p := o.pods[uid]; p != nil {
		return p.cookies
	}
	return nil
}

// total of all pods.
func (o *older) total() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := 0
	for _, p := range o.pods {
		n += len(p.cookies)
	}
	return n
}

// heard notes what somebody else has written on the pod.
func (o *older) heard(uid string, count int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if p := o.pods[uid]; p != nil {
		p.said, p.next = count, time.Now().Add(sayPause)
	}
}

// run keeps the numbers true until ctx ends.
func (o *older) run(ctx context.Context) error {
	tick := time.NewTicker(askPause)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			o.look(ctx)
		}
	}
}

// look asks the kernel about every pod that has some.
func (o *older) look(ctx context.Context) {
	o.mu.Lock()
	pods := make(map[string]*olderPod, len(o.pods))
	for uid, p := range o.pods {
		pods[uid] = p
	}
	o.mu.Unlock()
	for uid, p := range pods {
		if ctx.Err() != nil {
			return
		}
		all, err := o.list(p.ns)
		if errors.Is(err, os.ErrClosed) {
			continue // it has just gone, and is forgotten
		}
		if err != nil {
			o.log.Debug("older connections of a pod cannot be counted", "uid", uid, "err", err)
			continue
		}
		o.update(ctx, uid, p, all)
	}
}

func (o *older) update(ctx context.Context, uid string, p *olderPod, all []netns.Socket) {
	o.mu.Lock()
	if o.pods[uid] != p {
		o.mu.Unlock()
		return // it was enrolled anew meanwhile
	}
	p.cookies = living(p.cookies, all)
	n := len(p.cookies)
	now := time.Now()
	due := n != p.said && (n == 0 || !now.Before(p.next))
	if n == 0 && p.said == 0 {
		delete(o.pods, uid)
	}
	if due {
		p.next = now.Add(sayPause)
	}
	o.mu.Unlock()
	if !due {
		return
	}
	if err := o.say(ctx, uid, n); err != nil {
		o.log.Debug("number of older connections not written", "uid", uid, "err", err)
		return // the next look tries again
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	p.said = n
	if n == 0 && o.pods[uid] == p {
		delete(o.pods, uid)
	}
}

// living are those of the sockets that are still among all.
func living(cookies []uint64, all []netns.Socket) []uint64 {
	wanted := make(map[uint64]bool, len(cookies))
	for _, c := range cookies {
		wanted[c] = true
	}
	var live []uint64
	for _, s := range all {
		if wanted[s.Cookie] {
			live = append(live, s.Cookie)
		}
	}
	return live
}
