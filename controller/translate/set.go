package translate

import (
	"errors"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	netv1 "k8s.io/api/networking/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/ambitmesh/ambit/controller/mesh"
)

// Set is Objects held in plain lists and searched one by one: for files of
// manifests, and as the slow truth that incremental translation is compared
// with.
type Set struct {
	NamespaceList []*corev1.Namespace
	NodeList      []*corev1.Node
	PodList       []*corev1.Pod
	ServiceList   []*corev1.Service
	SliceList     []*discoveryv1.EndpointSlice
	PolicyList    []*securityv1.AuthorizationPolicy
	PeerList      []*securityv1.PeerAuthentication

	ServiceEntryList  []*networkingv1.ServiceEntry
	WorkloadEntryList []*networkingv1.WorkloadEntry
	NetworkPolicyList []*netv1.NetworkPolicy
	GatewayList       []*gatewayv1.Gateway
	GatewayClassList  []*gatewayv1.GatewayClass
	MeshConfigObject  *corev1.ConfigMap // nil: none
}

var _ Objects = (*Set)(nil)

// All translates every object of s. The errors are joined; what they name is
// in the delta in its most restrictive reading.
func All(c Config, s *Set) (mesh.Delta, error) {
	var d mesh.Delta
	var errs []error
	c, s, err := c.seen(s)
	errs = append(errs, err)
	for _, pod := range s.PodList {
		w, err := c.Pod(pod, s)
		errs = append(errs, err)
		if w != nil {
			d.Workloads = append(d.Workloads, w)
		}
	}
	for _, slice := range s.SliceList {
		ws, err := c.EndpointSlice(slice, s)
		errs = append(errs, err)
		d.Workloads = append(d.Workloads, ws...)
	}
	for _, svc := range s.ServiceList {
		out, err := c.Service(svc, s)
		errs = append(errs, err)
		if out != nil {
			d.Services = append(d.Services, out)
		}
	}
	for _, we := range s.WorkloadEntryList {
		w, err := c.WorkloadEntry(we, s)
		errs = append(errs, err)
		if w != nil {
			d.Workloads = append(d.Workloads, w)
		}
	}
	for _, se := range s.ServiceEntryList {
		out, err := c.ServiceEntry(se, s)
		errs = append(errs, err)
		d.Workloads = append(d.Workloads, out.Workloads...)
		d.Services = append(d.Services, out.Services...)
	}
	for _, ap := range s.PolicyList {
		a := c.AuthorizationPolicy(ap)
		errs = append(errs, a.Err)
		for _, p := range []*mesh.Policy{a.Policy, a.Behind} {
			if p != nil {
				d.Policies = append(d.Policies, p)
			}
		}
	}
	if len(s.PeerList) > 0 {
		d.Policies = append(d.Policies, c.StaticStrict())
	}
	for _, pa := range s.PeerList {
		p, err := c.PeerAuthentication(pa, s)
		errs = append(errs, err)
		if p != nil {
			d.Policies = append(d.Policies, p)
		}
	}
	for _, np := range s.NetworkPolicyList {
		errs = append(errs, c.NetworkPolicyErrors(np))
	}
	d.Policies = append(d.Policies, c.networkPolicies(s, d.Workloads)...)
	c.gatewaysOf(s, &d)
	return d, errors.Join(errs...)
}

// networkPolicies are the policies made from NetworkPolicies that workloads
// name.
func (c Config) networkPolicies(s *Set, workloads []*mesh.Workload) (out []*mesh.Policy) {
	wanted := make(map[string]bool)
	for _, w := range workloads {
		for _, key := range w.Policies {
			wanted[key] = true
		}
	}
	for _, pod := range s.PodList {
		if g, ok := c.NetworkGroup(pod, s); ok && wanted[g.Key()] {
			delete(wanted, g.Key())
			out = append(out, c.NetworkPolicy(g, s))
		}
	}
	return out
}

// Namespace implements Objects.
func (s *Set) Namespace(name string) *corev1.Namespace {
	for _, ns := range s.NamespaceList {
		if ns.Name == name {
			return ns
		}
	}
	return nil
}

// Node implements Objects.
func (s *Set) Node(name string) *corev1.Node {
	for _, n := range s.NodeList {
		if n.Name == name {
			return n
		}
	}
	return nil
}

// Service implements Objects.
func (s *Set) Service(namespace, name string) *corev1.Service {
	for _, svc := range inNamespace(s.ServiceList, namespace, (*corev1.Service).GetNamespace) {
		if svc.Name == name {
			return svc
		}
	}
	return nil
}

// SelectingServices implements Objects.
func (s *Set) SelectingServices(namespace string, _ map[string]string) []*corev1.Service {
	return inNamespace(s.ServiceList, namespace, (*corev1.Service).GetNamespace)
}

// SlicesTargeting implements Objects.
func (s *Set) SlicesTargeting(pod *corev1.Pod) []*discoveryv1.EndpointSlice {
	var out []*discoveryv1.EndpointSlice
	for _, slice := range s.SliceList {
		if Targets(slice, pod) {
			out = append(out, slice)
		}
	}
	return out
}

// AuthorizationPolicies implements Objects.
func (s *Set) AuthorizationPolicies(namespace string) []*securityv1.AuthorizationPolicy {
	return inNamespace(s.PolicyList, namespace, (*securityv1.AuthorizationPolicy).GetNamespace)
}

// PeerAuthentications implements Objects.
func (s *Set) PeerAuthentications(namespace string) []*securityv1.PeerAuthentication {
	return inNamespace(s.PeerList, namespace, (*securityv1.PeerAuthentication).GetNamespace)
}

// ServiceEntries implements Objects.
func (s *Set) ServiceEntries(namespace string) []*networkingv1.ServiceEntry {
	return orAll(s.ServiceEntryList, namespace, (*networkingv1.ServiceEntry).GetNamespace)
}

// WorkloadEntries implements Objects.
func (s *Set) WorkloadEntries(namespace string) []*networkingv1.WorkloadEntry {
	return orAll(s.WorkloadEntryList, namespace, (*networkingv1.WorkloadEntry).GetNamespace)
}

// NetworkPolicies implements Objects.
func (s *Set) NetworkPolicies(namespace string) []*netv1.NetworkPolicy {
	return orAll(s.NetworkPolicyList, namespace, (*netv1.NetworkPolicy).GetNamespace)
}

// Gateways implements Objects.
func (s *Set) Gateways(namespace string) []*gatewayv1.Gateway {
	return orAll(s.GatewayList, namespace, (*gatewayv1.Gateway).GetNamespace)
}

// Gateway implements Objects.
func (s *Set) Gateway(namespace, name string) *gatewayv1.Gateway {
	for _, g := range s.GatewayList {
		if g.Namespace == namespace && g.Name == name {
			return g
		}
	}
	return nil
}

// GatewayClass implements Objects.
func (s *Set) GatewayClass(name string) *gatewayv1.GatewayClass {
	for _, c := range s.GatewayClassList {
		if c.Name == name {
			return c
		}
	}
	return nil
}

// MeshConfig implements Objects.
func (s *Set) MeshConfig() *corev1.ConfigMap { return s.MeshConfigObject }

func orAll[T any](all []T, namespace string, of func(T) string) []T {
	if namespace == "" {
		return all
	}
	return inNamespace(all, namespace, of)
}

func inNamespace[T any](all []T, namespace string, of func(T) string) []T {
	var out []T
	for _, o := range all {
		if of(o) == namespace {
			out = append(out, o)
		}
	}
	return out
}
