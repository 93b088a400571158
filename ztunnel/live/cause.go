package live

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"syscall"

	"github.com/ambitmesh/ambit/hbone/identity"
)

// DialReason classifies a failed TCP connect.
func DialReason(err error) Reason {
	var n net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return ConnectRefused
	case errors.Is(err, syscall.ETIMEDOUT), errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded),
		errors.As(err, &n) && n.Timeout():
		return ConnectTimeout
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return ConnectUnreachable
	}
	return ConnectFailed
}

// HandshakeReason classifies a failed TLS handshake, on the side that refused
// and on the other.
func HandshakeReason(err error) Reason {
	var (
		verify *identity.VerifyError
		record tls.RecordHeaderError
		alert  tls.AlertError
		n      net.Error
		op     *net.OpError
	)
	if errors.As(err, &verify) {
		switch verify.Cause {
		case "no_certificate":
			return NoCertificate
		case "expired":
			return CertificateExpired
		case "not_yet_valid":
			return CertificateEarly
		case "unknown_authority":
			return UnknownAuthority
		case "trust_domain":
			return TrustDomain
		case "unexpected_identity":
			return UnexpectedIdentity
		case "revoked":
			return CertificateRevoked
		}
		return BadCertificate
	}
	switch {
	case errors.As(err, &record):
		return NotTLS
	case errors.As(err, &alert), errors.As(err, &op) && op.Op == "remote error":
		return HandshakeRejected
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &n) && n.Timeout():
		return HandshakeTimeout
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return HandshakeAborted
	}
	return HandshakeFailed
}
