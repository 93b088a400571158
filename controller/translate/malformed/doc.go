// Package malformed owns objects with one odd field each, for tests: made from
// the schemas that an API server validates with, so that what it would let
// through is met before a user writes it.
//
// The schemas of CRDs are read from deploy/crds; those of core kinds are
// written by hand in core.yaml and hold the fields that Ambit reads. Rules in
// CEL and across fields are not looked at: of the objects made here the API
// server refuses some.
package malformed
