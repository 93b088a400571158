package malformed

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Case is an object that differs from the one it was made of in one field.
type Case struct {
	Path   string // of the field, from the object's root
	What   string // what was done to it
	Object map[string]any
}

// JSON is the object as it would be sent.
func (c *Case) JSON() []byte {
	b, err := json.Marshal(c.Object)
	if err != nil { // maps, lists, strings, numbers and booleans only
		panic("malformed: " + err.Error())
	}
	return b
}

// Cases changes every field of k's schema in seed, which is a sound object,
// one at a time. Fields that seed lacks are added to it.
func (k *Kind) Cases(seed map[string]any) []Case {
	var out []Case
	for _, c := range k.schema.variants("", normal(seed)) {
		if o, ok := c.value.(map[string]any); ok && len(o) > 0 {
			out = append(out, Case{Path: strings.TrimPrefix(c.path, "."), What: c.what, Object: o})
		}
	}
	return out
}

// normal has integers as int64, whatever decoder they come from.
func normal(v any) any {
	switch v := v.(type) {
	case map[string]any:
		m := make(map[string]any, len(v))
		for k, x := range v {
			m[k] = normal(x)
		}
		return m
	case []any:
		l := make([]any, len(v))
		for i, x := range v {
			l[i] = normal(x)
		}
		return l
	case float64:
		if v == float64(int64(v)) {
			return int64(v)
		}
	case int:
		return int64(v)
	}
	return v
}

// change is one value in place of another.
type change struct {
	path, what string
	value      any
}

// variants are the odd values s admits in place of have. Values are shared
// between them and must not be changed.
func (s *schema) variants(path string, have any) []change {
	if s.IntOrString {
		return slices.Concat(leaves(s, path, integers()), leaves(s, path, texts()))
	}
	switch s.Type {
	case "object":
		m, _ := have.(map[string]any)
		return s.objects(path, m)
	case "array":
		l, _ := have.([]any)
		return s.arrays(path, l)
	case "integer", "number":
		return leaves(s, path, integers())
	case "boolean":
		return leaves(s, path, []any{true, false})
	case "string":
		if len(s.Enum) > 0 {
			return leaves(s, path, s.Enum)
		}
		return leaves(s, path, texts())
	}
	return nil
}

func leaves(s *schema, path string, values []any) []change {
	var out []change
	for _, v := range values {
		if s.admits(v) {
			out = append(out, change{path, "is " + short(v), v})
		}
	}
	return out
}

func (s *schema) objects(path string, have map[string]any) []change {
	var out []change
	with := func(name string, v any) map[string]any {
		m := maps.Clone(have)
		if m == nil {
			m = map[string]any{}
		}
		m[name] = v
		return m
	}
	if len(s.Required) == 0 {
		out = append(out, change{path, "is empty", map[string]any{}})
	}
	for _, name := range slices.Sorted(maps.Keys(s.Properties)) {
		p, at := s.Properties[name], path+"."+name
		now, has := have[name]
		if has && !slices.Contains(s.Required, name) {
			m := maps.Clone(have)
			delete(m, name)
			out = append(out, change{at, "is missing", m})
		}
		if !has {
			now = p.sample()
		}
		for _, c := range p.variants(at, now) {
			out = append(out, change{c.path, c.what, with(name, c.value)})
		}
	}
	if s.Additional == nil || s.Additional.schema == nil {
		return out
	}
	value := s.Additional.schema
	for _, k := range keys() {
		if s.intKeys() && !portKey(k) {
			continue
		}
		out = append(out, change{path, "has key " + short(k), with(k, value.sample())})
	}
	for _, k := range slices.Concat(slices.Sorted(maps.Keys(have)), []string{"80"}) {
		now, has := have[k]
		if !has {
			now = value.sample()
		}
		for _, c := range value.variants(path+"."+k, now) {
			out = append(out, change{c.path, c.what, with(k, c.value)})
		}
	}
	return out
}

// many is how many entries a list gets that has no bound.
const many = 300

func (s *schema) arrays(path string, have []any) []change {
	var out []change
	room := many
	if s.MaxItems != nil {
		room = min(room, *s.MaxItems)
	}
	if s.MinItems == 0 {
		out = append(out, change{path, "is an empty list", []any{}})
	}
	if s.Items == nil || room == 0 {
		return out
	}
	item := s.Items.sample()
	if len(have) > 0 {
		item = have[0]
	}
	rest := have
	if len(rest) > 0 {
		rest = rest[1:]
	}
	if s.ListType != "set" && s.ListType != "map" && room >= 2 {
		out = append(out, change{path, "has an entry twice", append([]any{item, item}, rest...)[:min(room, len(rest)+2)]},
			change{path, fmt.Sprintf("has %d entries", room), slices.Repeat([]any{item}, room)})
	}
	for _, c := range s.Items.variants(path+"[0]", item) {
		out = append(out, change{c.path, c.what, append([]any{c.value}, rest...)})
		_, object := c.value.(map[string]any)
		if !object && len(have) > 0 && len(have) < room {
			at := fmt.Sprintf("%s[%d]", path, len(have))
			out = append(out, change{at, c.what, append(slices.Clone(have), c.value)})
		}
	}
	return out
}

func integers() []any {
	return []any{int64(0), int64(1), int64(-1), int64(15008), int64(65535), int64(65536), int64(65536 + 8080),
		int64(1<<31 - 1), int64(-1 << 31), int64(1<<32 - 1), int64(1 << 53), int64(-1 << 53)}
}

func texts() []any {
	return []any{"", " ", "*", "**", "*x*", "x*", "*x", "a b", "web", "WEB", "true", "maybe", "0", "1", "-1", "80", "007", "+80", "80 ", "65535", "65536", "99999999999999999999", "http",
		"10.0.0.0/8", "10.0.0.0/33", "10.0.0.256", "10.1.2.3/8", "0.0.0.0/0", "::/0", "2001:db8::/129", "::ffff:10.0.0.1", "::ffff:10.0.0.0/104", "fe80::1%eth0", "::", "0.0.0.0", "255.255.255.255", "127.0.0.1",
		"/", "a/b", "a/b/c", "/b", "a/", "../..", "spiffe://", "spiffe://cluster.local/ns/a/sa/b", "cluster.local/ns/a/sa/b", "*/ns/a/sa/b", "cluster.local*", "a.example.com", "*.example.com", "a.*.com", "*.", ".", "a..b",
		"caf\u00e9", "\u202e\u0435xample", "\U0001f600", "a\u0000b", "line\nbreak", "\ufeffx", strings.Repeat("x", 64), strings.Repeat("long.", 2000),
		"0s", "-1s", "1h", "1d", "request.headers[x]", "request.headers[", "source.ip", "source.principal", "destination.port", "no.such.key", "{}", "[]", "null"}
}

func keys() []string {
	return []string{"x", "0", "007", "+80", "65535", "65536", "-1", "a/b", "caf\u00e9", strings.Repeat("x", 300)}
}

func short(v any) string {
	s, ok := v.(string)
	if !ok {
		return fmt.Sprint(v)
	}
	if len(s) > 40 {
		return fmt.Sprintf("%.20q… (%d bytes)", s, len(s))
	}
	return fmt.Sprintf("%q", s)
}
