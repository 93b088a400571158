// Package shapes owns the tests of a cluster whose nodes connect their pods in
// different ways, and of what happens to pods as many start at once or get
// another sandbox.
package shapes
