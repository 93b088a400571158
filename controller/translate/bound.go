package translate

// Conditions of what has to do with waypoints.
const (
	ConditionWaypointBound   = "istio.io/WaypointBound"
	ConditionWaypointMissing = "istio.io/WaypointMissing"
	// ConditionVisibilityApplied says of a ServiceEntry who sees it.
	ConditionVisibilityApplied = "istio.io/VisibilityApplied"
	// ConditionWaypointRequired says of a Service whether connections past its
	// waypoint are refused.
	ConditionWaypointRequired = "ambitmesh.io/WaypointRequired"
)

// Reasons of ConditionWaypointBound.
const (
	ReasonWaypointAccepted   = "WaypointAccepted"
	ReasonWaypointNotReady   = "WaypointIsNotReady"
	ReasonAttachmentDenied   = "AttachmentDenied"
	ReasonUnsupportedTraffic = "UnsupportedTrafficType"
	ReasonCrossNamespace     = "CrossNamespaceWaypointForbidden"
)
