package enroll

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
)

// Version is that of the messages. An end that meets another one refuses
// rather than guess: plugin and agent are installed by the same image, so a
// difference lasts only as long as an upgrade.
const Version = 1

// maxMessage bounds one message in either direction.
const maxMessage = 64 << 10

// Kind is what the container runtime asked the plugin to do.
type Kind string

const (
	Add   Kind = "add"
	Check Kind = "check"
	Del   Kind = "del"
)

// Request is what the plugin knows about a sandbox.
type Request struct {
	Version     int          `json:"version"`
	Kind        Kind         `json:"kind"`
	ContainerID string       `json:"containerID"`
	Netns       string       `json:"netns"` // path on the host; may be empty in a Del
	Pod         Pod          `json:"pod"`
	IPs         []netip.Addr `json:"ips,omitempty"`
	CNIVersion  string       `json:"cniVersion,omitempty"`
}

// Pod names the pod of a sandbox. UID is empty when the runtime does not tell.
type Pod struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid,omitempty"`
}

func (p Pod) String() string { return p.Namespace + "/" + p.Name }

// Outcome of a request.
type Outcome string

const (
	Captured Outcome = "captured" // the mesh carries the pod's traffic, proven
	Passed   Outcome = "passed"   // the pod is not to be captured
	Done     Outcome = "done"     // answer to a Check or Del
	Refused  Outcome = "refused"  // the pod must not start like this; Reason says why
)

// Response is the agent's answer.
type Response struct {
	Version int     `json:"version"`
	Outcome Outcome `json:"outcome"`
	Reason  string  `json:"reason,omitempty"`
}

// decodeRequest checks everything the agent relies on; all problems at once.
func decodeRequest(b []byte) (Request, error) {
	var r Request
	if err := json.Unmarshal(b, &r); err != nil {
		return Request{}, fmt.Errorf("request: %w", err)
	}
	var errs []error
	if r.Version != Version {
		errs = append(errs, fmt.Errorf("request: version: want %d, have %d", Version, r.Version))
	}
	switch r.Kind {
	case Add, Check, Del:
	default:
		errs = append(errs, fmt.Errorf("request: kind %q: want add, check or del", r.Kind))
	}
	if r.ContainerID == "" {
		errs = append(errs, errors.New("request: containerID is empty"))
	}
	if r.Netns == "" && r.Kind != Del {
		errs = append(errs, errors.New("request: netns is empty"))
	}
	if r.Pod.Namespace == "" || r.Pod.Name == "" {
		errs = append(errs, errors.New("request: pod: namespace and name are needed"))
	}
	for i := range r.IPs {
		r.IPs[i] = r.IPs[i].Unmap()
	}
	return r, errors.Join(errs...)
}

func decodeResponse(b []byte) (Response, error) {
	var r Response
	if err := json.Unmarshal(b, &r); err != nil {
		return Response{}, fmt.Errorf("answer: %w", err)
	}
	if r.Version != Version {
		return Response{}, fmt.Errorf("answer: version: want %d, have %d", Version, r.Version)
	}
	switch r.Outcome {
	case Captured, Passed, Done, Refused:
		return r, nil
	}
	return Response{}, fmt.Errorf("answer: outcome %q is unknown", r.Outcome)
}
