package identity

import (
	"crypto/tls"
	"slices"
)

// Terms are what a peer has to keep to besides the trust anchors. The zero Terms,
// as nil, asks for nothing further. Those that are fixed are set before use.
type Terms struct {
	Compliance Compliance
	TLS12      bool // version 1.2 of TLS will do, too
	Revoked    *Revocations

	// Aliases, if set, gives the trust domains whose identities count as those of
	// the mesh's own. It is asked at every handshake; connections that stand are not
	// judged again.
	Aliases func() []string
}

// SameDomain reports whether a means the trust domain own, or an alias of it.
func (t *Terms) SameDomain(a, own string) bool {
	if own == "" || a == own {
		return own != ""
	}
	return t != nil && t.Aliases != nil && slices.Contains(t.Aliases(), a)
}

// SameID reports whether a and b are one identity in a mesh of the trust domain
// own: the same, or the same below trust domains that both count as the mesh's.
func (t *Terms) SameID(a, b ID, own string) bool {
	if a == b {
		return true
	}
	return a.Namespace == b.Namespace && a.ServiceAccount == b.ServiceAccount &&
		t.SameDomain(a.TrustDomain, own) && t.SameDomain(b.TrustDomain, own)
}

func (t *Terms) revoked() *Revocations {
	if t == nil {
		return nil
	}
	return t.Revoked
}

// Compliance is a set of rules that TLS is restricted to, by Istio's name.
type Compliance string

const (
	// AnyCompliance restricts nothing.
	AnyCompliance Compliance = ""
	// FIPS140 leaves what FIPS 140 approves: key exchange on the NIST curves or
	// with ML-KEM beside one, AES-GCM. TLS 1.3 has ChaCha20 as well, which only
	// the Go Cryptographic Module in its FIPS mode leaves out: the program has to
	// be in it (GODEBUG=fips140=on).
	FIPS140 Compliance = "fips-140-2"
	// PQC leaves TLS 1.3 with X25519MLKEM768 and nothing else to exchange keys.
	PQC Compliance = "pqc"
)

// Restrict makes c keep to t.
func (t *Terms) Restrict(c *tls.Config) {
	if t == nil {
		return
	}
	if t.TLS12 && c.MinVersion == tls.VersionTLS13 {
		c.MinVersion = tls.VersionTLS12
		c.CipherSuites = suites12
	}
	switch t.Compliance {
	case FIPS140:
		c.CurvePreferences = []tls.CurveID{tls.SecP256r1MLKEM768, tls.SecP384r1MLKEM1024, tls.CurveP256, tls.CurveP384}
		c.CipherSuites = suites12
		c.MinVersion = max(c.MinVersion, tls.VersionTLS12)
	case PQC:
		c.MinVersion, c.MaxVersion = tls.VersionTLS13, tls.VersionTLS13
		c.CurvePreferences = []tls.CurveID{tls.X25519MLKEM768}
	}
}

// suites12 are those of TLS 1.2, where it is spoken at all; the suites of TLS 1.3
// are not for choosing.
var suites12 = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
}
