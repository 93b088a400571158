package translate

import (
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
)

// AllocateLabel with the value "false" opts a ServiceEntry out of addresses of
// its own.
const AllocateLabel = "networking.istio.io/enable-autoallocate-ip"

// Allocates reports whether the hosts of se get an address each: a client can
// then tell by the address which host it means.
func Allocates(se *networkingv1.ServiceEntry) bool {
	return len(se.Spec.GetAddresses()) == 0 && se.Spec.GetResolution() != networking.ServiceEntry_NONE &&
		!strings.EqualFold(se.Labels[AllocateLabel], "false")
}

// AllocateHosts are those hosts, lower case.
func AllocateHosts(se *networkingv1.ServiceEntry) []string {
	if !Allocates(se) {
		return nil
	}
	var out []string
	for _, h := range Hosts(se) {
		if allocatable(se, h) {
			out = append(out, h)
		}
	}
	return out
}

// allocatable: only a waypoint knows which of the names under a wildcard a
// connection is for, and for that its resolution must be dynamic.
func allocatable(se *networkingv1.ServiceEntry, host string) bool {
	return !wildcard(host) || se.Spec.GetResolution() == networking.ServiceEntry_DYNAMIC_DNS
}
