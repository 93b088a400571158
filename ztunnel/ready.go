package ztunnel

import (
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
)

// readiness is the set of things that are not ready yet, and the descriptors.
type readiness struct {
	// files tells how many descriptors are open and may be; nil: does not matter.
	files func() (open, limit int)
	log   *slog.Logger

	mu    sync.Mutex
	tasks map[string]struct{} // guarded by mu
	short bool                // guarded by mu; of descriptors, when last asked
}

func newReadiness(files func() (open, limit int), log *slog.Logger, tasks ...string) *readiness {
	r := &readiness{files: files, log: log, tasks: map[string]struct{}{}}
	for _, t := range tasks {
		r.tasks[t] = struct{}{}
	}
	return r
}

func (r *readiness) done(task string) {
	r.mu.Lock()
	delete(r.tasks, task)
	r.mu.Unlock()
}

func (r *readiness) pending(task string) {
	r.mu.Lock()
	r.tasks[task] = struct{}{}
	r.mu.Unlock()
}

// waiting is what it is not ready for.
func (r *readiness) waiting() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := slices.Sorted(maps.Keys(r.tasks))
	if r.files == nil {
		return out
	}
	open, limit := r.files()
	was := r.short
	r.short = scarce(open, limit, was)
	if r.short != was {
		if r.short {
			r.log.Warn("descriptors run out: not ready, open connections and new ones are served as long as there are any", "open", open, "limit", limit)
		} else {
			r.log.Info("there are descriptors again", "open", open, "limit", limit)
		}
	}
	if r.short {
		out = append(out, fmt.Sprintf("descriptors (%d of %d are open)", open, limit))
		slices.Sort(out)
	}
	return out
}

// scarce reports whether descriptors run out: from nine tenths on, until there is
// a fifth again, so that it does not change with every connection.
func scarce(open, limit int, was bool) bool {
	if was {
		return open*5 > limit*4
	}
	return open*10 >= limit*9
}

// descriptors counts those of this process.
func descriptors() (open, limit int) {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return 0, 1
	}
	limit = int(min(l.Cur, 1<<30))
	// Since Linux 6.2 the folder's size is their number.
	if s, err := os.Stat("/proc/self/fd"); err == nil && s.Size() > 0 {
		return int(s.Size()), limit
	}
	d, err := os.Open("/proc/self/fd")
	if err != nil {
		return limit, limit // not even one for this
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return 0, limit
	}
	return len(names) - 1, limit // without d's
}

func (r *readiness) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.URL.Path != "/healthz/ready" {
		http.NotFound(w, req)
		return
	}
	if req.Method != http.MethodGet {
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	waiting := r.waiting()
	if len(waiting) == 0 {
		io.WriteString(w, "ready\n")
		return
	}
	w.WriteHeader(http.StatusInternalServerError)
	fmt.Fprintf(w, "not ready, pending: %s\n", strings.Join(waiting, ", "))
}
