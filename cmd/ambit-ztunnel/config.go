package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/ambitmesh/ambit/hbone"
	"github.com/ambitmesh/ambit/hbone/pool"
	"github.com/ambitmesh/ambit/ztunnel"
	"github.com/ambitmesh/ambit/ztunnel/live"
)

const defaultControlPlane = "https://ambit-controller.ambit-system.svc:15012"

// config is everything the process is told; settings.go says by what.
type config struct {
	NodeName, ClusterID, ClusterDomain                string
	TrustDomain                                       string // of its own identity in the dump
	PodName, PodNamespace, ServiceAccount, InstanceIP string
	Meta, ProxyMetadata                               map[string]string // without the prefix ISTIO_META_
	MetaJSON                                          map[string]any
	XDSAddress, XDSRootCA                             string
	CAAddress, CARootCA                               string
	XDSName, CAName                                   string // in the certificates, when not that of the address
	XDSHeaders, CAHeaders                             map[string]string
	OnDemand                                          bool
	AuthToken                                         string
	SecretTTL, Grace                                  time.Duration
	GracePeriod                                       uint32 // seconds
	CRLPath                                           string
	Socket                                            string
	PortReuse, IPv6                                   bool
	OriginalSource                                    *bool // nil: where it can be done
	AdminAddr, StatsAddr, ReadyAddr                   string
	LogFormat, LogLevel                               string
	Progress                                          time.Duration // 0: no lines
	PolicyInfo                                        bool          // policy decisions at level info
	KeepAlive                                         keepAlive
	HBONE                                             hbone.Config
	TLS12                                             bool
	Compliance                                        string   // fips-140-2, pqc
	Aliases                                           []string // trust domains
	LocalhostAppTunnel, ResponseBaggage, SOCKS5       bool
	PreferredNamespace                                string
	Outbound                                          string         // ALLOW_ANY, REGISTRY_ONLY, or "" for what the mesh says
	BacklogLimit                                      int64          // bytes; 0: a quarter of the memory limit
	Quotas                                            ztunnel.Quotas // zeros: from the machine
	HandshakeRate                                     uint32
	Pool                                              pool.Config
	Workers, Concurrency                              share
	CPULimit, CPURequest, CPUs                        int

	problems []error // values that could not be read at all
	warnings []string
}

// keepAlive of TCP connections.
type keepAlive struct {
	Enabled, UserTimeout bool
	Time, Interval       time.Duration
	Retries              int
}

// readConfig reads an environment; readFile is for the mesh configuration that
// may be mounted.
func readConfig(environ map[string]string, readFile func(string) ([]byte, error)) *config {
	c := &config{}
	problem := func(err error) {
		if err != nil {
			c.problems = append(c.problems, err)
		}
	}
	problem(c.readDefaults())
	if b, err := readFile(meshFile); err == nil {
		if err := c.readMesh(string(b)); err != nil {
			problem(fmt.Errorf("%s: %w", meshFile, err))
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		problem(err)
	}
	problem(c.read(environ))
	c.XDSAddress = cmp.Or(c.XDSAddress, defaultControlPlane)
	c.CAAddress = cmp.Or(c.CAAddress, c.XDSAddress)
	c.CARootCA = cmp.Or(c.CARootCA, c.XDSRootCA)
	c.Grace = grace(uint64(c.GracePeriod), c.Grace)
	c.Quotas.HandshakeRate = float64(c.HandshakeRate)
	return c
}

// grace is how long connections may go on after SIGTERM: somewhat less than
// Kubernetes waits before it kills.
func grace(period uint64, deadline time.Duration) time.Duration {
	switch {
	case deadline > 0:
		return deadline
	case period == 0:
		return 5 * time.Second
	case period > 10:
		return time.Duration(period-5) * time.Second
	}
	return time.Duration(max(1, period-1)) * time.Second
}

// Validate lists every problem at once.
func (c *config) Validate() error {
	errs := c.problems
	if _, err := live.NewLevels(c.LogLevel); err != nil {
		errs = append(errs, fmt.Errorf("RUST_LOG: %w", err))
	}
	if c.OnDemand && c.dnsCapture() {
		errs = append(errs, errors.New("XDS_ON_DEMAND=true: names cannot be answered for workloads that are not known; it wants ISTIO_META_DNS_CAPTURE=false"))
	}
	return errors.Join(errs...)
}

// endpoint splits an address into host:port and whether it is TLS, which is
// the default.
func endpoint(address string) (hostport string, secure bool, err error) {
	if !strings.Contains(address, "://") {
		address = "https://" + address
	}
	u, err := url.Parse(address)
	if err != nil {
		return "", false, err
	}
	if u.Scheme != "https" && u.Scheme != "http" || u.Port() == "" || u.Hostname() == "" {
		return "", false, fmt.Errorf("address %q: want https://host:port", address)
	}
	return u.Host, u.Scheme == "https", nil
}

// nodeID is how the control plane knows us.
func (c *config) nodeID() string {
	return fmt.Sprintf("ztunnel~%s~%s.%s~%s.svc.cluster.local", c.InstanceIP, c.PodName, c.PodNamespace, c.PodNamespace)
}

func (c *config) metadata(version string) map[string]string {
	m := map[string]string{
		"ISTIO_VERSION": version, // what istioctl and pilot_xds{version} show
		"CLUSTER_ID":    c.ClusterID,
		"NAME":          c.PodName, "NAMESPACE": c.PodNamespace, "INSTANCE_IPS": c.InstanceIP, "NODE_NAME": c.NodeName,
	}
	maps.Copy(m, c.proxyMetadata())
	return m
}

// dnsCapture is whether the DNS queries of pods are answered, unless the metadata
// say otherwise.
func (c *config) dnsCapture() bool {
	v, set := c.proxyMetadata()["DNS_CAPTURE"]
	return !set || strings.EqualFold(v, "true")
}

const defaultToken = "./var/run/secrets/tokens/istio-token"

// token follows AUTH_TOKEN: a file that is read every time, a literal, or the
// default file where there is one.
func token(setting string) func() (string, error) {
	path := setting
	if path == "" {
		path = defaultToken
	}
	if _, err := os.Stat(path); err != nil {
		return func() (string, error) { return setting, nil }
	}
	return func() (string, error) {
		b, err := os.ReadFile(path)
		if err != nil {
			return "", fmt.Errorf("token: %w", err)
		}
		t := strings.TrimSpace(string(b))
		if t == "" {
			return "", fmt.Errorf("token: %s is empty", path)
		}
		return t, nil
	}
}
