package kube

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	netv1 "k8s.io/api/networking/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/translate"
)

// networks is what the translator remembers of NetworkPolicies. Without any
// that isolates a captured pod it is empty, and a pod that changes costs
// nothing; else it costs a look at each set of peers, and a policy is made again
// only when a set it uses has other addresses.
type networks struct {
	groups  map[string]*group   // by the key of their policy
	sets    map[string]*peerSet // by the key of their peers
	domains []string            // trust domains the policies were made with
}

// group are the pods under the same NetworkPolicies.
type group struct {
	translate.NetworkGroup
	sets        []string // keys, with repetitions
	byNamespace bool     // labels of namespaces count
}

func newNetworks() networks {
	return networks{groups: make(map[string]*group), sets: make(map[string]*peerSet)}
}

// expandNetworkPolicy: it may isolate any pod of its namespace, or no longer.
func (t *translator) expandNetworkPolicy(a *affected, k key) {
	if t.cfg.Translate.NetworkPolicies {
		addAll[*corev1.Pod](a.pods, t.caches.pods, cache.NamespaceIndex, k.namespace)
	}
}

// translateNetworkPolicies follows translatePods: d has the workloads that
// changed, and naming says which policies are named.
func (t *translator) translateNetworkPolicies(v *view, snap *mesh.Snapshot, changed map[key]struct{}, d *mesh.Delta) {
	if !t.cfg.Translate.NetworkPolicies {
		return
	}
	n := &t.networks
	stale := n.stale(v, changed, t.cfg.Translate.TrustDomains())
	for k := range changed {
		if k.kind != kindNetworkPolicy {
			continue
		}
		var err error
		if np := get[*netv1.NetworkPolicy](t.caches.networkPolicies, k.namespace+"/"+k.name); np != nil {
			err = t.cfg.Translate.NetworkPolicyErrors(np)
		}
		t.report(k, err)
		for key, g := range n.groups {
			if g.Namespace == k.namespace { // the same names may say something else now
				n.drop(key)
				stale[key] = struct{}{}
			}
		}
	}
	for _, w := range d.Workloads {
		addNetworkPolicies(stale, w)
		addNetworkPolicies(stale, snap.Workload(w.UID))
	}
	for _, uid := range d.RemovedWorkloads {
		addNetworkPolicies(stale, snap.Workload(uid))
	}
	v.peerSets = n.sets
	for key := range stale {
		diffPolicy(snap, key, t.networkPolicy(v, key), d)
	}
	for _, s := range n.sets {
		s.changed = false
	}
}

// addNetworkPolicies adds to keys what w names of NetworkPolicies.
func addNetworkPolicies(keys names, w *mesh.Workload) {
	if w == nil {
		return
	}
	for _, k := range w.Policies {
		if mesh.IsNetworkPolicyKey(k) {
			keys[k] = struct{}{}
		}
	}
}

// networkPolicy is the policy of that key, nil when no pod names it any more.
func (t *translator) networkPolicy(v *view, key string) *mesh.Policy {
	n := &t.networks
	g := n.groups[key]
	if len(t.naming[key]) == 0 {
		n.drop(key)
		return nil
	}
	if g == nil {
		for name := range t.naming[key] { // any of them will do: they are all alike
			pod := get[*corev1.Pod](t.caches.pods, name)
			if pod == nil {
				continue
			}
			if found, ok := t.cfg.Translate.NetworkGroup(pod, v); ok && found.Key() == key {
				g = n.add(v, key, found)
				break
			}
		}
	}
	if g == nil {
		return nil
	}
	return t.cfg.Translate.NetworkPolicy(g.NetworkGroup, v)
}

// add remembers a group, and gathers the peers it needs.
func (n *networks) add(v *view, key string, of translate.NetworkGroup) *group {
	g := &group{NetworkGroup: of}
	n.groups[key] = g
	for _, np := range of.Policies {
		for i := range np.Spec.Ingress {
			for j := range np.Spec.Ingress[i].From {
				p := &np.Spec.Ingress[i].From[j]
				if p.IPBlock != nil {
					continue
				}
				peers := translate.PodPeersOf(p, of.Namespace)
				g.byNamespace = g.byNamespace || peers.ByNamespace()
				if peers.Whole() {
					continue // told by identity
				}
				k := peers.Key()
				if n.sets[k] == nil {
					n.sets[k] = v.gather(peers)
				}
				n.sets[k].users++
				g.sets = append(g.sets, k)
			}
		}
	}
	return g
}

func (n *networks) drop(key string) {
	g := n.groups[key]
	if g == nil {
		return
	}
	delete(n.groups, key)
	for _, k := range g.sets {
		if n.sets[k].users--; n.sets[k].users == 0 {
			delete(n.sets, k)
		}
	}
}

// stale brings the sets up to date and returns the keys of the policies that
// have to be made again.
func (n *networks) stale(v *view, changed map[key]struct{}, domains []string) names {
	out := names{}
	if len(n.groups) == 0 {
		n.domains = domains
		return out
	}
	labels := false
	for k := range changed {
		switch k.kind {
		case kindPod:
			for _, s := range n.sets {
				s.pod(v, k.namespace, k.name)
			}
		case kindNamespace:
			labels = true
			for _, s := range n.sets {
				if !s.peers.ByNamespace() {
					continue
				}
				for name := range s.members {
					if namespace, short, _ := strings.Cut(name, "/"); namespace == k.name {
						s.pod(v, namespace, short)
					}
				}
				for _, pod := range list[*corev1.Pod](v.caches.pods, cache.NamespaceIndex, k.name) {
					s.pod(v, pod.Namespace, pod.Name)
				}
			}
		}
	}
	every := !slices.Equal(domains, n.domains)
	n.domains = domains
	for key, g := range n.groups {
		if every || labels && g.byNamespace || slices.ContainsFunc(g.sets, func(k string) bool { return n.sets[k].changed }) {
			out[key] = struct{}{}
		}
	}
	return out
}
