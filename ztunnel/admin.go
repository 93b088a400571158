package ztunnel

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/pprof"
	runtimepprof "runtime/pprof"
	"strconv"
	"sync/atomic"
)

// admin is the loopback interface of istioctl ztunnel-config and operators. Paths,
// methods and answers are those of the reference.
func (n *Node) admin() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		io.WriteString(w, "<!doctype html><title>ambit-ztunnel</title><ul>")
		for _, p := range []string{"config_dump", "logging", "quitquitquit", "debug/pprof/profile", "debug/pprof/heap", "debug/pprof/"} {
			fmt.Fprintf(w, `<li><a href="%s">/%s</a>`, p, p)
		}
		io.WriteString(w, "</ul>\n")
	})
	mux.HandleFunc("/config_dump", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		enc.Encode(n.dump()) // an error means that the client has gone
	})
	mux.HandleFunc("/logging", post(n.logging))
	mux.HandleFunc("/quitquitquit", post(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "shutdown now\n")
		n.quitNow()
	}))
	var heap heapProfiles
	mux.HandleFunc("/debug/pprof/profile", profile)
	mux.HandleFunc("/debug/pprof/heap", heap.profile)
	mux.HandleFunc("/debug/pprof/heap/profiling", heap.switched)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/{$}", pprof.Index)
	for _, p := range runtimepprof.Profiles() {
		if p.Name() != "heap" {
			mux.Handle("/debug/pprof/"+p.Name(), pprof.Handler(p.Name()))
		}
	}
	return mux
}

func post(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			w.Header().Set("Allow", http.MethodPost)
			w.WriteHeader(http.StatusMethodNotAllowed)
			return
		}
		h(w, r)
	}
}

func (n *Node) logging(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	var err error
	if q.Has("reset") {
		err = n.cfg.Levels.Reset()
	}
	if err == nil && q.Get("level") != "" {
		err = n.cfg.Levels.Add(q.Get("level"))
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	fmt.Fprintf(w, "current log level is %s\n", n.cfg.Levels)
}

// profile takes a CPU profile. Its frequency can be asked for, since the
// reference's can, and is what the runtime has: 100 a second.
func profile(w http.ResponseWriter, r *http.Request) {
	number := func(name string, def, high int) (int, bool) {
		v := r.FormValue(name)
		if v == "" {
			return def, true
		}
		n, err := strconv.Atoi(v)
		return n, err == nil && n >= 1 && n <= high
	}
	seconds, ok := number("seconds", 10, 300)
	if _, fine := number("frequency", 100, 1000); !ok || !fine {
		http.Error(w, "seconds are 1 to 300, frequency is 1 to 1000", http.StatusBadRequest)
		return
	}
	r.Form.Set("seconds", strconv.Itoa(seconds))
	pprof.Profile(w, r)
}

// heapProfiles are always taken by the runtime; that they can be switched off
// is the reference's.
type heapProfiles struct{ off atomic.Bool }

func (h *heapProfiles) profile(w http.ResponseWriter, r *http.Request) {
	if h.off.Load() {
		http.Error(w, "heap profiling is not active", http.StatusInternalServerError)
		return
	}
	pprof.Handler("heap").ServeHTTP(w, r)
}

func (h *heapProfiles) switched(w http.ResponseWriter, r *http.Request) {
	switch r.FormValue("activate") {
	case "true":
		h.off.Store(false)
	case "false":
		h.off.Store(true)
	default:
		http.Error(w, "want activate=true or activate=false", http.StatusBadRequest)
		return
	}
	fmt.Fprintf(w, "heap profiling active: %t\n", !h.off.Load())
}
