package plugin

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/ambitmesh/ambit/cni/enroll"
)

// config is our entry of the network configuration list, as the runtime hands
// it over on stdin. The file is written by the agent (package cni/install).
type config struct {
	CNIVersion string          `json:"cniVersion"`
	Name       string          `json:"name"`
	Type       string          `json:"type"`
	PrevResult json.RawMessage `json:"prevResult"`

	Socket            string   `json:"socket"`            // default enroll.DefaultSocket
	Intent            string   `json:"intent"`            // default enroll.DefaultIntent
	ExcludeNamespaces []string `json:"excludeNamespaces"` // never asked about, the agent's own included
	TimeoutSeconds    int      `json:"timeoutSeconds"`    // of ADD; default 60
}

const defaultTimeout = 60 * time.Second

func parseConfig(stdin []byte) (*config, error) {
	c := new(config)
	if err := json.Unmarshal(stdin, c); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "ambit-cni: network configuration", err.Error())
	}
	if c.TimeoutSeconds < 0 || c.TimeoutSeconds > 600 {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "ambit-cni: network configuration",
			fmt.Sprintf("timeoutSeconds: want 0 to 600, have %d", c.TimeoutSeconds))
	}
	if string(c.PrevResult) == "null" {
		c.PrevResult = nil
	}
	return c, nil
}

func (c *config) socket() string {
	if c.Socket == "" {
		return enroll.DefaultSocket
	}
	return c.Socket
}

func (c *config) intent() string {
	if c.Intent == "" {
		return enroll.DefaultIntent
	}
	return c.Intent
}

func (c *config) timeout() time.Duration {
	if c.TimeoutSeconds == 0 {
		return defaultTimeout
	}
	return time.Duration(c.TimeoutSeconds) * time.Second
}

// ignores says which sandboxes the agent is not asked about: those that are
// not pods, and those of the excluded namespaces. The agent's own namespace is
// among these, because an agent that waits for itself never starts.
func (c *config) ignores(pod enroll.Pod) bool {
	return pod.Name == "" || pod.Namespace == "" || slices.Contains(c.ExcludeNamespaces, pod.Namespace)
}

// addresses are those the plugins before us gave the pod, in every form the
// CNI specification has had: ips (0.3.0 and later), ip4 and ip6 (before).
func (c *config) addresses() ([]netip.Addr, error) {
	if len(c.PrevResult) == 0 {
		return nil, nil
	}
	var r struct {
		IPs []struct {
			Address string `json:"address"`
		} `json:"ips"`
		IP4 struct {
			IP string `json:"ip"`
		} `json:"ip4"`
		IP6 struct {
			IP string `json:"ip"`
		} `json:"ip6"`
	}
	if err := json.Unmarshal(c.PrevResult, &r); err != nil {
		return nil, fmt.Errorf("prevResult: %w", err)
	}
	var texts []string
	for _, ip := range r.IPs {
		texts = append(texts, ip.Address)
	}
	for _, t := range []string{r.IP4.IP, r.IP6.IP} {
		if t != "" {
			texts = append(texts, t)
		}
	}
	var out []netip.Addr
	for _, t := range texts {
		prefix, err := netip.ParsePrefix(t)
		if err != nil {
			return nil, fmt.Errorf("prevResult: address: %w", err)
		}
		out = append(out, prefix.Addr().Unmap())
	}
	return out, nil
}

// parseArgs reads the pod from CNI_ARGS ("K8S_POD_NAME=a;K8S_POD_NAMESPACE=b").
// What else is in there is not ours to judge.
func parseArgs(args string) enroll.Pod {
	var pod enroll.Pod
	for pair := range strings.SplitSeq(args, ";") {
		key, value, _ := strings.Cut(pair, "=")
		switch key {
		case "K8S_POD_NAMESPACE":
			pod.Namespace = value
		case "K8S_POD_NAME":
			pod.Name = value
		case "K8S_POD_UID":
			pod.UID = value
		}
	}
	return pod
}
