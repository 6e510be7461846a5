package core

import (
	"net/netip"
	"testing"
	"time"

	"wicgate/internal/wire/stun"
)

// onTCP is alice on a connection from the same address and port.
var onTCP = Tuple{Client: alice.Client, Listener: 1, Transport: stun.ProtocolTCP}

// TestDisconnected: a connection takes its allocation with it, and no other.
func TestDisconnected(t *testing.T) {
	w := newWorld(t)
	c := w.issue(inUsername, "p1", w.now, time.Hour)
	for _, tuple := range []Tuple{alice, onTCP} {
		w.want(w.ask(tuple, c, stun.Allocate, transport(17)), 0)
	}
	w.core.Disconnected(w.now, onTCP, &w.out)
	w.act(onTCP)
	if w.core.Holds(onTCP) || !w.core.Holds(alice) || w.core.Allocations() != 1 {
		t.Errorf("%d allocations, alice %v, her connection %v", w.core.Allocations(), w.core.Holds(alice), w.core.Holds(onTCP))
	}
	if len(w.ended) != 1 || w.ended[0].Cause != EndDisconnected || w.ended[0].Tuple != onTCP || w.core.Stats().Ended[EndDisconnected] != 1 {
		t.Errorf("ended: %+v", w.ended)
	}
	w.core.Disconnected(w.now, onTCP, &w.out) // again, and without an allocation
	if len(w.out.Actions) != 0 {
		t.Errorf("%+v", w.out.Actions)
	}
	w.invariants()
	// The 5-tuple may come again.
	w.want(w.ask(onTCP, c, stun.Allocate, transport(17)), 0)

	// While the relay socket is being opened.
	early := onTCP
	early.Listener++
	b := w.sign(w.build(stun.Allocate, stun.Request, transport(17)), c, w.nonce(early))
	w.core.FromClient(w.now, early, b, &w.out)
	if len(w.out.Actions) != 1 || w.out.Actions[0].Kind != Open || !w.core.Holds(early) {
		t.Fatalf("%+v", w.out.Actions)
	}
	id := w.out.Actions[0].ID
	w.core.Disconnected(w.now, early, &w.out)
	if len(w.out.Actions) != 0 || w.core.Holds(early) {
		t.Errorf("%+v", w.out.Actions)
	}
	w.core.Opened(w.now, id, Sockets{Family: [2]Socket{{Relay: "socket", Relayed: netip.AddrPortFrom(relayIP, 60000)}}}, &w.out)
	if len(w.out.Actions) != 1 || w.out.Actions[0].Kind != Close || w.out.Actions[0].Relay != "socket" {
		t.Errorf("the socket that comes too late: %+v", w.out.Actions)
	}
	w.invariants()
}

// TestNoBudgetOnTCP: a source that has connected is no victim of a spoofed one.
func TestNoBudgetOnTCP(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.ReplyBurst, c.ReplyRate = 1, 0.001 })
	for range 10 {
		w.want(w.packet(onTCP, w.build(stun.Allocate, stun.Request, transport(17))), 401)
		if !w.packet(onTCP, w.build(stun.Binding, stun.Request)).ok {
			t.Error("Binding is not answered")
		}
	}
	if !w.packet(alice, w.build(stun.Binding, stun.Request)).ok {
		t.Error("the connection has drawn on the budget of its address")
	}
}
