package firstlight

import (
	"regexp"
	"strings"
	"testing"

	"github.com/ambitmesh/ambit/e2e/kubelab/ambitlab"
)

func cliVersion(t *testing.T, l *ambitlab.Lab) {
	out, code := l.Ambit(t, "version")
	if code != 0 {
		t.Errorf("exit code %d", code)
	}
	for _, want := range []string{`client +` + ambitlab.Version, `controller +` + ambitlab.Version, `ztunnel +` + ambitlab.Version + ` +node1`, `ztunnel +` + ambitlab.Version + ` +node2`} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("no line %q in\n%s", want, out)
		}
	}
	if out, code := l.Ambit(t, "version", "--client"); code != 0 || !strings.Contains(out, ambitlab.Version) {
		t.Errorf("version --client: exit code %d\n%s", code, out)
	}
}

func cliStatus(t *testing.T, l *ambitlab.Lab) {
	s := l.Space(t, ambitlab.Ambient)
	s.Pair()
	s.Captured("server", "client", "client-beside")
	out, code := l.Ambit(t, "status", "-n", s.Name)
	if code != 0 || !strings.Contains(out, "Ambit is healthy.") || !strings.Contains(out, "3 of 3 captured") {
		t.Errorf("exit code %d\n%s", code, out)
	}
	for _, part := range []string{"controller", "ztunnel", "node agent"} {
		if !regexp.MustCompile(part + ` +2 of 2 ready`).MatchString(out) {
			t.Errorf("%s is not 2 of 2 ready in\n%s", part, out)
		}
	}
	if out, code := l.Ambit(t, "status", "-n", s.Name+"-none"); code != 2 {
		t.Errorf("a namespace that is not there: exit code %d, want 2\n%s", code, out)
	}
}

// cliAsks asks the components by the API server's port forwarding.
func cliAsks(t *testing.T, l *ambitlab.Lab) {
	s := l.Space(t, ambitlab.Ambient)
	s.Pair()
	s.Captured("server", "client", "client-beside")
	for _, c := range []struct{ args, want string }{
		{"ztunnel-config workload --node node1 --workload-namespace " + s.Name, s.Name + ` +server +\S+ +node2 +None +HBONE`},
		{"ztunnel-config service --node node2 --service-namespace " + s.Name, s.Name + ` +server +`},
		{"ztunnel-config certificate client." + s.Name, `spiffe://cluster.local/ns/` + s.Name + `/sa/\S+ +Leaf +Available +true`},
		{"ztunnel-config log --node node1", `info`},
		{"proxy-status", `(?s)NAME +CLUSTER +ISTIOD +VERSION +SUBSCRIBED TYPES\n(ztunnel-\S+ +Kubernetes +ambit-controller-\S+ +\S+ +2 \(WADS,WDS\)\n){2}$`},
		{"proxy-status -v 1", `(?s)NAME +CLUSTER +WDS +WADS +ISTIOD +VERSION\n(ztunnel-\S+ +Kubernetes +SYNCED \(\S+\) +SYNCED \(\S+\) +ambit-controller-\S+ +\S+\n){2}$`},
	} {
		ambitlab.Until(t, "ambit "+c.args+" to show "+c.want, func() (string, bool) {
			out, code := l.Ambit(t, strings.Fields(c.args)...)
			return out, code == 0 && regexp.MustCompile(c.want).MatchString(out)
		})
	}
	if out, code := l.Ambit(t, "ztunnel-config", "workload", "nobody."+s.Name); code == 0 || !strings.Contains(out, "nobody") {
		t.Errorf("a pod that is not there: exit code %d\n%s", code, out)
	}
}
