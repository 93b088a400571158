// Package deploy owns the manifests; it has no code, its tests hold the
// manifests to what they promise.
package deploy
