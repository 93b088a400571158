package ztunnel

import (
	"context"
	"net"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestAdmin: paths, methods and status codes are those of the reference.
//
//ambit:feature telemetry-admin
func TestAdmin(t *testing.T) {
	n := newNode(t)
	owning(t, n)
	admin := n.admin()
	for _, tt := range []struct {
		method, target string
		code           int
		body           string // "" is any; otherwise what it begins with
	}{
		{"GET", "/", 200, "<!doctype html>"}, {"POST", "/", 200, "<!doctype html>"}, {"GET", "/nothing", 404, ""},
		{"GET", "/config_dump", 200, "{\n"}, {"POST", "/config_dump", 200, "{\n"},
		{"GET", "/logging", 405, ""}, {"PUT", "/logging", 405, ""}, {"GET", "/quitquitquit", 405, ""},
		{"POST", "/logging", 200, "current log level is info\n"},
		{"POST", "/logging?level=access=off,ztunnel=trace", 200, "current log level is access=off,ztunnel=trace,info\n"},
		{"POST", "/logging?level=error", 200, "current log level is access=off,ztunnel=trace,error\n"},
		{"POST", "/logging?level=access", 400, ""}, {"POST", "/logging?level=access=loud", 400, ""}, {"POST", "/logging?level==info", 400, ""},
		{"POST", "/logging?reset=&level=xds=debug", 200, "current log level is xds=debug,info\n"},
		{"POST", "/logging?reset", 200, "current log level is info\n"},
		{"GET", "/debug/pprof/profile?seconds=0", 400, ""}, {"GET", "/debug/pprof/profile?seconds=301", 400, ""},
		{"GET", "/debug/pprof/profile?seconds=x", 400, ""}, {"GET", "/debug/pprof/profile?seconds=1&frequency=0", 400, ""},
		{"GET", "/debug/pprof/profile?seconds=1&frequency=1001", 400, ""},
		{"GET", "/debug/pprof/heap", 200, "\x1f\x8b"},
		{"GET", "/debug/pprof/heap/profiling", 400, ""}, {"GET", "/debug/pprof/heap/profiling?activate=yes", 400, ""},
		{"GET", "/debug/pprof/heap/profiling?activate=false", 200, "heap profiling active: false\n"},
		{"GET", "/debug/pprof/heap", 500, ""},
		{"POST", "/debug/pprof/heap/profiling?activate=true", 200, "heap profiling active: true\n"},
		{"GET", "/debug/pprof/heap", 200, "\x1f\x8b"},
		{"GET", "/debug/pprof/goroutine", 200, "\x1f\x8b"}, {"GET", "/debug/pprof/nothing", 404, ""},
		{"GET", "/stats/prometheus", 404, ""}, // on their own port
	} {
		w := httptest.NewRecorder()
		admin.ServeHTTP(w, httptest.NewRequest(tt.method, tt.target, nil))
		if w.Code != tt.code || !strings.HasPrefix(w.Body.String(), tt.body) {
			t.Errorf("%s %s: %d %.60q", tt.method, tt.target, w.Code, w.Body.String())
		}
	}
	w := httptest.NewRecorder()
	n.ready.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 404 {
		t.Errorf("the readiness port serves /metrics: %d", w.Code)
	}
}

// TestAdminOnBothLoopbacks: localhost is both addresses, and the machine's others
// are none of them.
//
//ambit:feature telemetry-admin
func TestAdminOnBothLoopbacks(t *testing.T) {
	probe, err := net.Listen("tcp6", "[::1]:0")
	six := err == nil
	if six {
		probe.Close()
	}
	lns, err := open("localhost:0", false)
	for i := 0; err != nil && i < 20; i++ { // the port of the one may be taken at the other
		lns, err = open("localhost:0", false)
	}
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"127.0.0.1"}
	if six {
		want = append(want, "::1")
	}
	var got []string
	for _, ln := range lns {
		a := ln.Addr().(*net.TCPAddr)
		got = append(got, a.IP.String())
		if a.Port != lns[0].Addr().(*net.TCPAddr).Port {
			t.Errorf("ports differ: %v", a)
		}
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("listens on %v, want %v", got, want)
	}
	// Either address being taken is a failure, and nothing stays open.
	if again, err := open("localhost:"+port(lns[0]), false); err == nil {
		t.Errorf("listens twice: %v", again)
	}
	for _, ln := range lns {
		ln.Close()
	}
	four, err := open(":0", true)
	if err != nil {
		t.Fatal(err)
	}
	defer four[0].Close()
	if a := four[0].Addr().(*net.TCPAddr); a.IP.To4() == nil {
		t.Errorf("IPv4 alone listens on %v", a)
	}
}

func port(ln net.Listener) string {
	_, p, _ := net.SplitHostPort(ln.Addr().String())
	return p
}

// TestQuit: a POST to /quitquitquit ends the process' work in order, as a signal
// does; an address that is taken ends it at the start, with its name.
//
//ambit:feature telemetry-quit
func TestQuit(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for server, addr := range map[string]func(*Config) *string{
		"admin":     func(c *Config) *string { return &c.AdminAddr },
		"metrics":   func(c *Config) *string { return &c.StatsAddr },
		"readiness": func(c *Config) *string { return &c.ReadyAddr },
	} {
		n := newNode(t)
		*addr(&n.cfg) = ln.Addr().String()
		if err := n.Run(context.Background()); err == nil || !strings.Contains(err.Error(), server+" server") {
			t.Errorf("the port of %s is taken: %v", server, err)
		}
	}
	n := newNode(t)
	done := make(chan error, 1)
	go func() { done <- n.Run(context.Background()) }()
	w := httptest.NewRecorder()
	n.admin().ServeHTTP(w, httptest.NewRequest("POST", "/quitquitquit", nil))
	if err := <-done; err != nil || w.Body.String() != "shutdown now\n" {
		t.Errorf("%q %v", w.Body, err)
	}
}
