package node

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/ambitmesh/ambit/cni/enroll"
)

// event is one thing the loop is told; exactly one field is set, except that
// a changed of "" means a namespace.
type event struct {
	changed string       // uid of a pod that may have changed
	moved   string       // uid of a pod whose addresses or devices changed
	synced  *[]string    // uids that a newly connected ztunnel serves
	gone    bool         // a ztunnel has disconnected
	add     *addition    // a sandbox is being made
	del     *deletion    // a sandbox is being removed
	done    *result      // a job has ended
	check   *examination // is this sandbox captured?
	intend  *intention   // a pod is about to be handed over
}

// intention is written to disk before a ztunnel gets the pod's sockets: a
// later agent must be able to tell which of ztunnel's sockets they are.
type intention struct {
	pod     enroll.IntendedPod
	written chan<- struct{} // closed when it is on disk
}

type addition struct {
	pod     *corev1.Pod
	sandbox sandbox
	answer  chan<- enroll.Response // buffered
}

type deletion struct {
	containerID string
	done        chan<- struct{} // closed when nothing is left of it
}

type examination struct {
	containerID string
	answer      chan<- enroll.Response // buffered
}

// sandbox is where a pod runs.
type sandbox struct {
	id    string
	netns string // path on the host
	addrs addrs
}
