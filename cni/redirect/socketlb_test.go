package redirect

import (
	"bufio"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// trialVariable makes this program a process of another cgroup that tries the
// service it names, when it is told to.
const trialVariable = "AMBIT_TRY_SERVICE"

func TestTryServiceHelper(t *testing.T) {
	service := os.Getenv(trialVariable)
	if service == "" {
		return // the other tests start it
	}
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	why, err := TryService(ctx, netip.MustParseAddrPort(service))
	fmt.Printf("RESULT %s|%v\n", why, err)
}

// throwAwayCgroup is a cgroup v2 of the test's own, mounted for it if need be.
func throwAwayCgroup(t *testing.T) string {
	t.Helper()
	needRoot(t)
	mount := t.TempDir()
	if err := unix.Mount("cgroup2", mount, "cgroup2", 0, ""); err != nil {
		t.Skipf("mount cgroup2: %v", err)
	}
	dir := filepath.Join(mount, fmt.Sprintf("ambit-test-%d", os.Getpid()))
	t.Cleanup(func() {
		// It stays busy until its last process has been collected.
		eventually(t, "the cgroup is empty", func() bool { return unix.Rmdir(dir) == nil })
		if err := unix.Unmount(mount, 0); err != nil {
			t.Errorf("unmount cgroup2: %v", err)
		}
	})
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// try runs the trial in a process of the cgroup.
func try(t *testing.T, cgroup, service string) (why, err string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestTryServiceHelper$")
	cmd.Env = append(os.Environ(), trialVariable+"="+service)
	in, perr := cmd.StdinPipe()
	if perr != nil {
		t.Fatal(perr)
	}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	move := os.WriteFile(filepath.Join(cgroup, "cgroup.procs"), fmt.Appendln(nil, cmd.Process.Pid), 0o644)
	fmt.Fprintln(in)
	in.Close()
	if err := cmd.Wait(); err != nil || move != nil {
		t.Fatalf("%v, %v: %s", move, err, out.String())
	}
	for line := range strings.Lines(out.String()) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "RESULT "); ok {
			why, err, _ = strings.Cut(rest, "|")
			return why, err
		}
	}
	t.Fatalf("no result: %s", out.String())
	return "", ""
}

// rewriting is a program that sends connections to service elsewhere, as socket
// level load balancers do. allow 0 refuses them instead.
func rewriting(t *testing.T, cgroup string, service, elsewhere netip.AddrPort, allow int32) {
	t.Helper()
	word := func(p netip.AddrPort, i int) int32 {
		b := p.Addr().AsSlice()[4*i:]
		return int32(uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24)
	}
	// struct bpf_sock_addr of linux/bpf.h.
	const user4, user6, port = 4, 8, 24
	at, words, attach := int16(user4), 1, ebpf.AttachCGroupInet4Connect
	if service.Addr().Is6() {
		at, words, attach = user6, 4, ebpf.AttachCGroupInet6Connect
	}
	var ins asm.Instructions
	for i := range words {
		ins = append(ins, asm.LoadMem(asm.R2, asm.R1, at+int16(4*i), asm.Word), asm.JNE.Imm32(asm.R2, word(service, i), "pass"))
	}
	for i := range words {
		ins = append(ins, asm.Mov.Imm32(asm.R2, word(elsewhere, i)), asm.StoreMem(asm.R1, at+int16(4*i), asm.R2, asm.Word))
	}
	p := elsewhere.Port()
	ins = append(ins, asm.Mov.Imm(asm.R2, int32(p>>8|p<<8)), asm.StoreMem(asm.R1, port, asm.R2, asm.Word),
		asm.Mov.Imm(asm.R0, allow), asm.Return(),
		asm.Mov.Imm(asm.R0, 1).WithSymbol("pass"), asm.Return())
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "balance", Type: ebpf.CGroupSockAddr, AttachType: attach, License: "GPL", Instructions: ins})
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: attach, Program: prog})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
}

// A program that replaces a service's address on connect() is found by what it
// does, and named; one for another service does no harm.
//
//ambit:feature cni-socket-lb
func TestSocketBalancing(t *testing.T) {
	for _, c := range []struct {
		name, service, other, elsewhere string
		allow                           int32
		want                            string
	}{
		{"IPv4", "10.96.0.1:443", "10.96.0.1:443", "172.30.0.10:6443", 1, "is sent to another address, an endpoint's"},
		{"IPv4, same port", "10.96.0.1:443", "10.96.0.1:443", "172.30.0.10:443", 1, "is sent to 172.30.0.10:443"},
		{"IPv6", "[fd96::1]:443", "[fd96::1]:443", "[fd30::a]:6443", 1, "is sent to another address, an endpoint's"},
		{"IPv6, same port", "[fd96::1]:443", "[fd96::1]:443", "[fd30::a]:443", 1, "is sent to [fd30::a]:443"},
		{"refused", "10.96.0.1:443", "10.96.0.1:443", "10.96.0.1:443", 0, "is refused by a program of a cgroup"},
		{"of another service", "10.96.0.1:443", "10.96.0.2:443", "172.30.0.10:6443", 1, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			cgroup := throwAwayCgroup(t)
			if why, err := try(t, cgroup, c.service); why != "" || err != "<nil>" {
				t.Fatalf("without a program: %q, %s", why, err)
			}
			rewriting(t, cgroup, netip.MustParseAddrPort(c.other), netip.MustParseAddrPort(c.elsewhere), c.allow)
			if why, err := try(t, cgroup, c.service); why != c.want || err != "<nil>" {
				t.Errorf("%q, %s; want %q", why, err, c.want)
			}
			dir, err := os.Open(cgroup)
			if err != nil {
				t.Fatal(err)
			}
			defer dir.Close()
			if names, err := ConnectPrograms(dir); err != nil || !slices.Contains(names, "balance") {
				t.Errorf("programs %q, %v", names, err)
			}
		})
	}
}
