package diagnose

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Level says what follows from a finding.
type Level string

// Levels, the worst first.
const (
	Error   Level = "error"   // Ambit will not work, or will break something
	Warning Level = "warning" // something works less well, or may surprise
	Info    Level = "info"    // good to know
)

func (l Level) rank() int { return slices.Index([]Level{Error, Warning, Info}, l) }

// Finding is one thing worth saying.
type Finding struct {
	Level  Level  `json:"level"`
	Check  string `json:"check"`  // which check says it; stable, for scripts
	Object string `json:"object"` // what it is about
	What   string `json:"what"`
	Do     string `json:"do,omitempty"`
}

// findings collects what a check says.
type findings struct {
	check string
	all   []Finding
}

func (f *findings) add(l Level, object, what, do string) {
	f.all = append(f.all, Finding{l, f.check, object, what, do})
}

// sorted puts the worst first and keeps what belongs together.
func sorted(all []Finding) []Finding {
	slices.SortStableFunc(all, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Level.rank(), b.Level.rank()), cmp.Compare(a.Check, b.Check), cmp.Compare(a.Object, b.Object), cmp.Compare(a.What, b.What))
	})
	return all
}

// few names at most three of many.
func few(names []string) string {
	slices.Sort(names)
	names = slices.Compact(names)
	if n := len(names) - 3; n > 1 {
		return strings.Join(names[:3], ", ") + fmt.Sprintf(" and %d more", n)
	}
	return strings.Join(names, ", ")
}
