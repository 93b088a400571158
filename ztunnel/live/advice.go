package live

// Advice is what usually is behind a reason, and what helps. The documentation is
// made from it.
type Advice struct{ Cause, Cure string }

// Advice of r; empty for a reason that does not exist.
func (r Reason) Advice() Advice { return advice[r] }

// advice is read only.
var advice = map[Reason]Advice{
	PolicyDenied:    {"a DENY policy that matches, or ALLOW policies none of which does; a client outside of the mesh has no identity, so STRICT and every rule about principals or namespaces refuse it", "the policy is in the error: `ambit ztunnel-config policy POD` shows all that hold for the destination; `src.identity` of the line is what the rule has to match"},
	PolicyPending:   {"the controller has sent the pod and not the policy, or the policy was refused", "`ambit proxy-status`: does that ztunnel hear of changes? Is there an error in the status of the policy?"},
	NetworkPolicy:   {"the NetworkPolicy opens port 15008, by which all of the mesh comes, and not the application's port, or not for this client", "add port and source to a rule of the NetworkPolicy in the error, as if there were no mesh; `--network-policies=false` of the controller leaves NetworkPolicies to the network plugin, which sees port 15008 alone"},
	NotByWaypoint:   {"the client's ztunnel does not know the waypoint yet, or the client is not in the mesh and dials past it", "enrol the client, or take `ambitmesh.io/require-waypoint` off the service or namespace"},
	PolicyChanged:   {"a policy came, changed or was deleted; or a label by which one selects the pod", "if it should go on: the policy in the error, as for `policy_denied`"},
	OlderDenied:     {"the client keeps a connection from before the label, and STRICT or another policy refuses plaintext", "nothing, if the client connects again: it is in the mesh then. A client that cannot be is let in by a rule about its address"},
	Drained:         {"ztunnel was restarted or upgraded, and the connection lasted longer than `TERMINATION_GRACE_PERIOD_SECONDS`", "a longer grace period; clients of long connections have to connect again at some time anyway"},
	PodRemoved:      {"the pod was deleted, or its label taken off and the time to drain has passed", "nothing; `--drain-wait` of the node agent is how long un-enrolment waits"},
	UnknownWorkload: {"the pod is newer than what the controller has sent, or ztunnel has no connection to it", "`ambit proxy-status`; the controller's log; is `NODE_NAME` of ztunnel the name of the node?"},

	LookupUnanswered: {"ztunnel has no connection to a controller, or the controller is overloaded", "`ambit proxy-status`; `ambit_xds_on_demand_total`; without `XDS_ON_DEMAND` everything is known beforehand"},

	NoHealthyUpstream: {"no pod of the service is ready, the port is not the service's, or traffic is limited to a node or zone without endpoints", "`ambit ztunnel-config service` has healthy and all endpoints; `kubectl get endpointslices`"},
	UnknownWaypoint:   {"the waypoint that the destination names was deleted, or has no ready pod", "`kubectl get gateway`; the condition `WaypointBound` of the service; take the label `istio.io/use-waypoint` off to go without"},
	UnknownGateway:    {"the gateway of the other network has no address yet, or the service is not shared with that network", "`ambit ztunnel-config workload -o json` shows `networkGateway` of the destination"},
	NameUnresolved:    {"a ServiceEntry or WorkloadEntry names a host that does not exist, or the node's resolver does not answer", "resolve the name from the pod; `/etc/resolv.conf` of ztunnel"},
	NotRegistered:     {"the application calls a host that nobody has made a ServiceEntry for, or one known by its name alone and not with TLS and a server name", "a ServiceEntry for the host and port in the error; with `protocol: TLS` where it has no addresses; `outboundTrafficPolicy` of the mesh's settings"},
	BadSOCKS:          {"the client speaks SOCKS4 or wants authentication, BIND or UDP; or the host name has no address", "SOCKS5 without authentication, `CONNECT` only; resolve the name from the pod"},
	SelfCall:          {"the application called port 15001, 15006 or 15008 of its own pod, or a service has one of them as target port", "another port: these are the mesh's in every pod"},
	NoAddress:         {"the pod has just started, or has no address of the family that the client dialled", "`ipFamilies` of the service and addresses of the pod"},

	ConnectRefused:     {"the application is not started yet, has ended, or listens on another port or on localhost alone", "`ss -ltn` in the pod; `targetPort` of the service; a readiness probe keeps clients away until it listens"},
	ConnectTimeout:     {"a firewall or NetworkPolicy drops the packets, or the address belongs to nobody", "the same connection without the mesh; `ambit precheck` names NetworkPolicies"},
	ConnectUnreachable: {"the address is outside of every network that the pod has a route to", "routes of the pod; for IPv6 destinations: has the pod an IPv6 address?"},
	ConnectFailed:      {"out of ports or memory, or the kernel refused", "the system's words in the error"},
	HBONETimeout:       {"a NetworkPolicy, security group or firewall lets the application's port through and not 15008", "allow TCP 15008 between pods: what is on the wire is that port; `ambit precheck -n NAMESPACE` names the policies"},

	IdentityDenied:      {"the CA does not know an enrolled pod of that service account on this node: it is newer than the CA's view, or the token is of another node", "it is tried again by itself; if it stays, the controller's log says why"},
	IdentityUnavailable: {"no controller answers, or ztunnel does not trust it", "the log of that node's ztunnel has `certificate not obtained` with the cause; is a controller running, and does the node reach its port 15012?"},

	NoCertificate:      {"something other than a mesh peer called port 15008", "who has the address `src.addr`? Scanners do"},
	CertificateExpired: {"the peer's ztunnel could not renew, or a clock is wrong", "`ambit_certificates_overdue` and the log of the peer's node; compare clocks"},
	CertificateEarly:   {"this node's clock is behind", "time synchronization of the node: its ztunnel's log says by how much it is off"},
	UnknownAuthority:   {"one of two nodes lacks a root during a change, the CA was replaced at once, or the peer is of another mesh", "`ambit ca status`; `ambit_trust_anchors` must agree on all nodes"},
	TrustDomain:        {"the peer is of another mesh, or the mesh's trust domain was changed", "`trustDomain` and `trustDomainAliases` of the mesh's settings"},
	UnexpectedIdentity: {"the address was given to another pod a moment ago, or the endpoint of a ServiceEntry is not who `subjectAltNames` say", "another endpoint is tried by itself; if it stays: who has the address `dst.addr`?"},
	CertificateRevoked: {"somebody put the certificate, or the intermediate that signed it, on the revocation list", "the error has serial number and issuer; if it is a mistake take it off the list, which is read again at once"},
	BadCertificate:     {"the certificate is not what the mesh issues", "the error says what is wrong with it"},
	NotTLS:             {"something other than a mesh peer called port 15008, often with plain HTTP", "who has the address `src.addr`? Services must not have 15008 as a port"},
	HandshakeTimeout:   {"the network is lossy or the peer overloaded; or it is an attack", "CPU of the peer's ztunnel; `ambit_handshakes_delayed_total`"},
	HandshakeAborted:   {"the peer was restarted, or a firewall closes what it does not know", "the peer's log at that time"},
	HandshakeRejected:  {"the other side does not accept our certificate", "the peer's log: it has the reason; often `unknown_authority` or `trust_domain`"},
	HandshakeFailed:    {"the two do not agree on TLS, for example with `COMPLIANCE_POLICY` on one side alone", "the error has the words of the TLS library"},

	BadMethod:          {"the client is not a mesh peer", "who has the address `src.addr`?"},
	BadRequest:         {"the client is not a mesh peer, or headers grew beyond 64 KiB", "the error says what is wrong"},
	StreamLimit:        {"a client that does not keep the limit of 200 it was told", "which program is it? Ztunnels keep it"},
	BadAuthority:       {"the client is not a mesh peer", "who has the address `src.addr`?"},
	AddressMismatch:    {"the client's node believes that the pod has another address: it was given to this pod a moment ago", "it ends when the client's ztunnel hears of the change; `ambit proxy-status` if not"},
	UnknownDestination: {"the service or its port was deleted or changed a moment ago; or the workload has nothing to do with it", "`ambit ztunnel-config service` on both nodes"},

	PeerDenied:      {"a policy of the destination", "the line `policy_denied` of the destination's ztunnel names the policy"},
	PeerUnavailable: {"the application does not listen, or the destination's ztunnel does not know its pod yet", "the line of the destination's ztunnel has the reason"},
	PeerBadRequest:  {"the address was given to another pod a moment ago", "the line of the destination's ztunnel has the reason"},
	PeerStatus:      {"what answers is not a ztunnel or waypoint", "who has the address `dst.addr`?"},
	TunnelLost:      {"the peer's node or pod ended without a word, or the network between lost everything for 20 s", "the peer's log at that time; `HTTP2_PING_TIMEOUT` is how long silence is borne"},
	MemoryPressure:  {"receivers that do not read, while a lot is sent to them", "more memory for ztunnel, or receivers that keep up; `ambit_backlog_bytes`"},

	QuotaPod:        {"the pod leaks connections, or really needs very many", "connections of the pod: `ambit ztunnel-config connections POD`; else a higher limit, and memory and descriptors for ztunnel"},
	QuotaNode:       {"all pods of the node together", "`ambit_quota_connections_used`; the access log says which pods have many"},
	QuotaHandshakes: {"a client that makes a tunnel for each connection, or many clients behind one address", "`AMBIT_POD_HANDSHAKE_RATE`, if it is no attack"},
	QuotaBacklog:    {"the application behind this connection does not read what it gets", "look at that application; else a higher limit"},

	ClientReset: {"the client's application closed with unread data, was killed, or chose to", "not the mesh's doing: no error in the log"},
	ServerReset: {"the server's application closed with unread data, was killed, or chose to", "not the mesh's doing: no error in the log"},
	Internal:    {"something nobody thought of", "report it, with the line"},
}
