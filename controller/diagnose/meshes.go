package diagnose

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// otherMeshes looks for what captures pods too, or configures the same
// proxies.
func otherMeshes(c *Cluster, o Options, f *findings) {
	for i := range c.Deployments {
		d := &c.Deployments[i]
		object := "deployment " + d.Namespace + "/" + d.Name
		switch {
		case d.Labels["app"] == "istiod" || d.Spec.Template.Labels["app"] == "istiod":
			besideIstio(c, object, o, f)
		case d.Name == "linkerd-destination":
			f.add(Info, object, "Linkerd is there", "do not enrol namespaces that it injects")
		case strings.HasPrefix(d.Name, "kuma-control-plane"):
			f.add(Info, object, "Kuma is there", "do not enrol namespaces that it injects")
		}
	}
	for i := range c.DaemonSets {
		d := &c.DaemonSets[i]
		object := "daemonset " + d.Namespace + "/" + d.Name
		switch {
		case d.Labels["k8s-app"] == "istio-cni-node" || d.Name == "istio-cni-node":
			if environment(d.Spec.Template.Spec)["AMBIENT_ENABLED"] != "false" {
				f.add(Error, object, "Istio's node agent acts on the same label istio.io/dataplane-mode=ambient: both would capture the same pods",
					"remove it, or set AMBIENT_ENABLED=false when it serves sidecars only")
			}
		case d.Labels["app"] == "ztunnel" && d.Namespace != o.System:
			f.add(Error, object, "another ztunnel", "remove Istio's ambient mode first; the label on namespaces can stay")
		case d.Name == "kmesh" || d.Labels["app"] == "kmesh":
			f.add(Error, object, "Kmesh acts on namespaces too, and redirects in the kernel", "remove it first")
		}
	}
}

// besideIstio says what keeps two control planes apart, and whether ours has
// been told.
func besideIstio(c *Cluster, object string, o Options, f *findings) {
	if !o.BesideIstio {
		f.add(Error, object, "an Istio control plane is in the cluster", "remove it; or --beside-istio, when it is there on purpose")
		return
	}
	for i := range c.Deployments {
		d := &c.Deployments[i]
		if d.Namespace != o.System || d.Name != "ambit-controller" {
			continue
		}
		if environment(d.Spec.Template.Spec)["AMBIT_BESIDE_ISTIO"] != "true" {
			f.add(Error, "deployment "+d.Namespace+"/"+d.Name, "does not know that Istio is there: it reads every object without a revision as its own, and writes on some of them",
				"kubectl apply -k deploy/beside-istio")
			return
		}
		f.add(Info, object, "beside Istio, what says istio.io/rev="+environment(d.Spec.Template.Spec)["REVISION"]+", itself or by its namespace, is ours", "")
		return
	}
	f.add(Warning, object, "beside Istio, only what says our revision, itself or by its namespace, is ours: label istio.io/rev",
		"install deploy/beside-istio, and label namespaces istio.io/rev=ambit with istio.io/dataplane-mode=ambient")
}

// environment are the plain variables of a pod's containers.
func environment(s corev1.PodSpec) map[string]string {
	m := map[string]string{}
	for _, c := range s.Containers {
		for _, e := range c.Env {
			m[e.Name] = e.Value
		}
	}
	return m
}

// otherCNI looks for settings of the network that work against a chained
// plugin, or hide Services from it.
func otherCNI(c *Cluster, o Options, f *findings) {
	if m := c.Cilium; m != nil {
		if m["cni-exclusive"] != "false" {
			f.add(Error, "configmap cilium-config", "Cilium insists on being the only plugin (cni-exclusive): it takes ours out of the configuration again and again",
				"set cni.exclusive=false in Cilium's values")
		}
		replaces := m["kube-proxy-replacement"] == "true" || m["kube-proxy-replacement"] == "strict"
		if (m["bpf-lb-sock"] == "true" || replaces) && m["bpf-lb-sock-hostns-only"] != "true" {
			f.add(Warning, "configmap cilium-config", socketLB("Cilium"), "set socketLB.hostNamespaceOnly=true in Cilium's values")
		}
	}
	if s := c.Calico; s != nil {
		on, _ := s["bpfEnabled"].(bool)
		at, _ := s["bpfConnectTimeLoadBalancing"].(string)
		old, isSet := s["bpfConnectTimeLoadBalancingEnabled"].(bool)
		if on && at != "Disabled" && (!isSet || old) {
			f.add(Warning, "felixconfiguration default", socketLB("Calico"), "set bpfConnectTimeLoadBalancing to Disabled and bpfHostNetworkedNATWithoutCTLB to Enabled")
		}
	}
	for i := range c.DaemonSets {
		d := &c.DaemonSets[i]
		if d.Namespace != "kube-system" || d.Name != "aws-node" {
			continue
		}
		env := environment(d.Spec.Template.Spec)
		if env["ENABLE_POD_ENI"] == "true" && env["POD_SECURITY_GROUP_ENFORCING_MODE"] != "standard" {
			f.add(Warning, "daemonset kube-system/aws-node", "security groups for pods in strict mode: traffic between node and pod need not pass the pod's device on the node, where the kubelet's probes are marked",
				"set POD_SECURITY_GROUP_ENFORCING_MODE=standard; the groups must admit TCP 15008 between pods")
		}
	}
}

func socketLB(who string) string {
	return who + " replaces a Service's address by a pod's at connect(), inside the pod: calls are encrypted, but ztunnel does not know the Service they were for"
}
