package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"

	ca "github.com/ambitmesh/ambit/controller/ca/client"
	"github.com/ambitmesh/ambit/controller/mesh"
	xds "github.com/ambitmesh/ambit/controller/xds/client"
	"github.com/ambitmesh/ambit/hbone/identity"
	"github.com/ambitmesh/ambit/ztunnel"
	"github.com/ambitmesh/ambit/ztunnel/live"
)

// rootsTLS is the TLS of a control-plane connection: setting is a file, read
// again for each connection so that rotation needs no restart, the word
// SYSTEM, or PEM itself. other is a second name that the server's certificate may
// have, besides that of the address. nil for plaintext.
func rootsTLS(secure bool, address, setting, other string, terms *identity.Terms) func() (*tls.Config, error) {
	if !secure {
		return nil
	}
	return func() (*tls.Config, error) {
		cfg := &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}}
		terms.Restrict(cfg)
		if setting != "SYSTEM" {
			pem := []byte(setting)
			if !strings.Contains(setting, "-----BEGIN") {
				var err error
				if pem, err = os.ReadFile(setting); err != nil {
					return nil, fmt.Errorf("control plane roots: %w", err)
				}
			}
			cfg.RootCAs = x509.NewCertPool()
			if !cfg.RootCAs.AppendCertsFromPEM(pem) {
				return nil, fmt.Errorf("control plane roots: no certificate in %.60q", setting)
			}
		}
		if other != "" {
			// crypto/tls knows one name; VerifyConnection does all of it and fails
			// closed.
			cfg.InsecureSkipVerify = true
			roots := cfg.RootCAs
			host, _, err := net.SplitHostPort(address)
			if err != nil {
				return nil, fmt.Errorf("control plane: %w", err)
			}
			cfg.VerifyConnection = func(cs tls.ConnectionState) error { return eitherName(cs, roots, host, other) }
		}
		return cfg, nil
	}
}

// eitherName verifies a server by the host it was dialled by, or by other. The
// connection does not tell the host: to TLS an address is no name of a server.
func eitherName(cs tls.ConnectionState, roots *x509.CertPool, host, other string) error {
	if len(cs.PeerCertificates) == 0 {
		return errors.New("control plane: no certificate")
	}
	o := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool(), DNSName: cmp.Or(host, other)}
	for _, c := range cs.PeerCertificates[1:] {
		o.Intermediates.AddCert(c)
	}
	_, err := cs.PeerCertificates[0].Verify(o)
	if name := (x509.HostnameError{}); errors.As(err, &name) {
		o.DNSName = other
		_, err = cs.PeerCertificates[0].Verify(o)
	}
	return err
}

// xds is how configuration is asked for.
func (c *config) xds(terms *identity.Terms, store *mesh.Store) xds.Config {
	address, secure, _ := endpoint(c.XDSAddress)
	return xds.Config{
		Address: address, TLS: rootsTLS(secure, address, c.XDSRootCA, c.XDSName, terms), Token: token(c.AuthToken), ClusterID: c.ClusterID,
		Headers: c.XDSHeaders, NodeID: c.nodeID(), Metadata: c.metadata(version), JSON: c.MetaJSON, OnDemand: c.OnDemand,
		Store: store,
	}
}

// ca is how certificates are asked for.
func (c *config) ca(terms *identity.Terms) ca.Config {
	address, secure, _ := endpoint(c.CAAddress)
	return ca.Config{
		Address: address, TLS: rootsTLS(secure, address, c.CARootCA, c.CAName, terms), Token: token(c.AuthToken), ClusterID: c.ClusterID,
		Headers: c.CAHeaders, Impersonate: true, TTL: c.SecretTTL, Terms: terms,
	}
}

// terms are what peers and servers have to keep to, and what follows the file of
// revocation lists.
func (c *config) terms(log *slog.Logger, store *mesh.Store) (*identity.Terms, func(context.Context) error) {
	t := &identity.Terms{Compliance: identity.Compliance(c.Compliance), TLS12: c.TLS12, Aliases: func() []string {
		if s, known := store.Load().Settings(); known {
			return s.TrustDomainAliases
		}
		return c.Aliases
	}}
	if c.CRLPath == "" {
		return t, func(context.Context) error { return nil }
	}
	log = log.With(live.ScopeKey, "crl")
	t.Revoked = &identity.Revocations{Strange: func(list string, why error) {
		log.Error("a revocation list does not count", "list", list, "error", why)
	}}
	f := &identity.File{Path: c.CRLPath, Revocations: t.Revoked, Logger: log}
	f.Look() // before the first connection
	return t, f.Run
}

// sockets is the keepalive of connections.
func (k keepAlive) sockets() live.KeepAlive {
	return live.KeepAlive{Off: !k.Enabled, Idle: k.Time, Interval: k.Interval, Count: k.Retries, UserTimeout: k.UserTimeout}
}

// demand is nil, and not a nil pointer in an interface, where nothing is asked
// for on demand.
func demand(c *xds.Client) live.Demand {
	if d := c.Demand(); d != nil {
		return d
	}
	return nil
}

// denied reports whether the CA refused an identity.
func denied(err error) bool {
	var e *ca.Error
	return errors.As(err, &e) && e.Denied
}

func certStates(src *ca.Source) func() []ztunnel.CertState {
	return func() []ztunnel.CertState {
		var out []ztunnel.CertState
		for _, s := range src.States() {
			out = append(out, ztunnel.CertState{ID: s.ID, State: s.State, Chain: s.Chain, Roots: s.Roots})
		}
		return out
	}
}

// list reads names separated by commas.
func list(domain string, field func(*config) *[]string) value {
	return value{domain, func(c *config, v string) error {
		*field(c) = nil
		for name := range strings.SplitSeq(v, ",") {
			if name = strings.TrimSpace(name); name != "" {
				*field(c) = append(*field(c), name)
			}
		}
		return nil
	}}
}
