// Package flood measures what a flood against a running TURN server costs those who are relayed. It
// takes both processors for half a minute, so that it is run by hand: make flood.
package flood
