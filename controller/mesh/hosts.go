package mesh

// ServicesNamed lists the services of a host name, whatever their visibility,
// sorted by key. A wildcard is found by its own name only, as "*.example.com".
// The result must not be modified.
func (s *Snapshot) ServicesNamed(host string) []*Service {
	c, _ := s.byHost.get(host)
	return c
}
