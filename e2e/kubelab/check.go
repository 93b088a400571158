package kubelab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// The Debian packages a node needs, by a file of each. Programs may be in
// either folder of /usr, which is all that a node sees of the host.
var packages = []struct{ file, pkg string }{
	{"bin/containerd", "containerd"},
	{"sbin/runc", "runc"},
	{"lib/cni/ptp", "containernetworking-plugins"},
	{"sbin/iptables", "iptables"},
	{"sbin/nft", "nftables"},
	{"sbin/conntrack", "conntrack"},
	{"sbin/ipset", "ipset"},
	{"sbin/ip", "iproute2"},
	{"bin/nsenter", "util-linux"},
	{"bin/busybox", "busybox-static"},
}

// DefaultCache is the folder of the compiled binaries of this Version: below
// base when it is given, else below .cache/ambit-kubelab of home.
func DefaultCache(base, home string) string {
	if base == "" {
		if home == "" {
			home = "/root"
		}
		base = filepath.Join(home, ".cache", "ambit-kubelab")
	}
	return filepath.Join(base, Version)
}

// Check says everything that keeps a cluster from starting here, in one error.
func Check(cache string, apiOnly bool) error {
	var errs []error
	if os.Geteuid() != 0 {
		return errors.New("kubelab needs root: it makes namespaces, mounts and cgroups")
	}
	if err := checkCapabilities(); err != nil {
		errs = append(errs, err)
	}
	if !apiOnly {
		if missing := missingPackages(); len(missing) > 0 {
			errs = append(errs, fmt.Errorf("Debian packages are missing; install them with\n  DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends %s\n(their services need not run)", strings.Join(missing, " ")))
		}
		var fs unix.Statfs_t
		if unix.Statfs("/sys/fs/cgroup", &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
			errs = append(errs, errors.New("this host mounts cgroup2 alone at /sys/fs/cgroup; nodes are made for the v1 or hybrid layout (API mode works)"))
		}
	}
	if _, err := os.Stat(filepath.Join(cache, "kube")); err != nil {
		errs = append(errs, fmt.Errorf("no Kubernetes %s binary in %s: run `kubelab build` once (about 5 minutes)", Version, cache))
	}
	return errors.Join(errs...)
}

func missingPackages() []string {
	var missing []string
	for _, p := range packages {
		other := strings.Replace(p.file, "sbin/", "bin/", 1)
		_, err1 := os.Stat("/usr/" + p.file)
		_, err2 := os.Stat("/usr/" + other)
		if err1 != nil && err2 != nil {
			missing = append(missing, p.pkg)
		}
	}
	return missing
}

// checkCapabilities: root of a container often lacks what it takes. The missing
// CAP_SYS_RESOURCE of some virtual machines is no obstacle (containerd is told
// not to lower oom_score_adj).
func checkCapabilities() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	var missing []string
	for _, c := range []struct {
		bit  uint
		name string
	}{{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN"}, {unix.CAP_NET_ADMIN, "CAP_NET_ADMIN"}, {unix.CAP_MKNOD, "CAP_MKNOD"}} {
		if data[c.bit/32].Effective&(1<<(c.bit%32)) == 0 {
			missing = append(missing, c.name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("this process lacks %s", strings.Join(missing, ", "))
	}
	return nil
}
