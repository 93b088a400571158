package enroll

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Enrolment of a namespace, as far as it decides about a pod whose own labels
// are not known.
type Enrolment string

const (
	Enrolled Enrolment = "enrolled" // its pods are enrolled unless they opt out
	Mixed    Enrolment = "mixed"    // some of its pods asked for it by themselves
	Outside  Enrolment = "outside"  // none is
)

// Intent is what the agent has decided for its node: the part of its state
// that survives a reboot, and what the plugin goes by without an agent.
type Intent struct {
	Node       string               `json:"node"`
	Boot       string               `json:"boot"` // kernel's boot id: cookies mean nothing in another one
	Namespaces map[string]Enrolment `json:"namespaces"`
	Pods       []IntendedPod        `json:"pods"` // captured on this node, by uid
	// Proxies are the cgroups of this boot's agents and ztunnels, whose
	// sockets may still be there.
	Proxies []uint64 `json:"proxies,omitempty"`
	// Probers are the cgroups of the kubelet, as far as they are known.
	Probers []uint64 `json:"probers,omitempty"`
}

// IntendedPod is a pod that is to be captured. A sandbox is identified by the
// container id together with the kernel's number of its network namespace, so
// that the late removal of an old sandbox cannot be taken for the new one's.
type IntendedPod struct {
	UID         string `json:"uid"`
	Namespace   string `json:"namespace"`
	Name        string `json:"name"`
	ContainerID string `json:"containerID"`
	Cookie      uint64 `json:"cookie"`
	Netns       string `json:"netns"`
	// Sockets are the pod's listeners, by which a restarted agent knows its
	// copies again (SO_COOKIE is never reused before the next boot).
	Sockets []IntendedSocket `json:"sockets,omitempty"`
	// Foreign: a ztunnel that is not ours made the listeners.
	Foreign bool `json:"foreign,omitempty"`
	// Older are the connections (SO_COOKIE) that capture found open.
	Older []uint64 `json:"older,omitempty"`
}

// IntendedSocket names one listener across processes.
type IntendedSocket struct {
	Kind   string `json:"kind"`
	Cookie uint64 `json:"cookie"`
}

// CorruptError is an intent file whose content cannot be believed.
type CorruptError struct {
	Path string
	What string
}

func (e *CorruptError) Error() string { return fmt.Sprintf("intent file %s: %s", e.Path, e.What) }

// The file is one line "ambit-intent <version> <sha256 of the rest>" and then
// JSON. Nothing in it is a guess: it is whole or it is not used.
const (
	intentMagic   = "ambit-intent"
	intentVersion = "1"
	maxIntent     = 64 << 20
)

// EncodeIntent returns the bytes of the file.
func EncodeIntent(in Intent) ([]byte, error) {
	body, err := json.Marshal(in)
	if err != nil {
		return nil, fmt.Errorf("intent: %w", err)
	}
	sum := sha256.Sum256(body)
	head := fmt.Sprintf("%s %s %s\n", intentMagic, intentVersion, hex.EncodeToString(sum[:]))
	return append([]byte(head), body...), nil
}

// DecodeIntent reads the bytes of the file at path, which is only named.
func DecodeIntent(path string, b []byte) (Intent, error) {
	head, body, ok := bytes.Cut(b, []byte("\n"))
	if !ok {
		return Intent{}, &CorruptError{path, "truncated: no first line"}
	}
	fields := bytes.Fields(head)
	if len(fields) != 3 || string(fields[0]) != intentMagic {
		return Intent{}, &CorruptError{path, "first line is not that of an intent file"}
	}
	if string(fields[1]) != intentVersion {
		return Intent{}, &CorruptError{path, fmt.Sprintf("version %q, want %s", fields[1], intentVersion)}
	}
	sum := sha256.Sum256(body)
	if string(fields[2]) != hex.EncodeToString(sum[:]) {
		return Intent{}, &CorruptError{path, "checksum does not match: truncated or damaged"}
	}
	var in Intent
	if err := json.Unmarshal(body, &in); err != nil {
		return Intent{}, &CorruptError{path, err.Error()}
	}
	return in, nil
}

// ReadIntent reads the file at path. A missing one gives os.ErrNotExist, a
// damaged one *CorruptError.
func ReadIntent(path string) (Intent, error) {
	st, err := os.Stat(path)
	if err != nil {
		return Intent{}, fmt.Errorf("intent file: %w", err)
	}
	if st.Size() > maxIntent {
		return Intent{}, &CorruptError{path, fmt.Sprintf("%d bytes, the limit is %d", st.Size(), maxIntent)}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return Intent{}, fmt.Errorf("intent file: %w", err)
	}
	return DecodeIntent(path, b)
}

// WriteIntent replaces the file at path as a whole: after a crash at any point
// there is the old content or the new one.
func WriteIntent(path string, in Intent) (err error) {
	b, err := EncodeIntent(in)
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-*")
	if err != nil {
		return fmt.Errorf("intent file %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
			err = fmt.Errorf("intent file %s: %w", path, err)
		}
	}()
	if _, err := f.Write(b); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	// The rename itself is only on disk when the directory is.
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
