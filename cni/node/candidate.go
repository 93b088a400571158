package node

import (
	"fmt"
	"slices"
)

// candidate is a process that listens where the kubelet does.
type candidate struct {
	pid    int
	uid    uint32
	pod    string // namespace and name, when it is in a pod's cgroup
	cgroup uint64
	err    error // why the cgroup is not known
}

// tell decides which cgroups are the kubelet's. none says that nobody listens
// who could be it; why, that its cgroup is no way to tell it.
func tell(port uint16, found []candidate, own uint64) (ids []uint64, why string, none bool) {
	none = true
	strangers := ""
	for _, c := range found {
		switch {
		case c.pod != "":
			strangers = fmt.Sprintf(", where pod %s listens", c.pod)
			continue
		case c.uid != 0:
			strangers = fmt.Sprintf(", where process %d of user %d listens", c.pid, c.uid)
			continue
		}
		none = false
		switch {
		case c.err != nil:
			why = fmt.Sprintf("cgroup of the kubelet (process %d): %v", c.pid, c.err)
		case c.cgroup == own:
			why = fmt.Sprintf("the kubelet (process %d) is in the cgroup of the node agent: containers of this node have none of their own", c.pid)
		case !slices.Contains(ids, c.cgroup):
			ids = append(ids, c.cgroup)
		}
	}
	switch {
	case none:
		return nil, fmt.Sprintf("no kubelet listens on port %d of the node%s", port, strangers), true
	case why != "":
		return nil, why, false
	}
	slices.Sort(ids)
	return ids, "", false
}
