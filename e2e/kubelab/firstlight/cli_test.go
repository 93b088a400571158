package firstlight

import (
	"regexp"
	"strings"
	"testing"
)

func cliVersion(t *testing.T, l *lab) {
	out, code := l.ambit(t, "version")
	if code != 0 {
		t.Errorf("exit code %d", code)
	}
	for _, want := range []string{`client +` + version, `controller +` + version, `ztunnel +` + version + ` +node1`, `ztunnel +` + version + ` +node2`} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("no line %q in\n%s", want, out)
		}
	}
	if out, code := l.ambit(t, "version", "--client"); code != 0 || !strings.Contains(out, version) {
		t.Errorf("version --client: exit code %d\n%s", code, out)
	}
}

func cliStatus(t *testing.T, l *lab) {
	s := l.space(t, ambient)
	s.pair()
	s.captured("server", "client", "client-beside")
	out, code := l.ambit(t, "status", "-n", s.name)
	if code != 0 || !strings.Contains(out, "Ambit is healthy.") || !strings.Contains(out, "3 of 3 captured") {
		t.Errorf("exit code %d\n%s", code, out)
	}
	for _, part := range []string{"controller", "ztunnel", "node agent"} {
		if !regexp.MustCompile(part + ` +2 of 2 ready`).MatchString(out) {
			t.Errorf("%s is not 2 of 2 ready in\n%s", part, out)
		}
	}
	if out, code := l.ambit(t, "status", "-n", s.name+"-none"); code != 2 {
		t.Errorf("a namespace that is not there: exit code %d, want 2\n%s", code, out)
	}
}
