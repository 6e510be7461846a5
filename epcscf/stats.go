package epcscf

// Stats are the edge's gauges and counters.
type Stats struct {
	Flows    int // WebSockets open
	Bindings int // registrations alive
	Calls    int // calls, until their gateway session is released
	Dialogs  int // answered calls among them

	FlowsTotal      uint64
	Registers       uint64 // REGISTER answered 200, re-registrations too
	Deregistered    uint64 // by the edge, for a browser that is gone
	Revoked         uint64 // registrations whose session was revoked
	TURNCredentials uint64 // issued
	TURNUntold      uint64 // credentials not issued, as the TURN servers could not be told
	CallsTotal      uint64
	CallsAnswered   uint64
	CallsFailed     uint64 // ended by the edge: media lost, WebSocket gone, shutdown
	Restarts        uint64 // of ICE, answered by the edge itself
	CoreConnections int
	Faults          uint64 // panics that were caught: each is a bug, and one line in the log

	Refused Refused
}

// Refused counts refusals by cause.
type Refused struct {
	Origin       uint64 // WebSocket of a page that is not allowed
	Protocol     uint64 // WebSocket without the sub-protocol sip
	TooMany      uint64 // WebSocket, binding or call over a bound
	Malformed    uint64 // frame or SIP message
	Rate         uint64 // more messages than a browser sends
	Token        uint64 // none, expired, foreign, forged
	Identity     uint64 // somebody else's
	Unregistered uint64
	Guest        uint64 // what guests may not: a destination, one call more
	Description  uint64 // session description, 488
	FlowToken    uint64 // from the core, forged or missing
	FlowFailed   uint64 // from the core, for a WebSocket that is gone (430)
	NoDialog     uint64 // 481
	Method       uint64 // 405
	Gateway      uint64 // no media gateway, or it refused
	Core         uint64 // no connection to the core
	Peer         uint64 // connection from an address that is no peer
}

// Stats returns a copy.
func (e *Edge) Stats() Stats {
	open, refused := e.tcp.Connections()
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.stats
	s.Flows, s.Bindings, s.Calls = len(e.flows), len(e.bindings), len(e.calls)
	for _, c := range e.calls {
		if c.confirmed && !c.ended {
			s.Dialogs++
		}
	}
	s.CoreConnections, s.Refused.Peer = open, refused
	return s
}
