package node

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// podInCgroup finds the uid of a pod in a line of /proc/<pid>/cgroup, in the
// spelling of the cgroupfs driver (pod<uid>) or of systemd's
// (kubepods-burstable-pod<uid with underscores>.slice).
var podInCgroup = regexp.MustCompile(`pod([0-9a-fA-F]{8}[-_][0-9a-fA-F]{4}[-_][0-9a-fA-F]{4}[-_][0-9a-fA-F]{4}[-_][0-9a-fA-F]{12})`)

// checkPeer admits the ztunnel pod of this node: whoever connects here gets
// the sockets of every captured pod.
func (a *Agent) checkPeer(cred unix.Ucred) error {
	if a.cfg.ZtunnelNamespace == "" {
		if cred.Uid != 0 {
			return fmt.Errorf("user %d is not root", cred.Uid)
		}
		return a.proxies.admit(int(cred.Pid))
	}
	b, err := os.ReadFile("/proc/" + strconv.Itoa(int(cred.Pid)) + "/cgroup")
	if err != nil {
		return fmt.Errorf("its cgroup: %w", err)
	}
	uid, ok := cgroupPod(string(b))
	if !ok {
		return fmt.Errorf("its cgroup is not a pod's")
	}
	pod := a.kube.pod(uid)
	if pod == nil {
		return fmt.Errorf("it is in pod %s, which is not known on this node", uid)
	}
	if pod.Namespace != a.cfg.ZtunnelNamespace || pod.Labels[labelApp] != appZtunnel {
		return fmt.Errorf("it is in pod %s, want one of namespace %s with label %s=%s", podName(pod), a.cfg.ZtunnelNamespace, labelApp, appZtunnel)
	}
	// Before it gets any pod: what it dials must not look forged.
	return a.proxies.admit(int(cred.Pid))
}

// cgroupPod reads the pod's uid out of the content of /proc/<pid>/cgroup.
func cgroupPod(content string) (uid string, ok bool) {
	m := podInCgroup.FindStringSubmatch(content)
	if m == nil {
		return "", false
	}
	return strings.ToLower(strings.ReplaceAll(m[1], "_", "-")), true
}
