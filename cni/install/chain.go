package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// Everything in a network configuration that is not ours is passed on byte for
// byte and in its order, known to us or not.

// ourEntry is Entry as it stands in the chain.
type ourEntry struct {
	Type string `json:"type"`
	Entry
	// WrappedFrom is the name of the single-plugin file that was made into a
	// list for us, so that removing us can undo it.
	WrappedFrom string `json:"wrappedFrom,omitempty"`
}

// chain returns the configuration with our entry last, and the name of the file
// it belongs in: a single-plugin configuration becomes a list. A list that is
// already as it should be comes back unchanged.
func chain(b []byte, name string, entry Entry) (out []byte, as string, err error) {
	conf, err := parseObject(b)
	if err != nil {
		return nil, "", err
	}
	if !conf.has("plugins") {
		return wrap(conf, b, name, entry)
	}
	list, err := conf.plugins()
	if err != nil {
		return nil, "", err
	}
	mine := ourEntry{Type: Binary, Entry: entry}
	var others []json.RawMessage
	for _, p := range list {
		if p.kind != Binary {
			others = append(others, p.raw)
			continue
		}
		var old ourEntry
		if json.Unmarshal(p.raw, &old) == nil {
			mine.WrappedFrom = old.WrappedFrom
		}
	}
	if len(others) == 0 {
		return nil, "", errors.New("plugins: nothing but our own entry")
	}
	raw, err := json.Marshal(mine)
	if err != nil {
		return nil, "", err
	}
	last := list[len(list)-1]
	if last.kind == Binary && len(others) == len(list)-1 && sameJSON(last.raw, raw) {
		return b, name, nil
	}
	return conf.render(append(others, raw)), name, nil
}

// wrap makes a list of a single-plugin configuration.
func wrap(conf *object, b []byte, name string, entry Entry) ([]byte, string, error) {
	kind := conf.text("type")
	if kind == "" {
		return nil, "", errors.New("neither plugins nor type: not a network configuration")
	}
	if kind == Binary {
		return nil, "", errors.New("type: our plugin stands alone; it can only be chained")
	}
	list := &object{}
	if v := conf.get("cniVersion"); v != nil {
		list.set("cniVersion", v)
	}
	if conf.text("name") == "" {
		return nil, "", errors.New("name: missing")
	}
	list.set("name", conf.get("name"))
	list.set("plugins", json.RawMessage("[]"))
	raw, err := json.Marshal(ourEntry{Type: Binary, Entry: entry, WrappedFrom: name})
	if err != nil {
		return nil, "", err
	}
	base := strings.TrimSuffix(strings.TrimSuffix(name, ".conf"), ".json")
	return list.render([]json.RawMessage{json.RawMessage(bytes.TrimSpace(b)), raw}), base + ".conflist", nil
}

// unchain returns the configuration without our entry, nil when it has none.
// original names the file a wrapped configuration came from; out is then what
// was in it.
func unchain(b []byte) (out []byte, original string, err error) {
	conf, err := parseObject(b)
	if err != nil {
		return nil, "", err
	}
	if !conf.has("plugins") {
		return nil, "", nil
	}
	list, err := conf.plugins()
	if err != nil {
		return nil, "", err
	}
	var others []json.RawMessage
	var from string
	for _, p := range list {
		if p.kind != Binary {
			others = append(others, p.raw)
			continue
		}
		var old ourEntry
		if json.Unmarshal(p.raw, &old) == nil {
			from = old.WrappedFrom
		}
	}
	if len(others) == len(list) {
		return nil, "", nil
	}
	if from != "" && len(others) == 1 {
		var pretty bytes.Buffer
		if err := json.Indent(&pretty, others[0], "", "  "); err != nil {
			return nil, "", err
		}
		pretty.WriteByte('\n')
		return pretty.Bytes(), from, nil
	}
	return conf.render(others), "", nil
}

// object is a JSON object whose members keep their order.
type object struct {
	keys   []string
	values map[string]json.RawMessage
}

func parseObject(b []byte) (*object, error) {
	if len(bytes.TrimSpace(b)) == 0 {
		return nil, errors.New("file is empty")
	}
	if !json.Valid(b) {
		var v any
		err := json.Unmarshal(b, &v)
		return nil, fmt.Errorf("not JSON: %w", err)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("not a JSON object")
	}
	o := &object{}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return nil, err
		}
		key, ok := t.(string)
		if !ok {
			return nil, errors.New("not a JSON object")
		}
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return nil, err
		}
		o.set(key, raw)
	}
	return o, nil
}

func (o *object) has(key string) bool            { _, ok := o.values[key]; return ok }
func (o *object) get(key string) json.RawMessage { return o.values[key] }

func (o *object) text(key string) string {
	var s string
	if json.Unmarshal(o.values[key], &s) != nil {
		return ""
	}
	return s
}

func (o *object) set(key string, v json.RawMessage) {
	if o.values == nil {
		o.values = make(map[string]json.RawMessage)
	}
	if !o.has(key) {
		o.keys = append(o.keys, key)
	}
	o.values[key] = v
}

type plugin struct {
	kind string
	raw  json.RawMessage
}

// plugins checks what the runtime checks: without a name or a type it would
// not use the file either.
func (o *object) plugins() ([]plugin, error) {
	if o.text("name") == "" {
		return nil, errors.New("name: missing")
	}
	var raws []json.RawMessage
	if err := json.Unmarshal(o.get("plugins"), &raws); err != nil {
		return nil, fmt.Errorf("plugins: %w", err)
	}
	if len(raws) == 0 {
		return nil, errors.New("plugins: empty")
	}
	out := make([]plugin, len(raws))
	for i, raw := range raws {
		var p struct {
			Type string `json:"type"`
		}
		if err := json.Unmarshal(raw, &p); err != nil {
			return nil, fmt.Errorf("plugins[%d]: %w", i, err)
		}
		if p.Type == "" {
			return nil, fmt.Errorf("plugins[%d]: type: missing", i)
		}
		out[i] = plugin{p.Type, raw}
	}
	return out, nil
}

// render writes the object with other plugins.
func (o *object) render(plugins []json.RawMessage) []byte {
	var flat bytes.Buffer
	flat.WriteByte('{')
	for i, key := range o.keys {
		if i > 0 {
			flat.WriteByte(',')
		}
		k, _ := json.Marshal(key) // a string always encodes
		flat.Write(k)
		flat.WriteByte(':')
		if key != "plugins" {
			flat.Write(o.values[key])
			continue
		}
		flat.WriteByte('[')
		flat.Write(bytes.Join(rawBytes(plugins), []byte(",")))
		flat.WriteByte(']')
	}
	flat.WriteByte('}')
	var pretty bytes.Buffer
	if json.Indent(&pretty, flat.Bytes(), "", "  ") != nil {
		return flat.Bytes() // cannot happen: every part was valid JSON
	}
	pretty.WriteByte('\n')
	return pretty.Bytes()
}

func rawBytes(in []json.RawMessage) [][]byte {
	out := make([][]byte, len(in))
	for i, r := range in {
		out[i] = r
	}
	return out
}

func sameJSON(a, b []byte) bool {
	var x, y bytes.Buffer
	return json.Compact(&x, a) == nil && json.Compact(&y, b) == nil && bytes.Equal(x.Bytes(), y.Bytes())
}
