package client

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	pb "istio.io/api/security/v1alpha1"

	"github.com/ambitmesh/ambit/hbone/identity"
)

// caller speaks to the CA. Requests under way share one connection; it is
// closed with the last of them, so that the next one sees new roots, new
// addresses and, on a busy controller, no thousand idle connections.
type caller struct {
	config Config

	mu      sync.Mutex
	current *sharedConn // of new requests; nil: the next one dials; guarded by mu
}

// sharedConn is closed with its last user.
type sharedConn struct {
	*grpc.ClientConn
	users int // guarded by caller.mu
}

// ask makes a key, has it signed for id and checks the answer.
func (c *caller) ask(ctx context.Context, id identity.ID) (*issued, error) {
	key, csr, err := newRequest(id)
	if err != nil {
		return nil, err
	}
	if c.config.Token != nil {
		token, err := c.config.Token()
		if err != nil {
			return nil, fmt.Errorf("token: %w", err)
		}
		if token != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
		}
	}
	if c.config.ClusterID != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "clusterid", c.config.ClusterID)
	}
	for k, v := range c.config.Headers {
		ctx = metadata.AppendToOutgoingContext(ctx, k, v)
	}
	r := &pb.IstioCertificateRequest{Csr: csr, ValidityDuration: int64(c.config.TTL / time.Second)}
	if c.config.Impersonate {
		r.Metadata = &structpb.Struct{Fields: map[string]*structpb.Value{
			"ImpersonatedIdentity": structpb.NewStringValue(id.String()),
		}}
	}
	conn, err := c.acquire()
	if err != nil {
		return nil, err
	}
	answer, err := pb.NewIstioCertificateServiceClient(conn).CreateCertificate(ctx, r)
	c.release(conn, err)
	if err != nil {
		return nil, err
	}
	return readAnswer(answer.GetCertChain(), key, id)
}

func (c *caller) acquire() (*sharedConn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current == nil {
		conn, err := c.dial()
		if err != nil {
			return nil, err
		}
		c.current = &sharedConn{ClientConn: conn}
	}
	c.current.users++
	return c.current, nil
}

// release gives conn back. One that did not bring an answer gets no more
// requests: it may lead to a replica that is gone without a word, and a new
// one may lead elsewhere.
func (c *caller) release(conn *sharedConn, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	conn.users--
	if c.current == conn && (conn.users == 0 || err != nil && !denied(err)) {
		c.current = nil
	}
	if conn.users == 0 {
		_ = conn.Close()
	}
}

func (c *caller) dial() (*grpc.ClientConn, error) {
	creds := insecure.NewCredentials()
	if c.config.TLS != nil {
		t, err := c.config.TLS()
		if err != nil {
			return nil, fmt.Errorf("tls for CA %s: %w", c.config.Address, err)
		}
		creds = credentials.NewTLS(t)
	}
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	host := strings.TrimPrefix(strings.TrimPrefix(c.config.Address, "https://"), "http://")
	conn, err := grpc.NewClient("dns:///"+host,
		grpc.WithTransportCredentials(creds),
		grpc.WithNoProxy(),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", addr)
		}),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: 5 * time.Second}),
		grpc.WithDisableServiceConfig(),
	)
	if err != nil {
		return nil, fmt.Errorf("CA %q: %w", c.config.Address, err)
	}
	return conn, nil
}

// denied reports that the CA answered and does not want to sign.
func denied(err error) bool {
	switch status.Code(err) {
	case codes.Unauthenticated, codes.PermissionDenied, codes.InvalidArgument:
		return true
	}
	return false
}

// newRequest makes a key and a signing request: empty subject, the SPIFFE URI
// as the only name.
func newRequest(id identity.ID) (*ecdsa.PrivateKey, string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, "", fmt.Errorf("key: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		SignatureAlgorithm: x509.ECDSAWithSHA256,
		URIs:               []*url.URL{id.URL()},
	}, key)
	if err != nil {
		return nil, "", fmt.Errorf("signing request: %w", err)
	}
	return key, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), nil
}

// readAnswer checks that the chain is what was asked for: our key, the wanted
// identity, leading to the roots in its last element.
func readAnswer(chain []string, key *ecdsa.PrivateKey, id identity.ID) (*issued, error) {
	if len(chain) < 2 {
		return nil, fmt.Errorf("answer of the CA: %d certificates, no root", len(chain))
	}
	last := len(chain) - 1
	out := &issued{rootPEM: chain[last], pool: x509.NewCertPool(), certificate: &tls.Certificate{PrivateKey: key}}
	between := x509.NewCertPool()
	for i, text := range chain[:last] {
		certs, err := parsePEM(text)
		if err != nil {
			return nil, fmt.Errorf("answer of the CA: cert_chain[%d]: %w", i, err)
		}
		for _, c := range certs {
			out.chain = append(out.chain, c)
			out.certificate.Certificate = append(out.certificate.Certificate, c.Raw)
		}
	}
	roots, err := parsePEM(chain[last])
	if err != nil {
		return nil, fmt.Errorf("answer of the CA: cert_chain[%d]: %w", last, err)
	}
	out.roots = roots
	for _, r := range roots {
		out.pool.AddCert(r)
	}
	for _, c := range out.chain[1:] {
		between.AddCert(c)
	}
	leaf := out.chain[0]
	out.certificate.Leaf = leaf
	if len(leaf.URIs) == 0 || leaf.URIs[0].String() != id.String() {
		return nil, fmt.Errorf("answer of the CA: leaf is for %v, want %v", leaf.URIs, id)
	}
	if !key.PublicKey.Equal(leaf.PublicKey) {
		return nil, errors.New("answer of the CA: leaf is for another key")
	}
	// At the leaf's own time: what our clock thinks of it is up to its users.
	_, err = leaf.Verify(x509.VerifyOptions{Roots: out.pool, Intermediates: between,
		CurrentTime: leaf.NotBefore.Add(time.Second), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return nil, fmt.Errorf("answer of the CA: leaf does not lead to its roots: %w", err)
	}
	return out, nil
}

// parsePEM reads one or more certificates.
func parsePEM(text string) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	rest := []byte(strings.TrimSpace(text))
	for len(rest) > 0 {
		block, more := pem.Decode(rest)
		if block == nil || block.Type != "CERTIFICATE" {
			return nil, errors.New("not a PEM certificate")
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		out, rest = append(out, c), []byte(strings.TrimSpace(string(more)))
	}
	if len(out) == 0 {
		return nil, errors.New("empty")
	}
	return out, nil
}
