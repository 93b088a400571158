package mesh

import "slices"

// Settings are those of the mesh's settings that data planes act on.
type Settings struct {
	// RegistryOnly refuses connections to addresses that the mesh does not
	// know.
	RegistryOnly bool
	// TrustDomainAliases are trust domains whose identities count as those of
	// the mesh's own.
	TrustDomainAliases []string
}

// Equal reports whether s and o say the same.
func (s Settings) Equal(o Settings) bool {
	return s.RegistryOnly == o.RegistryOnly && slices.Equal(s.TrustDomainAliases, o.TrustDomainAliases)
}
