// Package cri owns the questions Ambit asks the container runtime: which pod
// sandboxes run on this node, in which network namespaces, under which runtime
// handler. It only reads.
package cri

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Sockets are where runtimes listen, in the order in which they are tried.
func Sockets() []string {
	return []string{
		"/run/containerd/containerd.sock",
		"/run/k3s/containerd/containerd.sock",
		"/run/crio/crio.sock",
	}
}

// Probe returns the first of sockets that exists under root, as a path that
// this process can dial.
func Probe(root string, sockets []string) (string, error) {
	for _, s := range sockets {
		path := strings.TrimSuffix(root, "/") + s
		if st, err := os.Stat(path); err == nil && st.Mode().Type() == os.ModeSocket {
			return path, nil
		}
	}
	return "", fmt.Errorf("no container runtime socket: tried %s", strings.Join(sockets, ", "))
}

// Sandbox is one running pod sandbox.
type Sandbox struct {
	ID        string // the CNI container id
	UID       string // of the pod
	Namespace string
	Name      string
	Handler   string // runtime handler of the RuntimeClass; empty is the default one
	CreatedAt time.Time
}

// Detail is what only the verbose status of a sandbox tells.
type Detail struct {
	Netns   string // path on the host
	Runtime string // such as io.containerd.runc.v2; empty when not told
}

// Client talks to one runtime.
type Client struct {
	socket string
	conn   *grpc.ClientConn
	api    runtimeapi.RuntimeServiceClient
}

// New prepares a client for the runtime behind socket; it does not dial yet.
func New(socket string) (*Client, error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		// Verbose sandbox statuses carry whole container specs.
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		return nil, fmt.Errorf("container runtime %s: %w", socket, err)
	}
	return &Client{socket: socket, conn: conn, api: runtimeapi.NewRuntimeServiceClient(conn)}, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Sandboxes lists the sandboxes that are ready. Where a pod has several, the
// newest comes last.
func (c *Client) Sandboxes(ctx context.Context) ([]Sandbox, error) {
	resp, err := c.api.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{
		Filter: &runtimeapi.PodSandboxFilter{
			State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("container runtime %s: list sandboxes: %w", c.socket, err)
	}
	out := make([]Sandbox, 0, len(resp.Items))
	for _, s := range resp.Items {
		m := s.GetMetadata()
		out = append(out, Sandbox{
			ID:        s.GetId(),
			UID:       m.GetUid(),
			Namespace: m.GetNamespace(),
			Name:      m.GetName(),
			Handler:   s.GetRuntimeHandler(),
			CreatedAt: time.Unix(0, s.GetCreatedAt()),
		})
	}
	slices.SortStableFunc(out, func(a, b Sandbox) int { return a.CreatedAt.Compare(b.CreatedAt) })
	return out, nil
}

// Find returns the newest ready sandbox of the pod uid.
func (c *Client) Find(ctx context.Context, uid string) (Sandbox, error) {
	all, err := c.Sandboxes(ctx)
	if err != nil {
		return Sandbox{}, err
	}
	for i := len(all) - 1; i >= 0; i-- {
		if all[i].UID == uid {
			return all[i], nil
		}
	}
	return Sandbox{}, fmt.Errorf("container runtime %s: %w", c.socket, ErrNoSandbox)
}

// ErrNoSandbox says that the runtime has no ready sandbox of a pod.
var ErrNoSandbox = errors.New("pod has no ready sandbox")

// Detail asks for the namespace of a sandbox.
func (c *Client) Detail(ctx context.Context, id string) (Detail, error) {
	resp, err := c.api.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id, Verbose: true})
	if err != nil {
		return Detail{}, fmt.Errorf("container runtime %s: sandbox %s: %w", c.socket, id, err)
	}
	d, err := parseInfo(resp.GetInfo()["info"])
	if err != nil {
		return Detail{}, fmt.Errorf("container runtime %s: sandbox %s: %w", c.socket, id, err)
	}
	return d, nil
}

// parseInfo reads the JSON that runtimes put into the verbose status. It is
// not part of the CRI, but containerd and CRI-O agree on what is used here.
func parseInfo(info string) (Detail, error) {
	var v struct {
		RuntimeType    string `json:"runtimeType"`
		RuntimeHandler string `json:"runtimeHandler"`
		RuntimeSpec    struct {
			Linux struct {
				Namespaces []struct {
					Type string `json:"type"`
					Path string `json:"path"`
				} `json:"namespaces"`
			} `json:"linux"`
		} `json:"runtimeSpec"`
	}
	if info == "" {
		return Detail{}, errors.New("verbose status has no info")
	}
	if err := json.Unmarshal([]byte(info), &v); err != nil {
		return Detail{}, fmt.Errorf("verbose status: %w", err)
	}
	for _, ns := range v.RuntimeSpec.Linux.Namespaces {
		if ns.Type == "network" && ns.Path != "" {
			return Detail{Netns: ns.Path, Runtime: v.RuntimeType}, nil
		}
	}
	return Detail{}, errors.New("verbose status: runtimeSpec.linux.namespaces has no network entry with a path")
}

// OwnStack names runtimes whose applications do not use this kernel's network
// stack: nothing done in the namespace captures them.
func OwnStack(names ...string) (string, bool) {
	for _, n := range names {
		lower := strings.ToLower(n)
		for _, word := range []string{"runsc", "gvisor", "kata", "firecracker", "krun", "quark"} {
			if strings.Contains(lower, word) {
				return n, true
			}
		}
	}
	return "", false
}
