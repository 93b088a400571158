// Package wire owns the translation between the protobuf resources of the
// workload and authorization APIs and the mesh vocabulary, in both directions.
//
// Decoding refuses what it cannot honour with an error that names the resource
// and the field; it never panics and never guesses.
package wire

//go:generate sh ./generate.sh
