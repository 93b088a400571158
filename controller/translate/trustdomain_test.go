package translate

import (
	"slices"
	"testing"

	"github.com/ambitmesh/ambit/controller/mesh"
)

// Principals of the mesh's own trust domain stand for every name of it.
//
//ambit:feature policy-trust-domain-aliases
func TestPrincipalAliases(t *testing.T) {
	r := ruleReader{domains: []string{"new.example", "old.example", "older.local"}}
	all := func(rest string) (out []string) {
		for _, d := range r.domains {
			out = append(out, d+rest)
		}
		return out
	}
	for _, c := range []struct {
		in   string
		want []string
	}{
		{"new.example/ns/a/sa/b", all("/ns/a/sa/b")},
		{"old.example/ns/a/sa/b", all("/ns/a/sa/b")},
		{"cluster.local/ns/a/sa/b", all("/ns/a/sa/b")},
		{"foreign/ns/a/sa/b", []string{"foreign/ns/a/sa/b"}},
		{"*/ns/a/sa/b", []string{"*/ns/a/sa/b"}},
		{"*", []string{"*"}},
		{"*b", []string{"*b"}},
		{"old.example*", []string{"old.example*"}},
		{"old.example/ns/a/sa/*", all("/ns/a/sa/*")},
		{"*.local/ns/a/sa/b", []string{"new.example/ns/a/sa/b", "old.example/ns/a/sa/b", "*.local/ns/a/sa/b"}},
		{"*.example/ns/a/sa/b", []string{"*.example/ns/a/sa/b", "older.local/ns/a/sa/b"}},
		{"spiffe://old.example/ns/a/sa/b", []string{"spiffe://old.example/ns/a/sa/b"}},
	} {
		var want []mesh.StringMatch
		for _, s := range c.want {
			want = append(want, stringMatch(s))
		}
		if got := r.principals("", []string{c.in}); !slices.Equal(got, want) {
			t.Errorf("%s: %+v, want %+v", c.in, got, want)
		}
	}
	// One that cannot be read does not hide behind another's names.
	if got := whole(&r, r.principals, "", []string{"new.example/ns/a/sa/b", ""}); got != nil {
		t.Errorf("a list that lost a value: %+v", got)
	}
}
