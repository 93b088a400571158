package ztunnel

import (
	"reflect"
	"slices"
	"strings"
	"testing"
)

// TestDumpSchema: the fields of config_dump are those that Istio's ztunnel is
// documented to have, which its CLI reads; a field with ! is always there.
//
//ambit:feature telemetry-config-dump
func TestDumpSchema(t *testing.T) {
	for _, o := range []struct {
		of     any
		fields string
	}{
		{dump{}, "workloads! services! policies! stagedServices! staticConfig! version! config! certificates! workloadState!"},
		{workloadJSON{}, `workloadIps! waypoint networkGateway protocol! networkMode! uid name! namespace! trustDomain serviceAccount network workloadName
			workloadType canonicalName canonicalRevision hostname node nativeTunnel applicationTunnel authorizationPolicies status! clusterId! locality services capacity!`},
		{tunnelJSON{}, "protocol! port"},
		{localityJSON{}, "region zone subzone"},
		{gatewayJSON{}, "destination! hboneMtlsPort!"},
		{serviceJSON{}, `name! namespace! hostname! vips! cidrVips ports! endpoints! subjectAltNames waypoint weightedWaypoints loadBalancer ipFamilies canonical visibility!`},
		{cidrJSON{}, "network! cidr!"},
		{endpointJSON{}, "workloadUid! port! status!"},
		{weightedJSON{}, "destination! weight!"},
		{balancerJSON{}, "routingPreferences! mode! healthPolicy!"},
		{policyJSON{}, "name! namespace! scope! action! rules! dryRun"},
		{certificateJSON{}, "identity! state! certChain! rootCerts!"},
		{certJSON{}, "pem! serialNumber! validFrom! expirationTime!"},
		{podStateJSON{}, "state! connections! info!"},
		{podStateJSON{}.Connections, "inbound! outbound!"},
		{podStateJSON{}.Info, "name! namespace! serviceAccount!"},
		{connJSON{}, "src! originalDst! actualDst! protocol!"},
	} {
		typ := reflect.TypeOf(o.of)
		var got []string
		for f := range typ.Fields() {
			name, omit, _ := strings.Cut(f.Tag.Get("json"), ",")
			if omit == "" {
				name += "!"
			}
			got = append(got, name)
		}
		want := strings.Fields(o.fields)
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s has %v\nwant %v", typ, got, want)
		}
	}
	n := newNode(t)
	owning(t, n)
	for _, key := range strings.Fields("version gitRevision rustVersion buildProfile buildStatus istioVersion cryptoProvider") {
		if _, ok := n.dump().Version[key]; !ok {
			t.Errorf("version has no %s", key)
		}
	}
}
