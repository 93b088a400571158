package deploy

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// rendered is every leaf of every object of a kustomization by its path. List
// elements with a name go by it, as for the API server.
func rendered(t *testing.T, dir string) map[string]string {
	t.Helper()
	m, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	var walk func(path string, v any)
	walk = func(path string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for k, x := range v {
				if k == "name" && strings.HasSuffix(path, fmt.Sprintf("[%v]", x)) {
					continue // is in the path
				}
				walk(path+"."+k, x)
			}
		case []any:
			for i, x := range v {
				key := fmt.Sprint(i)
				if o, ok := x.(map[string]any); ok && o["name"] != nil {
					key = fmt.Sprint(o["name"])
				}
				walk(path+"["+key+"]", x)
			}
		default:
			if _, twice := out[path]; twice {
				t.Errorf("%s: %s is there twice", dir, path)
			}
			out[path] = fmt.Sprint(v)
		}
	}
	for _, r := range m.Resources() {
		o, err := r.Map()
		if err != nil {
			t.Fatal(err)
		}
		id := r.CurId()
		walk(strings.Join([]string{id.Kind, id.Namespace, id.Name}, "/"), o)
	}
	return out
}

const (
	agent     = "DaemonSet/ambit-system/ambit-cni-node.spec.template.spec"
	proxy     = "DaemonSet/ambit-system/ztunnel.spec.template.spec"
	fargate   = ".affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0]"
	variables = agent + ".containers[cni-node].env"
)

// changes are what each overlay does to the plain installation: nothing else.
// A whole object that it adds is one line.
var changes = map[string][]string{
	"kind":     mounted,
	"minikube": mounted,
	"k3s": {
		variables + "[CNI_BIN_DIR].value=/var/lib/rancher/k3s/data/cni",
		variables + "[CNI_CONF_DIR].value=/var/lib/rancher/k3s/agent/etc/cni/net.d",
	},
	"microk8s": {
		variables + "[CNI_BIN_DIR].value=/var/snap/microk8s/current/opt/cni/bin",
		variables + "[CNI_CONF_DIR].value=/var/snap/microk8s/current/args/cni-network",
		variables + "[CRI_SOCKET].value=/var/snap/microk8s/common/run/containerd.sock",
	},
	"gke": {
		variables + "[CNI_BIN_DIR].value=/home/kubernetes/bin",
		"ResourceQuota/ambit-system/ambit-critical-pods",
	},
	"eks": {
		agent + fargate + ".key=eks.amazonaws.com/compute-type",
		agent + fargate + ".operator=NotIn",
		agent + fargate + ".values[0]=fargate",
		proxy + fargate + ".key=eks.amazonaws.com/compute-type",
		proxy + fargate + ".operator=NotIn",
		proxy + fargate + ".values[0]=fargate",
	},
	"openshift": {
		variables + "[CNI_BIN_DIR].value=/var/lib/cni/bin",
		variables + "[CNI_CONF_DIR].value=/etc/kubernetes/cni/net.d",
		proxy + ".containers[istio-proxy].securityContext.seLinuxOptions.type=spc_t",
		"RoleBinding/ambit-system/ambit-scc-nonroot",
		"RoleBinding/ambit-system/ambit-scc-privileged",
	},
}

var mounted = []string{
	agent + ".initContainers[mount-bpffs].command[0]=/usr/local/bin/ambit-cni-node",
	agent + ".initContainers[mount-bpffs].command[1]=--mount-bpffs",
	agent + ".initContainers[mount-bpffs].image=ambit.local/ambit:dev",
	agent + ".initContainers[mount-bpffs].securityContext.privileged=true",
	agent + ".initContainers[mount-bpffs].securityContext.readOnlyRootFilesystem=true",
	agent + ".initContainers[mount-bpffs].securityContext.runAsUser=0",
	agent + ".initContainers[mount-bpffs].terminationMessagePolicy=FallbackToLogsOnError",
	agent + ".initContainers[mount-bpffs].volumeMounts[bpf].mountPath=/sys/fs/bpf",
	agent + ".initContainers[mount-bpffs].volumeMounts[bpf].mountPropagation=Bidirectional",
}

// TestOverlays renders each platform's overlay and compares it with the plain
// installation: the differences are those of the table, and a comment at the
// top of the overlay says why.
//
//ambit:feature install-overlays
func TestOverlays(t *testing.T) {
	base := rendered(t, "ambit")
	dirs, err := filepath.Glob("overlays/*")
	if err != nil {
		t.Fatal(err)
	}
	var known []string
	for _, dir := range dirs {
		b, err := os.ReadFile(filepath.Join(dir, "kustomization.yaml"))
		if err != nil {
			t.Error(err)
			continue
		}
		if !strings.HasPrefix(string(b), "# ") {
			t.Errorf("%s: does not begin by saying why", dir)
		}
		if strings.Contains(string(b), "kind: Component") {
			continue
		}
		platform := filepath.Base(dir)
		known = append(known, platform)
		if !strings.Contains(string(b), "-k deploy/overlays/"+platform+"\n") {
			t.Errorf("%s: does not say how it is applied", dir)
		}
		t.Run(platform, func(t *testing.T) {
			got := map[string]bool{}
			over := rendered(t, dir)
			for path, v := range over {
				object, _, _ := strings.Cut(path, ".")
				switch {
				case base[object+".kind"] == "":
					got[object] = true
				case base[path] != v:
					got[path+"="+v] = true
				}
			}
			for path := range base {
				if _, ok := over[path]; !ok {
					t.Errorf("%s is gone", path)
				}
			}
			for _, want := range changes[platform] {
				if !got[want] {
					t.Errorf("missing: %s", want)
				}
				delete(got, want)
			}
			for _, more := range slices.Sorted(maps.Keys(got)) {
				t.Errorf("nobody asked for: %s", more)
			}
		})
	}
	if want := slices.Sorted(maps.Keys(changes)); !slices.Equal(known, want) {
		t.Errorf("overlays %v, want %v", known, want)
	}
}

// TestOverlaysTakeYourImage: set in deploy/ambit, as the README says, it is the
// image of every container of every overlay.
func TestOverlaysTakeYourImage(t *testing.T) {
	disk, fs := filesys.MakeFsOnDisk(), filesys.MakeFsInMemory()
	for _, pattern := range []string{"ambit/*.yaml", "overlays/*/*.yaml"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			b, err := disk.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			text := strings.ReplaceAll(string(b), "newName: ambit.local/ambit\n    newTag: dev", "newName: example.com/x\n    newTag: v9")
			if err := fs.WriteFile("/"+f, []byte(text)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for platform := range changes {
		m, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(fs, "/overlays/"+platform)
		if err != nil {
			t.Fatal(err)
		}
		text, err := m.AsYaml()
		if err != nil {
			t.Fatal(err)
		}
		all, yours := strings.Count(string(text), " image: "), strings.Count(string(text), " image: example.com/x:v9\n")
		if all < 3 || all != yours {
			t.Errorf("%s: %d images, %d of them yours", platform, all, yours)
		}
	}
}
