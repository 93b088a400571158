package redirect

import (
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// MountBPFFS mounts a bpffs at dir unless there is one. Nodes that are
// containers themselves (kind, minikube) start without: systemd mounts it on
// machines only. With hostRoot the mount must have reached the host, or pins
// would go with this container: then it is taken back and an error says so.
func MountBPFFS(dir, hostRoot string) error {
	if isBPFFS(dir) == nil {
		return nil
	}
	if err := unix.Mount("bpf", dir, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return fmt.Errorf("mount a bpffs at %s: %w", dir, err)
	}
	if hostRoot == "" {
		return nil
	}
	if err := isBPFFS(filepath.Join(hostRoot, dir)); err != nil {
		return errors.Join(
			fmt.Errorf("the bpffs mounted at %s did not reach the host (does the volume have mountPropagation Bidirectional?): %w", dir, err),
			unix.Unmount(dir, 0))
	}
	return nil
}
