package main

import (
	"encoding/json"
	"maps"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	xds "github.com/ambitmesh/ambit/controller/xds/server"
)

// TestLatestRoots: of two streams of one pod the younger one is its program's,
// in whatever order they are listed.
func TestLatestRoots(t *testing.T) {
	client := func(uid, roots string, minute int) xds.ClientStatus {
		return xds.ClientStatus{Caller: xds.Caller{PodUID: uid}, Roots: roots, Connected: time.Unix(int64(60*minute), 0)}
	}
	old, young, other := client("a", "two", 1), client("a", "", 2), client("b", "one", 0)
	for _, list := range [][]xds.ClientStatus{{old, young, other}, {young, other, old}} {
		if got := latestRoots(list); !maps.Equal(got, map[string]string{"a": "", "b": "one"}) {
			t.Errorf("%v", got)
		}
	}
}

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

// TestDebugClientsKeys: ambit proxy-status reads these.
func TestDebugClientsKeys(t *testing.T) {
	b, err := json.Marshal(xds.ClientStatus{Types: []xds.TypeStatus{{}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"Caller", "Namespace", "PodName", "PodUID", "Node", "Version", "Cluster", "Connected", "Types", "TypeURL", "Sent", "Acked", "AckedTime", "LastNACK", "LastNACKTime"} {
		if !strings.Contains(string(b), `"`+key+`":`) {
			t.Errorf("no %s in %s", key, b)
		}
	}
}
