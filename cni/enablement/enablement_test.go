package enablement

import "testing"

// TestDefault is the documented table: the pod's own label wins.
//
//ambit:feature enrol-labels
func TestDefault(t *testing.T) {
	for _, c := range []struct {
		namespace, pod string
		want           bool
	}{
		{"", "", false},
		{None, "", false},
		{"", Ambient, true},
		{Ambient, "", true},
		{Ambient, None, false},
		{None, Ambient, true},
		{"else", "", false},
		{Ambient, "else", true},
		{"", "else", false},
		{"", None, false},
	} {
		set := func(v string) map[string]string {
			if v == "" {
				return map[string]string{"app": "x"}
			}
			return map[string]string{"app": "x", Label: v}
		}
		if got := Default().Match(set(c.pod), set(c.namespace)); got != c.want {
			t.Errorf("namespace %q, pod %q: %v, want %v", c.namespace, c.pod, got, c.want)
		}
	}
}

//ambit:feature enrol-selectors
func TestParse(t *testing.T) {
	const text = `
- podSelector: {matchLabels: {team: a}}
  namespaceSelector: {matchExpressions: [{key: mesh, operator: Exists}]}
- podSelector: {matchLabels: {mesh: "yes"}}
- namespaceSelector: {matchLabels: {all: "true"}}
`
	s, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	type set = map[string]string
	for _, c := range []struct {
		pod, namespace set
		want           bool
	}{
		{nil, nil, false},
		{set{"team": "a"}, nil, false},
		{set{"team": "a"}, set{"mesh": ""}, true},
		{set{"team": "b"}, set{"mesh": ""}, false},
		{set{"mesh": "yes"}, nil, true},
		{nil, set{"all": "true"}, true},
		{set{Label: Ambient}, set{Label: Ambient}, false}, // not among them
	} {
		if got := s.Match(c.pod, c.namespace); got != c.want {
			t.Errorf("pod %v in %v: %v, want %v", c.pod, c.namespace, got, c.want)
		}
	}
	for _, empty := range []string{"", "[]", "null", " "} {
		if s, err := Parse(empty); err != nil || !s.Match(set{Label: Ambient}, nil) || s.Match(nil, nil) {
			t.Errorf("%q is not the default: %v", empty, err)
		}
	}
	for _, bad := range []string{"x", "{}", "- podSelectors: {}", "- podSelector: {matchExpressions: [{key: a, operator: Is}]}",
		"- namespaceSelector: {matchLabels: {\"a b\": c}}", "- podSelector: [a]"} {
		if s, err := Parse(bad); err == nil {
			t.Errorf("%q is taken: %v", bad, s)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("- podSelector: {matchLabels: {a: b}}\n  namespaceSelector: {}")
	f.Add("[]")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse(text)
		if (err == nil) != (len(s) > 0) {
			t.Fatalf("%d selectors with %v", len(s), err)
		}
		s.Match(map[string]string{Label: Ambient}, nil)
	})
}
