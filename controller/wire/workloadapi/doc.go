// Package workloadapi owns the generated Go code of istio.workload. Only
// package wire reads it; everybody else speaks mesh.
package workloadapi
