package live

import "testing"

// TestAdvice: every reason has a likely cause and a cure.
//
//ambit:feature telemetry-reasons
func TestAdvice(t *testing.T) {
	for _, m := range Reasons() {
		if a := m.Reason.Advice(); a.Cause == "" || a.Cure == "" {
			t.Errorf("%s has no advice", m.Reason)
		}
	}
	if len(advice) != len(meanings) {
		t.Errorf("%d pieces of advice for %d reasons", len(advice), len(meanings))
	}
}
