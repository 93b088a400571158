//go:build !race

package hbone_test

const raceDetector = false
