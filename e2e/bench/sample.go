package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"time"

	"github.com/ambitmesh/ambit/e2e/bench/lab"
	"github.com/ambitmesh/ambit/e2e/bench/trend"
)

// What a series may gain in the last quarter of a soak. A count comes back to
// where it was after every round, so a whole one is a leak however long the
// soak: one in five minutes' last quarter is one in some 20 pods or 10 000
// connections. Memory is not that exact. Live heap after two collections moves
// by some 100 KB with what is in flight between the parts; RSS by a few MB, as
// Go gives pages back when it likes, and is judged only because what it shows
// beside the heap (stacks, the runtime's own) has no other witness.
const (
	gainCount = 1
	gainHeap  = 256  // KB
	gainRSS   = 4096 // KB
)

// series is one figure of one owner over time.
type series struct {
	Owner   string        `json:"owner"`
	What    string        `json:"what"`
	Gain    float64       `json:"gain"` // that it may have; 0: only shown
	Points  []trend.Point `json:"points"`
	Verdict trend.Verdict `json:"verdict"`
}

// samples takes and keeps the figures. It is the soak's own goroutine's.
type samples struct {
	l     *lab.Lab
	alone bool // nobody else on this machine uses eBPF
	all   []*series
}

func (s *samples) add(at time.Duration, owner, what string, gain, v float64) {
	i := slices.IndexFunc(s.all, func(r *series) bool { return r.Owner == owner && r.What == what })
	if i < 0 {
		i = len(s.all)
		s.all = append(s.all, &series{Owner: owner, What: what, Gain: gain})
	}
	s.all[i].Points = append(s.all[i].Points, trend.Point{At: at, Value: v})
}

const (
	settleStep  = 100 * time.Millisecond
	settleSteps = 5
	settleMost  = 5 * time.Second
)

// take waits until the last round is over in the proxies as well, and samples.
// Long-lived connections go on to be open, so this is a state that comes back.
func (s *samples) take(ctx context.Context, at time.Duration) error {
	nodes := []*lab.Node{s.l.A, s.l.B}
	began := time.Now()
	var last string
	for same := 0; same < settleSteps && time.Since(began) < settleMost; {
		now := ""
		for _, n := range nodes {
			d, err := lab.DescriptorsOf(strconv.Itoa(n.Ztunnel.PID()))
			if err != nil {
				return err
			}
			now += fmt.Sprint(d)
		}
		if same++; now != last {
			same = 0
		}
		last = now
		if err := wait(ctx, settleStep); err != nil {
			return err
		}
	}
	for _, n := range nodes {
		if err := s.takeNode(ctx, at, n); err != nil {
			return err
		}
	}
	if err := s.takeOurs(at); err != nil {
		return err
	}
	return s.takeKernel(at)
}

func (s *samples) takeNode(ctx context.Context, at time.Duration, n *lab.Node) error {
	owner := n.Ztunnel.Name
	// The second collection empties what the first has put aside of pools.
	var heap []byte
	var err error
	for range 2 {
		if heap, err = n.Get(ctx, "http://127.0.0.1:15000/debug/pprof/heap?gc=1&debug=1"); err != nil {
			return fmt.Errorf("heap of %s: %w", owner, err)
		}
	}
	live, err := after(heap, "# HeapAlloc = ")
	if err != nil {
		return fmt.Errorf("heap of %s: %w", owner, err)
	}
	routines, err := n.Get(ctx, "http://127.0.0.1:15000/debug/pprof/goroutine?debug=1")
	if err != nil {
		return fmt.Errorf("goroutines of %s: %w", owner, err)
	}
	running, err := after(routines, "goroutine profile: total ")
	if err != nil {
		return fmt.Errorf("goroutines of %s: %w", owner, err)
	}
	m, err := n.Ztunnel.Memory()
	if err != nil {
		return err
	}
	d, err := lab.DescriptorsOf(strconv.Itoa(n.Ztunnel.PID()))
	if err != nil {
		return err
	}
	s.add(at, owner, "goroutines", gainCount, running)
	s.descriptors(at, owner, d)
	s.add(at, owner, "live heap, KB", gainHeap, live/1024)
	s.add(at, owner, "RSS, KB", gainRSS, m.RSS)
	pins, err := n.Pins()
	if err != nil {
		return err
	}
	devices, err := n.Devices()
	if err != nil {
		return err
	}
	s.add(at, n.Name, "eBPF pins", gainCount, float64(pins))
	s.add(at, n.Name, "devices", gainCount, float64(devices))
	return nil
}

// ours is this process: agents of both nodes, xDS server and CA.
const ours = "agents and controller"

func (s *samples) takeOurs(at time.Duration) error {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	d, err := lab.DescriptorsOf("self")
	if err != nil {
		return err
	}
	s.add(at, ours, "goroutines", gainCount, float64(runtime.NumGoroutine()))
	s.descriptors(at, ours, d)
	s.add(at, ours, "live heap, KB", gainHeap, float64(m.HeapAlloc)/1024)
	rss, err := ownRSS()
	s.add(at, ours, "RSS, KB", gainRSS, rss)
	return err
}

func (s *samples) descriptors(at time.Duration, owner string, d lab.Descriptors) {
	s.add(at, owner, "descriptors", gainCount, float64(d.All))
	s.add(at, owner, "sockets", gainCount, float64(d.Sockets))
	s.add(at, owner, "network namespaces", gainCount, float64(d.Namespaces))
	s.add(at, owner, "eBPF descriptors", gainCount, float64(d.BPF))
}

// takeKernel counts for the whole machine. Others on it may use eBPF too.
func (s *samples) takeKernel(at time.Duration) error {
	k, err := lab.CountBPF()
	if err != nil {
		return err
	}
	gain := 0.0
	if s.alone {
		gain = gainCount
	}
	s.add(at, "kernel", "eBPF programs", gain, float64(k.Programs))
	s.add(at, "kernel", "eBPF maps", gain, float64(k.Maps))
	s.add(at, "kernel", "eBPF links", gain, float64(k.Links))
	return nil
}

// held is what must be as before the first pod once the last has left.
func (s *samples) held() (map[string]float64, error) {
	out := map[string]float64{}
	for _, n := range []*lab.Node{s.l.A, s.l.B} {
		d, err := lab.DescriptorsOf(strconv.Itoa(n.Ztunnel.PID()))
		if err != nil {
			return nil, err
		}
		pins, err := n.Pins()
		if err != nil {
			return nil, err
		}
		out["network namespaces of "+n.Ztunnel.Name] = float64(d.Namespaces)
		out["eBPF pins of "+n.Name] = float64(pins)
	}
	d, err := lab.DescriptorsOf("self")
	out["eBPF descriptors of "+ours] = float64(d.BPF)
	return out, err
}

func (s *samples) judge(total time.Duration) []*series {
	for _, r := range s.all {
		r.Verdict = trend.Judge(r.Points, total, r.Gain)
	}
	return s.all
}

// leaking names the processes that need a look.
func (s *samples) leaking(all []*series) []string {
	owners := map[string]bool{}
	for _, r := range all {
		if r.Verdict.Leaks {
			owners[r.Owner] = true
		}
	}
	return sortedKeys(owners)
}

// profile keeps what tells where a leak is.
func (s *samples) profile(ctx context.Context, owner string) []string {
	var files []string
	for _, n := range []*lab.Node{s.l.A, s.l.B} {
		if n.Ztunnel.Name != owner {
			continue
		}
		for name, query := range map[string]string{"goroutines.txt": "goroutine?debug=2", "heap.pprof": "heap?gc=1"} {
			path := filepath.Join("out", "soak-"+owner+"-"+name)
			b, err := n.Get(ctx, "http://127.0.0.1:15000/debug/pprof/"+query)
			if err = errors.Join(err, os.MkdirAll("out", 0o755), os.WriteFile(path, b, 0o644)); err != nil {
				path += ": " + err.Error()
			}
			files = append(files, path)
		}
	}
	slices.Sort(files)
	return files
}

// after is the number behind a word.
func after(text []byte, word string) (float64, error) {
	_, rest, ok := bytes.Cut(text, []byte(word))
	if !ok {
		return 0, fmt.Errorf("no %q in %.80q", word, text)
	}
	rest = bytes.TrimLeft(rest, " \t")
	end := bytes.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if end >= 0 {
		rest = rest[:end]
	}
	return strconv.ParseFloat(string(rest), 64)
}

func ownRSS() (float64, error) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	return after(b, "VmRSS:")
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
