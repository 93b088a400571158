package translate

// Condition is one status condition an object should bear.
type Condition struct {
	Type    string
	True    bool
	Reason  string
	Message string
}

// ConditionZtunnelAccepted says on an AuthorizationPolicy what ztunnels make
// of it.
const ConditionZtunnelAccepted = "ZtunnelAccepted"

// ConditionWaypointAccepted says on an AuthorizationPolicy with targetRefs
// which waypoints enforce it.
const ConditionWaypointAccepted = "WaypointAccepted"

// Reasons of ConditionWaypointAccepted beside Accepted and Invalid.
const (
	ReasonPartiallyInvalid = "PartiallyInvalid"
	ReasonTargetNotFound   = "TargetNotFound"
	ReasonAncestorNotBound = "AncestorNotBound"
)

// Reasons of ConditionZtunnelAccepted.
const (
	ReasonAccepted         = "Accepted"
	ReasonUnsupportedValue = "UnsupportedValue"
	ReasonInvalid          = "Invalid" // a field could not be read; an earlier version may be in force
)

const attachedMessage = "attached to ztunnel"

const (
	httpMessage = "ztunnel does not support HTTP attributes (found: %s). In ambient mode you must use a waypoint proxy to enforce HTTP rules. "
	httpAllow   = "Within an ALLOW policy, rules matching HTTP attributes are omitted. This will be more restrictive than requested."
	httpDeny    = "DENY policy with HTTP attributes is enforced without the HTTP rules. This will be more restrictive than requested."
	httpBlunt   = " A rule of HTTP attributes alone refuses every connection; use a targetRef to attach the policy to a waypoint."
	httpBehind  = " Workloads that have a waypoint of this mesh take connections from it alone, and leave these rules to it."

	dryRunMessage = "; dry run: what it would decide is logged, not enforced"
)

const (
	meanwhileAllow = "until this is mended, a rule with such a field allows nothing"
	meanwhileDeny  = "until this is mended, a rule with such a field denies whatever the field could have meant"
)
