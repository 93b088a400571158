package dns

import (
	"slices"
	"strings"
	"testing"
)

func TestAliases(t *testing.T) {
	for name, want := range map[string]string{
		"x":                         "x x.ns.svc.c.local",
		"x.y":                       "x.y x.y.svc.c.local x.y.ns.svc.c.local",
		"x.y.z":                     "x.y.z x.y.z.svc.c.local",
		"x.y.svc":                   "x.y.svc x.y.svc.c.local x.y.svc.svc.c.local",
		"a.b.c.d":                   "a.b.c.d",
		"a.b.c.svc":                 "a.b.c.svc a.b.c.svc.c.local",
		"a.b.c.d.e":                 "a.b.c.d.e",
		"x.ns.svc.c.local":          "x.ns.svc.c.local x<x x.ns.svc.c.local<x x.ns<x.ns x.ns.svc.c.local<x.ns x.ns.ns.svc.c.local<x.ns x.ns.svc<x.ns.svc x.ns.svc.c.local<x.ns.svc x.ns.svc.svc.c.local<x.ns.svc",
		"a.example.com.svc.c.local": "a.example.com.svc.c.local a.example.com<a.example.com a.example.com.svc.c.local<a.example.com a.example.com.svc<a.example.com.svc a.example.com.svc.c.local<a.example.com.svc",
		"c.local":                   "c.local c.local.svc.c.local c.local.ns.svc.c.local",
		"ns.svc.c.local":            "ns.svc.c.local ns<ns ns.ns.svc.c.local<ns ns.svc<ns.svc ns.svc.svc.c.local<ns.svc ns.svc.ns.svc.c.local<ns.svc",
	} {
		var got []string
		for a := range aliases(name, "ns", "c.local") {
			s := a.name
			if a.stripped != "" {
				s += "<" + a.stripped
			}
			got = append(got, s)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s:\n%s, want\n%s", name, strings.Join(got, " "), want)
		}
	}
	for range aliases("x.ns.svc.c.local", "ns", "c.local") {
		break // whoever has found something goes
	}
}

func TestWildcards(t *testing.T) {
	for name, want := range map[string][]string{"a.b.c": {"*.b.c", "*.c"}, "a": nil, "": nil, "*.a": {"*.a"}} {
		if got := slices.Collect(wildcards(name)); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}
