package mesh

import "strings"

// networkPolicyPrefix begins the names of the policies that hold what
// NetworkPolicies of Kubernetes admit. It is no name that an object of
// Kubernetes can have.
const networkPolicyPrefix = "ambitmesh_networkpolicy_"

// NetworkPolicyName is the name of the policy made from NetworkPolicies of one
// namespace. Variant tells apart policies that are made from the same ones, ""
// for the plain one.
func NetworkPolicyName(names []string, variant string) string {
	name := networkPolicyPrefix + strings.Join(names, ",")
	if variant != "" {
		name += "@" + variant
	}
	return name
}

// FromNetworkPolicies reports whether p was made from NetworkPolicies.
func FromNetworkPolicies(p *Policy) bool { return strings.HasPrefix(p.Name, networkPolicyPrefix) }

// IsNetworkPolicyKey reports whether key is that of such a policy.
func IsNetworkPolicyKey(key string) bool {
	_, name, _ := strings.Cut(key, "/")
	return strings.HasPrefix(name, networkPolicyPrefix)
}

// NetworkPolicies are the NetworkPolicies, <namespace>/<name>, that the policy
// of that key was made from; none for any other policy.
func NetworkPolicies(key string) []string {
	namespace, name, _ := strings.Cut(key, "/")
	list, ok := strings.CutPrefix(name, networkPolicyPrefix)
	if !ok {
		return nil
	}
	list, _, _ = strings.Cut(list, "@")
	out := strings.Split(list, ",")
	for i, n := range out {
		out[i] = namespace + "/" + n
	}
	return out
}
