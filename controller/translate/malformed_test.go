package translate

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/mesh/authz"
	"github.com/ambitmesh/ambit/controller/translate/malformed"
	"github.com/ambitmesh/ambit/hbone/identity"
)

// Objects that are odd in one field, whichever it is, are translated without a
// panic; an error names object and field; nothing else changes; and what a
// policy has lost of its meaning it has lost on the safe side.
//
//ambit:feature bad-input
func TestMalformed(t *testing.T) {
	files, err := filepath.Glob("../../deploy/crds/*/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no CRDs: %v", err)
	}
	kinds, err := malformed.Definitions(files...)
	if err != nil {
		t.Fatal(err)
	}
	core, err := malformed.Core()
	if err != nil {
		t.Fatal(err)
	}
	kinds = append(kinds, core...)
	beside := &Set{}
	for _, doc := range documents(t, "testdata/malformed/neighbours.yaml") {
		if err := beside.put(doc); err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
	}
	before, err := All(oddConfig(), beside)
	if err != nil {
		t.Fatal(err)
	}
	seeded := map[string]bool{}
	for i, doc := range documents(t, "testdata/malformed/seeds.yaml") {
		var seed map[string]any
		if err := yaml.Unmarshal([]byte(doc), &seed); err != nil {
			t.Fatal(err)
		}
		name := seed["kind"].(string)
		seeded[name] = true
		t.Run(fmt.Sprintf("%s %d", name, i), func(t *testing.T) {
			at := slices.IndexFunc(kinds, func(k malformed.Kind) bool { return k.Kind == name })
			if at < 0 {
				t.Fatalf("no schema of kind %s", name)
			}
			m := &oddity{kind: name, beside: beside, before: before, seed: doc}
			m.run(t, kinds[at].Cases(seed))
		})
	}
	// A kind that translations read has its seed.
	for _, k := range kinds {
		if kind := k.Kind; !seeded[kind] && (&Set{}).lists()[kind].IsValid() {
			t.Errorf("no seed of kind %s in testdata/malformed/seeds.yaml", kind)
		}
	}
}

// oddConfig has everything on.
func oddConfig() Config {
	c := testConfig()
	c.NetworkPolicies = true
	return c
}

// documents are the YAML documents of a file.
func documents(t testing.TB, file string) []string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return document.Split(string(text), -1)
}

// lists are the fields of s by the kind they hold.
func (s *Set) lists() map[string]reflect.Value {
	out := map[string]reflect.Value{}
	v := reflect.ValueOf(s).Elem()
	for i := range v.NumField() {
		f := v.Field(i)
		if f.Kind() != reflect.Slice {
			continue
		}
		out[f.Type().Elem().Elem().Name()] = f
	}
	return out
}

// put adds the object of a YAML or JSON text.
func (s *Set) put(text string) error {
	var head struct{ Kind string }
	if err := yaml.Unmarshal([]byte(text), &head); err != nil {
		return err
	}
	list, ok := s.lists()[head.Kind]
	if !ok {
		return fmt.Errorf("kind %q is not one that translations read", head.Kind)
	}
	o := reflect.New(list.Type().Elem().Elem())
	if err := yaml.Unmarshal([]byte(text), o.Interface()); err != nil {
		return err
	}
	list.Set(reflect.Append(slices3(list), o))
	return nil
}

// slices3 is list without room to grow, so that a copy of the set can have
// another last entry.
func slices3(list reflect.Value) reflect.Value { return list.Slice3(0, list.Len(), list.Len()) }

// oddity is one seed with what it is put beside.
type oddity struct {
	kind   string
	beside *Set
	before mesh.Delta
	seed   string
}

func (m *oddity) with(text string) (Set, metav1.Object, error) {
	s := *m.beside
	if err := s.put(text); err != nil {
		return s, nil, err
	}
	list := s.lists()[m.kind]
	return s, list.Index(list.Len() - 1).Interface().(metav1.Object), nil
}

func (m *oddity) run(t *testing.T, cases []malformed.Case) {
	sound, seed, err := m.with(m.seed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := All(oddConfig(), &sound); err != nil {
		t.Fatalf("the seed itself: %v", err)
	}
	if len(cases) < 20 {
		t.Fatalf("only %d cases", len(cases))
	}
	admits := m.admitted(t, &sound)
	failed, unreadable := 0, map[string]bool{}
	step := 1
	if raceDetector { // nothing here runs beside anything else
		step = 11
	}
	for i := 0; i < len(cases); i += step {
		c := &cases[i]
		if strings.HasPrefix(c.Path, "metadata.") && i%4 != 0 {
			continue // the same texts for every label and annotation: each in one of four
		}
		what := fmt.Sprintf("%s %s", c.Path, c.What)
		odd, o, err := m.with(string(c.JSON()))
		if err != nil {
			// The generated client of the kind cannot read what its schema
			// admits: controller/kube has to get past such objects.
			unreadable[c.Path] = true
			continue
		}
		d, err := m.translate(t, what, &odd)
		if err != nil {
			failed++
			m.named(t, what, err, o)
			m.closed(t, what, &odd, admits)
		}
		m.unchanged(t, what, d, seed)
		if t.Failed() {
			t.Fatalf("%.2000s", c.JSON())
		}
	}
	t.Logf("%d cases, %d with an error, no client reads odd values of %v", len(cases), failed, slices.Sorted(maps.Keys(unreadable)))
}

func (m *oddity) translate(t *testing.T, what string, s *Set) (d mesh.Delta, err error) {
	defer func() {
		if p := recover(); p != nil {
			t.Fatalf("%s: panic: %v", what, p)
		}
	}()
	return All(oddConfig(), s)
}

// named wants the object and a field of it in every error.
func (m *oddity) named(t *testing.T, what string, err error, o metav1.Object) {
	for _, e := range flatten(err) {
		var named *Error
		switch {
		case !errors.As(e, &named):
			t.Errorf("%s: an error without object and field: %v", what, e)
		case named.Kind != m.kind || named.Name != o.GetName() || named.Namespace != o.GetNamespace() || named.Field == "" || named.Problem == "":
			t.Errorf("%s: %v", what, e)
		}
	}
}

func flatten(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var out []error
		for _, e := range joined.Unwrap() {
			out = append(out, flatten(e)...)
		}
		return out
	}
	return []error{err}
}

// unchanged wants everything that is not of the odd object as it was before.
// What a workload says of that object, its service or its policy, is left out.
func (m *oddity) unchanged(t *testing.T, what string, d mesh.Delta, seed metav1.Object) {
	of := func(s string) bool { return strings.Contains(s, "odd") }
	now := map[string]*mesh.Workload{}
	for _, w := range d.Workloads {
		now[w.UID] = w
	}
	for _, old := range m.before.Workloads {
		w := now[old.UID]
		if w == nil {
			t.Errorf("%s: workload %s is gone", what, old.UID)
			continue
		}
		a, b := *old, *w
		for _, x := range []*mesh.Workload{&a, &b} {
			x.Services = maps.Clone(x.Services)
			maps.DeleteFunc(x.Services, func(k string, _ []mesh.Port) bool {
				// A slice gives its service's ports to the pods it names.
				return of(k) || m.kind == "EndpointSlice" && strings.HasPrefix(k, "ns/outside.")
			})
			if len(x.Services) == 0 {
				x.Services = nil
			}
			x.Policies = slices.DeleteFunc(slices.Clone(x.Policies), func(k string) bool {
				return of(k) || m.kind == "PeerAuthentication" && strings.HasSuffix(k, staticStrictName) || strings.Contains(k, "networkpolicy")
			})
			if len(x.Policies) == 0 {
				x.Policies = nil
			}
		}
		if m.kind == "Node" || m.kind == "Namespace" {
			continue // theirs are not about the odd ones, and have nothing in common with them
		}
		if !reflect.DeepEqual(a, b) {
			t.Errorf("%s: workload %s has become\n%+v, was\n%+v", what, old.UID, b, a)
		}
	}
	services := map[string]*mesh.Service{}
	for _, s := range d.Services {
		services[s.Key()] = s
	}
	for _, old := range m.before.Services {
		if !reflect.DeepEqual(old, services[old.Key()]) {
			t.Errorf("%s: service %s has become\n%+v, was\n%+v", what, old.Key(), services[old.Key()], old)
		}
	}
	policies := map[string]*mesh.Policy{}
	for _, p := range d.Policies {
		policies[p.Key()] = p
	}
	for _, old := range m.before.Policies {
		if m.kind == "NetworkPolicy" && strings.Contains(old.Name, "networkpolicy") {
			continue
		}
		if !reflect.DeepEqual(old, policies[old.Key()]) {
			t.Errorf("%s: policy %s has become\n%+v, was\n%+v", what, old.Key(), policies[old.Key()], old)
		}
	}
}

// connections are to every neighbour from several peers on several ports.
func (m *oddity) connections() (out []authz.Conn) {
	for _, to := range []string{"10.0.0.1", "10.0.0.2"} {
		for _, port := range []uint16{80, 81, 8080, 9090} {
			for _, from := range []string{"10.0.0.2", "10.0.0.3", "10.0.0.77", "192.0.2.1", "2001:db8::2"} {
				for _, peer := range []identity.ID{{}, {TrustDomain: "cluster.local", Namespace: "next", ServiceAccount: "default"}, {TrustDomain: "cluster.local", Namespace: "ns", ServiceAccount: "next"}} {
					out = append(out, authz.Conn{Peer: peer, Src: netip.AddrPortFrom(netip.MustParseAddr(from), 4000), Dst: netip.AddrPortFrom(netip.MustParseAddr(to), port)})
				}
			}
		}
	}
	return out
}

// admitted are the connections that pass with the set in force.
func (m *oddity) admitted(t *testing.T, s *Set) map[authz.Conn]bool {
	d, _ := m.translate(t, "", s)
	b := mesh.NewBuilder(nil)
	b.Apply(d)
	snap := b.Build()
	out := map[authz.Conn]bool{}
	for _, c := range m.connections() {
		if w := snap.WorkloadAt("", c.Dst.Addr()); w != nil {
			out[c] = authz.Decide(snap, w, c).Allow
		}
	}
	return out
}

// closed: a policy with an error admits nothing that it would not admit
// without.
func (m *oddity) closed(t *testing.T, what string, s *Set, sound map[authz.Conn]bool) {
	switch m.kind {
	case "AuthorizationPolicy", "NetworkPolicy", "PeerAuthentication":
	default:
		return
	}
	for c, allow := range m.admitted(t, s) {
		if allow && !sound[c] {
			t.Errorf("%s: now passes: %+v", what, c)
			return
		}
	}
}
