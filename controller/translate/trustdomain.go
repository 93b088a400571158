package translate

import "slices"

// trustDomains are the mesh's own and its aliases, each once.
func (c Config) trustDomains() []string {
	out := []string{c.TrustDomain}
	for _, a := range c.Mesh.TrustDomainAliases {
		if !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}
