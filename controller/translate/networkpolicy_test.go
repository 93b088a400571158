package translate

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	netv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/mesh/authz"
	"github.com/ambitmesh/ambit/hbone/identity"
)

// npMisreading is a sentence of Kubernetes' rules got wrong on purpose. A case
// in which that changes the answer is one that the sentence decided.
type npMisreading string

const (
	npNoTypes       npMisreading = "without policyTypes a policy is not for ingress"
	npNotAdded      npMisreading = "only the first policy counts"
	npOneRule       npMisreading = "only the first rule counts"
	npEmptyFrom     npMisreading = "without from nobody is admitted"
	npEmptyPorts    npMisreading = "without ports none is admitted"
	npAnyNamespace  npMisreading = "podSelector alone is for all namespaces"
	npOrSelectors   npMisreading = "one of podSelector and namespaceSelector is enough"
	npExcept        npMisreading = "except does not count"
	npEndPort       npMisreading = "endPort does not count"
	npUDP           npMisreading = "ports of UDP are ports"
	npNamedAnywhere npMisreading = "a named port is the same number in every pod"
	npEnded         npMisreading = "pods that have ended are peers"
	npHost          npMisreading = "pods on their node's network are peers"
	npPlaintext     npMisreading = "plaintext is judged too"
	npEgress        npMisreading = "policies for egress count"
	npSelf          npMisreading = "a pod is kept from itself"
)

func npMisreadings() []npMisreading {
	return []npMisreading{npNoTypes, npNotAdded, npOneRule, npEmptyFrom, npEmptyPorts, npAnyNamespace, npOrSelectors, npExcept,
		npEndPort, npUDP, npNamedAnywhere, npEnded, npHost, npPlaintext, npEgress, npSelf}
}

// npOracle reads NetworkPolicies as Kubernetes documents them, sentence by
// sentence, for one connection to a pod.
type npOracle struct {
	set   *Set
	to    *corev1.Pod
	conn  authz.Conn
	wrong npMisreading
}

func (o *npOracle) admits() bool {
	if o.conn.Peer.IsZero() && o.wrong != npPlaintext {
		return true // the network plugin's business
	}
	if o.conn.Src.Addr() == o.conn.Dst.Addr() && o.wrong != npSelf {
		return true // a pod cannot be kept from itself
	}
	isolated := false
	for _, np := range o.set.NetworkPolicyList {
		if np.Namespace != o.to.Namespace || !o.selects(&np.Spec.PodSelector, o.to.Labels) || !o.ingress(np) {
			continue
		}
		if isolated && o.wrong == npNotAdded {
			continue
		}
		isolated = true
		for i := range np.Spec.Ingress {
			if i > 0 && o.wrong == npOneRule {
				break
			}
			if o.rule(np, &np.Spec.Ingress[i]) {
				return true
			}
		}
	}
	return !isolated
}

func (o *npOracle) ingress(np *netv1.NetworkPolicy) bool {
	if len(np.Spec.PolicyTypes) == 0 {
		return o.wrong != npNoTypes
	}
	return slices.Contains(np.Spec.PolicyTypes, netv1.PolicyTypeIngress) || o.wrong == npEgress
}

func (o *npOracle) selects(s *metav1.LabelSelector, set map[string]string) bool {
	sel, err := metav1.LabelSelectorAsSelector(s)
	return err == nil && sel.Matches(labels.Set(set))
}

func (o *npOracle) rule(np *netv1.NetworkPolicy, r *netv1.NetworkPolicyIngressRule) bool {
	from := len(r.From) == 0 && o.wrong != npEmptyFrom
	for i := range r.From {
		from = from || o.peer(np, &r.From[i])
	}
	port := len(r.Ports) == 0 && o.wrong != npEmptyPorts
	for i := range r.Ports {
		port = port || o.port(&r.Ports[i])
	}
	return from && port
}

func (o *npOracle) port(p *netv1.NetworkPolicyPort) bool {
	if p.Protocol != nil && *p.Protocol != corev1.ProtocolTCP && o.wrong != npUDP {
		return false
	}
	if p.Port == nil {
		return true
	}
	have := int32(o.conn.Dst.Port())
	if p.Port.Type == intstr.String {
		pod := o.to
		if o.wrong == npNamedAnywhere {
			pod = o.set.PodList[0]
		}
		for _, c := range pod.Spec.Containers {
			for _, q := range c.Ports {
				if q.Name == p.Port.StrVal && q.Protocol != corev1.ProtocolUDP {
					return q.ContainerPort == have
				}
			}
		}
		return false
	}
	if p.EndPort != nil && o.wrong != npEndPort {
		return p.Port.IntVal <= have && have <= *p.EndPort
	}
	return p.Port.IntVal == have
}

func (o *npOracle) peer(np *netv1.NetworkPolicy, p *netv1.NetworkPolicyPeer) bool {
	src := o.conn.Src.Addr()
	if b := p.IPBlock; b != nil {
		if !netip.MustParsePrefix(b.CIDR).Contains(src) {
			return false
		}
		for _, e := range b.Except {
			if netip.MustParsePrefix(e).Contains(src) && o.wrong != npExcept {
				return false
			}
		}
		return true
	}
	for _, pod := range o.set.PodList {
		if pod.Spec.HostNetwork && o.wrong != npHost || Ended(pod) && o.wrong != npEnded {
			continue
		}
		if !slices.ContainsFunc(pod.Status.PodIPs, func(ip corev1.PodIP) bool { return netip.MustParseAddr(ip.IP) == src }) {
			continue
		}
		pods := p.PodSelector == nil || o.selects(p.PodSelector, pod.Labels)
		spaces := pod.Namespace == np.Namespace || o.wrong == npAnyNamespace
		if p.NamespaceSelector != nil {
			spaces = o.selects(p.NamespaceSelector, o.set.Namespace(pod.Namespace).Labels)
		}
		if pods && spaces || o.wrong == npOrSelectors && p.PodSelector != nil && p.NamespaceSelector != nil && (pods || spaces) {
			return true
		}
	}
	return false
}

// npWorld makes clusters of a few pods and policies.
type npWorld struct{ *rand.Rand }

func (w npWorld) labels() map[string]string {
	m := map[string]string{}
	for _, k := range []string{"app", "tier"} {
		if w.IntN(3) > 0 {
			m[k] = oneOf(w, "a", "b")
		}
	}
	return m
}

func oneOf[T any](w npWorld, of ...T) T { return of[w.IntN(len(of))] }

func (w npWorld) selector() *metav1.LabelSelector {
	s := &metav1.LabelSelector{}
	switch w.IntN(5) {
	case 0:
	case 1:
		s.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: "app", Operator: oneOf(w, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist)}}
	case 2:
		s.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: "tier", Operator: oneOf(w, metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn), Values: []string{"a"}}}
	default:
		s.MatchLabels = map[string]string{oneOf(w, "app", "tier"): oneOf(w, "a", "b")}
	}
	return s
}

func (w npWorld) peer() netv1.NetworkPolicyPeer {
	switch w.IntN(4) {
	case 0:
		return netv1.NetworkPolicyPeer{PodSelector: w.selector()}
	case 1:
		return netv1.NetworkPolicyPeer{NamespaceSelector: w.selector()}
	case 2:
		return netv1.NetworkPolicyPeer{PodSelector: w.selector(), NamespaceSelector: w.selector()}
	}
	b := &netv1.IPBlock{CIDR: oneOf(w, "10.0.0.0/8", "10.0.0.0/29", "0.0.0.0/0", "2001:db8::/32", "::/0", "10.0.0.3/32")}
	for w.IntN(2) == 0 && len(b.Except) < 3 {
		switch b.CIDR {
		case "2001:db8::/32", "::/0":
			b.Except = append(b.Except, oneOf(w, "2001:db8::4/126", "2001:db8::3/128", "2001:db8::/48"))
		case "10.0.0.0/29", "10.0.0.3/32":
			b.Except = append(b.Except, oneOf(w, "10.0.0.3/32", "10.0.0.4/30"))
		default:
			b.Except = append(b.Except, oneOf(w, "10.0.0.0/30", "10.0.0.6/32", "10.0.0.4/31", "10.0.0.0/29"))
		}
	}
	return netv1.NetworkPolicyPeer{IPBlock: b}
}

func (w npWorld) port() netv1.NetworkPolicyPort {
	var p netv1.NetworkPolicyPort
	if w.IntN(2) == 0 {
		p.Protocol = new(oneOf(w, corev1.ProtocolTCP, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP))
	}
	switch w.IntN(5) {
	case 0:
	case 1:
		p.Port = new(intstr.FromString(oneOf(w, "http", "admin")))
	case 2:
		first := oneOf[int32](w, 1, 80, 8000, 30000)
		p.Port, p.EndPort = new(intstr.FromInt32(first)), new(first+oneOf[int32](w, 0, 1, 100, 35535))
	default:
		p.Port = new(intstr.FromInt32(oneOf[int32](w, 80, 8080, 15008, 65535)))
	}
	return p
}

func (w npWorld) set() *Set {
	s := &Set{}
	for _, name := range []string{"n1", "n2", "n3"} {
		s.NamespaceList = append(s.NamespaceList, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: w.labels()}})
	}
	for i := range 8 {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("p", i), Namespace: oneOf(w, "n1", "n1", "n2", "n3"), Labels: w.labels(),
			Annotations: map[string]string{RedirectionAnnotation: RedirectionEnabled}}}
		pod.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "admin", ContainerPort: 65535, Protocol: oneOf(w, corev1.ProtocolTCP, corev1.ProtocolUDP)},
			{Name: "http", ContainerPort: oneOf[int32](w, 80, 8080)}}}}
		pod.Status.Phase = oneOf(w, corev1.PodRunning, corev1.PodRunning, corev1.PodRunning, corev1.PodRunning, corev1.PodSucceeded)
		pod.Status.PodIPs = []corev1.PodIP{{IP: fmt.Sprint("10.0.0.", i)}, {IP: fmt.Sprint("2001:db8::", i+1)}}
		pod.Spec.HostNetwork = i > 0 && w.IntN(8) == 0
		s.PodList = append(s.PodList, pod)
	}
	for i := range 1 + w.IntN(3) {
		np := &netv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("np", i), Namespace: oneOf(w, "n1", "n1", "n1", "n2")}}
		np.Spec.PodSelector = *w.selector()
		switch w.IntN(6) {
		case 0, 1:
		case 2:
			np.Spec.PolicyTypes = []netv1.PolicyType{netv1.PolicyTypeEgress}
		default:
			np.Spec.PolicyTypes = []netv1.PolicyType{netv1.PolicyTypeIngress}
		}
		for range w.IntN(3) {
			var r netv1.NetworkPolicyIngressRule
			for range w.IntN(3) {
				r.From = append(r.From, w.peer())
			}
			for range w.IntN(3) {
				r.Ports = append(r.Ports, w.port())
			}
			np.Spec.Ingress = append(np.Spec.Ingress, r)
		}
		s.NetworkPolicyList = append(s.NetworkPolicyList, np)
	}
	return s
}

// What the policies made from NetworkPolicies decide, for random clusters and
// connections, is what the NetworkPolicies say; and every sentence of theirs
// decides some of the cases.
//
//ambit:feature networkpolicy-rules
func TestNetworkPolicyAgreesWithTheObvious(t *testing.T) {
	const seed = 20261120
	worlds, perWorld := 4_000, 50
	if testing.Short() || raceDetector {
		worlds = 600
	}
	c := testConfig()
	c.NetworkPolicies = true
	wrong := npMisreadings()
	decisive := map[npMisreading]int{}
	refused, tried := 0, 0
	for n := range worlds {
		w := npWorld{rand.New(rand.NewPCG(seed, uint64(n)))}
		s := w.set()
		d, err := All(c, s)
		if err != nil {
			t.Fatalf("world %d: %v", n, err)
		}
		b := mesh.NewBuilder(nil)
		b.Apply(d)
		snap := b.Build()
		for range perWorld {
			to := s.PodList[w.IntN(len(s.PodList))]
			load := snap.Workload(c.PodUID(to.Namespace, to.Name))
			if load == nil || to.Spec.HostNetwork {
				continue
			}
			from := s.PodList[w.IntN(len(s.PodList))]
			ip := w.IntN(2)
			conn := authz.Conn{
				Src: netip.AddrPortFrom(netip.MustParseAddr(from.Status.PodIPs[ip].IP), 40000),
				Dst: netip.AddrPortFrom(netip.MustParseAddr(to.Status.PodIPs[ip].IP), oneOf[uint16](w, 1, 80, 81, 8080, 8100, 65535, 15008, 40000)),
			}
			gone := from.Spec.HostNetwork || Ended(from)
			switch {
			case w.IntN(6) == 0:
			case gone: // what has no tunnel: somebody else's, at their address
				conn.Peer = identity.ID{TrustDomain: "other.domain", Namespace: from.Namespace, ServiceAccount: "default"}
			default:
				conn.Peer = identity.ID{TrustDomain: "cluster.local", Namespace: from.Namespace, ServiceAccount: "default"}
			}
			o := npOracle{set: s, to: to, conn: conn}
			want, got := o.admits(), authz.Decide(snap, load, conn)
			if got.Allow != want {
				t.Fatalf("world %d: admitted %t, want %t: %+v, %+v\nto %s\n%s", n, got.Allow, want, got, conn, to.Name, describe(s))
			}
			tried++
			if !want {
				refused++
			}
			for _, m := range wrong {
				o.wrong = m
				if o.admits() != want {
					decisive[m]++
				}
			}
		}
	}
	t.Logf("%d of %d connections refused", refused, tried)
	if refused < tried/10 || refused > tried*9/10 {
		t.Errorf("%d of %d connections are refused", refused, tried)
	}
	for _, m := range wrong {
		if decisive[m] == 0 {
			t.Errorf("no case shows the misreading %q", m)
		}
	}
	t.Log(decisive)
}

func describe(s *Set) string {
	b, _ := json.Marshal([]any{s.NamespaceList, s.PodList, s.NetworkPolicyList})
	return string(b)
}
