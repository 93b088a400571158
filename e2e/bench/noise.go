package main

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/ambitmesh/ambit/e2e/bench/lab"
	"golang.org/x/sys/unix"
)

// userHz is the unit of /proc/stat, fixed by the kernel's interface.
const userHz = 100

// tooNoisy is the share of the machine that may go elsewhere before rates and
// latencies say nothing. Work of the kernel that it charges to nobody, such
// as packets of the virtual links, counts here as well.
const tooNoisy = 0.15

// meter takes the CPU of every process around a piece of work.
type meter struct {
	l       *lab.Lab
	other   *lab.Lab  // or nil; its processes have a prefix to their names
	foreign []float64 // share of the machine used by others, per measurement
}

type reading struct {
	at    time.Time
	cpu   map[string]time.Duration
	busy  time.Duration // whole machine, stolen time included
	bench time.Duration
}

func (m *meter) read() reading {
	r := reading{cpu: map[string]time.Duration{}, busy: machineBusy()}
	var ru unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &ru) == nil {
		r.bench = time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
	}
	for _, p := range m.l.Processes() {
		r.cpu[p.Name] = p.CPU()
	}
	if m.other != nil {
		for _, p := range m.other.Processes() {
			r.cpu[otherOne+" "+p.Name] = p.CPU()
		}
	}
	r.at = time.Now()
	return r
}

// since returns the CPU seconds each process has used from then to now.
func (m *meter) since(then reading) map[string]float64 {
	now := m.read()
	used, ours := map[string]float64{}, now.bench-then.bench
	for name, t := range now.cpu {
		d := t - then.cpu[name]
		used[name] = d.Seconds()
		ours += d
	}
	// Ticks of 10 ms say nothing about short work.
	if wall := now.at.Sub(then.at); wall > 300*time.Millisecond {
		other := (now.busy - then.busy - ours).Seconds() / wall.Seconds() / float64(runtime.NumCPU())
		m.foreign = append(m.foreign, max(0, other))
	}
	return used
}

func machineBusy() time.Duration {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	var ticks int64
	for i, f := range strings.Fields(string(line)) {
		// cpu user nice system idle iowait irq softirq steal
		if i == 0 || i == 4 || i == 5 || i > 8 {
			continue
		}
		n, _ := strconv.ParseInt(f, 10, 64)
		ticks += n
	}
	return time.Duration(ticks) * time.Second / userHz
}

// noise says how much the figures can be trusted.
type noise struct {
	LoadBefore    string  `json:"loadBefore"`
	LoadAfter     string  `json:"loadAfter"`
	OthersMedian  float64 `json:"othersMedian"` // share of the machine
	OthersQ3      float64 `json:"othersQ3"`
	OthersMax     float64 `json:"othersMax"`
	TooNoisy      bool    `json:"tooNoisy"`
	Conclusion    string  `json:"conclusion"`
	BaselineRange float64 `json:"baselineSpread"` // widest (Q3-Q1)/median of "no mesh" rates
}

func judgeNoise(foreign []float64, baseline float64, before string) noise {
	if len(foreign) == 0 {
		return noise{LoadBefore: before, LoadAfter: loadAverage(), BaselineRange: baseline, TooNoisy: true,
			Conclusion: "unknown: nothing took long enough to see what others did."}
	}
	s := spreadOf(foreign)
	n := noise{LoadBefore: before, LoadAfter: loadAverage(), OthersMedian: s.Median, OthersQ3: s.Q3, BaselineRange: baseline}
	for _, f := range foreign {
		n.OthersMax = max(n.OthersMax, f)
	}
	switch {
	case s.Median > tooNoisy:
		n.TooNoisy = true
		n.Conclusion = fmt.Sprintf("TOO NOISY: others had %.0f %% of the machine (median), more than %.0f %%. Rates and latencies say nothing; CPU ratios hold to about 10 %%.", 100*s.Median, 100*tooNoisy)
	case baseline > 0.25:
		n.TooNoisy = true
		n.Conclusion = fmt.Sprintf("TOO NOISY: without any mesh the middle half of the repetitions is %.0f %% apart. Rates and latencies say little; CPU ratios hold to about 10 %%.", 100*baseline)
	default:
		n.Conclusion = fmt.Sprintf("quiet enough: others had %.0f %% of the machine (median); without any mesh the middle half of the repetitions is at most %.0f %% apart.", 100*s.Median, 100*baseline)
	}
	return n
}

func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	f := strings.Fields(string(b))
	return strings.Join(f[:min(3, len(f))], " ")
}
