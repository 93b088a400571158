package diagnose

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const (
	portHBONE = 15008
	portXDS   = 15012
	portDNS   = 53
)

// apiPorts are where API servers listen: kubeadm and k3s, managed ones,
// minikube, MicroK8s.
var apiPorts = []int32{443, 6443, 8443, 16443}

// networkPolicies looks for rules that admit an application's ports and not the
// one its calls come to once both ends are in the mesh. A rule that admits
// nobody, or nobody who is in the mesh, breaks nothing that worked.
func networkPolicies(c *Cluster, o Options, f *findings) {
	own(c, o, f)
	in := newMembers(c, o)
	byNamespace := map[string][]*networkingv1.NetworkPolicy{}
	for i := range c.NetworkPolicies {
		p := &c.NetworkPolicies[i]
		byNamespace[p.Namespace] = append(byNamespace[p.Namespace], p)
	}
	blocked := map[blockage][]string{}
	for i := range c.Pods {
		p := &c.Pods[i]
		if !in.has(p) {
			continue
		}
		for _, b := range blockages(byNamespace[p.Namespace], p.Labels, in) {
			blocked[b] = append(blocked[b], p.Name)
		}
	}
	// A namespace that is to be labelled may have policies and no pods yet.
	for b, pods := range blocked {
		f.add(b.level, "networkpolicy "+b.policy, fmt.Sprintf("%s, and not %d, by which calls in the mesh come: they would not pass (pods %s)", b.what, portHBONE, few(pods)),
			fmt.Sprintf("add to the ports of that rule: - {protocol: TCP, port: %d}", portHBONE))
	}
}

// NetworkPolicies are what Precheck says of the NetworkPolicies of c.
func NetworkPolicies(c *Cluster, o Options) []Finding {
	f := findings{check: "network-policy"}
	networkPolicies(c, o, &f)
	return sorted(f.all)
}

// blockage is a rule that does not carry mesh traffic.
type blockage struct {
	level        Level
	policy, what string
}

// rule is an ingress or an egress rule.
type rule struct {
	namespace, policy string
	number            int
	peers             []networkingv1.NetworkPolicyPeer
	ports             []networkingv1.NetworkPolicyPort
}

// rulesFor are all rules that concern pods with these labels, and whether there
// is any policy at all: without one everything passes.
func rulesFor(policies []*networkingv1.NetworkPolicy, pod map[string]string, way networkingv1.PolicyType) (out []rule, isolated bool) {
	for _, p := range policies {
		if !covers(p, way) || !selects(&p.Spec.PodSelector, pod) {
			continue
		}
		isolated = true
		name := p.Namespace + "/" + p.Name
		if way == networkingv1.PolicyTypeIngress {
			for i, r := range p.Spec.Ingress {
				out = append(out, rule{p.Namespace, name, i + 1, r.From, r.Ports})
			}
		} else {
			for i, r := range p.Spec.Egress {
				out = append(out, rule{p.Namespace, name, i + 1, r.To, r.Ports})
			}
		}
	}
	return out, isolated
}

// covers: without policyTypes a policy is for ingress, and for egress when it
// has such rules.
func covers(p *networkingv1.NetworkPolicy, way networkingv1.PolicyType) bool {
	if len(p.Spec.PolicyTypes) > 0 {
		return slices.Contains(p.Spec.PolicyTypes, way)
	}
	return way == networkingv1.PolicyTypeIngress || len(p.Spec.Egress) > 0
}

func selects(s *metav1.LabelSelector, set map[string]string) bool {
	sel, err := metav1.LabelSelectorAsSelector(s)
	return err == nil && sel.Matches(labels.Set(set))
}

// blockages are the rules for a pod that admit peers of the mesh by other ports
// only, when no other rule admits the same peers by 15008.
func blockages(policies []*networkingv1.NetworkPolicy, pod map[string]string, in *members) (out []blockage) {
	for _, way := range []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress} {
		rules, _ := rulesFor(policies, pod, way)
		for _, r := range rules {
			if admits(r.ports, portHBONE, corev1.ProtocolTCP) || !carriesTCP(r.ports, way) {
				continue
			}
			peers := in.among(r, way)
			if len(r.peers) > 0 && len(peers) == 0 {
				continue
			}
			level, covered := Error, false
			for _, s := range rules {
				if !admits(s.ports, portHBONE, corev1.ProtocolTCP) {
					continue
				}
				covered = covered || includes(s.peers, peers)
				if slices.ContainsFunc(in.among(s, way), isRange) {
					level = Warning // of which some may be the same
				}
			}
			if covered {
				continue
			}
			what := fmt.Sprintf("%s rule %d admits %s", strings.ToLower(string(way)), r.number, listPorts(r.ports))
			switch {
			case len(peers) > 0 && !slices.ContainsFunc(peers, func(p networkingv1.NetworkPolicyPeer) bool { return !isRange(p) }):
				// Whether a range of addresses means pods is up to the network.
				level, what = Warning, what+" for a range that has addresses of pods"
			case way == networkingv1.PolicyTypeEgress && len(r.peers) == 0:
				level = Warning // to anywhere: often meant for what is outside the cluster
			}
			out = append(out, blockage{level, r.policy, what})
		}
	}
	return out
}

// admits says whether ports include one; no ports at all are all ports. Named
// ports are the application's.
func admits(ports []networkingv1.NetworkPolicyPort, port int32, protocol corev1.Protocol) bool {
	if len(ports) == 0 {
		return true
	}
	return slices.ContainsFunc(ports, func(p networkingv1.NetworkPolicyPort) bool {
		if proto(p) != protocol {
			return false
		}
		switch {
		case p.Port == nil:
			return true
		case p.Port.Type != intstr.Int:
			return false
		case p.EndPort != nil:
			return p.Port.IntVal <= port && port <= *p.EndPort
		}
		return p.Port.IntVal == port
	})
}

func proto(p networkingv1.NetworkPolicyPort) corev1.Protocol {
	if p.Protocol == nil {
		return corev1.ProtocolTCP
	}
	return *p.Protocol
}

// carriesTCP leaves out rules that are not about connections of applications:
// UDP is not captured, and DNS by TCP goes to a server outside the mesh.
func carriesTCP(ports []networkingv1.NetworkPolicyPort, way networkingv1.PolicyType) bool {
	return slices.ContainsFunc(ports, func(p networkingv1.NetworkPolicyPort) bool {
		dns := p.Port != nil && p.Port.Type == intstr.Int && p.Port.IntVal == portDNS
		return proto(p) == corev1.ProtocolTCP && (!dns || way == networkingv1.PolicyTypeIngress)
	})
}

// includes says whether everybody in b is in a, as far as the text tells.
func includes(a, b []networkingv1.NetworkPolicyPeer) bool {
	if len(a) == 0 {
		return true
	}
	if len(b) == 0 {
		return false
	}
	for _, p := range b {
		if !slices.ContainsFunc(a, func(q networkingv1.NetworkPolicyPeer) bool { return reflect.DeepEqual(p, q) }) {
			return false
		}
	}
	return true
}

func listPorts(ports []networkingv1.NetworkPolicyPort) string {
	var out []string
	for _, p := range ports {
		switch {
		case p.Port == nil:
			out = append(out, string(proto(p)))
		case p.EndPort != nil:
			out = append(out, fmt.Sprintf("%s %s-%d", proto(p), p.Port.String(), *p.EndPort))
		default:
			out = append(out, fmt.Sprintf("%s %s", proto(p), p.Port.String()))
		}
	}
	return few(out)
}

// The labels our pods have (deploy/ambit).
func component(app string) map[string]string {
	return map[string]string{"app": app, "app.kubernetes.io/part-of": "ambit", labelMode: modeNone}
}

// own looks at policies in Ambit's namespace: ztunnel comes to the controller by
// 15012, and needs DNS for its name. The node agent is on the node's network,
// where no policy of a namespace holds.
func own(c *Cluster, o Options, f *findings) {
	var here []*networkingv1.NetworkPolicy
	for i := range c.NetworkPolicies {
		if c.NetworkPolicies[i].Namespace == o.System {
			here = append(here, &c.NetworkPolicies[i])
		}
	}
	namespace := map[string]string{"kubernetes.io/metadata.name": o.System}
	if n := c.namespace(o.System); n != nil {
		namespace = n.Labels
	}
	type need struct {
		pod      string
		way      networkingv1.PolicyType
		port     int32
		protocol corev1.Protocol
		peer     map[string]string // nil: whoever it is
		what, do string
	}
	ztunnel, controller := component("ztunnel"), component("ambit-controller")
	for _, n := range []need{
		{"ambit-controller", networkingv1.PolicyTypeIngress, portXDS, corev1.ProtocolTCP, ztunnel, "keeps ztunnel from the controller", "admit TCP 15012 from app=ztunnel"},
		{"ztunnel", networkingv1.PolicyTypeEgress, portXDS, corev1.ProtocolTCP, controller, "keeps ztunnel from the controller", "admit TCP 15012 to app=ambit-controller"},
		{"ztunnel", networkingv1.PolicyTypeEgress, portDNS, corev1.ProtocolUDP, nil, "keeps ztunnel from the cluster's DNS", "admit UDP and TCP 53 to kube-dns"},
	} {
		rules, isolated := rulesFor(here, component(n.pod), n.way)
		passes := slices.ContainsFunc(rules, func(r rule) bool {
			return admits(r.ports, n.port, n.protocol) && (n.peer == nil || len(r.peers) == 0 ||
				slices.ContainsFunc(r.peers, func(p networkingv1.NetworkPolicyPeer) bool { return isPeer(p, n.peer, namespace) }))
		})
		if isolated && !passes {
			var names []string
			for _, p := range here {
				if covers(p, n.way) && selects(&p.Spec.PodSelector, component(n.pod)) {
					names = append(names, p.Name)
				}
			}
			f.add(Error, "networkpolicy "+o.System+"/"+few(names), n.what, n.do)
		}
	}
	if rules, isolated := rulesFor(here, controller, networkingv1.PolicyTypeEgress); isolated && !slices.ContainsFunc(rules, func(r rule) bool {
		return slices.ContainsFunc(apiPorts, func(port int32) bool { return admits(r.ports, port, corev1.ProtocolTCP) })
	}) {
		f.add(Error, "networkpolicies of "+o.System, "keep the controller from the API server", "admit its address and port, often TCP 443 and 6443")
	}
}

// isPeer says whether a peer of a rule in our namespace is a pod of ours.
func isPeer(p networkingv1.NetworkPolicyPeer, pod, namespace map[string]string) bool {
	if p.IPBlock != nil {
		return true // it may be: no error on a guess
	}
	return (p.PodSelector == nil || selects(p.PodSelector, pod)) && (p.NamespaceSelector == nil || selects(p.NamespaceSelector, namespace))
}
