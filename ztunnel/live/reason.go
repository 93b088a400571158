package live

import (
	"fmt"
	"slices"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/mesh/authz"
)

// Reason says why a connection failed, was refused or was cut. It is the
// value of the access log's field "reason" and of the label "reason" of
// ambit_connections_failed_total. The zero Reason means the connection ended
// in order.
type Reason string

// The reasons. Meanings are in Reasons, which the documentation is made from.
const (
	PolicyDenied    Reason = "policy_denied"
	PolicyPending   Reason = "policy_pending"
	NotByWaypoint   Reason = "waypoint_required"
	NetworkPolicy   Reason = "networkpolicy_denied"
	PolicyChanged   Reason = "policy_changed"
	OlderDenied     Reason = "older_denied"
	Drained         Reason = "drained"
	PodRemoved      Reason = "pod_removed"
	UnknownWorkload Reason = "unknown_workload"
	// LookupUnanswered is of a destination that had to be asked for.
	LookupUnanswered Reason = "lookup_unanswered"

	NoHealthyUpstream Reason = "no_healthy_upstream"
	UnknownWaypoint   Reason = "unknown_waypoint"
	UnknownGateway    Reason = "unknown_gateway"
	NameUnresolved    Reason = "name_unresolved"
	SelfCall          Reason = "self_call"
	NotRegistered     Reason = "not_registered"
	BadSOCKS          Reason = "bad_socks"
	NoAddress         Reason = "no_address"

	ConnectRefused     Reason = "connect_refused"
	ConnectTimeout     Reason = "connect_timeout"
	ConnectUnreachable Reason = "connect_unreachable"
	ConnectFailed      Reason = "connect_failed"
	HBONETimeout       Reason = "hbone_timeout"

	IdentityDenied      Reason = "identity_denied"
	IdentityUnavailable Reason = "identity_unavailable"

	NoCertificate      Reason = "no_certificate"
	CertificateExpired Reason = "certificate_expired"
	CertificateEarly   Reason = "certificate_not_yet_valid"
	UnknownAuthority   Reason = "unknown_authority"
	TrustDomain        Reason = "trust_domain"
	UnexpectedIdentity Reason = "unexpected_identity"
	CertificateRevoked Reason = "certificate_revoked"
	BadCertificate     Reason = "bad_certificate"
	NotTLS             Reason = "not_tls"
	HandshakeTimeout   Reason = "handshake_timeout"
	HandshakeAborted   Reason = "handshake_aborted"
	HandshakeRejected  Reason = "handshake_rejected"
	HandshakeFailed    Reason = "handshake_failed"

	BadMethod          Reason = "bad_method"
	BadRequest         Reason = "bad_request"
	StreamLimit        Reason = "stream_limit"
	BadAuthority       Reason = "bad_authority"
	AddressMismatch    Reason = "address_mismatch"
	UnknownDestination Reason = "unknown_destination"

	PeerDenied      Reason = "peer_denied"
	PeerUnavailable Reason = "peer_unavailable"
	PeerBadRequest  Reason = "peer_bad_request"
	PeerStatus      Reason = "peer_status"
	TunnelLost      Reason = "tunnel_lost"
	MemoryPressure  Reason = "memory_pressure"

	QuotaPod        Reason = "quota_connections"
	QuotaNode       Reason = "quota_node_connections"
	QuotaHandshakes Reason = "quota_handshakes"
	QuotaBacklog    Reason = "quota_backlog"

	ClientReset Reason = "client_reset"
	ServerReset Reason = "server_reset"
	Internal    Reason = "internal"
)

// Flag is Envoy's and Istio's response flag, the label response_flags.
type Flag string

// The response flags of a ztunnel.
const (
	FlagNone          Flag = "-"
	FlagDeny          Flag = "DENY"
	FlagConnect       Flag = "CONNECT"
	FlagTLS           Flag = "TLS_FAILURE"
	FlagH2            Flag = "H2_HANDSHAKE_FAILURE"
	FlagNetworkPolicy Flag = "NETWORK_POLICY"
	FlagIdentity      Flag = "IDENTITY_ERROR"
	FlagRevoked       Flag = "CERT_REVOKED"
)

// Meaning documents one reason.
type Meaning struct {
	Reason Reason
	// Flag the connection carries in istio_tcp_*; FlagNone for a connection
	// that had worked and was cut, as in Istio.
	Flag Flag
	Text string
}

// Reasons lists every reason with its meaning. The result is the caller's.
func Reasons() []Meaning { return slices.Clone(meanings) }

// Flag is the response flag that goes with r.
func (r Reason) Flag() Flag {
	if r == "" {
		return FlagNone
	}
	for i := range meanings {
		if meanings[i].Reason == r {
			return meanings[i].Flag
		}
	}
	return FlagConnect
}

// meanings is read only.
var meanings = []Meaning{
	{PolicyDenied, FlagDeny, "an authorization policy of the destination refuses the connection; the error names it"},
	{PolicyPending, FlagDeny, "the destination names a policy that its ztunnel has not received within 5 s"},
	{NetworkPolicy, FlagDeny, "the NetworkPolicies of the destination do not admit the connection's own port from its source; the error names them"},
	{NotByWaypoint, FlagDeny, "the destination, or its service, is only reached through its waypoint; the connection came past it"},
	{PolicyChanged, FlagDeny, "an open connection was closed because a policy that now applies refuses it"},
	{OlderDenied, FlagDeny, "a connection from before the pod's enrolment, so without an identity, was ended because policy refuses it"},
	{Drained, FlagNone, "the connection was still open when ztunnel's shutdown deadline passed"},
	{PodRemoved, FlagNone, "the pod left the mesh or ended while the connection was open"},
	{UnknownWorkload, FlagConnect, "the control plane has not told this node about the pod within 5 s"},

	{LookupUnanswered, FlagConnect, "with XDS_ON_DEMAND, the control plane has not said within 5 s what the destination is; it is never taken for one outside the mesh"},

	{NoHealthyUpstream, FlagConnect, "the service has no usable endpoint for this port"},
	{UnknownWaypoint, FlagConnect, "the destination's waypoint cannot be resolved; it is never bypassed"},
	{UnknownGateway, FlagConnect, "the destination is in another network that cannot be reached: it has no gateway that is known, was not dialled by a service, or no service says who may answer there"},
	{NameUnresolved, FlagConnect, "the destination is a host name, and DNS has no address for it"},
	{SelfCall, FlagConnect, "the application called one of ztunnel's own ports"},
	{NoAddress, FlagConnect, "the chosen endpoint has no usable address"},
	{NotRegistered, FlagConnect, "the mesh lets out only what is registered (REGISTRY_ONLY), and the destination is not; the error says what was looked for"},
	{BadSOCKS, FlagConnect, "a request to the SOCKS5 proxy cannot be granted; the error says why"},

	{ConnectRefused, FlagConnect, "nothing listens on the destination's port"},
	{ConnectTimeout, FlagConnect, "the destination did not answer the TCP handshake within 10 s"},
	{ConnectUnreachable, FlagConnect, "no route to the destination"},
	{ConnectFailed, FlagConnect, "the TCP connection failed for another cause; the error has the system's words"},
	{HBONETimeout, FlagNetworkPolicy, "port 15008 of the destination did not answer within 10 s; often a NetworkPolicy that blocks it"},

	{IdentityDenied, FlagIdentity, "the certificate authority refuses a certificate for this pod's identity on this node"},
	{IdentityUnavailable, FlagIdentity, "no certificate for this pod's identity could be had"},

	{NoCertificate, FlagTLS, "the client presented no certificate on the HBONE port"},
	{CertificateExpired, FlagTLS, "the peer's certificate has expired"},
	{CertificateEarly, FlagTLS, "the peer's certificate is not valid yet; compare the clocks"},
	{UnknownAuthority, FlagTLS, "the peer's certificate is not signed by a root this node trusts"},
	{TrustDomain, FlagTLS, "the peer's certificate belongs to another trust domain"},
	{UnexpectedIdentity, FlagTLS, "the server's certificate is not of the workload that was dialled"},
	{CertificateRevoked, FlagRevoked, "the peer's certificate, or one it is signed with, is on the revocation list of CRL_PATH; an open connection ends for it too"},
	{BadCertificate, FlagTLS, "the peer's certificate cannot be used; the error says why"},
	{NotTLS, FlagTLS, "the client does not speak TLS on the HBONE port"},
	{HandshakeTimeout, FlagTLS, "the TLS handshake was not finished in time"},
	{HandshakeAborted, FlagTLS, "the peer closed the connection during the TLS handshake"},
	{HandshakeRejected, FlagTLS, "the peer refused the TLS handshake; its log has the cause"},
	{HandshakeFailed, FlagTLS, "the TLS or HTTP/2 handshake failed for another cause; the error has it"},

	{BadMethod, FlagConnect, "an HBONE request was not CONNECT"},
	{BadRequest, FlagConnect, "an HBONE request is malformed or has too large a header"},
	{StreamLimit, FlagConnect, "the client has too many requests open on one HBONE connection"},
	{BadAuthority, FlagConnect, "the authority of a CONNECT is not address:port or host:port"},
	{AddressMismatch, FlagConnect, "the authority of a CONNECT names an address that is not this pod's"},
	{UnknownDestination, FlagConnect, "the authority of a CONNECT names a service or port this pod does not have"},

	{PeerDenied, FlagConnect, "the destination's ztunnel refused by policy (401); its log names the policy"},
	{PeerUnavailable, FlagConnect, "the destination's ztunnel could not reach the application (503)"},
	{PeerBadRequest, FlagConnect, "the destination's ztunnel rejects the CONNECT (400)"},
	{PeerStatus, FlagConnect, "the destination answered the CONNECT with another status; the error has it"},
	{TunnelLost, FlagH2, "the HBONE connection that carried this one broke"},
	{MemoryPressure, FlagNone, "ztunnel held all the data it may (AMBIT_BACKLOG_LIMIT), most of it for this pod and there for this connection, whose receiver did not read"},

	{QuotaPod, FlagConnect, "the pod has as many connections as one may (AMBIT_POD_CONNECTION_LIMIT)"},
	{QuotaNode, FlagConnect, "the node's connections are all but used up (AMBIT_CONNECTION_LIMIT), and what is left is for pods that have fewer"},
	{QuotaHandshakes, FlagTLS, "one client makes more than a quarter of the HBONE handshakes per second that a pod may get (AMBIT_POD_HANDSHAKE_RATE)"},
	{QuotaBacklog, FlagNone, "ztunnel held all the data it may for one pod (AMBIT_POD_BACKLOG_LIMIT), most of it for this connection, whose receiver did not read"},

	{ClientReset, FlagNone, "the client reset the connection"},
	{ServerReset, FlagNone, "the server reset the connection"},
	{Internal, FlagConnect, "an error ztunnel has no better word for; the error has it"},
}

// Error is a failure together with its reason. The first Error that reaches a
// record decides.
type Error struct {
	Reason Reason
	Err    error
}

// Errorf makes an Error; the format is fmt.Errorf's.
func Errorf(r Reason, format string, args ...any) *Error {
	return &Error{Reason: r, Err: fmt.Errorf(format, args...)}
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// DenialReason is the reason of a connection that v refuses.
func DenialReason(v authz.Verdict) Reason {
	if mesh.IsNetworkPolicyKey(v.Policy) {
		return NetworkPolicy
	}
	return PolicyDenied
}
