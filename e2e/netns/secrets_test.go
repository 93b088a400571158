package netns_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// confined runs a program as root with few capabilities: without CAP_SYS_PTRACE,
// and without CAP_SYS_ADMIN, by which newer kernels show a process's maps.
func confined(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "setpriv", append([]string{"--bounding-set=-all,+net_admin,+net_raw", "--inh-caps=-all"}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// The memory of a running ztunnel, where the keys of a node's pods are, cannot be
// read by another process of its user, nor its environment, and it leaves no core
// file. An ordinary process of the same user can be read, so the test sees
// something.
//
//ambit:feature security-memory
func TestMemoryIsNotForOthers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("takes capabilities away: needs root")
	}
	if _, err := exec.LookPath("setpriv"); err != nil {
		t.Skip("setpriv is not there")
	}
	ctx := t.Context()
	start := func(args ...string) string {
		cmd := confined(ctx, args...)
		cmd.Env = []string{"NODE_NAME=node", "INPOD_UDS=" + t.TempDir() + "/none.sock", "XDS_ADDRESS=https://127.0.0.1:1", "AUTH_TOKEN=x",
			"ADMIN_ADDR=127.0.0.1:0", "STATS_ADDR=127.0.0.1:0", "READINESS_ADDR=127.0.0.1:0", "XDS_ROOT_CA=" + t.TempDir() + "/none.pem"}
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			cmd.Process.Kill()
			_ = cmd.Wait()
			if t.Failed() {
				t.Logf("%s: %s", args[0], out.Bytes())
			}
		})
		return strconv.Itoa(cmd.Process.Pid)
	}
	ztunnel, other := start(ztunnelBinary(t)), start("sleep", "600")
	// setpriv has become the program when its name is the program's.
	became := func(pid, name string) {
		eventually(t, name+" runs", func() error {
			b, err := os.ReadFile("/proc/" + pid + "/cmdline")
			if arg0, _, _ := strings.Cut(string(b), "\x00"); err == nil && !strings.HasSuffix(arg0, name) {
				err = fmt.Errorf("it is %s", arg0)
			}
			return err
		})
	}
	became(ztunnel, "/ambit-ztunnel")
	became(other, "sleep")
	read := func(file string) error {
		out, err := confined(ctx, "head", "-c", "1", file).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	for _, file := range []string{"environ", "mem", "maps"} {
		// Memory has nothing at address 0, which is another error.
		if err := read("/proc/" + other + "/" + file); err != nil && !strings.Contains(err.Error(), "nput/output error") {
			t.Fatalf("%s of an ordinary process of the same user cannot be read: %v", file, err)
		}
		eventually(t, file+" of ztunnel is closed", func() error {
			err := read("/proc/" + ztunnel + "/" + file)
			if err == nil {
				return fmt.Errorf("read")
			}
			if !strings.Contains(err.Error(), "ermission denied") && !strings.Contains(err.Error(), "not permitted") {
				return err
			}
			return nil
		})
	}
	limits, err := os.ReadFile("/proc/" + ztunnel + "/limits")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(limits)) {
		if f := strings.Fields(strings.TrimPrefix(line, "Max core file size")); strings.HasPrefix(line, "Max core file size") && (f[0] != "0" || f[1] != "0") {
			t.Errorf("it may leave a core file: %s", line)
		}
	}
}
