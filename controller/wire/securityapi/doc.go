// Package securityapi owns the generated Go code of istio.security. Only
// package wire reads it; everybody else speaks mesh.
package securityapi
