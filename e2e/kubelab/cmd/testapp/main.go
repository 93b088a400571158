// Command testapp is what runs in the pods of tests and of the demo: servers
// that say who asked and who answered, and clients that try exactly once.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sort"
	"strings"
	"syscall"
	"time"
)

const usage = `testapp [serve] [-http :8080] [-tcp :9090] [-grpc :9091]
                                             http and tcp echo servers (the default), grpc health
testapp get [-n 1] [-every 0s] [-timeout 5s] [-keep] [-H k:v] [-d body] [-mark 0] URL
                                             GET (POST with -d); a line per answer, exit 1 at a failure
testapp connect [-hold 0s] [-send text] [-every 1s] [-timeout 5s] HOST:PORT
                                             one tcp connection; holds it, writing text and wanting its echo
testapp lookup NAME...                       names to addresses
testapp knock SOCKET                         what a unix socket says to a stranger
testapp sleep [duration]                     for ever without one
testapp pause                                sleep as PID 1: collects orphans
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	name, args := "serve", os.Args[1:]
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		name, args = args[0], args[1:]
	}
	run, ok := map[string]func(context.Context, []string) error{
		"serve": serve, "server": serve, "get": get, "connect": connect, "lookup": lookup, "knock": knock, "sleep": sleep, "pause": pause,
	}[name]
	if !ok {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	if err := run(ctx, args); err != nil {
		fmt.Fprintln(os.Stderr, "testapp:", err)
		stop()
		os.Exit(1)
	}
}

// serve answers http with one line that names the pod and the client, and tcp
// with the bytes it gets.
func serve(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("serve", flag.ExitOnError)
	httpAddr := f.String("http", ":8080", "http address, empty for none")
	tcpAddr := f.String("tcp", ":9090", "tcp echo address, empty for none")
	grpcAddr := f.String("grpc", "", "grpc health address, empty for none")
	readyAfter := f.Duration("ready-after", 0, "/ready fails until then")
	_ = f.Parse(args)
	began := time.Now()
	host, _ := os.Hostname()
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
		fmt.Fprintf(w, "pod=%s node=%s version=%s client=%s method=%s path=%s proto=%s", host, os.Getenv("NODE"), os.Getenv("VERSION"), r.RemoteAddr, r.Method, r.URL.Path, r.Proto)
		if len(body) > 0 {
			fmt.Fprintf(w, " body=%q", body)
		}
		fmt.Fprintln(w)
	})
	mux.HandleFunc("/headers", func(w http.ResponseWriter, r *http.Request) {
		var names []string
		for n := range r.Header {
			names = append(names, n)
		}
		sort.Strings(names)
		for _, n := range names {
			fmt.Fprintf(w, "%s: %s\n", n, strings.Join(r.Header[n], ", "))
		}
	})
	mux.HandleFunc("/ready", func(w http.ResponseWriter, r *http.Request) {
		if time.Since(began) < *readyAfter {
			http.Error(w, "not yet", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	// /bytes/N sends N bytes; /slow/D answers after the duration.
	mux.HandleFunc("/bytes/{n}", func(w http.ResponseWriter, r *http.Request) {
		var n int64
		if _, err := fmt.Sscan(r.PathValue("n"), &n); err != nil || n < 0 {
			http.Error(w, "want a count", http.StatusBadRequest)
			return
		}
		_, _ = io.CopyN(w, zeros{}, n)
	})
	mux.HandleFunc("/slow/{d}", func(w http.ResponseWriter, r *http.Request) {
		d, err := time.ParseDuration(r.PathValue("d"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		select {
		case <-time.After(d):
			fmt.Fprintln(w, "ok")
		case <-r.Context().Done():
		}
	})
	failed := make(chan error, 3)
	var tcp *echoes
	if *tcpAddr != "" {
		tcp = &echoes{address: *tcpAddr, failed: failed}
	}
	state := newConditions(tcp)
	state.handle(mux)
	if *httpAddr != "" {
		s := &http.Server{Addr: *httpAddr, Handler: mux, ReadHeaderTimeout: 10 * time.Second}
		go func() { failed <- s.ListenAndServe() }()
		fmt.Println("http echo on", *httpAddr, "as", host)
	}
	if tcp != nil {
		if err := tcp.open(); err != nil {
			return err
		}
	}
	if *grpcAddr != "" {
		go func() { failed <- state.serveGRPC(ctx, *grpcAddr) }()
	}
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return nil
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// get makes n requests, each once: a transparent retry would hide what a test
// looks for.
func get(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("get", flag.ExitOnError)
	n := f.Int("n", 1, "requests; 0 is without end")
	every := f.Duration("every", 0, "pause between requests")
	timeout := f.Duration("timeout", 5*time.Second, "of one request")
	keep := f.Bool("keep", false, "keep the connection between requests")
	carry := f.Bool("carry-on", false, "go on after a failure; exit 1 at the end")
	body := f.String("d", "", "body; makes it a POST")
	mark := f.Int("mark", 0, "SO_MARK of the connections")
	header := http.Header{}
	f.Func("H", "header k:v", func(s string) error {
		k, v, ok := strings.Cut(s, ":")
		if !ok {
			return errors.New("want name:value")
		}
		header.Add(k, strings.TrimSpace(v))
		return nil
	})
	_ = f.Parse(args)
	if f.NArg() != 1 {
		return errors.New("get wants one URL")
	}
	client := &http.Client{Timeout: *timeout, Transport: &http.Transport{DisableKeepAlives: !*keep, DialContext: marked(*mark).DialContext}}
	var last error
	for i := 0; (*n == 0 || i < *n) && ctx.Err() == nil; i++ {
		if i > 0 && *every > 0 {
			wait(ctx, *every)
		}
		method, rd := http.MethodGet, io.Reader(http.NoBody)
		if *body != "" {
			// No GetBody: net/http then sends it once and never again.
			method, rd = http.MethodPost, io.MultiReader(strings.NewReader(*body))
		}
		req, err := http.NewRequestWithContext(ctx, method, f.Arg(0), rd)
		if err != nil {
			return err
		}
		req.Header = header.Clone()
		if h := header.Get("Host"); h != "" {
			req.Host = h
		}
		began := time.Now()
		resp, err := client.Do(req)
		if err == nil {
			var b []byte
			b, err = io.ReadAll(resp.Body)
			resp.Body.Close()
			fmt.Printf("%d %v %s\n", resp.StatusCode, time.Since(began).Round(100*time.Microsecond), strings.TrimSpace(string(b)))
			if err == nil && resp.StatusCode >= 400 {
				err = fmt.Errorf("status %d", resp.StatusCode)
			}
		}
		if err != nil {
			last = err
			if !*carry {
				return err
			}
			fmt.Println("failed:", err)
		}
	}
	return last
}

// marked dials with SO_MARK, which takes CAP_NET_RAW or CAP_NET_ADMIN.
func marked(mark int) *net.Dialer {
	d := &net.Dialer{}
	if mark != 0 {
		d.Control = func(_, _ string, c syscall.RawConn) error {
			var inner error
			err := c.Control(func(fd uintptr) {
				inner = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_MARK, mark)
			})
			return errors.Join(err, inner)
		}
	}
	return d
}

// knock connects to a unix socket, of whichever kind it is, and tells what comes
// of it.
func knock(_ context.Context, args []string) error {
	if len(args) != 1 {
		return errors.New("knock wants one socket")
	}
	var all error
	for _, network := range []string{"unix", "unixpacket"} {
		c, err := net.Dial(network, args[0])
		if errors.Is(err, syscall.EPROTOTYPE) {
			continue
		}
		if err != nil {
			all = errors.Join(all, err)
			continue
		}
		defer c.Close()
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, err := c.Read(make([]byte, 1<<16))
		if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
			fmt.Println("silent")
		} else if n > 0 {
			fmt.Println("got", n, "bytes")
		} else {
			fmt.Println("closed:", err)
		}
		return nil
	}
	return all
}

func connect(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("connect", flag.ExitOnError)
	hold := f.Duration("hold", 0, "keep it open that long")
	send := f.String("send", "", "write this and want it back")
	every := f.Duration("every", time.Second, "while held: again so often")
	timeout := f.Duration("timeout", 5*time.Second, "of connect and of each echo")
	_ = f.Parse(args)
	if f.NArg() != 1 {
		return errors.New("connect wants one HOST:PORT")
	}
	c, err := (&net.Dialer{Timeout: *timeout}).DialContext(ctx, "tcp", f.Arg(0))
	if err != nil {
		return err
	}
	defer c.Close()
	fmt.Printf("connected %s -> %s\n", c.LocalAddr(), c.RemoteAddr())
	end := time.Now().Add(*hold)
	for {
		if *send == "" {
			// Nothing to say: wait for the end, or for the peer's.
			_ = c.SetReadDeadline(end)
			stop := context.AfterFunc(ctx, func() { c.Close() })
			_, err := c.Read(make([]byte, 1))
			stop()
			if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() || ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("closed by the peer: %v", err)
		}
		_ = c.SetDeadline(time.Now().Add(*timeout))
		if _, err := io.WriteString(c, *send); err != nil {
			return err
		}
		got := make([]byte, len(*send))
		if _, err := io.ReadFull(c, got); err != nil {
			return err
		}
		if string(got) != *send {
			return fmt.Errorf("echo %q, want %q", got, *send)
		}
		fmt.Printf("echo %q\n", got)
		if ctx.Err() != nil || time.Now().Add(*every).After(end) {
			return nil
		}
		wait(ctx, *every)
	}
}

func lookup(ctx context.Context, args []string) error {
	for _, n := range args {
		a, err := net.DefaultResolver.LookupHost(ctx, n)
		if err != nil {
			return err
		}
		fmt.Println(n, strings.Join(a, " "))
	}
	return nil
}

func sleep(ctx context.Context, args []string) error {
	if len(args) == 0 {
		<-ctx.Done()
		return nil
	}
	d, err := time.ParseDuration(args[0])
	if err != nil {
		return err
	}
	wait(ctx, d)
	return nil
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// pause is the sandbox of a pod: with a shared PID namespace it is PID 1 and
// must collect orphans.
func pause(ctx context.Context, _ []string) error {
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-children:
			for {
				if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 && err != syscall.EINTR {
					break
				}
			}
		}
	}
}
