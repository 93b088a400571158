package translate

import (
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambitmesh/ambit/controller/mesh"
)

const (
	tunnelLabel          = "networking.istio.io/tunnel"
	workloadNameLabel    = "service.istio.io/workload-name"
	canonicalNameLabel   = "service.istio.io/canonical-name"
	canonicalRevLabel    = "service.istio.io/canonical-revision"
	subzoneLabel         = "topology.istio.io/subzone"
	templateHashLabel    = "pod-template-hash"
	deploymentConfigName = "openshift.io/deployment-config.name"
)

// PodUID is the workload UID of a pod.
func (c Config) PodUID(namespace, name string) string {
	return c.ClusterID + "//Pod/" + namespace + "/" + name
}

// Pod is the workload of pod, or nil when it has none: no address yet, or it
// has ended. Every other pod has one, enrolled or not, because clients need to
// know how an address is reached.
func (c Config) Pod(pod *corev1.Pod, objs Objects) (*mesh.Workload, error) {
	if Ended(pod) {
		return nil, nil
	}
	addrs, err := podAddresses(pod)
	if err != nil {
		return nil, err
	}
	if addrs = held(pod, addrs, objs); len(addrs) == 0 {
		return nil, nil
	}
	name := workloadName(pod)
	w := &mesh.Workload{
		UID:               c.PodUID(pod.Namespace, pod.Name),
		Name:              pod.Name,
		Namespace:         pod.Namespace,
		Addresses:         addrs,
		Network:           c.network(objs),
		TrustDomain:       c.trustDomain(),
		ServiceAccount:    pod.Spec.ServiceAccountName,
		Node:              pod.Spec.NodeName,
		CanonicalName:     first(pod.Labels, name, canonicalNameLabel, "app.kubernetes.io/name", "app"),
		CanonicalRevision: first(pod.Labels, "latest", canonicalRevLabel, "app.kubernetes.io/version", "version"),
		Type:              mesh.TypePod, // always: peers keep the field for compatibility only
		WorkloadName:      name,
		Policies:          c.policiesOf(subject{pod.Namespace, pod.Labels}, objs),
		Health:            podHealth(pod),
		ClusterID:         c.ClusterID,
		Services:          c.podServices(pod, objs),
		HostNetwork:       pod.Spec.HostNetwork,
	}
	// The annotation, not the label, decides: peers may tunnel to a pod only
	// once its node agent has proven that somebody answers on 15008.
	switch {
	case pod.Annotations[RedirectionAnnotation] == RedirectionEnabled:
		w.Protocol = mesh.ProtocolHBONE
		if g, ok := c.NetworkGroup(pod, objs); ok {
			w.Policies = slices.Sorted(slices.Values(append(w.Policies, g.Key())))
		}
	case strings.Contains(pod.Labels[tunnelLabel], "http"):
		w.Protocol, w.NativeTunnel = mesh.ProtocolHBONE, true
	}
	node := objs.Node(pod.Spec.NodeName)
	if !nodeReady(node) {
		w.Health = mesh.Unhealthy
	}
	if node != nil {
		w.Locality = mesh.Locality{
			Region:  node.Labels[corev1.LabelTopologyRegion],
			Zone:    node.Labels[corev1.LabelTopologyZone],
			Subzone: node.Labels[subzoneLabel],
		}
	}
	return w, c.bindPod(w, pod, objs)
}

func podAddresses(pod *corev1.Pod) ([]netip.Addr, error) {
	texts := addressTexts(pod)
	addrs := make([]netip.Addr, 0, len(texts))
	for _, text := range texts {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return nil, &Error{Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, Field: "status.podIPs", Value: text, Problem: "not an IP address"}
		}
		addrs = append(addrs, a.Unmap())
	}
	return addrs, nil
}

// podHealth is Unhealthy unless the pod says it is ready and is not going.
func podHealth(pod *corev1.Pod) mesh.Health {
	if pod.DeletionTimestamp != nil {
		return mesh.Unhealthy
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			return mesh.Healthy
		}
	}
	return mesh.Unhealthy
}

// podServices are the services pod is an endpoint of, with its own ports:
// those whose selector matches it, and selector-less ones whose slices name it.
func (c Config) podServices(pod *corev1.Pod, objs Objects) map[string][]mesh.Port {
	var m map[string][]mesh.Port
	add := func(svc *corev1.Service, ports []mesh.Port) {
		if m == nil {
			m = make(map[string][]mesh.Port)
		}
		m[c.ServiceKey(svc.Namespace, svc.Name)] = ports
	}
	for _, svc := range objs.SelectingServices(pod.Namespace, pod.Labels) {
		if published(svc) && Selects(svc, pod.Namespace, pod.Labels) {
			add(svc, selectedPorts(svc, pod))
		}
	}
	targeting := objs.SlicesTargeting(pod)
	slices.SortFunc(targeting, func(a, b *discoveryv1.EndpointSlice) int { return strings.Compare(a.Name, b.Name) })
	for _, slice := range targeting {
		svc := sliceService(slice, objs)
		if svc == nil || len(svc.Spec.Selector) > 0 {
			continue
		}
		key := c.ServiceKey(svc.Namespace, svc.Name)
		add(svc, mergePorts(m[key], slicePorts(slice, svc)))
	}
	c.selectingEntries(subject{pod.Namespace, pod.Labels}, objs, func(r *entryReader, keys []string) {
		if m == nil {
			m = make(map[string][]mesh.Port)
		}
		for _, key := range keys {
			m[key] = entryPodPorts(r, pod)
		}
	})
	return m
}

// workloadName is the name of what the user created, as far as owner
// references tell.
func workloadName(pod *corev1.Pod) string {
	if n := pod.Labels[workloadNameLabel]; n != "" {
		return n
	}
	owner := metav1.GetControllerOf(pod)
	if owner == nil {
		return pod.Name
	}
	switch owner.Kind {
	case "ReplicaSet": // of a Deployment or an Argo Rollout, both add the hash
		if hash := pod.Labels[templateHashLabel]; hash != "" {
			if base, ok := strings.CutSuffix(owner.Name, "-"+hash); ok {
				return base
			}
		}
	case "ReplicationController":
		if n := pod.Annotations[deploymentConfigName]; n != "" {
			return n
		}
	case "Job":
		if base, ok := cronJobName(owner.Name); ok {
			return base
		}
	}
	return owner.Name
}

// cronJobName cuts the 8 to 10 digit schedule suffix a CronJob gives its Jobs.
func cronJobName(job string) (string, bool) {
	i := strings.LastIndexByte(job, '-')
	if i <= 0 {
		return "", false
	}
	digits := job[i+1:]
	if len(digits) < 8 || len(digits) > 10 || strings.Trim(digits, "0123456789") != "" {
		return "", false
	}
	return job[:i], true
}

// first is the value of the first of keys that labels has, or fallback.
func first(labels map[string]string, fallback string, keys ...string) string {
	for _, k := range keys {
		if v := labels[k]; v != "" {
			return v
		}
	}
	return fallback
}
