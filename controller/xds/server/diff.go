package server

import (
	"slices"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/wire"
)

// update is what one client has to be told about one type.
type update struct {
	typeURL   string
	resources []*discovery.Resource
	removed   []string
}

func (u *update) empty() bool { return len(u.resources) == 0 && len(u.removed) == 0 }

// initial is the difference between what a client says it holds and to.
func (s *Server) initial(typeURL string, holds map[string]string, to *mesh.Snapshot) update {
	u := update{typeURL: typeURL}
	add := func(r *discovery.Resource, err error) {
		if err != nil {
			s.internalError(err)
		} else if v, ok := holds[r.GetName()]; !ok || v != r.GetVersion() {
			u.resources = append(u.resources, r)
		}
	}
	if typeURL == wire.TypeAuthorization {
		for p := range to.AllPolicies() {
			add(s.encoded.policy(p))
		}
		for name := range holds {
			if to.Policy(name) == nil {
				u.removed = append(u.removed, name)
			}
		}
		slices.Sort(u.removed)
		return u
	}
	for v := range to.AllServices() {
		add(s.encoded.service(v))
	}
	for w := range to.AllWorkloads() {
		add(s.encoded.workload(w))
	}
	for name := range holds {
		if to.Workload(name) == nil && to.Service(name) == nil {
			u.removed = append(u.removed, name)
		}
	}
	slices.Sort(u.removed)
	return u
}

// changes is the difference between two snapshots, in time proportional to
// what changed.
func (s *Server) changes(typeURL string, from, to *mesh.Snapshot) update {
	u := update{typeURL: typeURL}
	names, ok := s.config.Store.Changes(from.Mark(), to)
	if !ok {
		names = mesh.Diff(from, to)
	}
	add := func(r *discovery.Resource, err error) {
		if err != nil {
			s.internalError(err)
			return
		}
		u.resources = append(u.resources, r)
	}
	if typeURL == wire.TypeAuthorization {
		for _, n := range names.Policies {
			if p := to.Policy(n); p == nil {
				if from.Policy(n) != nil {
					u.removed = append(u.removed, n)
				}
			} else if p != from.Policy(n) {
				add(s.encoded.policy(p))
			}
		}
		s.encoded.forget(typeURL, u.removed)
		return u
	}
	for _, n := range names.Services {
		if v := to.Service(n); v == nil {
			if from.Service(n) != nil {
				u.removed = append(u.removed, n)
			}
		} else if v != from.Service(n) {
			add(s.encoded.service(v))
		}
	}
	for _, n := range names.Workloads {
		if w := to.Workload(n); w == nil {
			if from.Workload(n) != nil {
				u.removed = append(u.removed, n)
			}
		} else if w != from.Workload(n) {
			add(s.encoded.workload(w))
		}
	}
	s.encoded.forget(typeURL, u.removed)
	return u
}

// named answers a request for single names: what exists is sent again, what
// does not is reported removed, so that nobody waits for it.
func (s *Server) named(typeURL string, names []string, at *mesh.Snapshot) update {
	u := update{typeURL: typeURL}
	for _, n := range names {
		var r *discovery.Resource
		var err error
		switch {
		case n == "*":
			continue
		case typeURL == wire.TypeAuthorization && at.Policy(n) != nil:
			r, err = s.encoded.policy(at.Policy(n))
		case typeURL == wire.TypeAddress && at.Workload(n) != nil:
			r, err = s.encoded.workload(at.Workload(n))
		case typeURL == wire.TypeAddress && at.Service(n) != nil:
			r, err = s.encoded.service(at.Service(n))
		}
		switch {
		case err != nil:
			s.internalError(err)
		case r != nil:
			u.resources = append(u.resources, r)
		default:
			u.removed = append(u.removed, n)
		}
	}
	return u
}

func (s *Server) internalError(err error) {
	s.metrics.internal.Inc()
	s.config.Logger.Error("resource cannot be encoded and is not sent", "error", err)
}
