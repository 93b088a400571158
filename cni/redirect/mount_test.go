package redirect

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMountBPFFS works in a mount namespace of its own, which ends with the
// thread that made it.
func TestMountBPFFS(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	dir, host := t.TempDir(), t.TempDir()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread is thrown away
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			t.Error(err)
			return
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Error(err)
			return
		}
		// A host that does not see it: nothing may stay mounted.
		if err := os.MkdirAll(filepath.Join(host, dir), 0o755); err != nil {
			t.Error(err)
		}
		if err := MountBPFFS(dir, host); err == nil || !strings.Contains(err.Error(), "did not reach the host") {
			t.Errorf("a mount the host does not see: %v", err)
		}
		if isBPFFS(dir) == nil {
			t.Error("it stayed mounted")
		}
		for range 2 { // again changes nothing
			if err := MountBPFFS(dir, "/"); err != nil {
				t.Error(err)
			}
			if err := isBPFFS(dir); err != nil {
				t.Error(err)
			}
		}
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
		if isBPFFS(dir) == nil {
			t.Error("it was mounted twice")
		}
		if err := MountBPFFS(filepath.Join(dir, "none"), "/"); err == nil {
			t.Error("mounted on a folder that is not there")
		}
	}()
	<-done
}
