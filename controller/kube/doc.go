// Package kube owns the controller's side of the Kubernetes API: informers
// that turn object changes into mesh snapshots, the lookups the CA asks for,
// and the one writer of what the controller writes back.
//
// Informer callbacks only record a key in a set. One goroutine drains the set,
// translates what the keys touch, compares with the current snapshot and
// publishes at most one new snapshot per drained batch, so a burst of changes
// costs one swap and nothing here ever blocks an informer.
package kube
