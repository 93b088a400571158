package translate

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/ambitmesh/ambit/controller/mesh"
)

// bad records a field that cannot be honoured; the rule is incomplete now.
func (r *ruleReader) bad(field, value, problem string) {
	r.object.bad(field, value, problem)
	r.lost++
}

// whole reads a list of which one value must match. Without one of its values
// it would match less than was asked, so it is left out entirely then: the rest
// of the entry matches more, which is what a DENY has to do. (An ALLOW rule
// with such a value does not exist at all.) A list of which no value may match
// needs no such care.
func whole[T any](r *ruleReader, read func(path string, in []string) []T, path string, in []string) []T {
	before := len(r.errs)
	out := read(path, in)
	if len(r.errs) > before {
		return nil
	}
	return out
}

// present requires an entry to name something: whether an entry without any
// field means everything or nothing is not for us to guess.
func (r *ruleReader) present(path string, ok bool) {
	if !ok {
		r.bad(path, "", "at least one field must be set")
	}
}

// beyond notes an attribute that only a waypoint can see.
func (r *ruleReader) beyond(name string, values []string) {
	if len(values) > 0 {
		r.http[name] = true
		r.skipped++
	}
}

func (r *ruleReader) ports(path string, in []string) []uint16 {
	var out []uint16
	for i, s := range in {
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil || n == 0 {
			r.bad(index(path, i), s, "not a port number")
			continue
		}
		out = append(out, uint16(n))
	}
	return out
}

func (r *ruleReader) prefixes(path string, in []string) []netip.Prefix {
	var out []netip.Prefix
	for i, s := range in {
		p, ok := prefix(s)
		if !ok {
			r.bad(index(path, i), s, "not an IP or CIDR")
			continue
		}
		out = append(out, p)
	}
	return out
}

// prefix reads an address or CIDR; host bits are cleared, IPv4 in IPv6 form
// becomes IPv4.
func prefix(s string) (netip.Prefix, bool) {
	if a, err := netip.ParseAddr(s); err == nil {
		if a.Zone() != "" {
			return netip.Prefix{}, false
		}
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), true
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, false
	}
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked(), true
}

func (r *ruleReader) strings(path string, in []string) []mesh.StringMatch {
	var out []mesh.StringMatch
	for i, s := range in {
		if s == "" {
			r.bad(index(path, i), s, "must not be empty")
			continue
		}
		out = append(out, stringMatch(s))
	}
	return out
}

func stringMatch(s string) mesh.StringMatch {
	if s == "*" {
		return mesh.StringMatch{Kind: mesh.Presence}
	}
	if v, ok := strings.CutPrefix(s, "*"); ok {
		return mesh.StringMatch{Kind: mesh.Suffix, Value: v}
	}
	if v, ok := strings.CutSuffix(s, "*"); ok {
		return mesh.StringMatch{Kind: mesh.Prefix, Value: v}
	}
	return mesh.StringMatch{Kind: mesh.Exact, Value: s}
}

// accounts reads "<namespace>/<account>" or "<account>" of the policy's own
// namespace. They are compared exactly, so a wildcard would never match.
func (r *ruleReader) accounts(path string, in []string) []mesh.ServiceAccountMatch {
	var out []mesh.ServiceAccountMatch
	for i, s := range in {
		ns, sa, ok := strings.Cut(s, "/")
		if !ok {
			ns, sa = r.namespace, s
		}
		switch {
		case ns == "" || sa == "" || strings.Contains(sa, "/"):
			r.bad(index(path, i), s, "not of the form <namespace>/<service account>")
		case strings.Contains(s, "*"):
			r.bad(index(path, i), s, "wildcards are not supported")
		default:
			out = append(out, mesh.ServiceAccountMatch{Namespace: ns, ServiceAccount: sa})
		}
	}
	return out
}
