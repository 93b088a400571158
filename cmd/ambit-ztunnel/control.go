package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"

	ca "github.com/ambitmesh/ambit/controller/ca/client"
	"github.com/ambitmesh/ambit/ztunnel"
)

// rootsTLS is the TLS of a control-plane connection: setting is a file, read
// again for each connection so that rotation needs no restart, the word
// SYSTEM, or PEM itself. serverName is the name the certificate must have when
// it is not that of the address. nil for plaintext.
func rootsTLS(secure bool, setting, serverName string) func() (*tls.Config, error) {
	if !secure {
		return nil
	}
	return func() (*tls.Config, error) {
		cfg := &tls.Config{ServerName: serverName, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}}
		if setting == "SYSTEM" {
			return cfg, nil
		}
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
		return cfg, nil
	}
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
