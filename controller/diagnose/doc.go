// Package diagnose owns what Ambit says about a cluster without asking it
// anything: objects that somebody listed go in, findings come out. So the same
// answer comes from the CLI, from the controller and from a table test.
package diagnose
