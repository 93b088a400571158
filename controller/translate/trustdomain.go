package translate

import "slices"

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
