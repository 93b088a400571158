package diagnose

import (
	"fmt"
	"strconv"
	"strings"
)

// release is major.minor of a version, with whatever follows left out: vendors
// put much there. Patch levels decide nothing here.
type release struct{ major, minor int }

func (r release) String() string { return fmt.Sprintf("%d.%d", r.major, r.minor) }

func (r release) before(s release) bool {
	return r.major < s.major || r.major == s.major && r.minor < s.minor
}

// parseRelease reads "v1.30.4-gke.1", "6.6.0-rc1", "5.14.0-427.el9.x86_64".
func parseRelease(s string) (release, bool) {
	major, rest, ok := strings.Cut(strings.TrimPrefix(s, "v"), ".")
	if !ok {
		return release{}, false
	}
	digits := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if digits < 0 {
		digits = len(rest)
	}
	a, errA := strconv.Atoi(major)
	b, errB := strconv.Atoi(rest[:digits])
	return release{a, b}, errA == nil && errB == nil && a >= 0
}

// patched is a version with its patch level, for bundles that are compared
// among themselves.
func parsePatched(s string) (v [3]int, ok bool) {
	core, _, _ := strings.Cut(strings.TrimPrefix(s, "v"), "-")
	parts := strings.Split(core, ".")
	if len(parts) != 3 {
		return v, false
	}
	for i, p := range parts {
		n, err := strconv.Atoi(p)
		if err != nil || n < 0 {
			return v, false
		}
		v[i] = n
	}
	return v, true
}
