// Package rotation owns the words in which the controller and the CLI speak of a
// change of the CA's root: where they stand, and what they look like.
package rotation

import "time"

// Objects in the namespace of the controller.
const (
	// StateSecret is the controller's own: what is in force, and how far a
	// change is.
	StateSecret = "ambit-ca-state"
	// CommandAnnotation of StateSecret is an operator's word on a change, a
	// Command in JSON: who may write Secrets here may have the key anyway. It is
	// taken off when it was followed or refused.
	CommandAnnotation = "ambitmesh.io/ca-command"
	// ConfigMap says how far a change is: a Status under StatusKey by the
	// replica that leads, and while a change waits, a key of each replica with
	// the clients that have the new root.
	ConfigMap = "ambit-ca-rotation"
	StatusKey = "status"
)

// Phases of a change, in their order.
const (
	PhaseSettled      = "settled"
	PhaseDistributing = "distributing" // the new root is made known, the old key signs
	PhaseStalled      = "stalled"      // the same, but somebody lacked it for too long
	PhaseRetiring     = "retiring"     // the new key signs, the old root is still trusted
)

// Phases are all of them.
func Phases() []string {
	return []string{PhaseSettled, PhaseDistributing, PhaseStalled, PhaseRetiring}
}

// Command is what an operator wants.
type Command struct {
	ID   string   `json:"id"` // tells whose answer the status has
	Verb string   `json:"verb"`
	Args []string `json:"args,omitempty"`
}

// Status is how far a change is.
type Status struct {
	Phase   string    `json:"phase"`
	Source  string    `json:"source"` // Secret of the signer
	Signer  string    `json:"signer"` // fingerprint
	Expires time.Time `json:"expires"`
	Roots   string    `json:"roots"` // hash of all that is trusted
	Next    *Next     `json:"next,omitempty"`
	Retired []Retired `json:"retired,omitempty"`
	Problem string    `json:"problem,omitempty"`
	Command *Answer   `json:"command,omitempty"`
}

// Next is the signer whose roots are being made known.
type Next struct {
	Source   string    `json:"source"`
	Signer   string    `json:"signer"`
	Began    time.Time `json:"began"`
	Deadline time.Time `json:"deadline"` // when waiting ends
	Waiting  []string  `json:"waiting,omitempty"`
	Without  []string  `json:"without,omitempty"` // who need not have them, by command
}

// Retired is a root that goes.
type Retired struct {
	Serial string    `json:"serial"`
	Until  time.Time `json:"until"`
}

// Answer is what became of the last Command.
type Answer struct {
	ID      string `json:"id"`
	Verb    string `json:"verb"`
	Refused string `json:"refused,omitempty"`
}
