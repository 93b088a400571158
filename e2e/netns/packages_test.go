package netns_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// packageCache keeps unpacked packages between runs. Their programs run as
// nobody, who does not get into root's home nor into a test's folder.
const packageCache = "/var/cache/ambit-e2e"

// unpacked gives the folder that Debian packages are unpacked in. They are not
// installed: their services would start. Without them the test is skipped.
func unpacked(t testing.TB, packages ...string) string {
	t.Helper()
	list := fnv.New32a()
	io.WriteString(list, strings.Join(packages, " "))
	root := filepath.Join(packageCache, fmt.Sprintf("%s-%08x", packages[0], list.Sum32()))
	if _, err := os.Stat(root); err == nil {
		return root
	}
	if err := os.MkdirAll(packageCache, 0o755); err != nil {
		t.Skipf("nowhere to keep packages: %v", err)
	}
	lock, err := os.Create(filepath.Join(packageCache, "lock"))
	if err != nil {
		t.Skip(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(root); err == nil {
		return root // another run was faster
	}
	work, err := os.MkdirTemp(packageCache, "unpacking-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(work)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	get := exec.CommandContext(ctx, "apt-get", append([]string{"-qq", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3", "download"}, packages...)...)
	get.Dir = work
	if out, err := get.CombinedOutput(); err != nil {
		t.Skipf("packages %s cannot be had: %v: %s", strings.Join(packages, " "), err, bytes.TrimSpace(out))
	}
	debs, err := filepath.Glob(work + "/*.deb")
	if err != nil || len(debs) == 0 {
		t.Fatalf("no packages came: %v", err)
	}
	for _, deb := range debs {
		if out, err := exec.CommandContext(ctx, "dpkg", "-x", deb, work+"/root").CombinedOutput(); err != nil {
			t.Fatalf("unpack %s: %v: %s", deb, err, out)
		}
	}
	// Unpacking leaves the modes of the packages' own root folder.
	if err := os.Chmod(work+"/root", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(work+"/root", root); err != nil {
		t.Fatal(err)
	}
	return root
}

// runnable skips the test where a library of the system's is missing.
func runnable(t testing.TB, root string, programs ...string) {
	t.Helper()
	for _, name := range programs {
		cmd := exec.Command(filepath.Join(root, name), "--version")
		cmd.Env = environment(root)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Skipf("%s does not run on this machine: %v: %s", name, err, bytes.TrimSpace(out))
		}
	}
}

// environment finds the libraries of unpacked packages.
func environment(root string) []string {
	libs, _ := filepath.Glob(filepath.Join(root, "usr/lib/*-linux-gnu"))
	return []string{"LD_LIBRARY_PATH=" + strings.Join(libs, ":"), "HOME=/nonexistent", "LC_ALL=C", "PGCONNECT_TIMEOUT=60"}
}

// nobody runs unpacked programs; PostgreSQL refuses root.
const nobody = 65534

// nobodys is a folder of nobody's that is gone after the test.
func nobodys(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ambit-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	return dir
}

// program is a command of an unpacked package, to be run in the pod as nobody.
func (p *pod) program(ctx context.Context, root, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(root, name), args...)
	cmd.Env = environment(root)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL,
		Credential: &syscall.Credential{Uid: nobody, Gid: nobody, NoSetGroups: false}}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// run runs a program to its end and gives its output. The thread it was started
// from stays until then, as Pdeathsig needs it.
func (p *pod) run(t testing.TB, root, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	var out, errs bytes.Buffer
	err := p.ns.Do(func() error {
		cmd := p.program(ctx, root, name, args...)
		cmd.Stdout, cmd.Stderr = &out, &errs
		return cmd.Run()
	})
	if err != nil {
		t.Fatalf("%s in %s: %v\n%s%s", filepath.Base(name), p.name, err, out.Bytes(), errs.Bytes())
	}
	return out.String()
}

// daemon runs a program until the test ends.
func (p *pod) daemon(t testing.TB, root, name string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var out bytes.Buffer
	done := make(chan error, 1)
	go func() {
		done <- p.ns.Do(func() error {
			cmd := p.program(ctx, root, name, args...)
			cmd.Stdout, cmd.Stderr = &out, &out
			return cmd.Run()
		})
	}()
	t.Cleanup(func() {
		cancel()
		err := <-done
		if t.Failed() || err != nil && !errors.Is(err, context.Canceled) {
			t.Logf("%s in %s: %v\n%s", filepath.Base(name), p.name, err, out.Bytes())
		}
	})
}

// answers waits until something listens at the pod's port.
func (p *pod) answers(t testing.TB, port uint16) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s listens on %d", p.name, port), func() error {
		c, err := p.dial(p.at(port))
		if err == nil {
			c.Close()
		}
		return err
	})
}
