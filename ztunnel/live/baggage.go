package live

import (
	"strings"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/hbone/identity"
)

// DefaultCluster is the cluster of a workload that names none, as in Istio's
// workload API.
const DefaultCluster = "Kubernetes"

// Baggage is the value of the header "baggage": who a workload is, in the
// order and form Istio's ztunnel sends. Empty values are left out.
func Baggage(w *mesh.Workload) string {
	if w == nil {
		return ""
	}
	var b strings.Builder
	b.Grow(160)
	add := func(key, value string) {
		if value == "" {
			return
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(key)
		b.WriteByte('=')
		b.WriteString(value)
	}
	add("k8s.cluster.name", cluster(w))
	add("k8s.namespace.name", w.Namespace)
	add("k8s."+typeName(w.Type)+".name", w.WorkloadName)
	add("service.name", w.CanonicalName)
	add("service.version", w.CanonicalRevision)
	add("cloud.region", w.Locality.Region)
	add("cloud.availability_zone", w.Locality.Zone)
	return b.String()
}

func cluster(w *mesh.Workload) string {
	if w.ClusterID == "" {
		return DefaultCluster
	}
	return w.ClusterID
}

func typeName(t mesh.WorkloadType) string {
	switch t {
	case mesh.TypeCronJob:
		return "cronjob"
	case mesh.TypePod:
		return "pod"
	case mesh.TypeJob:
		return "job"
	}
	return "deployment"
}

// Metadata is what a peer's baggage says about it.
type Metadata struct {
	Cluster, Namespace, Workload, Service, Revision, Region, Zone string
	Type                                                          mesh.WorkloadType
}

// What a peer may say of itself. The longest that Kubernetes lets it be is two
// names and five labels; what is longer names nobody, and would be kept in every
// metric for as long as ztunnel lives.
const (
	maxBaggage = 4096
	maxValue   = 253
)

// ParseBaggage reads the headers as Istio's ztunnel does: split on "," and "=",
// no trimming, unknown keys ignored, later duplicates win. A header with
// anything but visible ASCII invalidates the whole set, and so does what is too
// long.
func ParseBaggage(headers ...string) Metadata {
	var m Metadata
	total := 0
	for _, h := range headers {
		if total += len(h); total > maxBaggage {
			return Metadata{}
		}
	}
	for _, h := range headers {
		if !m.parse(h) {
			return Metadata{}
		}
	}
	return m
}

func (m *Metadata) parse(header string) bool {
	for i := range len(header) {
		if header[i] < 0x20 || header[i] > 0x7e {
			return false
		}
	}
	for part := range strings.SplitSeq(header, ",") {
		key, rest, ok := strings.Cut(part, "=")
		if !ok {
			continue
		}
		value, _, _ := strings.Cut(rest, "=")
		if len(value) > maxValue {
			return false
		}
		switch key {
		case "k8s.cluster.name":
			m.Cluster = value
		case "k8s.namespace.name":
			m.Namespace = value
		case "k8s.deployment.name", "k8s.cronjob.name", "k8s.pod.name", "k8s.job.name":
			m.Workload, m.Type = value, typeNamed(key)
		case "service.name":
			m.Service = value
		case "service.version":
			m.Revision = value
		case "cloud.region":
			m.Region = value
		case "cloud.availability_zone":
			m.Zone = value
		}
	}
	return true
}

func typeNamed(key string) mesh.WorkloadType {
	switch key {
	case "k8s.cronjob.name":
		return mesh.TypeCronJob
	case "k8s.pod.name":
		return mesh.TypePod
	case "k8s.job.name":
		return mesh.TypeJob
	}
	return mesh.TypeDeployment
}

// Record is of a peer that the mesh does not know, of what it says of
// itself and who it has proved to be. nil if it says nothing.
func (m Metadata) Record(id identity.ID) *mesh.Workload {
	if m == (Metadata{}) {
		return nil
	}
	if m.Namespace == "" {
		m.Namespace = id.Namespace
	}
	return &mesh.Workload{
		Name: m.Workload, WorkloadName: m.Workload, Namespace: m.Namespace, Type: m.Type,
		CanonicalName: m.Service, CanonicalRevision: m.Revision, ClusterID: m.Cluster,
		Locality:    mesh.Locality{Region: m.Region, Zone: m.Zone},
		TrustDomain: id.TrustDomain, ServiceAccount: id.ServiceAccount,
	}
}
