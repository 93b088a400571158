package main

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/ambitmesh/ambit/hbone"
	"github.com/ambitmesh/ambit/hbone/pool"
	"github.com/ambitmesh/ambit/ztunnel"
	"github.com/ambitmesh/ambit/ztunnel/live"
)

// config is everything the process is told. The environment names are Istio's.
type config struct {
	NodeName, ClusterID, TrustDomain  string
	PodName, PodNamespace, InstanceIP string
	XDSAddress, XDSRootCA             string
	CAAddress, CARootCA               string
	XDSName, CAName                   string // in the certificates, when not that of the address
	AuthToken                         string
	SecretTTL, Grace                  time.Duration
	Socket                            string
	AdminAddr, StatsAddr, ReadyAddr   string
	LogFormat, LogLevel               string
	HBONE                             hbone.Config
	BacklogLimit                      int64          // bytes; 0: a quarter of the memory limit
	Quotas                            ztunnel.Quotas // zeros: from the machine
	Pool                              pool.Config

	problems []error // values that could not be read at all
}

func (c *config) bad(name, value, want string) {
	c.problems = append(c.problems, fmt.Errorf("%s=%q: want %s", name, value, want))
}

// readConfig reads the environment through getenv.
func readConfig(getenv func(string) string) *config {
	c := &config{}
	str := func(name, def string) string {
		if v := getenv(name); v != "" {
			return v
		}
		return def
	}
	number := func(name string, def uint64, bits int) uint64 {
		v := getenv(name)
		if v == "" {
			return def
		}
		n, err := strconv.ParseUint(v, 10, bits)
		if err != nil {
			c.bad(name, v, fmt.Sprintf("a number of up to %d bits", bits))
		}
		return n
	}
	duration := func(name string, def time.Duration) time.Duration {
		v := getenv(name)
		if v == "" {
			return def
		}
		d, err := time.ParseDuration(v)
		if err != nil || d <= 0 {
			c.bad(name, v, "a positive duration such as 5s, 10m, 24h")
		}
		return d
	}
	c.NodeName = getenv("NODE_NAME")
	c.ClusterID = str("ISTIO_META_CLUSTER_ID", str("CLUSTER_ID", live.DefaultCluster))
	c.TrustDomain = str("TRUST_DOMAIN", "cluster.local")
	c.PodName, c.PodNamespace = getenv("POD_NAME"), getenv("POD_NAMESPACE")
	c.InstanceIP = str("INSTANCE_IP", "1.1.1.1")
	c.XDSAddress = str("XDS_ADDRESS", "https://ambit-controller.ambit-system.svc:15012")
	c.XDSRootCA = str("XDS_ROOT_CA", "./var/run/secrets/istio/root-cert.pem")
	c.CAAddress = str("CA_ADDRESS", c.XDSAddress)
	c.CARootCA = str("CA_ROOT_CA", c.XDSRootCA)
	c.XDSName, c.CAName = getenv("ALT_XDS_HOSTNAME"), getenv("ALT_CA_HOSTNAME")
	c.AuthToken = getenv("AUTH_TOKEN")
	c.SecretTTL = duration("SECRET_TTL", 24*time.Hour)
	c.Grace = grace(number("TERMINATION_GRACE_PERIOD_SECONDS", 0, 31), duration("CONNECTION_TERMINATION_DEADLINE", 0))
	c.Socket = str("INPOD_UDS", "/var/run/ztunnel/ztunnel.sock")
	c.AdminAddr = str("ADMIN_ADDR", "127.0.0.1:15000")
	c.StatsAddr = str("STATS_ADDR", ":15020")
	c.ReadyAddr = str("READINESS_ADDR", ":15021")
	c.LogFormat, c.LogLevel = getenv("LOG_FORMAT"), getenv("RUST_LOG")
	c.HBONE.StreamWindow = uint32(number("HTTP2_STREAM_WINDOW_SIZE", 0, 31))
	c.HBONE.ConnWindow = uint32(number("HTTP2_CONNECTION_WINDOW_SIZE", 0, 31))
	c.HBONE.MaxFrame = uint32(number("HTTP2_FRAME_SIZE", 0, 24))
	c.BacklogLimit = int64(number("AMBIT_BACKLOG_LIMIT", 0, 62))
	c.Quotas.Backlog = int64(number("AMBIT_POD_BACKLOG_LIMIT", 0, 62))
	c.Quotas.Connections.Node = int(number("AMBIT_CONNECTION_LIMIT", 0, 31))
	c.Quotas.Connections.Pod = int(number("AMBIT_POD_CONNECTION_LIMIT", 0, 31))
	c.Quotas.HandshakeRate = float64(number("AMBIT_POD_HANDSHAKE_RATE", 0, 31))
	c.HBONE.PingInterval = duration("HTTP2_PING_INTERVAL", 10*time.Second)
	c.HBONE.PingTimeout = duration("HTTP2_PING_TIMEOUT", 20*time.Second)
	c.Pool.MaxStreams = int(number("POOL_MAX_STREAMS_PER_CONNECTION", 100, 31))
	c.Pool.Idle = duration("POOL_UNUSED_RELEASE_TIMEOUT", 5*time.Minute)
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
	for _, a := range []struct{ name, value string }{{"XDS_ADDRESS", c.XDSAddress}, {"CA_ADDRESS", c.CAAddress}} {
		if _, _, err := endpoint(a.value); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", a.name, err))
		}
	}
	for _, a := range []struct{ name, value string }{
		{"ADMIN_ADDR", c.AdminAddr}, {"STATS_ADDR", c.StatsAddr}, {"READINESS_ADDR", c.ReadyAddr},
	} {
		if _, _, err := net.SplitHostPort(a.value); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", a.name, err))
		}
	}
	if host, _, err := net.SplitHostPort(c.AdminAddr); err == nil && !net.ParseIP(host).IsLoopback() {
		errs = append(errs, fmt.Errorf("ADMIN_ADDR=%q: the admin interface is for loopback only", c.AdminAddr))
	}
	switch c.LogFormat {
	case "", "plain", "json":
	default:
		errs = append(errs, fmt.Errorf("LOG_FORMAT=%q: want plain or json", c.LogFormat))
	}
	if _, err := live.NewLevels(c.LogLevel); err != nil {
		errs = append(errs, fmt.Errorf("RUST_LOG: %w", err))
	}
	if c.SecretTTL > 24*time.Hour {
		errs = append(errs, fmt.Errorf("SECRET_TTL=%s: at most 24h", c.SecretTTL))
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
	return map[string]string{
		"ISTIO_VERSION": version, // what istioctl and pilot_xds{version} show
		"NAME":          c.PodName, "NAMESPACE": c.PodNamespace, "INSTANCE_IPS": c.InstanceIP, "NODE_NAME": c.NodeName,
	}
}

// dump is the key "config" of config_dump; it holds no token.
func (c *config) dump() map[string]any {
	return map[string]any{
		"proxy": true, "dnsProxy": false, "windowSize": c.HBONE.StreamWindow, "connectionWindowSize": c.HBONE.ConnWindow,
		"frameSize": c.HBONE.MaxFrame, "poolMaxStreamsPerConn": c.Pool.MaxStreams,
		"poolUnusedReleaseTimeout": c.Pool.Idle.String(), "adminAddr": c.AdminAddr, "statsAddr": c.StatsAddr,
		"readinessAddr": c.ReadyAddr, "illegalPorts": []int{15001, 15006, 15008}, "network": "", "localNode": c.NodeName,
		"proxyMode": "Shared", "clusterId": c.ClusterID, "clusterDomain": "cluster.local", "caAddress": c.CAAddress,
		"xdsAddress": c.XDSAddress, "secretTtl": c.SecretTTL.String(), "selfTerminationDeadline": c.Grace.String(),
		"inpodUds": c.Socket, "ztunnelIdentity": "spiffe://" + c.TrustDomain + "/ns/" + c.PodNamespace + "/sa/ztunnel",
	}
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
