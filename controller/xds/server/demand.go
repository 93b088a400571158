package server

import (
	"slices"
	"strings"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/wire"
)

// demand is what one client is told about that asks for single names, as
// Istio's node proxy does on a large mesh: it gives up "*" in its first request.
// Workloads of its own node are always sent. Owned by the client's run.
type demand struct {
	node     string              // of the client, by its token
	services bool                // every service is wanted, its workloads only when asked for
	asked    map[string]struct{} // names asked for and not given up, found or not
	told     map[string]struct{} // names of the resources the client holds
	full     map[string]struct{} // services whose every workload is sent
}

// onDemand reports whether a first request gives up the wildcard, or never
// had it.
func onDemand(r *discovery.DeltaDiscoveryRequest) bool {
	names := r.GetResourceNamesSubscribe()
	return slices.Contains(r.GetResourceNamesUnsubscribe(), "*") || len(names) > 0 && !slices.Contains(names, "*")
}

func newDemand(r *discovery.DeltaDiscoveryRequest, node string) *demand {
	d := &demand{
		node:     node,
		services: r.GetNode().GetMetadata().GetFields()[wire.MetadataServices].GetStringValue() == "all",
		asked:    make(map[string]struct{}), told: make(map[string]struct{}), full: make(map[string]struct{}),
	}
	d.ask(r.GetResourceNamesSubscribe())
	return d
}

func (d *demand) ask(names []string) {
	for _, n := range names {
		if n != "*" {
			d.asked[n] = struct{}{}
		}
	}
}

func (d *demand) giveUp(names []string) {
	for _, n := range names {
		delete(d.asked, n)
		delete(d.told, n)
		delete(d.full, n)
	}
}

func has(set map[string]struct{}, name string) bool {
	_, ok := set[name]
	return ok
}

// sees reports whether w concerns the client.
func (d *demand) sees(w *mesh.Workload) bool {
	if w.Node == d.node && d.node != "" || has(d.told, w.UID) || has(d.asked, w.UID) {
		return true
	}
	for key := range w.Services {
		if has(d.full, key) {
			return true
		}
	}
	return slices.ContainsFunc(w.Names(), func(n string) bool { return has(d.asked, n) }) ||
		w.Hostname != "" && has(d.asked, w.Namespace+"/"+w.Hostname)
}

// meant reports whether the client asked for v, by its name or an address.
func (d *demand) meant(v *mesh.Service) bool {
	if has(d.asked, v.Key()) {
		return true
	}
	for _, a := range v.Addresses {
		if a.Prefix.IsSingleIP() {
			if has(d.asked, mesh.AddressName(a.Network, a.Prefix.Addr())) {
				return true
			}
			continue
		}
		for n := range d.asked {
			if network, ip, ok := mesh.ParseAddressName(n); ok && network == a.Network && a.Prefix.Contains(ip) {
				return true
			}
		}
	}
	return false
}

// batch collects what goes into one answer, each thing once.
type batch struct {
	services  map[string]*mesh.Service
	workloads map[string]*mesh.Workload
	meant     map[string]struct{} // names of what was asked for, and not added to it
}

func newBatch() *batch {
	return &batch{make(map[string]*mesh.Service), make(map[string]*mesh.Workload), make(map[string]struct{})}
}

// find gives what name means in the order that Istio's control plane looks:
// UID, a workload's address, a service's name, a virtual address, and a
// workload's host name. It reports whether there is anything.
func (d *demand) find(at *mesh.Snapshot, name string, into *batch) bool {
	workload := func(w *mesh.Workload) {
		into.meant[w.UID] = struct{}{}
		d.addWorkload(at, w, into)
	}
	service := func(v *mesh.Service) {
		into.meant[v.Key()] = struct{}{}
		d.addService(at, v, into)
	}
	if w := at.Workload(name); w != nil {
		workload(w)
		return true
	}
	if network, ip, ok := mesh.ParseAddressName(name); ok {
		workloads := at.WorkloadsAt(network, ip)
		for _, w := range workloads {
			workload(w)
		}
		services := at.ServicesAt(network, ip)
		for _, v := range services {
			service(v)
		}
		return len(workloads)+len(services) > 0
	}
	if v := at.Service(name); v != nil {
		service(v)
		return true
	}
	if w := hostnamed(at, name); w != nil {
		workload(w)
		return true
	}
	return false
}

// addWorkload adds w with what is needed to reach it: its waypoint, and the
// services it belongs to for a client that is not sent all of them. A service
// never travels without its workloads there: such a client takes a service it
// knows for complete.
func (d *demand) addWorkload(at *mesh.Snapshot, w *mesh.Workload, into *batch) {
	if into.workloads[w.UID] != nil {
		return
	}
	into.workloads[w.UID] = w
	if !d.services {
		for key := range w.Services {
			if v := at.Service(key); v != nil {
				d.addService(at, v, into)
			}
		}
	}
	d.addGateway(at, w.Waypoint, into)
	d.addGateway(at, w.NetworkGateway, into)
}

// addService adds v with all its workloads and its waypoints.
func (d *demand) addService(at *mesh.Snapshot, v *mesh.Service, into *batch) {
	if into.services[v.Key()] != nil {
		return
	}
	into.services[v.Key()] = v
	d.full[v.Key()] = struct{}{}
	for _, e := range at.EndpointsOf(v.Key()) {
		into.workloads[e.Workload.UID] = e.Workload // nothing further of each: that would reach the whole mesh
		d.addGateway(at, e.Workload.NetworkGateway, into)
	}
	d.addGateway(at, v.Waypoint, into)
	for i := range v.Weighted {
		d.addGateway(at, &v.Weighted[i].Destination, into)
	}
}

func (d *demand) addGateway(at *mesh.Snapshot, g *mesh.GatewayAddress, into *batch) {
	if g == nil {
		return
	}
	if g.Hostname == "" {
		for _, w := range at.WorkloadsAt(g.Address.Network, g.Address.Prefix.Addr()) {
			into.workloads[w.UID] = w
		}
		for _, v := range at.ServicesAt(g.Address.Network, g.Address.Prefix.Addr()) {
			d.addService(at, v, into)
		}
		return
	}
	if v := at.Service(g.Name()); v != nil {
		d.addService(at, v, into)
	} else if w := hostnamed(at, g.Name()); w != nil {
		into.workloads[w.UID] = w
	}
}

// initialDemand is the first answer to a client on demand. What it holds
// already counts as asked for: it is a reconnect.
func (s *Server) initialDemand(d *demand, holds map[string]string, to *mesh.Snapshot) update {
	u := update{typeURL: wire.TypeAddress}
	b := newBatch()
	// Before anything else, so that full holds what was asked for, and not
	// every service that a client of all services happens to hold.
	for n := range d.asked {
		if !d.find(to, n, b) {
			u.removed = append(u.removed, n)
		}
	}
	for n := range holds {
		if has(d.asked, n) {
			continue
		}
		if v := to.Service(n); d.services && v != nil {
			b.services[n] = v
			continue
		}
		if w := to.Workload(n); w != nil {
			b.workloads[n] = w
			continue
		}
		if d.asked[n] = struct{}{}; !d.find(to, n, b) {
			u.removed = append(u.removed, n)
		}
	}
	if d.services {
		for v := range to.AllServices() {
			b.services[v.Key()] = v
		}
	}
	for w := range to.AllWorkloads() {
		if d.sees(w) {
			b.workloads[w.UID] = w
		}
	}
	s.fill(&u, d, b, func(r *discovery.Resource) bool {
		v, held := holds[r.GetName()]
		return !held || v != r.GetVersion()
	})
	for n := range d.asked {
		if v, held := holds[n]; !held || v == "" {
			s.alias(&u, d, n, to)
		}
	}
	slices.Sort(u.removed)
	return u
}

// changesDemand is the difference between two snapshots as far as it concerns
// the client.
func (s *Server) changesDemand(d *demand, from, to *mesh.Snapshot) update {
	u := update{typeURL: wire.TypeAddress}
	names, ok := s.config.Store.Changes(from.Mark(), to)
	if !ok {
		names = mesh.Diff(from, to)
	}
	b := newBatch()
	gone := func(n string) {
		if has(d.told, n) {
			delete(d.told, n)
			u.removed = append(u.removed, n)
		}
	}
	for _, n := range names.Services {
		switch v := to.Service(n); {
		case v == nil:
			delete(d.full, n)
			gone(n)
		case v == from.Service(n) && has(d.told, n):
		case !has(d.full, n) && d.meant(v):
			d.addService(to, v, b)
		case d.services || has(d.told, n):
			b.services[n] = v
		}
	}
	for _, n := range names.Workloads {
		if w := to.Workload(n); w == nil {
			gone(n)
		} else if d.sees(w) && (w != from.Workload(n) || !has(d.told, n)) {
			b.workloads[n] = w
		}
	}
	changed := func(r *discovery.Resource) bool {
		n := r.GetName()
		return !has(d.told, n) || to.Workload(n) != from.Workload(n) || to.Service(n) != from.Service(n)
	}
	s.fill(&u, d, b, changed)
	return u
}

// namedDemand answers a request for single names: what exists is sent with
// what belongs to it, what does not is reported removed, so that nobody waits.
func (s *Server) namedDemand(d *demand, names []string, at *mesh.Snapshot) update {
	u := update{typeURL: wire.TypeAddress}
	d.ask(names)
	b := newBatch()
	var found []string
	for _, n := range names {
		switch {
		case n == "*":
		case d.find(at, n, b):
			found = append(found, n)
		default:
			u.removed = append(u.removed, n)
		}
	}
	s.fill(&u, d, b, func(r *discovery.Resource) bool { return !has(d.told, r.GetName()) || has(b.meant, r.GetName()) })
	for _, n := range found {
		s.alias(&u, d, n, at)
	}
	return u
}

// fill adds those of b to u that wanted says yes to, services first, and notes
// that the client has all of them.
func (s *Server) fill(u *update, d *demand, b *batch, wanted func(*discovery.Resource) bool) {
	add := func(r *discovery.Resource, aliases []string, err error) {
		if err != nil {
			s.internalError(err)
			return
		}
		r = withAliases(r, aliases)
		if wanted(r) {
			u.resources = append(u.resources, r)
		}
		d.told[r.GetName()] = struct{}{}
	}
	for _, v := range b.services {
		r, err := s.encoded.service(v)
		add(r, v.Names(), err)
	}
	for _, w := range b.workloads {
		r, err := s.encoded.workload(w)
		add(r, w.Names(), err)
	}
}

// alias repeats what an address asked for means under that very name, for
// clients that look at nothing but names. Ours look at the aliases.
func (s *Server) alias(u *update, d *demand, name string, at *mesh.Snapshot) {
	network, ip, ok := mesh.ParseAddressName(name)
	if !ok || d.services || at.Workload(name) != nil {
		return
	}
	var r *discovery.Resource
	var err error
	if w := at.WorkloadAt(network, ip); w != nil {
		r, err = s.encoded.workload(w)
	} else if v := at.ServicesAt(network, ip); len(v) > 0 {
		r, err = s.encoded.service(v[0])
	} else {
		return
	}
	if err != nil {
		return // said when it was sent under its own name
	}
	u.resources = append(u.resources, &discovery.Resource{Name: name, Version: r.GetVersion(), Resource: r.GetResource()})
}

// withAliases is r with other names; r itself is shared between clients.
func withAliases(r *discovery.Resource, aliases []string) *discovery.Resource {
	return &discovery.Resource{Name: r.GetName(), Version: r.GetVersion(), Resource: r.GetResource(), Aliases: aliases}
}

// hostnamed is the workload that <namespace>/<host name> names.
func hostnamed(at *mesh.Snapshot, name string) *mesh.Workload {
	namespace, host, ok := strings.Cut(name, "/")
	if !ok || host == "" {
		return nil
	}
	return at.WorkloadByHostname(namespace, host)
}
