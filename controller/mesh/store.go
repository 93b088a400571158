package mesh

import (
	"slices"
	"sync"
	"sync/atomic"
)

// Changes names what may differ between two snapshots, each list sorted.
type Changes struct{ Workloads, Services, Policies []string }

// Mark remembers a snapshot without holding on to its contents.
type Mark struct {
	version uint64
	token   *byte
}

// Mark identifies s for Store.Changes.
func (s *Snapshot) Mark() Mark { return Mark{s.version, s.token} }

// Store publishes the current snapshot. Load takes no lock; there is one
// writer.
type Store struct {
	current atomic.Pointer[Snapshot]

	mu      sync.Mutex
	changed chan struct{} // guarded by mu
	// log holds the changes of the latest swaps, oldest first; consecutive
	// entries are parent and child. Guarded by mu.
	log  []logEntry
	kept int // names in log, guarded by mu
}

type logEntry struct {
	mark    Mark // of the snapshot the changes led to
	parent  *byte
	changes Changes
}

// The change log is bounded by names, which are what it is for, and by entries,
// which have a cost of their own: without that, changes of one name each would
// make it 12 MB long, in every ztunnel too. A reader that is further behind
// compares everything instead, which costs it more but nobody else.
const (
	logNames   = 1 << 16
	logEntries = 1 << 10
)

// NewStore returns a store that holds an empty snapshot of version 0.
func NewStore() *Store {
	s := &Store{changed: make(chan struct{})}
	s.current.Store(&Snapshot{token: new(byte)})
	return s
}

// Load returns the current snapshot.
func (s *Store) Load() *Snapshot { return s.current.Load() }

// Changed returns a channel that is closed at the next Swap. Call it before
// Load, so that no swap is missed in between.
func (s *Store) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// Swap publishes next.
func (s *Store) Swap(next *Snapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if next.parent == nil || next.parent != s.current.Load().token {
		s.log, s.kept = nil, 0 // not built from the current one: history ends here
	} else {
		s.log = append(s.log, logEntry{mark: next.Mark(), parent: next.parent, changes: next.touched})
		s.kept += next.touched.size()
		for len(s.log) > 1 && (s.kept > logNames || len(s.log) > logEntries) {
			s.kept -= s.log[0].changes.size()
			s.log[0] = logEntry{} // append moves the rest only when the room behind it is used up
			s.log = s.log[1:]
		}
	}
	s.current.Store(next)
	close(s.changed)
	s.changed = make(chan struct{})
}

// Changes names everything that may differ between the snapshot marked from
// and to, in time proportional to the number of changes. It reports false when
// the log does not reach back that far; everything may differ then.
func (s *Store) Changes(from Mark, to *Snapshot) (Changes, bool) {
	if from.token != nil && from.token == to.token {
		return Changes{}, true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.log) == 0 || from.token == nil {
		return Changes{}, false
	}
	// Entries are consecutive versions.
	oldest := s.log[0].mark.version
	first, end := from.version+1-oldest, to.version+1-oldest
	if from.version+1 < oldest || first >= end || end > uint64(len(s.log)) ||
		s.log[first].parent != from.token || s.log[end-1].mark != to.Mark() {
		return Changes{}, false
	}
	var c Changes
	for _, e := range s.log[first:end] {
		c.Workloads = append(c.Workloads, e.changes.Workloads...)
		c.Services = append(c.Services, e.changes.Services...)
		c.Policies = append(c.Policies, e.changes.Policies...)
	}
	c.Workloads = sortedOnce(c.Workloads)
	c.Services = sortedOnce(c.Services)
	c.Policies = sortedOnce(c.Policies)
	return c, true
}

func (c *Changes) size() int { return len(c.Workloads) + len(c.Services) + len(c.Policies) }

func sortedOnce(names []string) []string {
	slices.Sort(names)
	return slices.Compact(names)
}
