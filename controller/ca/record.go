package ca

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ambitmesh/ambit/controller/ca/rotation"
)

// Record is what is in force and how far a change of it is. It outlives every
// process: it is kept in a Secret of its own, apart from the one in which the
// operator says what is wanted.
type Record struct {
	Source string     // name of the Secret the signer was read from
	Signer *Authority // signs workloads' certificates
	// Previous signs the controller's own certificate for as long as its root
	// is trusted: a ztunnel that starts with an old root file must get in.
	Previous *Authority
	// Longest is what no certificate of Signer outlives from its issuing on.
	Longest time.Duration
	Next    *Next     // the signer to come; nil when what is wanted is in force
	Retired []Retired // roots that are trusted still, for certificates that live
}

// Next is a signer whose roots are being made known.
type Next struct {
	Source      string
	Fingerprint string
	Roots       []*x509.Certificate
	Began       time.Time
	Deadline    time.Time // when waiting ends for those that lack the roots
	Stalled     bool      // the deadline passed; only a command goes on
	Without     []string  // who need not have the roots, by command
}

// Retired is a root that goes.
type Retired struct {
	Root  *x509.Certificate
	Until time.Time
}

// Phase names how far the record is.
func (r *Record) Phase() string {
	switch {
	case r.Next != nil && r.Next.Stalled:
		return rotation.PhaseStalled
	case r.Next != nil:
		return rotation.PhaseDistributing
	case len(r.Retired) > 0:
		return rotation.PhaseRetiring
	}
	return rotation.PhaseSettled
}

// Bundle is everything that is trusted: the signer's roots, those to come and
// those that go. It is sorted, because who signs does not change what is
// trusted, and replicas agree on its hash.
func (r *Record) Bundle() []byte {
	all := slices.Clone(r.Signer.roots)
	add := func(c *x509.Certificate) {
		if !isAnchor(all, c) {
			all = append(all, c)
		}
	}
	if r.Next != nil {
		for _, c := range r.Next.Roots {
			add(c)
		}
	}
	for _, old := range r.Retired {
		add(old.Root)
	}
	slices.SortFunc(all, func(a, b *x509.Certificate) int { return bytes.Compare(a.Raw, b.Raw) })
	return certificatesPEM(all)
}

func (r *Record) server() *Authority { return cmp.Or(r.Previous, r.Signer) }

// Keys of the Secret that holds a record, beside those of a CA Secret, which
// are the signer's.
const (
	KeyRotation    = "rotation.json"
	previousPrefix = "previous-"
)

// stored is the form of rotation.json.
type stored struct {
	Source  string          `json:"source"`
	Longest string          `json:"longestLifetime"`
	Next    *storedNext     `json:"next,omitempty"`
	Retired []storedRetired `json:"retired,omitempty"`
}

type storedNext struct {
	Source      string    `json:"source"`
	Fingerprint string    `json:"fingerprint"`
	Roots       string    `json:"roots"`
	Began       time.Time `json:"began"`
	Deadline    time.Time `json:"deadline"`
	Stalled     bool      `json:"stalled,omitempty"`
	Without     []string  `json:"without,omitempty"`
}

type storedRetired struct {
	Root  string    `json:"root"`
	Until time.Time `json:"until"`
}

// SecretData is the content of the Secret that LoadRecord turns into an equal
// record.
func (r *Record) SecretData() (map[string][]byte, error) {
	out := r.Signer.SecretData()
	if r.Previous != nil {
		for k, v := range r.Previous.SecretData() {
			out[previousPrefix+k] = v
		}
	}
	s := stored{Source: r.Source, Longest: r.Longest.String()}
	if n := r.Next; n != nil {
		s.Next = &storedNext{n.Source, n.Fingerprint, string(certificatesPEM(n.Roots)), n.Began, n.Deadline, n.Stalled, n.Without}
	}
	for _, old := range r.Retired {
		s.Retired = append(s.Retired, storedRetired{string(encodePEM("CERTIFICATE", old.Root.Raw)), old.Until})
	}
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", KeyRotation, err)
	}
	out[KeyRotation] = text
	return out, nil
}

// LoadRecord reads the content of the Secret called name. Its errors name the
// Secret and the key at fault.
func LoadRecord(name string, data map[string][]byte) (*Record, error) {
	signer, err := Load(name, data)
	if err != nil {
		return nil, err
	}
	fail := func(err error) (*Record, error) {
		return nil, fmt.Errorf("secret %s: key %s: %w", name, KeyRotation, err)
	}
	var s stored
	if err := json.Unmarshal(data[KeyRotation], &s); err != nil {
		return fail(err)
	}
	r := &Record{Source: s.Source, Signer: signer}
	if s.Source == "" {
		return fail(errors.New("source is missing"))
	}
	if r.Longest, err = time.ParseDuration(s.Longest); err != nil || r.Longest <= 0 || r.Longest > MaxTTL {
		return fail(fmt.Errorf("longestLifetime %q is not a duration of up to %v", s.Longest, MaxTTL))
	}
	if previous := withPrefix(data); len(previous) > 0 {
		// One that cannot be used any more costs nothing: the signer stands in.
		r.Previous, _ = Load(name, previous)
	}
	if s.Next != nil {
		roots, err := parseCertificates([]byte(s.Next.Roots))
		if err != nil {
			return fail(fmt.Errorf("next.roots: %w", err))
		}
		r.Next = &Next{s.Next.Source, s.Next.Fingerprint, roots, s.Next.Began, s.Next.Deadline, s.Next.Stalled, s.Next.Without}
	}
	for i, old := range s.Retired {
		roots, err := parseCertificates([]byte(old.Root))
		if err != nil {
			return fail(fmt.Errorf("retired[%d].root: %w", i, err))
		}
		for _, root := range roots {
			r.Retired = append(r.Retired, Retired{root, old.Until})
		}
	}
	return r, nil
}

// withPrefix is the part of data that belongs to the previous signer, under
// the keys Load knows.
func withPrefix(data map[string][]byte) map[string][]byte {
	out := map[string][]byte{}
	for k, v := range data {
		if short, ok := strings.CutPrefix(k, previousPrefix); ok {
			out[short] = v
		}
	}
	return out
}
