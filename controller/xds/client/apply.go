package client

import (
	"fmt"
	"slices"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/wire"
)

// apply decodes all of r first and then changes the store once, so that nobody
// sees half a response. It returns "name: reason" for each refused resource;
// of those the last good state stays.
func (c *Client) apply(r *discovery.DeltaDiscoveryResponse) (refused []string) {
	var d mesh.Delta
	held := c.held[r.GetTypeUrl()]
	for _, x := range r.GetResources() {
		if err := decode(&d, r.GetTypeUrl(), x); err != nil {
			refused = append(refused, fmt.Sprintf("%s: %v", x.GetName(), err))
			continue
		}
		held[x.GetName()] = x.GetVersion()
	}
	base := c.config.Store.Load()
	for _, name := range r.GetRemovedResources() {
		delete(held, name)
		switch {
		case r.GetTypeUrl() == wire.TypeAuthorization:
			d.RemovedPolicies = append(d.RemovedPolicies, name)
		case base.Workload(name) != nil:
			d.RemovedWorkloads = append(d.RemovedWorkloads, name)
		default: // a service, unknown, or something that arrived just above
			d.RemovedWorkloads = append(d.RemovedWorkloads, name)
			d.RemovedServices = append(d.RemovedServices, name)
		}
	}
	if !d.Empty() {
		b := mesh.NewBuilder(base)
		b.Apply(d)
		c.config.Store.Swap(b.Build())
	}
	return refused
}

// has reports whether name is an address of v.
func has(v *mesh.Service, name string) bool {
	network, ip, ok := mesh.ParseAddressName(name)
	return ok && slices.ContainsFunc(v.Addresses, func(a mesh.NetworkAddress) bool {
		return a.Network == network && a.Prefix.Contains(ip)
	})
}

// decode adds x to d. A resource must carry the name of what it holds: removals
// know nothing but the name. One that was asked for by an address may carry that.
func decode(d *mesh.Delta, typeURL string, x *discovery.Resource) error {
	body := x.GetResource()
	if body == nil {
		return fmt.Errorf("resource is empty")
	}
	if body.GetTypeUrl() != typeURL {
		return fmt.Errorf("resource is a %q inside a response of %q", body.GetTypeUrl(), typeURL)
	}
	if typeURL == wire.TypeAuthorization {
		p, err := wire.UnmarshalPolicy(body.GetValue())
		if err != nil {
			return err
		}
		if p.Key() != x.GetName() {
			return fmt.Errorf("resource holds policy %s", p.Key())
		}
		d.Policies = append(d.Policies, p)
		return nil
	}
	w, v, err := wire.UnmarshalAddress(body.GetValue())
	switch {
	case err != nil:
		return err
	case w != nil && w.UID != x.GetName() && !slices.Contains(w.Names(), x.GetName()):
		return fmt.Errorf("resource holds workload %s", w.UID)
	case v != nil && v.Key() != x.GetName() && !has(v, x.GetName()):
		return fmt.Errorf("resource holds service %s", v.Key())
	case w != nil:
		d.Workloads = append(d.Workloads, w)
	default:
		d.Services = append(d.Services, v)
	}
	return nil
}
