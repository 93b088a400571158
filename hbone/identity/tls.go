package identity

import (
	"context"
	"crypto/tls"
	"errors"
)

// base is what both sides agree on: TLS 1.3, ALPN h2, no resumption. Go picks
// AES-128-GCM first where AES is in hardware and cannot be told otherwise for
// TLS 1.3; key shares are offered hybrid first.
func base(terms *Terms) *tls.Config {
	c := &tls.Config{
		MinVersion:                  tls.VersionTLS13,
		MaxVersion:                  tls.VersionTLS13,
		NextProtos:                  []string{"h2"},
		CurvePreferences:            []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256, tls.CurveP384},
		SessionTicketsDisabled:      true,
		DynamicRecordSizingDisabled: true,
	}
	terms.Restrict(c)
	return c
}

// ServerConfig is the server half of mutual TLS for the workload self. A client
// must present a certificate that chains to src.Roots(), allows client
// authentication, and names an identity of self's trust domain or an alias of it. Certificate and
// roots are asked for at every handshake, so rotation needs nothing further.
func ServerConfig(src Source, self ID) *tls.Config {
	c := base(src.Terms())
	// RequestClientCert, because with a stricter mode crypto/tls refuses a missing
	// certificate itself with an error nobody can classify; VerifyConnection
	// always runs and refuses it as no_certificate.
	c.ClientAuth = tls.RequestClientCert
	c.GetCertificate = func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		return certificate(h.Context(), src, self)
	}
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		return verifyClient(cs.PeerCertificates, src.Roots(), self, src.Terms())
	}
	return c
}

// ClientConfig is the client half for the workload self: the server's
// certificate must chain to src.Roots(), allow server authentication, and carry
// one of expect among its SPIFFE URI SANs. Host names play no part and no
// SNI is sent. An empty expect never verifies.
func ClientConfig(src Source, self ID, expect []ID) *tls.Config {
	c := base(src.Terms())
	// The check by host name is what is skipped; VerifyConnection below does the rest
	// and fails closed.
	c.InsecureSkipVerify = true
	c.GetClientCertificate = func(r *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return certificate(r.Context(), src, self)
	}
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		return verifyServer(cs.PeerCertificates, src.Roots(), self, expect, src.Terms())
	}
	return c
}

func certificate(ctx context.Context, src Source, self ID) (*tls.Certificate, error) {
	cert, err := src.Certificate(ctx, self)
	if err != nil {
		return nil, err
	}
	if cert == nil || len(cert.Certificate) == 0 {
		return nil, errors.New("certificate source for " + self.String() + " returned none")
	}
	return cert, nil
}

// PeerID is the identity a verified peer is known by: the first URI SAN of its
// leaf that is one.
func PeerID(cs *tls.ConnectionState) (ID, error) {
	if cs == nil || len(cs.PeerCertificates) == 0 {
		return ID{}, &VerifyError{Cause: NoCertificate, Err: errors.New("peer presented no certificate")}
	}
	return FromCertificate(cs.PeerCertificates[0])
}
