package arch

// row is one line of the package table: what a package of ours may import,
// besides the standard library. Everything that is not listed is forbidden.
type row struct {
	// pkg is a path below the module; a trailing /... covers the folder and
	// everything in it.
	pkg string
	// may names our packages that it may import; a trailing /... covers a tree.
	may []string
	// ext names libraries (keys of the map libraries) that it may import.
	ext []string
	// why is printed with a violation: the reason the row is this narrow.
	why string
}

// libraries are the notable dependencies: an import below one of the prefixes
// counts as that library. A library that is not here is free for everybody,
// which is right for small leaf modules and wrong for anything that brings a
// tree of its own; those belong here.
var libraries = map[string][]string{
	"go-spiffe":       {"github.com/spiffe/go-spiffe"},
	"x/net":           {"golang.org/x/net"},
	"x/sys":           {"golang.org/x/sys"},
	"protobuf":        {"google.golang.org/protobuf", "github.com/golang/protobuf", "github.com/planetscale/vtprotobuf"},
	"grpc":            {"google.golang.org/grpc"},
	"discovery":       {"github.com/envoyproxy/go-control-plane/envoy/service/discovery", "github.com/envoyproxy/go-control-plane/envoy/config/core"},
	"envoy":           {"github.com/envoyproxy/go-control-plane"},
	"istio-ca":        {"istio.io/api/security/v1alpha1"},
	"api-types":       {"k8s.io/api", "k8s.io/apimachinery", "istio.io/api", "istio.io/client-go/pkg/apis", "sigs.k8s.io/gateway-api/apis"},
	"client-go":       {"k8s.io/client-go", "istio.io/client-go", "sigs.k8s.io/gateway-api/pkg/client", "k8s.io/apiextensions-apiserver"},
	"cri-api":         {"k8s.io/cri-api"},
	"ebpf":            {"github.com/cilium/ebpf"},
	"netlink":         {"github.com/vishvananda/netlink", "github.com/mdlayher/netlink"},
	"cni":             {"github.com/containernetworking/cni"},
	"client_golang":   {"github.com/prometheus/client_golang"},
	"expfmt":          {"github.com/prometheus/common", "github.com/prometheus/client_model"},
	"dns":             {"github.com/miekg/dns"},
	"cobra":           {"github.com/spf13/cobra", "github.com/spf13/pflag"},
	"fsnotify":        {"github.com/fsnotify/fsnotify"},
	"containerreg":    {"github.com/google/go-containerregistry"},
	"cel":             {"github.com/google/cel-go"},
	"jose":            {"github.com/go-jose/go-jose"},
	"otel":            {"go.opentelemetry.io"},
	"controllers-fat": {"sigs.k8s.io/controller-runtime", "k8s.io/kubernetes", "istio.io/istio"},
	"test-only":       {"github.com/stretchr/testify", "github.com/onsi/gomega"},
}

// table is the map of the source tree. Imports point downward only.
var table = []row{
	// The tunnel: the floor, knows nothing of Kubernetes or of policy.
	{"hbone/identity", nil, []string{"go-spiffe"},
		"identity is the root of the tree: everything that speaks mTLS imports it, so it imports nothing of ours"},
	{"hbone", []string{"hbone/identity"}, []string{"x/net", "x/sys"},
		"the tunnel is a protocol; who may open one and where it leads is decided above it"},
	{"hbone/pool", []string{"hbone", "hbone/identity"}, []string{"x/net"},
		"reuse of tunnels is keyed by values handed in; it does not look anything up"},
	{"hbone/hbonetest", []string{"hbone", "hbone/identity", "hbone/pool"}, nil,
		"a twin for tests; production code must not reach it"},

	// The controller: shared vocabulary at the bottom, Kubernetes at the rim.
	{"controller/mesh", []string{"hbone/identity"}, nil,
		"the snapshot is read on every connection of the data plane: no protobuf, no Kubernetes, no logging in it"},
	{"controller/mesh/authz", []string{"controller/mesh", "hbone/identity"}, nil,
		"policy is a pure function of a snapshot and a connection; there is one engine for all parts"},
	{"controller/wire", []string{"controller/mesh", "controller/wire/...", "hbone/identity"}, []string{"protobuf"},
		"the only place where wire messages and the mesh vocabulary meet"},
	{"controller/wire/...", []string{"controller/wire/..."}, []string{"protobuf", "grpc"},
		"generated messages import nothing of ours"},
	{"controller/xds/server", []string{"controller/wire/...", "controller/mesh"}, []string{"grpc", "protobuf", "discovery", "client_golang"},
		"the server streams snapshots; where they come from is not its business"},
	{"controller/xds/client", []string{"controller/wire/...", "controller/mesh"}, []string{"grpc", "protobuf", "discovery", "client_golang"},
		"the client builds snapshots; who reads them is not its business"},
	{"controller/translate", []string{"controller/mesh", "cni/enablement", "hbone/identity"}, []string{"api-types"},
		"translation is pure: objects in, delta out, golden files; no client, no clock, no log"},
	{"controller/translate/malformed", nil, []string{"api-types"},
		"makes objects from schemas, for tests; production code has no use for it"},
	{"controller/envoy", []string{"controller/mesh", "hbone/identity"}, []string{"api-types", "envoy", "protobuf"},
		"translation is pure: objects in, resources out, golden files"},
	{"controller/kube", []string{"controller/translate", "controller/envoy", "controller/mesh", "controller/mesh/authz", "controller/ca", "controller/ca/rotation", "hbone/identity"}, []string{"client-go", "api-types", "client_golang", "protobuf"},
		"the only package of the controller that talks to the API server about configuration"},
	{"controller/ca/rotation", nil, nil,
		"the words of a change of the root, which the CLI links without the CA"},
	{"controller/ca", []string{"controller/ca/rotation", "hbone/identity"}, []string{"grpc", "protobuf", "client-go", "api-types", "istio-ca", "client_golang"},
		"the CA decides from what it is given; it must not depend on how configuration is watched"},
	{"controller/ca/client", []string{"hbone/identity"}, []string{"grpc", "protobuf", "istio-ca", "client_golang"},
		"linked into the data planes: no client-go, and never the signing half"},
	{"controller/deploy", nil, []string{"client-go", "api-types"},
		"renders waypoint objects; knows nothing of translation"},
	{"controller/diagnose", []string{"controller/mesh", "controller/mesh/authz", "controller/translate"}, []string{"api-types"},
		"explains snapshots; pure, so that the CLI and the controller give the same answer"},

	// Which pods ask for the mesh: the agent captures them, the CA believes them.
	{"cni/enablement", nil, []string{"api-types"},
		"label selectors and nothing else, so that both sides can link it"},

	// The node.
	{"cni/netns", nil, []string{"x/sys"},
		"the only package that enters a network namespace"},
	{"cni/bpf", nil, []string{"ebpf"},
		"C, one shared header and generated loaders"},
	{"cni/redirect", []string{"cni/bpf", "cni/netns"}, []string{"ebpf", "netlink", "x/sys"},
		"tells the kernel the wanted state; which pods are wanted is decided in cni/node"},
	{"cni/cri", nil, []string{"cri-api", "grpc"},
		"asks the runtime, decides nothing"},
	{"cni/enroll", nil, nil,
		"linked into the exec'd plugin: a leaf on the standard library"},
	{"cni/handoff/...", []string{"cni/handoff/..."}, []string{"protobuf"},
		"generated messages import nothing of ours"},
	{"cni/handoff", []string{"cni/netns", "cni/handoff/..."}, []string{"protobuf", "x/sys"},
		"both ends of one socket; shared by agent and ztunnel, so it may not know either"},
	{"cni/plugin", []string{"cni/enroll"}, []string{"cni"},
		"exec'd at every pod start: no client-go, no ebpf, no daemon code"},
	{"cni/node", []string{"cni/netns", "cni/redirect", "cni/cri", "cni/enroll", "cni/handoff", "cni/enablement"}, []string{"client-go", "api-types", "client_golang", "x/sys"},
		"the agent wires the cni packages and nothing of the other parts"},
	{"cni/install", nil, []string{"fsnotify"},
		"moves files; must work when the API server does not"},

	// The L4 proxy.
	{"ztunnel/live", []string{"controller/mesh", "controller/mesh/authz", "hbone/identity"}, []string{"client_golang"},
		"one record per connection, read by admin and metrics; it does not open or accept any"},
	{"ztunnel/outbound", []string{"ztunnel/egress", "ztunnel/socks", "ztunnel/live", "controller/mesh", "hbone", "hbone/pool", "hbone/identity", "cni/netns"}, nil,
		"resolves from a snapshot; policy of the destination is decided at the destination"},
	{"ztunnel/inbound", []string{"ztunnel/live", "controller/mesh", "controller/mesh/authz", "hbone", "hbone/identity", "cni/netns"}, nil,
		"policy is asked before the application is dialled, in one place"},
	{"ztunnel/older", []string{"ztunnel/live", "controller/mesh", "controller/mesh/authz", "cni/netns"}, []string{"client_golang", "x/sys"},
		"what capture came too late for: policy is asked, the kernel ends; nothing is carried"},
	{"ztunnel/dns", []string{"ztunnel/live", "controller/mesh", "hbone/identity", "cni/netns"}, []string{"dns", "client_golang"},
		"answers from a snapshot"},
	{"ztunnel/egress", []string{"controller/mesh"}, nil,
		"whether a destination is registered is a pure function of a snapshot and a connection's first bytes"},
	{"ztunnel/socks", nil, nil,
		"a handshake on a connection; where that leads is decided in outbound"},
	{"ztunnel", []string{"ztunnel/...", "controller/mesh", "controller/mesh/authz", "hbone", "hbone/pool", "hbone/identity", "cni/handoff", "cni/netns"}, []string{"client_golang", "expfmt"},
		"a supervisor: it wires its children and owns the pod set"},

	// The L7 proxy.
	{"waypoint/xds", []string{"hbone/identity"}, []string{"grpc", "protobuf", "envoy"}, "builds immutable configuration"},
	{"waypoint/listener", []string{"hbone", "hbone/identity", "waypoint/xds"}, nil, "the front; it does not route"},
	{"waypoint/route", nil, nil, "compiled routes are pure"},
	{"waypoint/filter/...", []string{"waypoint/filter/...", "waypoint/route"}, []string{"cel", "jose", "otel"}, "one filter each behind one interface"},
	{"waypoint/upstream", []string{"hbone", "hbone/pool", "hbone/identity"}, nil, "clusters and retries; it does not route"},
	{"waypoint/telemetry", nil, []string{"client_golang", "otel"}, "describes what happened; decides nothing"},
	{"waypoint", []string{"waypoint/...", "hbone", "hbone/pool", "hbone/identity", "controller/mesh"}, []string{"client_golang"}, "wiring and drain"},

	// Programs: flags to Config, then New and Run of what they wire.
	{"cmd/ambit", []string{"controller/ca/rotation", "controller/diagnose", "controller/mesh", "controller/mesh/authz", "controller/translate"}, []string{"cobra", "client-go", "api-types", "expfmt"},
		"the CLI asks the API server and explains; it contains no part of the data plane"},
	{"cmd/ambit-controller", []string{"controller/...", "cni/enablement", "hbone/identity"}, []string{"client-go", "api-types", "grpc", "client_golang"},
		"the controller wires controller packages"},
	{"cmd/ambit-ztunnel", []string{"ztunnel", "ztunnel/...", "controller/mesh", "controller/xds/client", "controller/ca/client", "hbone/...", "cni/handoff", "cni/netns"}, []string{"client_golang", "x/sys"},
		"ztunnel never talks to the API server; from the controller it links only the vocabulary and the two clients"},
	{"cmd/ambit-waypoint", []string{"waypoint", "waypoint/...", "controller/mesh", "controller/xds/client", "controller/ca/client", "hbone/..."}, []string{"client_golang"},
		"the waypoint never talks to the API server"},
	{"cmd/ambit-cni", []string{"cni/plugin", "cni/enroll"}, []string{"cni"},
		"exec'd at every pod start"},
	{"cmd/ambit-cni-node", []string{"cni/..."}, []string{"client-go", "api-types", "client_golang"},
		"the agent wires the cni packages"},

	// Tests and manifests may look at anything; nobody may look at them.
	{"deploy/...", []string{"deploy/..."}, []string{"containerreg", "api-types"},
		"manifests and images are made without running any of the product's code"},
	{"e2e/...", []string{"..."}, []string{"*"},
		"tests"},
}

// edge is a forbidden pair with its own reason, printed instead of the row's.
// from and to take a trailing /... ; to may name a library.
type edge struct{ from, to, why string }

var edges = []edge{
	{"...", "cmd/...", "nothing imports a program: move the code to the package that owns it"},
	{"...", "e2e/...", "production code must not depend on tests"},
	{"...", "hbone/hbonetest", "a throw-away CA in a production binary is a security bug"},
	{"...", "controller/translate/malformed", "objects that are meant to be wrong belong in tests"},
	{"...", "controllers-fat", "a framework that brings its own architecture"},
	{"...", "test-only", "tests use the standard library"},
	{"ztunnel/...", "waypoint/...", "data planes are upgraded and fail separately"},
	{"waypoint/...", "ztunnel/...", "data planes are upgraded and fail separately"},
	{"ztunnel/...", "cni/redirect", "the proxy learns the original destination from the socket; capture belongs to the agent"},
	{"ztunnel/...", "cni/node", "the proxy must survive the agent"},
	{"cni/...", "ztunnel/...", "the agent must survive the proxy"},
	{"cni/...", "controller/...", "the node agent keeps working when the controller is away"},
	{"ztunnel/...", "client-go", "ztunnel has no API access: its configuration comes over xDS only"},
	{"ztunnel/...", "controller/ca", "the signing half of the CA must not be linked where workloads' keys live"},
	{"ztunnel/...", "controller/kube", "the data plane must not see Kubernetes objects"},
	{"ztunnel/...", "controller/wire/...", "the data plane reads snapshots, not messages"},
	{"hbone/...", "controller/...", "the tunnel is the floor"},
	{"hbone/...", "client-go", "the tunnel is the floor"},
	{"hbone/...", "grpc", "grpc's HTTP/2 cannot half-close a tunnel; ours is hand-built"},
	{"controller/mesh/...", "protobuf", "messages stay at the border: controller/wire"},
	{"controller/translate", "client-go", "translation is pure"},
	{"cni/plugin", "client-go", "exec'd at every pod start; the agent asks the API server"},
	{"cni/plugin", "ebpf", "exec'd at every pod start; the agent loads programs"},
	{"cni/plugin", "cni/node", "sharing two structs with the daemon links the daemon"},
}

// linked are transitive budgets of programs: what must not be in the binary
// at all, and how many packages outside the standard library may be.
type budget struct {
	cmd    string
	max    int // 0: no limit
	forbid []string
	why    string
}

var budgets = []budget{
	{"cmd/ambit-cni", 40, []string{"client-go", "ebpf", "grpc", "netlink"},
		"exec'd at every pod start: start-up time and attack surface of each pod"},
	{"cmd/ambit-ztunnel", 0, []string{"client-go", "ebpf", "cri-api"},
		"ztunnel has no API access and loads no programs"},
	{"cmd/ambit-cni-node", 0, []string{"envoy"},
		"the agent serves no xDS"},
	{"cmd/ambit", 0, []string{"ebpf", "netlink"},
		"the CLI runs on a laptop, macOS included"},
}

// folders are the top-level folders of the repository; a new one is a decision.
var folders = []string{"cmd", "ztunnel", "waypoint", "cni", "hbone", "controller", "deploy", "e2e", "docs"}
