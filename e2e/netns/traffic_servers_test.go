package netns_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// twoPairs is a client and a server on two nodes, twice: in the mesh and not.
func twoPairs(t testing.TB, f families) (w *world, meshed, plain [2]*pod) {
	w = newWorldOf(t, f)
	meshed = [2]*pod{w.newPod(w.a, "client"), w.newPod(w.b, "server")}
	plain = [2]*pod{w.newPod(w.a, "plain-client"), w.newPod(w.b, "plain-server")}
	return w, meshed, plain
}

// figures is how many of a benchmark's four are taken: all in one family, in the
// other one to see that it runs.
func (f families) figures() int {
	if f.used().v6 {
		return 1
	}
	return 4
}

// ratio measures with and without a mesh in turns and logs the medians.
func ratio(t *testing.T, what string, times int, meshed, plain func() float64) {
	t.Helper()
	var with, without []float64
	for range times {
		with, without = append(with, meshed()), append(without, plain())
	}
	slices.Sort(with)
	slices.Sort(without)
	m, p := with[times/2], without[times/2]
	t.Logf("%-28s %8.0f/s in the mesh, %8.0f/s without: ratio %.2f", what, m, p, m/p)
}

// number finds the one group of a pattern.
func number(t testing.TB, pattern, in string) float64 {
	t.Helper()
	m := regexp.MustCompile(pattern).FindStringSubmatch(in)
	if m == nil {
		t.Fatalf("no %s in:\n%s", pattern, in)
	}
	v, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// A Redis server with its own clients: as it is, in the mesh.
//
//ambit:feature traffic-redis
func TestRedis(t *testing.T) {
	for _, f := range []families{onlyIPv4, onlyIPv6} {
		t.Run(f.String(), func(t *testing.T) { redis(t, f) })
	}
}

func redis(t *testing.T, f families) {
	if testing.Short() {
		t.Skip("runs benchmarks")
	}
	root := unpacked(t, "redis-server", "redis-tools", "libjemalloc2", "liblzf1", "libatomic1")
	runnable(t, root, "usr/bin/redis-server", "usr/bin/redis-cli", "usr/bin/redis-benchmark")
	w, meshed, plain := twoPairs(t, f)
	for _, server := range []*pod{meshed[1], plain[1]} {
		server.daemon(t, root, "usr/bin/redis-server", "--bind", f.used().any(), "--port", "6379", "--protected-mode", "no",
			"--save", "", "--dir", nobodys(t))
		server.answers(t, 6379)
	}
	w.enrol(meshed[0], meshed[1])
	cli := func(args ...string) string {
		t.Helper()
		return strings.TrimSuffix(meshed[0].run(t, root, "usr/bin/redis-cli", append([]string{"-h", meshed[1].addr.String()}, args...)...), "\n")
	}
	big := strings.Repeat("0123456789abcdef", 6000) // an argument is at most 128 KiB
	if got := cli("set", "big", big); got != "OK" {
		t.Errorf("SET: %q", got)
	}
	for range 6 {
		cli("append", "big", big)
	}
	if got := cli("get", "big"); got != strings.Repeat(big, 7) {
		t.Errorf("GET: %d bytes", len(got))
	}
	// A client that waits: nothing is said for a while in either direction.
	popped := make(chan string, 1)
	go func() {
		popped <- meshed[0].run(t, root, "usr/bin/redis-cli", "-h", meshed[1].addr.String(), "blpop", "queue", "10")
	}()
	eventually(t, "a client waits", func() error {
		if s := cli("info", "clients"); !strings.Contains(s, "blocked_clients:1") {
			return fmt.Errorf("%q", s)
		}
		return nil
	})
	cli("lpush", "queue", "work")
	if got := <-popped; got != "queue\nwork\n" {
		t.Errorf("BLPOP: %q", got)
	}
	w.b.zt.wantLog(t, "connection complete", "dst.hbone_addr="+meshed[1].at(6379), `src.identity="`+meshed[0].id().String()+`"`)

	bench := func(pair [2]*pod, args ...string) func() float64 {
		return func() float64 {
			t.Helper()
			out := pair[0].run(t, root, "usr/bin/redis-benchmark", append([]string{"-h", pair[1].addr.String(), "--csv", "-d", "256"}, args...)...)
			return number(t, `(?m)^"[A-Z]+[^"]*","([0-9.]+)"`, out)
		}
	}
	for _, b := range []struct {
		name string
		args []string
	}{
		{"GET, 1 client", []string{"-t", "get", "-c", "1", "-n", "6000"}},
		{"GET, 20 clients", []string{"-t", "get", "-c", "20", "-n", "10000"}},
		{"SET, 20 clients, 16 at once", []string{"-t", "set", "-c", "20", "-n", "100000", "-P", "16"}},
		{"GET, a connection each", []string{"-t", "get", "-c", "10", "-n", "500", "-k", "0"}},
	}[:f.figures()] {
		ratio(t, b.name, 3, bench(meshed, b.args...), bench(plain, b.args...))
	}
	w.noFailures(t)
}

// noFailures wants no connection failed at either node.
func (w *world) noFailures(t testing.TB) {
	t.Helper()
	for _, n := range []*node{w.a, w.b} {
		if failed := n.metric(t, "ambit_connections_failed_total"); failed != 0 {
			t.Errorf("%s: %v connections failed", n.name, failed)
		}
	}
}

// A PostgreSQL server with its own clients: as it is, in the mesh.
//
//ambit:feature traffic-postgresql
func TestPostgreSQL(t *testing.T) {
	for _, f := range []families{onlyIPv4, onlyIPv6} {
		t.Run(f.String(), func(t *testing.T) { postgreSQL(t, f) })
	}
}

func postgreSQL(t *testing.T, f families) {
	if testing.Short() {
		t.Skip("runs benchmarks")
	}
	root := unpacked(t, "postgresql-15", "postgresql-client-15", "libpq5",
		"libxml2", "libicu72", "libldap-2.5-0", "libsasl2-2", "libreadline8")
	const bin = "usr/lib/postgresql/15/bin/"
	runnable(t, root, bin+"postgres", bin+"initdb", bin+"psql", bin+"pgbench")
	w, meshed, plain := twoPairs(t, f)
	for _, server := range []*pod{meshed[1], plain[1]} {
		dir := filepath.Join(nobodys(t), "data")
		server.run(t, root, bin+"initdb", "-D", dir, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
		hba, err := os.OpenFile(dir+"/pg_hba.conf", os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(hba, "host all all "+f.used().allPods()+" trust")
		hba.Close()
		server.daemon(t, root, bin+"postgres", "-D", dir, "-c", "listen_addresses="+f.used().any(), "-c", "unix_socket_directories=",
			"-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "shared_buffers=16MB", "-c", "max_connections=60", "-c", "jit=off")
		server.answers(t, 5432)
	}
	w.enrol(meshed[0], meshed[1])
	client := func(pair [2]*pod, name string, args ...string) string {
		t.Helper()
		return pair[0].run(t, root, bin+name, append([]string{"-h", pair[1].addr.String(), "-U", "postgres"}, args...)...)
	}
	for _, pair := range [][2]*pod{meshed, plain} {
		client(pair, "pgbench", "-i", "-s", "1", "-q", "postgres")
	}
	// A result of some size, and the server's view of who asks.
	if got := client(meshed, "psql", "-At", "-c", "select repeat('x', 5000) from generate_series(1, 1000)", "postgres"); len(got) != 5001*1000 {
		t.Errorf("result of %d bytes", len(got))
	}
	if got := client(meshed, "psql", "-At", "-c", "select host(inet_client_addr())", "postgres"); got != meshed[0].addr.String()+"\n" {
		t.Errorf("the server sees client %q", got)
	}
	bench := func(pair [2]*pod, args ...string) func() float64 {
		return func() float64 {
			t.Helper()
			out := client(pair, "pgbench", append(append([]string{"-n"}, args...), "postgres")...)
			if !strings.Contains(out, "number of failed transactions: 0 ") {
				t.Errorf("transactions failed:\n%s", out)
			}
			return number(t, `tps = ([0-9.]+)`, out)
		}
	}
	for _, b := range []struct {
		name string
		args []string
	}{
		{"select, 1 client", []string{"-S", "-c", "1", "-t", "1500"}},
		{"select, 8 clients", []string{"-S", "-c", "8", "-t", "250"}},
		{"TPC-B, 4 clients", []string{"-c", "4", "-t", "40"}},
		{"select, a connection each", []string{"-S", "-c", "4", "-C", "-t", "10"}},
	}[:f.figures()] {
		ratio(t, b.name, 3, bench(meshed, b.args...), bench(plain, b.args...))
	}
	w.b.zt.wantLog(t, "connection complete", "dst.hbone_addr="+meshed[1].at(5432), `src.identity="`+meshed[0].id().String()+`"`)
	w.noFailures(t)
}
