package kubelab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// apiClient is the little that the harness itself asks of the API server. It is
// no client-go, so that a change of a Kubernetes library never recompiles the
// harness.
type apiClient struct{ http *http.Client }

func newAPIClient(c *Cluster) (*apiClient, error) {
	tc, err := c.pki.clientTLS()
	if err != nil {
		return nil, err
	}
	return &apiClient{http: &http.Client{Transport: &http.Transport{
		TLSClientConfig: tc,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return c.cp.Dial(ctx, network, address)
		},
		// A connection kept while idle would be one more descriptor to account for.
		DisableKeepAlives: true,
	}}}, nil
}

func (a *apiClient) do(ctx context.Context, method, path string, body []byte) ([]byte, int, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "https://"+apiAddress+path, bytes.NewReader(body))
	if err != nil {
		return nil, 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := a.http.Do(req)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return b, resp.StatusCode, err
}

func (a *apiClient) create(ctx context.Context, path string, object any) error {
	body, err := json.Marshal(object)
	if err != nil {
		return err
	}
	b, status, err := a.do(ctx, http.MethodPost, path, body)
	if err == nil && status != http.StatusCreated && status != http.StatusConflict {
		err = fmt.Errorf("status %d: %s", status, b)
	}
	if err != nil {
		return fmt.Errorf("create in %s: %w", path, err)
	}
	return nil
}

func (a *apiClient) ready(ctx context.Context) bool {
	b, status, err := a.do(ctx, http.MethodGet, "/readyz", nil)
	return err == nil && status == http.StatusOK && string(b) == "ok"
}

// conditions are the named condition's status of every object of a list.
func (a *apiClient) conditions(ctx context.Context, path, condition string) (map[string]string, error) {
	b, status, err := a.do(ctx, http.MethodGet, path, nil)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("status %d: %s", status, b)
	}
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", path, err)
	}
	var list struct {
		Items []struct {
			Metadata struct{ Name string }
			Status   struct {
				Conditions []struct{ Type, Status string }
			}
		}
	}
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, fmt.Errorf("list %s: %w", path, err)
	}
	out := map[string]string{}
	for _, it := range list.Items {
		out[it.Metadata.Name] = "Unknown"
		for _, c := range it.Status.Conditions {
			if c.Type == condition {
				out[it.Metadata.Name] = c.Status
			}
		}
	}
	return out, nil
}

const (
	startTimeout = 5 * time.Minute
	pollEvery    = 50 * time.Millisecond
)

func (c *Cluster) waitAPI(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	err := poll(ctx, pollEvery, func() (bool, error) {
		return c.api.ready(ctx), c.cp.proc().failed()
	})
	if err != nil {
		return fmt.Errorf("wait for the API server: %w", err)
	}
	return nil
}

// allTrue waits until path lists want objects and the condition of each is True.
func (c *Cluster) allTrue(ctx context.Context, path, condition string, want int) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	var last map[string]string
	err := poll(ctx, 2*pollEvery, func() (bool, error) {
		for _, n := range append([]*Node{c.cp}, c.nodes...) {
			if err := n.proc().failed(); err != nil {
				return false, err
			}
		}
		got, err := c.api.conditions(ctx, path, condition)
		if err != nil {
			return false, nil // shown by the timeout; the API server may be busy
		}
		last = got
		for _, s := range got {
			if s != "True" {
				return false, nil
			}
		}
		return len(got) >= want, nil
	})
	if err != nil {
		return fmt.Errorf("wait for %s (%v): %w", path, last, err)
	}
	return nil
}

// waitNodes starts the kubelets and waits for them.
func (c *Cluster) waitNodes(ctx context.Context) error {
	for _, n := range c.nodes {
		if err := errors.Join(n.startKubelet(ctx), n.startProxy(ctx)); err != nil {
			return err
		}
	}
	return c.allTrue(ctx, "/api/v1/nodes", "Ready", len(c.nodes))
}

// explain adds the end of the log of the component that failed, because the
// files are removed with the cluster.
func (c *Cluster) explain(err error) error {
	var ce *componentError
	var logs []string
	switch {
	case errors.As(err, &ce):
		logs = append(logs, c.logFile(ce.Node, ce.Component))
	case errors.Is(err, context.DeadlineExceeded): // who of them was it?
		logs, _ = filepath.Glob(filepath.Join(c.dir, "log", "*.log"))
		for _, n := range c.nodes {
			more, _ := filepath.Glob(filepath.Join(n.Root(), "var/log/*.log"))
			logs = append(logs, more...)
		}
	}
	for _, l := range logs {
		b, rerr := os.ReadFile(l)
		if rerr != nil || len(b) == 0 {
			continue
		}
		lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
		tail := lines[max(0, len(lines)-8):]
		err = fmt.Errorf("%w\n--- %s\n%s", err, strings.TrimPrefix(l, c.dir+"/"), strings.Join(tail, "\n"))
	}
	return err
}

func (c *Cluster) logFile(node, component string) string { return LogFile(c.dir, node, component) }

// LogFile is where a component of the cluster in dir writes its log.
func LogFile(dir, node, component string) string {
	if node == "" || node == "cp" {
		return filepath.Join(dir, "log", component+".log")
	}
	return filepath.Join(dir, node, "rootfs/var/log", component+".log")
}
