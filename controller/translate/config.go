package translate

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	netv1 "k8s.io/api/networking/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/ambitmesh/ambit/hbone/identity"
)

// Config is what is the same for every object of a cluster.
type Config struct {
	ClusterID     string // first part of every workload UID
	ClusterDomain string // suffix of service hostnames, "cluster.local"
	TrustDomain   string
	RootNamespace string // home of mesh-wide policy, "istio-system"
	Network       string // "": the root namespace's topology.istio.io/network label

	// Revision is the value of RevisionLabel that means us, "" for the default
	// one. Beside says that another control plane is there too: then only what
	// has the label is ours.
	Revision string
	Beside   bool
	// NetworkPolicies are enforced on what comes through tunnels.
	NetworkPolicies bool
	// Mesh is what the ConfigMap of the mesh's settings says now.
	Mesh MeshConfig
}

// NetworkLabel on the root namespace names the cluster's network.
const NetworkLabel = "topology.istio.io/network"

// Objects is what a translation may look at besides the object it translates.
// Implementations return shared objects, which nobody modifies; a missing
// object is nil.
type Objects interface {
	Namespace(name string) *corev1.Namespace
	Node(name string) *corev1.Node
	Service(namespace, name string) *corev1.Service
	// SelectingServices are the services of namespace whose selector picks what
	// has these labels, and maybe others.
	SelectingServices(namespace string, labels map[string]string) []*corev1.Service
	// SlicesTargeting is a fresh list of the slices with an endpoint whose
	// target is pod.
	SlicesTargeting(pod *corev1.Pod) []*discoveryv1.EndpointSlice
	AuthorizationPolicies(namespace string) []*securityv1.AuthorizationPolicy
	PeerAuthentications(namespace string) []*securityv1.PeerAuthentication
	externalObjects
	// Of the lists below the namespace "" means all namespaces.
	ServiceEntries(namespace string) []*networkingv1.ServiceEntry
	WorkloadEntries(namespace string) []*networkingv1.WorkloadEntry
	NetworkPolicies(namespace string) []*netv1.NetworkPolicy
	// PeerAddresses are the addresses of all pods that peers means, in any
	// order.
	PeerAddresses(peers PodPeers) []netip.Addr
	// NamespacesOf are the names of the namespaces of peers.
	NamespacesOf(peers PodPeers) []string
	Gateways(namespace string) []*gatewayv1.Gateway
	Gateway(namespace, name string) *gatewayv1.Gateway
	GatewayClass(name string) *gatewayv1.GatewayClass
	gatewayObjects
	// MeshConfig is the ConfigMap MeshConfigMap of the root namespace.
	MeshConfig() *corev1.ConfigMap
}

// MeshConfigMap is the name of the ConfigMap in the root namespace that holds
// the mesh's settings.
const MeshConfigMap = "istio"

// network is the network of everything in this cluster.
func (c Config) network(objs Objects) string {
	if c.Network != "" {
		return c.Network
	}
	if ns := objs.Namespace(c.RootNamespace); ns != nil {
		return ns.Labels[NetworkLabel]
	}
	return ""
}

// trustDomain is the wire form: empty for the default.
func (c Config) trustDomain() string {
	if c.TrustDomain == identity.DefaultTrustDomain {
		return ""
	}
	return c.TrustDomain
}
