package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/ambitmesh/ambit/ztunnel"
	"github.com/ambitmesh/ambit/ztunnel/live"
	"golang.org/x/sys/unix"
)

// TestHarden hardens another process, this very program started again, because
// there is no way back.
//
//ambit:feature security-memory
func TestHarden(t *testing.T) {
	const asked = "AMBIT_TEST_HARDEN"
	if os.Getenv(asked) != "" {
		if err := harden(2); err != nil {
			t.Fatal(err)
		}
		dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		var core, files syscall.Rlimit
		if err := syscall.Getrlimit(syscall.RLIMIT_CORE, &core); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
			t.Fatal(err)
		}
		fmt.Printf("dumpable=%d core=%d/%d files=%t\n", dumpable, core.Cur, core.Max, files.Cur == files.Max)
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestHarden$", "-test.v")
	cmd.Env = append(os.Environ(), asked+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if !strings.Contains(string(out), "dumpable=0 core=0/0 files=true") {
		t.Errorf("%s", out)
	}
}

//ambit:feature security-admin
func TestAdminIsForLoopback(t *testing.T) {
	for addr, ok := range map[string]bool{
		"127.0.0.1:15000": true, "[::1]:15000": true,
		":15000": false, "0.0.0.0:15000": false, "[::]:15000": false, "10.0.0.1:15000": false,
	} {
		err := readConfig(env("ADMIN_ADDR", addr), nofile).Validate()
		if (err == nil) != ok {
			t.Errorf("%s: %v", addr, err)
		}
	}
}

func TestBacklogLimit(t *testing.T) {
	for _, tc := range []struct{ set, memory, want int64 }{
		{0, 512 << 20, 128 << 20},
		{64 << 20, 512 << 20, 64 << 20},
		{0, 1<<63 - 1, defaultBacklog},
	} {
		if n := backlogLimit(tc.set, tc.memory); n != tc.want {
			t.Errorf("limit %d with %d of memory: %d, want %d", tc.set, tc.memory, n, tc.want)
		}
	}
}

func TestQuotas(t *testing.T) {
	set := ztunnel.Quotas{Backlog: 1, Connections: live.Limits{Node: 2, Pod: 3}, HandshakeRate: 4}
	for _, tc := range []struct {
		name         string
		set          ztunnel.Quotas
		memory       int64
		files, cores int
		want         ztunnel.Quotas
	}{
		{"as shipped, 1 GiB", ztunnel.Quotas{}, 1 << 30 / 10 * 9, 1 << 20, 2,
			ztunnel.Quotas{Backlog: 25, Connections: live.Limits{Node: 29491, Pod: 14745}, HandshakeRate: 500}},
		{"no memory limit, few descriptors", ztunnel.Quotas{}, 1<<63 - 1, 20000, 8,
			ztunnel.Quotas{Backlog: 25, Connections: live.Limits{Node: 19744, Pod: 9872}, HandshakeRate: 2000}},
		{"hardly any descriptors", ztunnel.Quotas{}, 1<<63 - 1, 300, 2,
			ztunnel.Quotas{Backlog: 25, Connections: live.Limits{Node: 150, Pod: 75}, HandshakeRate: 500}},
		{"what was set stays", set, 1 << 30, 20000, 2, set},
	} {
		if got := quotas(tc.set, 100, tc.memory, tc.files, tc.cores); got != tc.want {
			t.Errorf("%s: %+v, want %+v", tc.name, got, tc.want)
		}
	}
}

// TestRights: what it lacks is said before the first pod is there.
//
//ambit:feature telemetry-rights
func TestRights(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("enters a namespace: needs root")
	}
	if os.Getenv("AMBIT_TEST_RIGHTS") != "" {
		fmt.Println("rights:", rights())
		os.Exit(0)
	}
	if err := rights(); err != nil {
		t.Errorf("root with everything: %v", err)
	}
	// The same without one of them. setpriv is of util-linux.
	cmd := exec.Command("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-all", os.Args[0], "-test.run=^TestRights$")
	cmd.Env = append(os.Environ(), "AMBIT_TEST_RIGHTS=1")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "rights: pods cannot be served without CAP_SYS_ADMIN") {
		t.Errorf("%v: %s", err, out)
	}
}
