package diagnose

import (
	"fmt"
	"slices"
	"strings"
)

// The floors. Below the first of a kind something is missing that capture or
// the manifests need; the second brings what makes it good.
var (
	kubernetesFloor = release{1, 30} // pods' tokens name their node; ValidatingAdmissionPolicy
	kernelFloor     = release{5, 10} // sk_lookup, SOCKMAP of listeners, programs by clsact
	kernelTCX       = release{6, 6}  // programs that a pod cannot take off, in a known order
)

// check is one question to the objects.
type check struct {
	name string
	run  func(*Cluster, Options, *findings)
}

// checks in the order of a reader's interest.
var checks = []check{
	{"kubernetes", kubernetes},
	{"platform", platform},
	{"nodes", nodes},
	{"families", families},
	{"definitions", definitions},
	{"mesh", otherMeshes},
	{"settings", meshSettings},
	{"cni", otherCNI},
	{"namespace", systemNamespace},
	{"quota", quotas},
	{"network-policy", networkPolicies},
	{"pods", enrolledPods},
	{"agent", agents},
	{"rights", rights},
}

// Precheck says what the cluster lacks, before an installation and after.
func Precheck(c *Cluster, o Options) []Finding {
	var all []Finding
	for _, k := range checks {
		f := findings{check: k.name}
		k.run(c, o, &f)
		all = append(all, f.all...)
	}
	for _, u := range c.Unread {
		all = append(all, Finding{Warning, "reading", "this account", "could not ask: " + u,
			"nothing is said about it; ask with an account that may read it"})
	}
	return sorted(all)
}

// Checks are the names of all checks.
func Checks() []string {
	names := []string{"reading"}
	for _, k := range checks {
		names = append(names, k.name)
	}
	return names
}

// VAP is the kind of API the manifests cannot do without.
const VAP = "admissionregistration.k8s.io/v1 validatingadmissionpolicies"

// APIs are those Precheck wants to know about.
func APIs() []string { return []string{VAP} }

func kubernetes(c *Cluster, _ Options, f *findings) {
	if c.Version == "" {
		return
	}
	switch v, ok := parseRelease(c.Version); {
	case !ok:
		f.add(Warning, "API server", fmt.Sprintf("version %q is not one this program can read", c.Version), "")
	case v.before(kubernetesFloor):
		f.add(Error, "API server", fmt.Sprintf("Kubernetes %s is older than %s", c.Version, kubernetesFloor),
			"upgrade the cluster: pods' tokens do not name their node there, so that node agents cannot be held to their own")
	default:
		f.add(Info, "API server", "Kubernetes "+c.Version, "")
	}
	if !c.has(VAP) {
		f.add(Error, "API server", "ValidatingAdmissionPolicy (admissionregistration.k8s.io/v1) is not served",
			"enable that API; without it deploy/ambit does not apply, and node agents could write on pods of other nodes")
	}
	dns := slices.ContainsFunc(c.Services, func(s coreService) bool {
		return s.Name == "kube-dns" || s.Labels["k8s-app"] == "kube-dns" || strings.Contains(s.Name, "coredns")
	})
	if c.Services != nil && !dns {
		f.add(Warning, "cluster DNS", "no Service kube-dns or coredns in kube-system",
			"ztunnel finds the controller by its name; see that pods can resolve names of Services")
	}
}
