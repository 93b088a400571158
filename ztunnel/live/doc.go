// Package live owns the open connections of a ztunnel: each has one record
// from accept to its single log line, is counted exactly in the metrics, ends
// with at most one enumerated reason, and is asked again for permission
// whenever policy changes.
package live
