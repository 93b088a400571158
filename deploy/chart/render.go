// Command chart renders the Helm chart's templates from the manifests in
// deploy/ambit, so that there is one place where an object is written and two
// ways to install it. A change in the manifests that takes away what a value
// stands in for stops it.
package main

//go:generate go run .

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const (
	source   = "../ambit"
	overlays = "../overlays"
)

// left out: Helm makes the release's namespace itself, and the other is
// kustomize's own.
var leftOut = []string{"namespace.yaml", "kustomization.yaml"}

// put is a place in a manifest where a value of the chart goes.
type put struct {
	file string
	old  string
	new  string
}

// puts is every place, apart from the namespace and the image, which are
// everywhere. Functions are those of text/template and toYaml, nindent and
// quote: what Helm and the test of the chart render alike.
var puts = []put{
	{"controller.yaml", "  replicas: 2\n", "  replicas: {{ .Values.controller.replicas }}\n"},
	{"controller.yaml", "            requests: {cpu: 100m, memory: 128Mi}\n", resources("controller")},
	{"controller.yaml", "              value: Kubernetes\n", "              value: {{ .Values.clusterID | quote }}\n" + env("TRUST_DOMAIN", "trustDomain") + unless("EXCLUDE_NAMESPACES", "excludeNamespaces", "kube-system")},
	{"controller.yaml", "          command: [/usr/local/bin/ambit-controller]\n", "          command: [/usr/local/bin/ambit-controller]\n" + args("controller")},
	{"controller.yaml", "      serviceAccountName: ambit-controller\n", "      serviceAccountName: ambit-controller\n" + pullSecrets},
	{"cni-node.yaml", "            requests: {cpu: 50m, memory: 64Mi}\n", resources("cni")},
	{"cni-node.yaml", "              value: kube-system\n", "              value: {{ .Values.excludeNamespaces | quote }}\n" +
		perPlatform("CNI_BIN_DIR", "cni.binDir") + perPlatform("CNI_CONF_DIR", "cni.confDir") + perPlatform("CRI_SOCKET", "cni.criSocket")},
	{"cni-node.yaml", "              value: \"true\"\n", "              value: {{ .Values.cni.dnsCapture | quote }}\n"},
	{"cni-node.yaml", "      containers:\n", mountBPFFS + "      containers:\n"},
	{"cni-node.yaml", "      nodeSelector:\n", noFargate + "      nodeSelector:\n"},
	{"cni-node.yaml", "          command: [/usr/local/bin/ambit-cni-node]\n", "          command: [/usr/local/bin/ambit-cni-node]\n" + args("cni")},
	{"cni-node.yaml", "      serviceAccountName: ambit-cni-node\n", "      serviceAccountName: ambit-cni-node\n" + pullSecrets},
	{"ztunnel.yaml", "              value: Kubernetes\n", "              value: {{ .Values.clusterID | quote }}\n" + env("TRUST_DOMAIN", "trustDomain") + extraEnv},
	{"ztunnel.yaml", "            requests: {cpu: 100m, memory: 64Mi}\n            # The proxy sizes its buffers by this. No CPU limit: throttling a\n            # node's proxy is throttling every pod of the node.\n            limits: {memory: 1Gi}\n", resources("ztunnel")},
	{"ztunnel.yaml", "      serviceAccountName: ztunnel\n", "      serviceAccountName: ztunnel\n" + pullSecrets},
	{"ztunnel.yaml", "      nodeSelector:\n", noFargate + "      nodeSelector:\n"},
	{"ztunnel.yaml", "            runAsGroup: 1337\n", "            runAsGroup: 1337\n" + seLinux},
}

// platforms are where a platform's overlay sets a variable of the agent. The
// overlays say why; a test renders both ways for each platform and compares.
var platforms = map[string][][2]string{
	"CNI_BIN_DIR": {
		{"k3s", "/var/lib/rancher/k3s/data/cni"},
		{"microk8s", "/var/snap/microk8s/current/opt/cni/bin"},
		{"gke", "/home/kubernetes/bin"},
		{"openshift", "/var/lib/cni/bin"},
	},
	"CNI_CONF_DIR": {
		{"k3s", "/var/lib/rancher/k3s/agent/etc/cni/net.d"},
		{"microk8s", "/var/snap/microk8s/current/args/cni-network"},
		{"openshift", "/etc/kubernetes/cni/net.d"},
	},
	"CRI_SOCKET": {
		{"microk8s", "/var/snap/microk8s/common/run/containerd.sock"},
	},
}

// extras are the objects that an overlay adds.
var extras = []struct{ platform, file string }{
	{"gke", "quota.yaml"},
	{"openshift", "scc.yaml"},
}

const mountBPFFS = `{{- if or .Values.cni.mountBPFFS (eq .Values.platform "kind" "minikube") }}
      initContainers:
        - name: mount-bpffs
          image: ambit
          command: [/usr/local/bin/ambit-cni-node, --mount-bpffs]
          terminationMessagePolicy: FallbackToLogsOnError
          securityContext:
            privileged: true
            runAsUser: 0
            readOnlyRootFilesystem: true
          volumeMounts:
            - {name: bpf, mountPath: /sys/fs/bpf, mountPropagation: Bidirectional}
{{- end }}
`

const noFargate = `{{- if eq .Values.platform "eks" }}
      affinity:
        nodeAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
            nodeSelectorTerms:
              - matchExpressions:
                  - key: eks.amazonaws.com/compute-type
                    operator: NotIn
                    values: [fargate]
{{- end }}
`

const seLinux = `{{- if eq .Values.platform "openshift" }}
            seLinuxOptions:
              type: spc_t
{{- end }}
`

const pullSecrets = `{{- with .Values.imagePullSecrets }}
      imagePullSecrets: {{- toYaml . | nindent 8 }}
{{- end }}
`

const extraEnv = `{{- with .Values.ztunnel.env }}
{{- toYaml . | nindent 12 }}
{{- end }}
`

const image = `          image: {{ .Values.image | quote }}
{{- with .Values.imagePullPolicy }}
          imagePullPolicy: {{ . }}
{{- end }}
`

func resources(part string) string {
	return "            {{- toYaml .Values." + part + ".resources | nindent 12 }}\n"
}

// env sets a variable when the value is set.
func env(name, value string) string {
	return "{{- with .Values." + value + " }}\n            - name: " + name + "\n              value: {{ . | quote }}\n{{- end }}\n"
}

// perPlatform sets a variable to the value, or to what the platform needs.
func perPlatform(name, value string) string {
	text := "{{- if .Values." + value + " }}\n            - name: " + name + "\n              value: {{ .Values." + value + " | quote }}\n"
	for _, p := range platforms[name] {
		text += "{{- else if eq .Values.platform \"" + p[0] + "\" }}\n            - name: " + name + "\n              value: " + p[1] + "\n"
	}
	return text + "{{- end }}\n"
}

// unless sets a variable when the value is not the program's default.
func unless(name, value, fallback string) string {
	return "{{- if ne .Values." + value + " \"" + fallback + "\" }}\n            - name: " + name +
		"\n              value: {{ .Values." + value + " | quote }}\n{{- end }}\n"
}

func args(part string) string {
	return "{{- with .Values." + part + ".args }}\n          args: {{- toYaml . | nindent 12 }}\n{{- end }}\n"
}

func main() {
	if err := run("."); err != nil {
		fmt.Fprintln(os.Stderr, "chart:", err)
		os.Exit(1)
	}
}

// run writes the objects of templates/ below dir; NOTES.txt there is no object.
func run(dir string) error {
	templates, err := render()
	if err != nil {
		return err
	}
	to := filepath.Join(dir, "templates")
	old, err := filepath.Glob(filepath.Join(to, "*.yaml"))
	if err != nil {
		return err
	}
	for _, f := range old {
		if err := os.Remove(f); err != nil {
			return err
		}
	}
	for name, text := range templates {
		if err := os.WriteFile(filepath.Join(to, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// render makes the templates by their file names.
func render() (map[string]string, error) {
	files, err := filepath.Glob(filepath.Join(source, "*.yaml"))
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
files:
	for _, f := range files {
		name := filepath.Base(f)
		for _, l := range leftOut {
			if name == l {
				continue files
			}
		}
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		text := string(b)
		if strings.Contains(text, "{{") {
			return nil, fmt.Errorf("%s: %q means something to Helm", f, "{{")
		}
		for _, p := range puts {
			if p.file != name {
				continue
			}
			if n := strings.Count(text, p.old); n != 1 {
				return nil, fmt.Errorf("%s: %q is there %d times, want once: a value of the chart goes there", f, strings.TrimSpace(p.old), n)
			}
			text = strings.Replace(text, p.old, p.new, 1)
		}
		out[name] = header("deploy/ambit/"+name) + values(text)
	}
	for _, e := range extras {
		b, err := os.ReadFile(filepath.Join(overlays, e.platform, e.file))
		if err != nil {
			return nil, err
		}
		name := e.platform + "-" + e.file
		out[name] = header("deploy/overlays/"+e.platform+"/"+e.file) +
			"{{- if eq .Values.platform \"" + e.platform + "\" }}\n" + values(string(b)) + "{{- end }}\n"
	}
	return out, nil
}

func header(from string) string {
	return "{{- /* Rendered by `make generate` from " + from + ". Do not edit. */}}\n"
}

// values puts in what is everywhere.
func values(text string) string {
	text = strings.ReplaceAll(text, "          image: ambit\n", image)
	return strings.ReplaceAll(text, "ambit-system", "{{ .Release.Namespace }}")
}
