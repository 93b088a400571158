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

// Settings are those of the mesh's settings that data planes act on; false
// while nobody has said, as a control plane that is not ours never does.
func (s *Snapshot) Settings() (Settings, bool) {
	if s.settings == nil {
		return Settings{}, false
	}
	return *s.settings, true
}
