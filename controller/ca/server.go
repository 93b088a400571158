package ca

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	pb "istio.io/api/security/v1alpha1"

	"github.com/ambitmesh/ambit/hbone/identity"
)

// Signer is what signs: an Authority, or a Keyring whose keys change.
type Signer interface {
	Sign(csrPEM []byte, id identity.ID, ttl time.Duration) (chain []string, err error)
	Expiry() (root, chain time.Time)
}

// ServerConfig of the certificate service.
type ServerConfig struct {
	Authority    Signer
	Authenticate func(ctx context.Context) (Caller, error)
	// TrustDomain of the mesh, "" means identity.DefaultTrustDomain. Nothing
	// is signed for another one.
	TrustDomain string
	// TrustedNodeAccounts may ask for other identities, each
	// <namespace>/<service account>: the node proxies.
	TrustedNodeAccounts []string
	// Hosts reports whether an enrolled, non-terminal pod of id runs on node.
	Hosts      func(node string, id identity.ID) bool
	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil: metrics are not exposed
}

// Server is istio.v1.auth.IstioCertificateService.
type Server struct {
	pb.UnimplementedIstioCertificateServiceServer
	config  ServerConfig
	metrics metrics
}

// NewServer has no side effects but registering metrics.
func NewServer(c ServerConfig) *Server {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.TrustDomain == "" {
		c.TrustDomain = identity.DefaultTrustDomain
	}
	return &Server{config: c, metrics: newMetrics(c.Registerer, c.Authority)}
}

// Register adds the service to g, as a stream of one request and one answer.
// On the wire that is the same; but a unary handler gets a request that has
// been read whole, from a caller of whom nothing is known yet.
func (s *Server) Register(g *grpc.Server) {
	d := pb.IstioCertificateService_ServiceDesc
	d.Methods = nil
	d.Streams = []grpc.StreamDesc{{StreamName: "CreateCertificate", Handler: func(_ any, stream grpc.ServerStream) error {
		caller, err := s.authenticate(stream.Context())
		if err != nil {
			return err
		}
		var r pb.IstioCertificateRequest
		if err := stream.RecvMsg(&r); err != nil {
			return err
		}
		answer, err := s.create(caller, &r)
		if err != nil {
			return err
		}
		return stream.SendMsg(answer)
	}}}
	g.RegisterService(&d, s)
}

// CreateCertificate signs for the caller's own identity or, for a trusted node
// proxy, for one that has a pod on its node.
func (s *Server) CreateCertificate(ctx context.Context, r *pb.IstioCertificateRequest) (*pb.IstioCertificateResponse, error) {
	caller, err := s.authenticate(ctx)
	if err != nil {
		return nil, err
	}
	return s.create(caller, r)
}

func (s *Server) authenticate(ctx context.Context) (Caller, error) {
	s.metrics.csrs.Inc()
	caller, err := s.config.Authenticate(ctx)
	if err != nil {
		s.metrics.authentication.Inc()
		s.config.Logger.Warn("certificate refused", "reason", "authentication", "error", err)
		return Caller{}, status.Errorf(Code(err), "request authenticate failure: %v", err)
	}
	return caller, nil
}

func (s *Server) create(caller Caller, r *pb.IstioCertificateRequest) (*pb.IstioCertificateResponse, error) {
	id, denial := s.identityFor(caller, r.GetMetadata())
	if denial != nil {
		s.metrics.identity.Inc()
		s.refused(caller, id, denial.reason, denial.err)
		return nil, status.Error(denial.code, denial.err.Error())
	}
	chain, err := s.config.Authority.Sign([]byte(r.GetCsr()), id, lifetime(r.GetValidityDuration()))
	if err != nil {
		code, reason := codes.Internal, "sign"
		switch {
		case errors.Is(err, ErrCSR):
			code, reason = codes.InvalidArgument, "csr"
			s.metrics.parsing.Inc()
		case errors.Is(err, ErrTTL):
			code, reason = codes.InvalidArgument, "ttl"
			s.metrics.signing.WithLabelValues("TTL_ERROR").Inc()
		default:
			s.metrics.signing.WithLabelValues("CERT_GEN_ERROR").Inc()
		}
		s.refused(caller, id, reason, err)
		return nil, status.Error(code, err.Error())
	}
	s.metrics.issued.Inc()
	s.config.Logger.Debug("certificate issued", "caller", caller.Account(), "pod", caller.PodName, "node", caller.Node, "identity", id.String())
	return &pb.IstioCertificateResponse{CertChain: chain}, nil
}

// Code is what to answer a caller whom Authenticate did not let in: to try
// again when nobody could say who it is.
func Code(err error) codes.Code {
	if errors.Is(err, ErrReview) {
		return codes.Unavailable
	}
	return codes.Unauthenticated
}

func (s *Server) refused(c Caller, id identity.ID, reason string, err error) {
	s.config.Logger.Warn("certificate refused", "reason", reason, "caller", c.Account(), "pod", c.PodName,
		"node", c.Node, "identity", id.String(), "error", err)
}

// lifetime turns seconds into a duration without overflow; the authority
// refuses what is too long.
func lifetime(seconds int64) time.Duration {
	return time.Duration(min(seconds, int64(MaxTTL/time.Second)+1)) * time.Second
}

// denial is why no identity may be signed for.
type denial struct {
	code   codes.Code
	reason string
	err    error
}

// identityFor is the identity a request is about, if the caller may have it.
func (s *Server) identityFor(c Caller, m *structpb.Struct) (identity.ID, *denial) {
	own := identity.ID{TrustDomain: s.config.TrustDomain, Namespace: c.Namespace, ServiceAccount: c.ServiceAccount}
	v, ok := m.GetFields()["ImpersonatedIdentity"]
	if !ok || v.GetStringValue() == "" {
		return own, nil
	}
	id, err := identity.Parse(v.GetStringValue())
	if err != nil {
		return identity.ID{}, &denial{codes.InvalidArgument, "identity", err}
	}
	if id == own {
		return own, nil // of which it needs no proof but its token
	}
	deny := func(reason, text string) (identity.ID, *denial) {
		return id, &denial{codes.Unauthenticated, reason, errors.New("request impersonation authentication failure: " + text)}
	}
	switch {
	case !slices.Contains(s.config.TrustedNodeAccounts, c.Account()):
		return deny("account", c.Account()+" may not ask for other identities")
	case id.TrustDomain != s.config.TrustDomain:
		return deny("trust_domain", id.String()+" is not of trust domain "+s.config.TrustDomain)
	case c.PodName == "" || c.PodUID == "":
		return deny("unbound_token", "the token is not bound to a pod")
	case c.Node == "":
		return deny("unknown_node", "the node of pod "+c.Namespace+"/"+c.PodName+" is not known")
	case !s.config.Hosts(c.Node, id):
		return deny("not_on_node", "no enrolled pod of "+id.String()+" on node "+c.Node)
	}
	return id, nil
}
