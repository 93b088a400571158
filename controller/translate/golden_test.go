package translate

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	netv1 "k8s.io/api/networking/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/ambitmesh/ambit/controller/mesh"
)

var update = flag.Bool("update", false, "write the golden files anew")

func testConfig() Config {
	return Config{ClusterID: "Kubernetes", ClusterDomain: "cluster.local", TrustDomain: "cluster.local", RootNamespace: "istio-system"}
}

// TestGolden translates every testdata/*.yaml and compares with the .golden
// file beside it.
//
//ambit:feature binding-canary binding-sandwich binding-dynamic-dns network-gateways
//ambit:feature workload-pod workload-service workload-not-ready-addresses workload-node-not-ready workload-address-reuse policy-http-attributes
//ambit:feature workload-entry workload-entry-health workload-external-static workload-external-resolved workload-external-none
//ambit:feature workload-external-selector workload-external-hosts workload-external-visibility
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no testdata: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			set := readSet(t, file)
			got := dump(t, testConfig(), set)
			golden := strings.TrimSuffix(file, ".yaml") + ".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("%s differs (run with -update and read the diff):\n%s", golden, firstDifference(string(want), got))
			}
		})
	}
}

func firstDifference(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range min(len(w), len(g)) {
		if w[i] != g[i] {
			return fmt.Sprintf("line %d\n want %s\n got  %s", i+1, w[i], g[i])
		}
	}
	return fmt.Sprintf("%d lines, want %d", len(g), len(w))
}

var document = regexp.MustCompile(`(?m)^---\s*$`)

func readSet(t testing.TB, file string) *Set {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	s := &Set{}
	for i, doc := range document.Split(string(text), -1) {
		var head struct{ Kind string }
		if err := yaml.Unmarshal([]byte(doc), &head); err != nil {
			t.Fatalf("%s document %d: %v", file, i, err)
		}
		switch head.Kind {
		case "":
		case "Namespace":
			s.NamespaceList = append(s.NamespaceList, decode[corev1.Namespace](t, doc))
		case "Node":
			s.NodeList = append(s.NodeList, decode[corev1.Node](t, doc))
		case "Pod":
			s.PodList = append(s.PodList, decode[corev1.Pod](t, doc))
		case "Service":
			s.ServiceList = append(s.ServiceList, decode[corev1.Service](t, doc))
		case "EndpointSlice":
			s.SliceList = append(s.SliceList, decode[discoveryv1.EndpointSlice](t, doc))
		case "AuthorizationPolicy":
			s.PolicyList = append(s.PolicyList, decode[securityv1.AuthorizationPolicy](t, doc))
		case "PeerAuthentication":
			s.PeerList = append(s.PeerList, decode[securityv1.PeerAuthentication](t, doc))
		case "ServiceEntry":
			s.ServiceEntryList = append(s.ServiceEntryList, decode[networkingv1.ServiceEntry](t, doc))
		case "WorkloadEntry":
			s.WorkloadEntryList = append(s.WorkloadEntryList, decode[networkingv1.WorkloadEntry](t, doc))
		case "NetworkPolicy":
			s.NetworkPolicyList = append(s.NetworkPolicyList, decode[netv1.NetworkPolicy](t, doc))
		case "Gateway":
			s.GatewayList = append(s.GatewayList, decode[gatewayv1.Gateway](t, doc))
		case "GatewayClass":
			s.GatewayClassList = append(s.GatewayClassList, decode[gatewayv1.GatewayClass](t, doc))
		case "ConfigMap":
			s.MeshConfigObject = decode[corev1.ConfigMap](t, doc)
		default:
			t.Fatalf("%s document %d: kind %q", file, i, head.Kind)
		}
	}
	return s
}

func decode[T any](t testing.TB, doc string) *T {
	t.Helper()
	o := new(T)
	if err := yaml.Unmarshal([]byte(doc), o); err != nil {
		t.Fatalf("%v in\n%s", err, doc)
	}
	return o
}

// dump is the text of a golden file: the delta with its zero fields left out,
// the conditions, the errors.
func dump(t testing.TB, c Config, s *Set) string {
	t.Helper()
	d, err := All(c, s)
	var b strings.Builder
	for _, w := range d.Workloads {
		fmt.Fprintf(&b, "workload %s%s\n", w.UID, fields(reflect.ValueOf(*w), "  ", "UID"))
	}
	for _, v := range d.Services {
		fmt.Fprintf(&b, "service %s%s\n", v.Key(), fields(reflect.ValueOf(*v), "  ", "Name", "Namespace", "Hostname"))
	}
	for _, p := range d.Policies {
		fmt.Fprintf(&b, "policy %s scope=%s action=%s rules=%d%s\n", p.Key(), show(reflect.ValueOf(p.Scope), ""), show(reflect.ValueOf(p.Action), ""),
			len(p.Rules), fields(reflect.ValueOf(*p), "  ", "Name", "Namespace", "Scope", "Action"))
	}
	for _, ap := range s.PolicyList {
		if cond := c.AuthorizationPolicy(ap).Condition; cond != nil {
			fmt.Fprintf(&b, "condition %s/%s %s=%t %s: %s\n", ap.Namespace, ap.Name, cond.Type, cond.True, cond.Reason, cond.Message)
		}
	}
	statuses(&b, c, s)
	if err != nil {
		for line := range strings.Lines(err.Error()) {
			fmt.Fprintf(&b, "error %s\n", strings.TrimSpace(line))
		}
	}
	return b.String()
}

var enums = map[string][]string{
	"Protocol": {"TCP", "HBONE"}, "Health": {"Healthy", "Unhealthy"},
	"WorkloadType": {"Deployment", "CronJob", "Pod", "Job"},
	"AppProtocol":  {"Unknown", "HTTP11", "HTTP2", "GRPC", "TCP", "TLS"},
	"PolicyScope":  {"Global", "Namespace", "WorkloadSelector"}, "Action": {"Allow", "Deny"},
	"MatchKind":  {"Exact", "Prefix", "Suffix", "Presence"},
	"IPFamilies": {"Automatic", "IPv4", "IPv6", "Dual"},
	"Scope":      {"Unspecified", "Region", "Zone", "Subzone", "Node", "Cluster", "Network"},
	"Mode":       {"Unspecified", "Strict", "Failover", "Passthrough"},
}

// fields shows v's fields that are not zero, one per line.
func fields(v reflect.Value, indent string, skip ...string) string {
	var b strings.Builder
	for i := range v.NumField() {
		name, f := v.Type().Field(i).Name, v.Field(i)
		empty := f.IsZero() || f.Kind() == reflect.Slice && f.Len() == 0
		if slices.Contains(skip, name) || empty {
			continue
		}
		fmt.Fprintf(&b, "\n%s%s: %s", indent, name, show(f, indent+"  "))
	}
	return b.String()
}

// show is one value; structs of lists nest, everything else stays on its line.
func show(v reflect.Value, indent string) string {
	if s, ok := v.Interface().(fmt.Stringer); ok && v.Type().PkgPath() == "net/netip" {
		return s.String()
	}
	if names := enums[v.Type().Name()]; names != nil {
		return names[v.Uint()]
	}
	switch x := v.Interface().(type) {
	case mesh.Port:
		return fmt.Sprintf("%d->%d %s", x.ServicePort, x.TargetPort, enums["AppProtocol"][x.AppProtocol])
	case mesh.StringMatch:
		return enums["MatchKind"][x.Kind] + " " + x.Value
	case mesh.NetworkAddress:
		return strings.TrimPrefix(x.Network+"/"+x.Prefix.String(), "/")
	}
	switch v.Kind() {
	case reflect.Pointer:
		return show(v.Elem(), indent)
	case reflect.Struct:
		return fields(v, indent)
	case reflect.Map:
		var lines []string
		for _, k := range v.MapKeys() {
			lines = append(lines, "\n"+indent+k.String()+": "+show(v.MapIndex(k), indent+"  "))
		}
		slices.Sort(lines)
		return strings.Join(lines, "")
	case reflect.Slice:
		var parts []string
		for i := range v.Len() {
			if part := show(v.Index(i), indent+"  "); strings.HasPrefix(part, "\n") || part == "" {
				parts = append(parts, "\n"+indent+"-"+part)
			} else {
				parts = append(parts, part)
			}
		}
		if len(parts) > 0 && strings.HasPrefix(parts[0], "\n") {
			return strings.Join(parts, "")
		}
		return strings.Join(parts, ", ")
	}
	return fmt.Sprint(v.Interface())
}
