package translate

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/ambitmesh/ambit/controller/mesh"
)

const (
	autoRegistrationGroup  = "istio.io/autoRegistrationGroup"
	healthChecksAnnotation = "proxy.istio.io/health-checks-enabled"
	healthyCondition       = "Healthy"
)

// EntryUID is the workload UID of a WorkloadEntry.
func (c Config) EntryUID(namespace, name string) string {
	return c.ClusterID + "/networking.istio.io/WorkloadEntry/" + namespace + "/" + name
}

// WorkloadEntry is the workload of we, or nil when nothing can be connected to.
func (c Config) WorkloadEntry(we *networkingv1.WorkloadEntry, objs Objects) (*mesh.Workload, error) {
	if !c.Reads(we, objs) {
		return nil, nil
	}
	o := &object{kind: "WorkloadEntry", namespace: we.Namespace, name: we.Name}
	name := first(we.Labels, we.Name, workloadNameLabel)
	if group := we.Annotations[autoRegistrationGroup]; group != "" {
		name = group
	}
	e := endpointReader{object: o, path: "spec", spec: &we.Spec, labels: EntryLabels(we), fallback: name}
	w, ok := c.endpoint(&e, we.Namespace, objs)
	if !ok {
		return nil, o.err()
	}
	w.UID, w.Name, w.WorkloadName = c.EntryUID(we.Namespace, we.Name), we.Name, name
	w.Policies = c.policiesOf(subject{we.Namespace, e.labels}, objs)
	w.Health = entryHealth(we)
	w.Services = c.entryServices(we.Namespace, &e, objs)
	w.Waypoint = c.BindWorkload(bearing(we, e.labels), objs).Waypoint
	return w, o.err()
}

// EntryLabels are the labels that selectors look at; those of the object go
// before those of its spec.
func EntryLabels(we *networkingv1.WorkloadEntry) map[string]string {
	if len(we.Spec.GetLabels()) == 0 {
		return we.Labels
	}
	m := maps.Clone(we.Spec.GetLabels())
	maps.Copy(m, we.Labels)
	return m
}

// entryHealth believes the agent beside the workload, where there is one.
func entryHealth(we *networkingv1.WorkloadEntry) mesh.Health {
	if we.Annotations[healthChecksAnnotation] != "true" {
		return mesh.Healthy
	}
	for _, c := range we.Status.GetConditions() {
		if c.GetType() == healthyCondition && c.GetStatus() == "True" {
			return mesh.Healthy
		}
	}
	return mesh.Unhealthy
}

// endpointReader is an endpoint that is not a pod: a WorkloadEntry, or one of
// those inside a ServiceEntry.
type endpointReader struct {
	object   *object
	path     string // of spec in its object
	spec     *networking.WorkloadEntry
	labels   map[string]string
	fallback string // name when no label tells
}

// endpoint is what the fields that both kinds have become. It reports false for
// one that cannot be reached at all.
func (c Config) endpoint(e *endpointReader, namespace string, objs Objects) (*mesh.Workload, bool) {
	w := &mesh.Workload{
		Namespace:         namespace,
		Network:           e.spec.GetNetwork(),
		TrustDomain:       c.trustDomain(),
		ServiceAccount:    e.spec.GetServiceAccount(),
		CanonicalName:     first(e.labels, e.fallback, canonicalNameLabel, "app.kubernetes.io/name", "app"),
		CanonicalRevision: first(e.labels, "latest", canonicalRevLabel, "app.kubernetes.io/version", "version"),
		Type:              mesh.TypePod,
		ClusterID:         c.ClusterID,
		Locality:          entryLocality(e.spec.GetLocality()),
	}
	if w.Network == "" {
		w.Network = c.network(objs)
	}
	w.NetworkGateway = c.networkGateway(w.Network, objs)
	if n := e.spec.GetWeight(); n > 0 {
		w.Capacity = &n
	}
	if strings.Contains(e.labels[tunnelLabel], "http") {
		w.Protocol, w.NativeTunnel = mesh.ProtocolHBONE, true
	}
	for _, name := range slices.Sorted(maps.Keys(e.spec.GetPorts())) {
		if n := e.spec.GetPorts()[name]; n == 0 || n > 65535 {
			e.object.bad(e.path+".ports["+name+"]", strconv.FormatUint(uint64(n), 10), "not a port number")
		}
	}
	return w, e.address(w)
}

// address fills in where the endpoint is.
func (e *endpointReader) address(w *mesh.Workload) bool {
	text, field := e.spec.GetAddress(), e.path+".address"
	a, err := netip.ParseAddr(text)
	switch {
	case text == "":
		e.object.bad(field, text, "must not be empty: endpoints that only a network gateway reaches are not supported")
		return false
	case strings.HasPrefix(text, "unix:"):
		e.object.bad(field, text, "unix domain sockets are not supported in ambient mode")
		return false
	case err == nil && (a.Zone() != "" || a.IsUnspecified() || a.IsMulticast()):
		e.object.bad(field, text, "not an address of one host")
		return false
	case err == nil:
		w.Addresses = []netip.Addr{a.Unmap()}
	case dnsName(text):
		w.Hostname = strings.ToLower(text)
	default:
		e.object.bad(field, text, "neither an IP address nor a host name")
		return false
	}
	return true
}

// port is where the endpoint serves what the service calls name.
func (e *endpointReader) port(name string) (uint16, bool) {
	n, ok := e.spec.GetPorts()[name]
	if !ok || n == 0 || n > 65535 {
		return 0, false
	}
	return uint16(n), true
}

func entryLocality(s string) mesh.Locality {
	parts := strings.SplitN(s, "/", 3)
	parts = append(parts, "", "")
	return mesh.Locality{Region: parts[0], Zone: parts[1], Subzone: parts[2]}
}

// entryServices are the services that a WorkloadEntry is an endpoint of.
func (c Config) entryServices(namespace string, e *endpointReader, objs Objects) map[string][]mesh.Port {
	var m map[string][]mesh.Port
	add := func(key string, ports []mesh.Port) {
		if m == nil {
			m = make(map[string][]mesh.Port)
		}
		m[key] = ports
	}
	for _, svc := range objs.SelectingServices(namespace, e.labels) {
		if !published(svc) || !Selects(svc, namespace, e.labels) {
			continue
		}
		ports := []mesh.Port{}
		for i := range svc.Spec.Ports {
			p := &svc.Spec.Ports[i]
			if shadowed(svc, p) {
				continue
			}
			name := p.Name
			if p.TargetPort.StrVal != "" {
				name = p.TargetPort.StrVal
			}
			target, ok := e.port(name)
			if !ok {
				target = targetPort(p)
			}
			if target != 0 {
				ports = mergePorts(ports, []mesh.Port{{ServicePort: uint16(p.Port), TargetPort: target, AppProtocol: appProtocol(p)}})
			}
		}
		add(c.ServiceKey(svc.Namespace, svc.Name), ports)
	}
	c.selectingEntries(subject{namespace, e.labels}, objs, func(r *entryReader, keys []string) {
		for _, key := range keys {
			add(key, e.servedPorts(r))
		}
	})
	return m
}

// servedPorts are the ports of a ServiceEntry as this endpoint serves them: its
// own list goes before the entry's target port.
func (e *endpointReader) servedPorts(r *entryReader) []mesh.Port {
	ports := make([]mesh.Port, len(r.ports))
	for i := range r.ports {
		ports[i] = r.ports[i].Port
		if n, ok := e.port(r.ports[i].name); ok {
			ports[i].TargetPort = n
		}
	}
	return ports
}

// selectingEntries visits the ServiceEntries whose selector picks s, with the
// keys of those of their services that are theirs.
func (c Config) selectingEntries(s subject, objs Objects, visit func(r *entryReader, keys []string)) {
	for _, se := range objs.SelectingServiceEntries(s.namespace, s.labels) {
		if !EntrySelects(se, s.namespace, s.labels) || !c.counts(se, objs) {
			continue
		}
		var keys []string
		r := c.readEntry(se)
		for _, host := range r.hosts {
			if c.owns(se, host, objs) {
				keys = append(keys, se.Namespace+"/"+host)
			}
		}
		if len(keys) > 0 {
			visit(r, keys)
		}
	}
}

// EntrySelects reports whether se picks what has these labels by its selector.
// An entry with endpoints of its own has these, and one without resolution
// sends nobody to an endpoint.
func EntrySelects(se *networkingv1.ServiceEntry, namespace string, labels map[string]string) bool {
	want := EntrySelector(se)
	return se.Namespace == namespace && len(want) > 0 && matchLabels(want, labels)
}

// EntrySelector is the selector that counts, nil for none.
func EntrySelector(se *networkingv1.ServiceEntry) map[string]string {
	if len(se.Spec.GetEndpoints()) > 0 || se.Spec.GetResolution() == networking.ServiceEntry_NONE {
		return nil
	}
	return se.Spec.GetWorkloadSelector().GetLabels()
}

// entryWorkloads are the endpoints inside a ServiceEntry; one that resolves
// names and has no endpoints is itself where its hosts are.
func (c Config) entryWorkloads(r *entryReader, objs Objects) []*mesh.Workload {
	resolution, selector := r.Spec.GetResolution(), r.Spec.GetWorkloadSelector()
	inline := r.Spec.GetEndpoints()
	switch {
	case len(inline) > 0 && resolution == networking.ServiceEntry_NONE:
		r.object.bad("spec.endpoints", "", "resolution NONE has no endpoints")
		return nil
	case len(inline) > 0 && selector != nil:
		r.object.bad("spec.workloadSelector", "", "beside endpoints a selector has no effect")
	case len(inline) > 0 || resolution == networking.ServiceEntry_NONE:
	case resolution != networking.ServiceEntry_STATIC && selector == nil:
		return c.impliedWorkloads(r, objs)
	}
	var owned []string
	for _, host := range r.hosts {
		if c.owns(r.ServiceEntry, host, objs) {
			owned = append(owned, r.Namespace+"/"+host)
		}
	}
	var out []*mesh.Workload
	var policies []string
	seen := make(map[string]int)
	for i, spec := range inline {
		if spec == nil { // a null in the list
			spec = &networking.WorkloadEntry{}
		}
		e := endpointReader{object: r.object, path: index("spec.endpoints", i), spec: spec, labels: spec.GetLabels(), fallback: r.Name}
		w, ok := c.endpoint(&e, r.Namespace, objs)
		if !ok {
			continue
		}
		if resolution == networking.ServiceEntry_STATIC && w.Hostname != "" {
			r.object.bad(e.path+".address", spec.GetAddress(), "resolution STATIC needs an IP address")
			continue
		}
		if out == nil { // the entry's own labels: an endpoint is not selected by itself
			policies = c.policiesOf(subject{r.Namespace, r.Labels}, objs)
		}
		w.UID = c.inlineUID(r, w, seen)
		w.Name, w.WorkloadName = r.Name, r.Name
		w.Policies = policies
		w.Waypoint = c.BindWorkload(bearing(r.ServiceEntry, e.labels), objs).Waypoint
		for _, key := range owned {
			if w.Services == nil {
				w.Services = make(map[string][]mesh.Port)
			}
			w.Services[key] = e.servedPorts(r)
		}
		out = append(out, w)
	}
	return out
}

// impliedWorkloads stand for the hosts, which ztunnel resolves. A waypoint of
// theirs would be one of the service.
func (c Config) impliedWorkloads(r *entryReader, objs Objects) []*mesh.Workload {
	var out []*mesh.Workload
	policies := c.policiesOf(subject{r.Namespace, r.Labels}, objs)
	for _, host := range r.hosts {
		if !c.owns(r.ServiceEntry, host, objs) {
			continue
		}
		e := endpointReader{object: r.object, spec: &networking.WorkloadEntry{}, labels: r.Labels, fallback: r.Name}
		w := &mesh.Workload{
			UID:               c.entryUID(r.ServiceEntry, host),
			Name:              r.Name,
			Namespace:         r.Namespace,
			Hostname:          host,
			Network:           c.network(objs),
			TrustDomain:       c.trustDomain(),
			CanonicalName:     first(r.Labels, r.Name, canonicalNameLabel, "app.kubernetes.io/name", "app"),
			CanonicalRevision: first(r.Labels, "latest", canonicalRevLabel, "app.kubernetes.io/version", "version"),
			Type:              mesh.TypePod,
			WorkloadName:      r.Name,
			ClusterID:         c.ClusterID,
			Policies:          policies,
			Services:          map[string][]mesh.Port{r.Namespace + "/" + host: e.servedPorts(r)},
		}
		out = append(out, w)
	}
	return out
}

func (c Config) entryUID(se *networkingv1.ServiceEntry, address string) string {
	return c.ClusterID + "/networking.istio.io/ServiceEntry/" + se.Namespace + "/" + se.Name + "/" + address
}

// inlineUID tells apart endpoints at one address, which differ in their ports.
func (c Config) inlineUID(r *entryReader, w *mesh.Workload, seen map[string]int) string {
	address := w.Hostname
	if len(w.Addresses) > 0 {
		address = w.Addresses[0].String()
	}
	n := seen[address]
	seen[address]++
	if n > 0 {
		address += "/" + strconv.Itoa(n)
	}
	return c.entryUID(r.ServiceEntry, address)
}

// bearing is o with the labels that its endpoint has.
func bearing(o metav1.Object, labels map[string]string) metav1.Object {
	return &metav1.ObjectMeta{Namespace: o.GetNamespace(), Name: o.GetName(), Labels: labels}
}

// entryPodPorts are the ports of a ServiceEntry as a pod serves them: at the
// container port of the same name, else at the target port.
func entryPodPorts(r *entryReader, pod *corev1.Pod) []mesh.Port {
	ports := make([]mesh.Port, len(r.ports))
	for i := range r.ports {
		ports[i] = r.ports[i].Port
		if n := namedPort(r.ports[i].name, pod); n != 0 && r.ports[i].name != "" {
			ports[i].TargetPort = n
		}
	}
	return ports
}
