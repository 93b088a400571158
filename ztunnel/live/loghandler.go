package live

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// ScopeKey is the attribute that names a logger's target, "access" for the
// access log. It is printed as the target, not as a field.
const ScopeKey = "scope"

// Text is a field value printed without quotes: an address, a number with a
// unit that the reference leaves bare.
type Text string

// LogHandler is a slog.Handler that writes the log formats of Istio's ztunnel:
// tab-separated text, or one flat JSON object per line.
type LogHandler struct {
	out    *lockedWriter // shared by all derived handlers
	json   bool
	levels *Levels
	scope  string
	prefix []byte // fields of WithAttrs, formatted
	group  string
}

type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

// NewLogHandler writes to w; each record is one Write.
func NewLogHandler(w io.Writer, json bool, levels *Levels) *LogHandler {
	return &LogHandler{out: &lockedWriter{w: w}, json: json, levels: levels, scope: "ztunnel"}
}

// Enabled asks the levels of the handler's scope.
func (h *LogHandler) Enabled(_ context.Context, l slog.Level) bool {
	return l >= h.levels.level(h.scope)
}

// WithAttrs adds fields; a ScopeKey attribute names the scope instead.
func (h *LogHandler) WithAttrs(as []slog.Attr) slog.Handler {
	n := *h
	n.prefix = append([]byte(nil), h.prefix...)
	for _, a := range as {
		if a.Key == ScopeKey && h.group == "" {
			n.scope = a.Value.String()
			continue
		}
		n.prefix = n.field(n.prefix, n.group, a)
	}
	return &n
}

// WithGroup puts later fields under name with a dot, flat as in the reference.
func (h *LogHandler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	n := *h
	n.group = h.group + name + "."
	return &n
}

var logBuffers = sync.Pool{New: func() any { b := make([]byte, 0, 1024); return &b }}

// Handle writes one line.
func (h *LogHandler) Handle(_ context.Context, r slog.Record) error {
	scope := h.scope
	p := logBuffers.Get().(*[]byte)
	b := (*p)[:0]
	stamp := r.Time.UTC()
	if h.json {
		b = append(b, `{"level":`...)
		b = strconv.AppendQuote(b, levelName(r.Level))
		b = append(b, `,"time":"`...)
		b = stamp.AppendFormat(b, "2006-01-02T15:04:05.000000Z")
		b = append(b, `","scope":`...)
		b = appendJSONString(b, scope)
		b = append(b, `,"message":`...)
		b = appendJSONString(b, r.Message)
	} else {
		b = stamp.AppendFormat(b, "2006-01-02T15:04:05.000000Z")
		b = append(b, '\t')
		b = append(b, levelName(r.Level)...)
		b = append(b, '\t')
		b = append(b, scope...)
		b = append(b, '\t')
		b = append(b, r.Message...)
		b = append(b, '\t')
	}
	start := len(b)
	b = append(b, h.prefix...)
	r.Attrs(func(a slog.Attr) bool {
		b = h.field(b, h.group, a)
		return true
	})
	switch {
	case h.json:
		b = append(b, '}')
	case len(b) > start && b[start] == ' ':
		b = append(b[:start], b[start+1:]...) // the separator before the first field
	default:
		b = b[:start-1]
	}
	b = append(b, '\n')
	h.out.mu.Lock()
	_, err := h.out.w.Write(b)
	h.out.mu.Unlock()
	if cap(b) <= 16<<10 {
		*p = b
		logBuffers.Put(p)
	}
	return err
}

// field appends one field with the separator before it.
func (h *LogHandler) field(b []byte, group string, a slog.Attr) []byte {
	v := a.Value.Resolve()
	if a.Key == "" && v.Kind() != slog.KindGroup {
		return b
	}
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			group += a.Key + "."
		}
		for _, ga := range v.Group() {
			b = h.field(b, group, ga)
		}
		return b
	}
	if h.json {
		b = append(b, ',')
		b = appendJSONString(b, group+a.Key)
		b = append(b, ':')
	} else {
		b = append(b, ' ')
		b = append(b, group...)
		b = append(b, a.Key...)
		b = append(b, '=')
	}
	switch v.Kind() {
	case slog.KindInt64:
		return strconv.AppendInt(b, v.Int64(), 10)
	case slog.KindUint64:
		return strconv.AppendUint(b, v.Uint64(), 10)
	case slog.KindBool:
		return strconv.AppendBool(b, v.Bool())
	case slog.KindFloat64:
		return strconv.AppendFloat(b, v.Float64(), 'g', -1, 64)
	case slog.KindDuration:
		return h.str(b, strconv.FormatInt(v.Duration().Milliseconds(), 10)+"ms", false)
	case slog.KindTime:
		return h.str(b, v.Time().UTC().Format(time.RFC3339Nano), true)
	case slog.KindString:
		return h.str(b, v.String(), false)
	}
	switch x := v.Any().(type) {
	case Text:
		return h.str(b, string(x), true)
	case netip.AddrPort:
		return h.str(b, x.String(), true)
	case netip.Addr:
		return h.str(b, x.String(), true)
	case error:
		return h.str(b, x.Error(), false)
	default:
		return h.str(b, fmt.Sprint(x), false)
	}
}

func (h *LogHandler) str(b []byte, s string, bare bool) []byte {
	if h.json {
		return appendJSONString(b, s)
	}
	if bare {
		return append(b, s...)
	}
	return strconv.AppendQuote(b, s)
}

const hexDigits = "0123456789abcdef"

// appendJSONString quotes s as RFC 8259 section 7 asks; invalid UTF-8 becomes
// the replacement character.
func appendJSONString(b []byte, s string) []byte {
	b = append(b, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r == '\n':
			b = append(b, '\\', 'n')
		case r == '\t':
			b = append(b, '\\', 't')
		case r < 0x20:
			b = append(b, '\\', 'u', '0', '0', hexDigits[r>>4], hexDigits[r&0xf])
		default:
			b = append(b, string(r)...)
		}
	}
	return append(b, '"')
}

// LevelTrace is RUST_LOG's trace.
const LevelTrace = slog.LevelDebug - 4

const levelOff = slog.Level(1000)

func levelName(l slog.Level) string {
	switch {
	case l >= slog.LevelError:
		return "error"
	case l >= slog.LevelWarn:
		return "warn"
	case l >= slog.LevelInfo:
		return "info"
	case l >= slog.LevelDebug:
		return "debug"
	}
	return "trace"
}

func parseLevel(s string) (slog.Level, bool) {
	switch strings.ToLower(s) {
	case "off":
		return levelOff, true
	case "error":
		return slog.LevelError, true
	case "warn":
		return slog.LevelWarn, true
	case "info":
		return slog.LevelInfo, true
	case "debug":
		return slog.LevelDebug, true
	case "trace":
		return LevelTrace, true
	}
	return 0, false
}

// Levels are the log directives in force: a default level and levels per
// scope. Readers take no lock.
type Levels struct {
	start string
	mu    sync.Mutex // serialises writers
	cur   atomic.Pointer[directives]
}

type directives struct {
	def    slog.Level
	scopes map[string]slog.Level
	order  []string
}

// NewLevels parses a RUST_LOG value, a comma list of "level" and
// "scope=level"; "" is info.
func NewLevels(spec string) (*Levels, error) {
	l := &Levels{start: spec}
	if err := l.Reset(); err != nil {
		return nil, err
	}
	return l, nil
}

// Reset returns to the directives l was made with.
func (l *Levels) Reset() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	d, err := (&directives{def: slog.LevelInfo}).add(l.start)
	if err != nil {
		return err
	}
	l.cur.Store(d)
	return nil
}

// Add puts the directives of spec over those in force.
func (l *Levels) Add(spec string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	d, err := l.cur.Load().add(spec)
	if err != nil {
		return err
	}
	l.cur.Store(d)
	return nil
}

func (d *directives) add(spec string) (*directives, error) {
	n := &directives{def: d.def, scopes: map[string]slog.Level{}, order: append([]string(nil), d.order...)}
	for k, v := range d.scopes {
		n.scopes[k] = v
	}
	for part := range strings.SplitSeq(spec, ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		scope, level, scoped := strings.Cut(part, "=")
		if !scoped {
			level = part
		}
		v, ok := parseLevel(level)
		if !ok || scoped && scope == "" {
			return nil, fmt.Errorf("log directive %q: want off, error, warn, info, debug or trace, or scope=level", part)
		}
		if !scoped {
			n.def = v
			continue
		}
		if _, known := n.scopes[scope]; !known {
			n.order = append(n.order, scope)
		}
		n.scopes[scope] = v
	}
	return n, nil
}

// String lists the directives in force.
func (l *Levels) String() string {
	d := l.cur.Load()
	var b strings.Builder
	for _, s := range d.order {
		b.WriteString(s + "=" + directiveName(d.scopes[s]) + ",")
	}
	return b.String() + directiveName(d.def)
}

func directiveName(l slog.Level) string {
	if l == levelOff {
		return "off"
	}
	return levelName(l)
}

// level of a scope: its own directive, that of a parent ("a::b" has "a"), or
// the default.
func (l *Levels) level(scope string) slog.Level {
	d := l.cur.Load()
	for len(d.scopes) > 0 {
		if v, ok := d.scopes[scope]; ok {
			return v
		}
		i := strings.LastIndex(scope, "::")
		if i < 0 {
			break
		}
		scope = scope[:i]
	}
	return d.def
}
