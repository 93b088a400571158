package diagnose

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// GatewayBundle is the Gateway API that deploy/crds brings; a test there
// compares.
const GatewayBundle = "v1.6.3"

// istioDefinitions are read by this release, in version v1.
var istioDefinitions = []string{
	"authorizationpolicies.security.istio.io",
	"peerauthentications.security.istio.io",
	"serviceentries.networking.istio.io",
	"workloadentries.networking.istio.io",
}

// gatewayDefinitions are the standard channel.
var gatewayDefinitions = []string{
	"backendtlspolicies.gateway.networking.k8s.io",
	"gatewayclasses.gateway.networking.k8s.io",
	"gateways.gateway.networking.k8s.io",
	"grpcroutes.gateway.networking.k8s.io",
	"httproutes.gateway.networking.k8s.io",
	"listenersets.gateway.networking.k8s.io",
	"referencegrants.gateway.networking.k8s.io",
	"tcproutes.gateway.networking.k8s.io",
	"tlsroutes.gateway.networking.k8s.io",
	"udproutes.gateway.networking.k8s.io",
}

// Wanted are the definitions that deploy/crds has.
func Wanted() []string { return slices.Concat(istioDefinitions, gatewayDefinitions) }

const (
	applyAll   = "kubectl apply --server-side --field-manager=ambit-crds -k deploy/crds"
	applyIstio = "kubectl apply --server-side --field-manager=ambit-crds -f deploy/crds/root-namespace.yaml -f deploy/crds/istio"
)

func definitions(c *Cluster, o Options, f *findings) {
	if c.Definitions == nil && unread(c, "customresourcedefinitions") {
		return
	}
	there := map[string]Definition{}
	for _, d := range c.Definitions {
		there[d.Name] = d
	}
	for _, name := range istioDefinitions {
		object := "crd " + name
		d, ok := there[name]
		switch {
		case !ok && c.installed(o) == nil:
			f.add(Warning, object, "not there yet", applyAll)
		case !ok:
			what := "the controller cannot read policies"
			if strings.HasSuffix(name, ".networking.istio.io") {
				what = "the controller does not know services outside the cluster"
			}
			f.add(Error, object, "missing: "+what, applyAll)
		case !slices.Contains(d.Served, "v1"):
			f.add(Error, object, "serves "+strings.Join(d.Served, ", ")+" and not v1: older than Istio 1.22",
				"upgrade whatever brought it, or "+applyIstio)
		case !d.Status:
			f.add(Warning, object, "has no status: nothing can be said on its objects", applyIstio)
		}
	}
	gateway(there, f)
}

// gateway says how the Gateway API of the cluster relates to ours. It belongs to
// the cluster; we neither own nor change it unasked.
func gateway(there map[string]Definition, f *findings) {
	var missing, bundles, channels, managers []string
	for _, name := range gatewayDefinitions {
		d, ok := there[name]
		if !ok {
			missing = append(missing, strings.TrimSuffix(name, ".gateway.networking.k8s.io"))
			continue
		}
		bundles = append(bundles, cmp.Or(d.BundleVersion, "of unknown version"))
		channels = append(channels, cmp.Or(d.Channel, "unknown"))
		if d.ManagedByOther != "" {
			managers = append(managers, d.ManagedByOther)
		}
	}
	const object = "Gateway API"
	if len(bundles) == 0 {
		f.add(Info, object, "not there; waypoints will need it, this release reads none of it", applyAll+" brings "+GatewayBundle)
		return
	}
	slices.Sort(bundles)
	bundles = slices.Compact(bundles)
	slices.Sort(channels)
	channels = slices.Compact(channels)
	what := fmt.Sprintf("%s, channel %s", strings.Join(bundles, " and "), strings.Join(channels, " and "))
	if len(managers) > 0 {
		what += ", managed by " + few(managers)
	}
	ours, _ := parsePatched(GatewayBundle)
	older, newer, unknown := false, false, false
	for _, b := range bundles {
		v, ok := parsePatched(b)
		unknown = unknown || !ok
		older = older || ok && slices.Compare(v[:], ours[:]) < 0
		newer = newer || ok && slices.Compare(v[:], ours[:]) > 0
	}
	switch {
	case newer:
		f.add(Warning, object, what+": newer than the "+GatewayBundle+" of deploy/crds, which would downgrade it", "leave it as it is: "+applyIstio)
	case len(bundles) > 1:
		f.add(Warning, object, what+": a mixture", "bring it to one version by what installed it; then: "+applyIstio)
	case unknown:
		f.add(Warning, object, what, "see what installed it; to leave it as it is: "+applyIstio)
	case older:
		f.add(Warning, object, what+": older than the "+GatewayBundle+" of deploy/crds", "upgrade it by what installed it, or leave it: "+applyIstio)
	case slices.Contains(channels, "experimental"):
		f.add(Info, object, what+": deploy/crds has the standard channel, which would take fields away", "leave it as it is: "+applyIstio)
	default:
		f.add(Info, object, what, "")
	}
	if n := len(missing); n > 0 && !newer {
		f.add(Info, object, "without "+few(missing), "not needed by this release")
	}
}

// unread says whether asking for something failed.
func unread(c *Cluster, what string) bool {
	return slices.ContainsFunc(c.Unread, func(u string) bool { return strings.Contains(u, what) })
}
