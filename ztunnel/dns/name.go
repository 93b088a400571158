package dns

import (
	"iter"
	"strings"
)

// alias is a name that a client may have meant.
type alias struct {
	name string
	// stripped is the name in the question without a search domain, if name was
	// made of that.
	stripped string
}

// aliases are the names that a client in namespace may mean by name, which is in
// lower case and without its last dot, in the order in which they are tried: the
// name, what Kubernetes' search domains would make of it, and if a resolver has
// put a search domain there already, the same without it.
func aliases(name, namespace, domain string) iter.Seq[alias] {
	return func(yield func(alias) bool) {
		if !yield(alias{name: name}) || !expand(name, namespace, domain, "", yield) {
			return
		}
		for _, search := range []string{namespace + ".svc." + domain, "svc." + domain, domain} {
			short, ok := strings.CutSuffix(name, "."+search)
			if !ok || short == "" {
				continue
			}
			if !yield(alias{short, short}) || !expand(short, namespace, domain, short, yield) {
				return
			}
		}
	}
}

// expand yields what name may be short for.
func expand(name, namespace, domain, stripped string, yield func(alias) bool) bool {
	labels := strings.Count(name, ".") + 1
	svc := strings.HasSuffix(name, ".svc")
	give := func(n string) bool { return yield(alias{n, stripped}) }
	switch labels {
	case 1:
		return give(name + "." + namespace + ".svc." + domain)
	case 2:
		return give(name+".svc."+domain) && give(name+"."+namespace+".svc."+domain)
	case 3:
		if svc && !give(name+"."+domain) {
			return false
		}
		return give(name + ".svc." + domain)
	case 4:
		return !svc || give(name+"."+domain)
	}
	return true
}

// wildcards are the wildcard names that cover name, the most specific first.
func wildcards(name string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for {
			_, rest, ok := strings.Cut(name, ".")
			if !ok || !yield("*."+rest) {
				return
			}
			name = rest
		}
	}
}

// plain is a name of a question without its last dot and in lower case: names
// are compared without regard to case (RFC 4343).
func plain(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }
