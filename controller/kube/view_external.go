package kube

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/ambitmesh/ambit/controller/translate"
)

// Names of the indices of what a view looks up below.
const (
	byHost    = "host"    // service entries: <namespace>/<host>, and /<host> for all
	byAddress = "address" // pods: own addresses
)

// externalView is the part of a view about services outside the cluster.
type externalView struct {
	selecting map[string]*selectors[*networkingv1.ServiceEntry] // by namespace
	hosts     map[string][]*networkingv1.ServiceEntry           // by index value
	canonical map[string]*networkingv1.ServiceEntry             // by host, nil for none
}

func newExternalView() externalView {
	return externalView{
		selecting: make(map[string]*selectors[*networkingv1.ServiceEntry]),
		hosts:     make(map[string][]*networkingv1.ServiceEntry),
		canonical: make(map[string]*networkingv1.ServiceEntry),
	}
}

// addExternalIndices to informers that have not been started.
func (cs *caches) addExternalIndices() error {
	if err := cs.serviceEntries.AddIndexers(cache.Indexers{byHost: entryHosts}); err != nil {
		return err
	}
	return cs.pods.AddIndexers(cache.Indexers{byAddress: podAddresses})
}

func entryHosts(obj any) ([]string, error) {
	se, ok := obj.(*networkingv1.ServiceEntry)
	if !ok {
		return nil, nil
	}
	var keys []string
	for _, h := range translate.Hosts(se) {
		keys = append(keys, "/"+h, se.Namespace+"/"+h)
	}
	return keys, nil
}

func podAddresses(obj any) ([]string, error) {
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return nil, nil
	}
	var keys []string
	for _, a := range translate.OwnAddresses(pod) {
		if k := a.String(); !slices.Contains(keys, k) {
			keys = append(keys, k)
		}
	}
	return keys, nil
}

func (v *view) PodsAt(a netip.Addr) []*corev1.Pod {
	return slices.DeleteFunc(list[*corev1.Pod](v.caches.pods, byAddress, a.String()), func(pod *corev1.Pod) bool {
		return !v.cfg.Looks(pod.Namespace, v)
	})
}

func (v *view) SelectingServiceEntries(namespace string, labels map[string]string) []*networkingv1.ServiceEntry {
	s := v.external.selecting[namespace]
	if s == nil {
		s = newSelectors(v.ServiceEntries(namespace), translate.EntrySelector)
		v.external.selecting[namespace] = s
	}
	return s.picking(labels)
}

func (v *view) ServiceEntriesOf(host, namespace string) []*networkingv1.ServiceEntry {
	return memo(v.external.hosts, namespace+"/"+host, func() []*networkingv1.ServiceEntry {
		all := list[*networkingv1.ServiceEntry](v.caches.serviceEntries, byHost, namespace+"/"+host)
		if namespace != "" {
			slices.SortFunc(all, translate.Older)
		}
		return all
	})
}

func (v *view) Canonical(host string, find func() *networkingv1.ServiceEntry) *networkingv1.ServiceEntry {
	if se, ok := v.external.canonical[host]; ok {
		return se
	}
	se := find()
	v.external.canonical[host] = se
	return se
}
