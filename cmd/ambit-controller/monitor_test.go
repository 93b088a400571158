package main

import (
	"net/http/httptest"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

//ambit:feature security-admin
func TestDebugIsForLoopback(t *testing.T) {
	m := newMonitor(prometheus.NewRegistry())
	for remote, want := range map[string]int{
		"127.0.0.1:4711": 200, "[::1]:4711": 200, "[::ffff:127.0.0.1]:1": 200,
		"10.0.0.7:4711": 403, "[fd00::1]:4711": 403, "": 403, "127.0.0.1": 403,
	} {
		r := httptest.NewRequest("GET", "/debug/clients", nil)
		r.RemoteAddr = remote
		w := httptest.NewRecorder()
		m.handler.ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("from %q: %d, want %d", remote, w.Code, want)
		}
	}
}
