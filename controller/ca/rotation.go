package ca

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// A change of the signer goes in four steps, so that at no moment anybody meets
// a certificate of a root it does not know:
//
//  1. the new root is added to what is trusted;
//  2. every ztunnel reports that it has it;
//  3. the new key signs;
//  4. the old root is removed, once no certificate of it can be alive.
//
// Step is the decision; who calls it writes the record down before anything
// acts on it.

// Wish is what the operator wants to be signed with.
type Wish struct {
	Source    string // name of the Secret
	Authority *Authority
	Err       error // the Secret is there and cannot be used
}

// Situation is what Step decides on.
type Situation struct {
	Now     time.Time
	Wish    *Wish    // nil: the Secret is gone; what is in force stays
	Lacking []string // who does not have all of the record's bundle
	Command Command
	Timeout time.Duration // how long to wait for those that lack the roots
	Leading time.Duration // how long this leader has listened to who has them
	TTL     time.Duration // longest life of what is signed from now on
}

// Command is an operator's word on a change under way.
type Command struct {
	Verb string
	Args []string
}

// Verbs of a Command.
const (
	CommandContinue = "continue" // wait again, for as long as at first
	CommandWithout  = "without"  // do not wait for those named
	CommandRetire   = "retire"   // remove the old root now, whoever has a certificate of it
)

// lag is how much longer than its longest certificate an old root is trusted. A
// replica that has not heard of the switch signs with the old key until it
// cannot verify its callers any more.
const lag = reviewTTL + 15*time.Second

// comeback is how long ztunnels may take to say again what they have, after
// the replica they said it to has gone: their attempts are up to 15 s apart.
const comeback = time.Minute

// Outcome is what Step decided.
type Outcome struct {
	Record *Record // what is to be in force
	Events []string
	// Waiting is who holds the switch up.
	Waiting []string
	// Refused is why the command was not followed.
	Refused error
}

// Step is what follows from r in situation s. r is not changed.
func (r *Record) Step(s Situation) Outcome {
	next := *r
	if r.Next != nil {
		n := *r.Next
		next.Next = &n
	}
	next.Retired = slices.Clone(r.Retired)
	out := Outcome{Record: &next}
	event := func(format string, args ...any) { out.Events = append(out.Events, fmt.Sprintf(format, args...)) }

	next.Longest = max(next.Longest, s.TTL)
	out.Refused = next.obey(s, event)
	switch w := s.Wish; {
	case w == nil:
		if next.Next != nil {
			event("given up: Secret %s is gone", next.Next.Source)
			next.Next = nil
		}
	case w.Err != nil: // what is in force stays; so does what is under way
	case w.Authority.Fingerprint() == next.Signer.Fingerprint():
		if next.Next != nil {
			event("given up: Secret %s is as before", w.Source)
			next.Next = nil
		}
		next.Source = w.Source
	case !s.Now.Before(next.Signer.expiry()):
		event("the signer's time is over: Secret %s signs at once", w.Source)
		next.swap(w, s)
	case next.Next == nil || next.Next.Fingerprint != w.Authority.Fingerprint():
		next.Next = &Next{
			Source: w.Source, Fingerprint: w.Authority.Fingerprint(), Roots: w.Authority.roots,
			Began: s.Now, Deadline: s.Now.Add(s.Timeout),
		}
		event("begun: the root of Secret %s is being made known", w.Source)
		// Who has the new bundle is known when it is in force.
	default:
		next.await(w, s, &out, event)
	}
	next.retire(s.Now, event)
	return out
}

// obey follows the command, or says why not.
func (r *Record) obey(s Situation, event func(string, ...any)) error {
	switch s.Command.Verb {
	case "":
	case CommandContinue, CommandWithout:
		if r.Next == nil {
			return errors.New("no change of the root is waiting for anybody")
		}
		for _, who := range s.Command.Args {
			if !slices.Contains(s.Lacking, who) {
				return fmt.Errorf("%q is not among those that lack the new root: %s", who, orNobody(s.Lacking))
			}
		}
		r.Next.Stalled, r.Next.Deadline = false, s.Now.Add(s.Timeout)
		if s.Command.Verb == CommandWithout {
			r.Next.Without = append(slices.Clone(r.Next.Without), s.Command.Args...)
		}
		event("told to go on; not waiting for: %s", orNobody(r.Next.Without))
	case CommandRetire:
		if r.Next != nil {
			return errors.New("the new key does not sign yet: the old root is what every certificate is of")
		}
		if len(r.Retired) == 0 {
			return errors.New("there is no old root")
		}
		event("told to remove the old root before its time")
		r.Retired = nil
	default:
		return fmt.Errorf("no such command: %q", s.Command.Verb)
	}
	return nil
}

func orNobody(names []string) string {
	if len(names) == 0 {
		return "nobody"
	}
	return strings.Join(names, ", ")
}

// await switches when everybody who counts has the roots.
func (r *Record) await(w *Wish, s Situation, out *Outcome, event func(string, ...any)) {
	for _, who := range s.Lacking {
		if !slices.Contains(r.Next.Without, who) {
			out.Waiting = append(out.Waiting, who)
		}
	}
	switch {
	case r.Next.Stalled: // never by itself, even if those that lacked it came back
	case len(out.Waiting) == 0:
		event("every ztunnel has the new root: Secret %s signs", w.Source)
		r.swap(w, s)
	case !s.Now.Before(r.Next.Deadline) && s.Leading >= min(s.Timeout, comeback):
		r.Next.Stalled = true
		event("stalled: %d lack the new root: %s", len(out.Waiting), strings.Join(out.Waiting, ", "))
	}
}

// swap makes w the signer.
func (r *Record) swap(w *Wish, s Situation) {
	until := s.Now.Add(r.Longest + lag)
	for _, old := range r.Signer.roots {
		if !isAnchor(w.Authority.roots, old) {
			r.Retired = append(r.Retired, Retired{old, until})
		}
	}
	// Roots that come back are not old any more.
	r.Retired = slices.DeleteFunc(r.Retired, func(o Retired) bool { return isAnchor(w.Authority.roots, o.Root) })
	r.Previous = r.Signer
	r.Signer, r.Source, r.Longest, r.Next = w.Authority, w.Source, s.TTL, nil
}

// retire drops the roots whose time has come, and the old key with the last
// of them.
func (r *Record) retire(now time.Time, event func(string, ...any)) {
	before := len(r.Retired)
	r.Retired = slices.DeleteFunc(r.Retired, func(o Retired) bool { return !now.Before(o.Until) })
	if n := before - len(r.Retired); n > 0 {
		event("done: %d old root(s) removed", n)
	}
	if len(r.Retired) == 0 {
		r.Previous = nil
	}
}
