package ztunnel

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
)

func TestScarce(t *testing.T) {
	for _, tt := range []struct {
		open, limit int
		was, want   bool
	}{
		{0, 1000, false, false}, {899, 1000, false, false}, {900, 1000, false, true}, {1000, 1000, false, true},
		{899, 1000, true, true}, {801, 1000, true, true}, {800, 1000, true, false}, {0, 1000, true, false},
	} {
		if got := scarce(tt.open, tt.limit, tt.was); got != tt.want {
			t.Errorf("%+v: %t", tt, got)
		}
	}
}

// TestDescriptorsRunOut: a ztunnel that runs out of descriptors says so by not
// being ready, goes on with what it has, and is ready again when there are some.
// It runs in a process of its own, for the limit's sake.
//
//ambit:feature telemetry-descriptors
func TestDescriptorsRunOut(t *testing.T) {
	if os.Getenv("WITHOUT_DESCRIPTORS") != "" {
		if err := withoutDescriptors(); err != nil {
			fmt.Println("FAILED:", err)
			os.Exit(1)
		}
		fmt.Println("went as it should")
		os.Exit(0)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestDescriptorsRunOut$")
	cmd.Env = append(os.Environ(), "WITHOUT_DESCRIPTORS=1")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "went as it should") {
		t.Errorf("%v\n%s", err, out)
	}
}

// lockedBuffer is a log that several goroutines write.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func withoutDescriptors() error {
	const limit = 256
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: limit, Max: limit}); err != nil {
		return err
	}
	var log lockedBuffer
	n := newNode(&testing.T{}) // without a folder of its own nothing of it is used
	n.ready.log = slog.New(slog.NewTextHandler(&log, nil))
	n.cfg.StatsAddr, n.cfg.ReadyAddr = "127.0.0.1:0", "127.0.0.1:0"
	servers, err := n.listen()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	address := map[string]string{}
	for _, s := range servers {
		address[s.name] = s.ln.Addr().String()
		wg.Go(func() { s.run(ctx) })
	}
	clear(n.ready.tasks)
	metrics := &http.Client{Transport: &http.Transport{}} // a connection of its own, which stays
	fresh := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	get := func(c *http.Client, server, path string) (int, string, error) {
		r, err := c.Get("http://" + address[server] + path)
		if err != nil {
			return 0, "", err
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		return r.StatusCode, string(b), err
	}
	expect := func(when string, c *http.Client, server, path string, code int, text string) error {
		got, body, err := get(c, server, path)
		if err != nil {
			return fmt.Errorf("%s: %s: %w", when, path, err)
		}
		if got != code || !strings.Contains(body, text) {
			return fmt.Errorf("%s: %s: %d %.300q", when, path, got, body)
		}
		return nil
	}
	const ready, stats = "readiness server", "metrics server"
	if err := expect("in the beginning", fresh, ready, "/healthz/ready", 200, "ready"); err != nil {
		return err
	}
	if err := expect("in the beginning", metrics, stats, "/metrics", 200, "# EOF"); err != nil {
		return err
	}
	var taken []int
	take := func(until int) error {
		for {
			if open, _ := descriptors(); open >= until {
				return nil
			}
			fd, err := syscall.Dup(0)
			if err != nil {
				return err
			}
			taken = append(taken, fd)
		}
	}
	if err := take(limit * 95 / 100); err != nil {
		return err
	}
	if err := expect("with few left", fresh, ready, "/healthz/ready", 500, "not ready, pending: descriptors ("); err != nil {
		return err
	}
	if err := expect("with few left", fresh, stats, "/metrics", 200, "# EOF"); err != nil {
		return err
	}
	if err := take(limit + 1); err != syscall.EMFILE {
		return fmt.Errorf("there are more than the limit: %w", err)
	}
	if err := expect("with none left, on an open connection", metrics, stats, "/metrics", 200, "# EOF"); err != nil {
		return err
	}
	for _, fd := range taken {
		syscall.Close(fd)
	}
	if err := expect("with enough again", fresh, ready, "/healthz/ready", 200, "ready"); err != nil {
		return err
	}
	if l := log.String(); strings.Count(l, "descriptors run out") != 1 || strings.Count(l, "there are descriptors again") != 1 {
		return fmt.Errorf("log: %s", l)
	}
	return nil
}
