//go:build race

package core

// raceDetector makes the longest tests shorter: it slows them some tenfold, and they have one goroutine.
const raceDetector = true
