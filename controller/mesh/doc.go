// Package mesh owns the shared vocabulary of control plane and data plane:
// workloads, services, policies, and the immutable snapshot that holds them.
//
// Values handed to a Builder are frozen: nobody modifies a Workload, Service
// or Policy once it is in a Snapshot. Field meanings are those of Istio's
// workload API (istio.workload, istio.security); this package has no protobuf.
package mesh
