package translate

import (
	"slices"
	"strings"

	"github.com/ambitmesh/ambit/controller/mesh"
)

// TrustDomains are the mesh's own and its aliases, each once.
func (c Config) TrustDomains() []string {
	out := []string{c.TrustDomain}
	for _, a := range c.Mesh.TrustDomainAliases {
		if !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// principals reads principals; one of the mesh's own trust domain stands for
// the same in each of its names, as in Istio's control plane. "cluster.local"
// always means the mesh's own. What checks no trust domain (a * in its place)
// or is not of the form of an identity stays as it is.
func (r *ruleReader) principals(path string, in []string) []mesh.StringMatch {
	var out []mesh.StringMatch
	for i, p := range in {
		if p == "" {
			r.bad(index(path, i), p, "must not be empty")
			continue
		}
		domain, rest, _ := strings.Cut(p, "/")
		if strings.Count(p, "/") != 4 || domain == "*" || !ownDomain(domain, r.domains) {
			out = append(out, stringMatch(p))
			continue
		}
		for _, d := range r.domains {
			one := stringMatch(d + "/" + rest)
			if endsIn(domain, d) {
				one = stringMatch(p) // what ends so matches it already
			}
			if !slices.Contains(out, one) {
				out = append(out, one)
			}
		}
	}
	return out
}

// ownDomain reports whether a policy that says domain means the mesh's own.
func ownDomain(domain string, own []string) bool {
	return domain == defaultDomain || slices.ContainsFunc(own, func(d string) bool { return d == domain || endsIn(domain, d) })
}

// endsIn reports whether pattern is a suffix that domain has.
func endsIn(pattern, domain string) bool {
	suffix, ok := strings.CutPrefix(pattern, "*")
	return ok && suffix != "" && strings.HasSuffix(domain, suffix)
}

// defaultDomain in a policy is the mesh's own trust domain, whatever that is.
const defaultDomain = "cluster.local"
