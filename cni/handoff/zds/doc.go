// Package zds owns the generated messages of istio.workload.zds; see zds.proto
// one folder up.
package zds
