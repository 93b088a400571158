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

const source = "../ambit"

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
	{"cni-node.yaml", "              value: kube-system\n", "              value: {{ .Values.excludeNamespaces | quote }}\n" + env("CNI_BIN_DIR", "cni.binDir") + env("CNI_CONF_DIR", "cni.confDir")},
	{"cni-node.yaml", "          command: [/usr/local/bin/ambit-cni-node]\n", "          command: [/usr/local/bin/ambit-cni-node]\n" + args("cni")},
	{"cni-node.yaml", "      serviceAccountName: ambit-cni-node\n", "      serviceAccountName: ambit-cni-node\n" + pullSecrets},
	{"ztunnel.yaml", "              value: Kubernetes\n", "              value: {{ .Values.clusterID | quote }}\n" + env("TRUST_DOMAIN", "trustDomain") + extraEnv},
	{"ztunnel.yaml", "            requests: {cpu: 100m, memory: 64Mi}\n            # The proxy sizes its buffers by this. No CPU limit: throttling a\n            # node's proxy is throttling every pod of the node.\n            limits: {memory: 1Gi}\n", resources("ztunnel")},
	{"ztunnel.yaml", "      serviceAccountName: ztunnel\n", "      serviceAccountName: ztunnel\n" + pullSecrets},
}

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

// run writes templates/ below dir.
func run(dir string) error {
	templates, err := render()
	if err != nil {
		return err
	}
	to := filepath.Join(dir, "templates")
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
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
		text = strings.ReplaceAll(text, "          image: ambit\n", image)
		text = strings.ReplaceAll(text, "ambit-system", "{{ .Release.Namespace }}")
		out[name] = "{{- /* Rendered by `make generate` from deploy/ambit/" + name + ". Do not edit. */}}\n" + text
	}
	return out, nil
}
