// Package translate owns the meaning of Kubernetes and Istio objects for the
// mesh: which pods are enrolled, and how pods, services, endpoint slices,
// AuthorizationPolicies and PeerAuthentications become mesh workloads,
// services and policies.
//
// Everything here is a pure function of the objects given. An object that
// cannot be honoured gives an *Error naming object and field, beside the most
// restrictive reading of the rest; the caller decides whether an earlier good
// translation stays in force instead.
package translate
