package core

import (
	"net/netip"
	"time"

	"wicgate/internal/wire/stun"
)

// Kind is what an [Action] asks for.
type Kind uint8

// The kinds of actions.
const (
	// ToClient: send Data to Tuple.
	ToClient Kind = iota + 1
	// ToPeer: send Data to Peer from the socket Relay, with DF or its likes if Whole, without if not.
	ToPeer
	// Open: open a relay socket of each of Families, on an even port if Even, and the port behind it too
	// if Next; or take Relay, which is open and has been held, if it is there. Then call Opened with ID.
	Open
	// Close: close the socket Relay and log Ended, unless it is nil.
	Close
	// Dial: connect from the address of the socket Relay to Peer, in DialTimeout, then call Connected
	// with Conn.
	Dial
	// Splice: pass bytes between the client's connection Tuple, once what stands before in Actions has
	// been sent on it, and the peer's connection Relay, asking Passed; then call Gone with Conn.
	Splice
	// CloseConn: close the peer's connection Relay.
	CloseConn
)

// Action is one thing to do. Data is a view of the packet that was handed in or of the Outbox.
type Action struct {
	Kind       Kind
	Families   byte // stun.FamilyIPv4, stun.FamilyIPv6 or both, ored
	TCP        bool // Open: TCP sockets that listen
	Even, Next bool
	ID         ID
	Conn       Conn
	Tuple      Tuple
	Relay      any // what Opened, Connected or Accepted was given
	Peer       netip.AddrPort
	Data       []byte
	Whole      bool
	Ended      *Ended
}

// maxReply bounds what a Core says of itself without memory of its own for it: the longest is an error
// with REALM, NONCE, THIRD-PARTY-AUTHORIZATION or UNKNOWN-ATTRIBUTES and an integrity. A Binding response
// with PADDING is longer.
const maxReply = 1024

// Outbox carries the result of one call out of a Core. Its owner makes one for each goroutine that
// calls, and has acted on it before the next call with it.
type Outbox struct {
	Actions []Action

	// What became of the packet, for the log and the counters. Cause is CauseNone if all is well.
	Method stun.Method
	Cause  Cause
	Code   int   // of the error response, 0 = silence
	Detail error // more about the cause, nil or without secrets

	scratch [maxReply]byte
}

func (o *Outbox) reset() {
	clear(o.Actions)
	o.Actions = o.Actions[:0]
	o.Method, o.Cause, o.Code, o.Detail = 0, CauseNone, 0, nil
}

// Cause is why a packet was refused: a closed set, fit for a metric's label.
type Cause uint8

// The causes.
const (
	CauseNone Cause = iota
	CauseNotSTUN
	CauseMalformed
	CauseMethod
	CauseBudget
	CauseChallenge
	CauseIncomplete
	CauseStaleNonce
	CauseUsername
	CauseUnknownKey
	CauseBadToken
	CauseExpiredToken
	CauseFutureToken
	CauseBadMAC
	CauseUnknownAttribute
	CauseBadRequest
	CauseNoAllocation
	CauseMismatch
	CauseWrongCredentials
	CauseTransport
	CauseFamily
	CauseQuota
	CauseCapacity
	CauseDraining
	CausePeer
	CauseNoPermission
	CauseChannel
	CauseTooLong
	CauseRevoked
	CauseBlind
	CauseUnknownUser
	CauseRate
	CauseConnection
	CauseMobility
	CauseICMP
	CausePending
	NumCauses = iota
)

var causes = [NumCauses]struct{ label, text string }{
	CauseNone:             {"none", "none"},
	CauseNotSTUN:          {"not_stun", "neither STUN nor ChannelData"},
	CauseMalformed:        {"malformed", "malformed message"},
	CauseMethod:           {"method", "method or class that a TURN server does not take"},
	CauseBudget:           {"budget", "no reply: the budget of this source is spent"},
	CauseChallenge:        {"challenge", "no credential yet: challenged"},
	CauseIncomplete:       {"incomplete", "integrity without USERNAME, NONCE or REALM"},
	CauseStaleNonce:       {"stale_nonce", "nonce is stale or was made for another address"},
	CauseUsername:         {"username", "USERNAME is of no kind of credential that is taken here, and no allocation's"},
	CauseUnknownKey:       {"unknown_kid", "kid is not known"},
	CauseBadToken:         {"bad_token", "token does not open under its kid for this server"},
	CauseExpiredToken:     {"expired_token", "token has expired"},
	CauseFutureToken:      {"future_token", "token is dated in the future"},
	CauseBadMAC:           {"bad_mac", "message integrity is wrong"},
	CauseUnknownAttribute: {"unknown_attribute", "unknown comprehension-required attribute"},
	CauseBadRequest:       {"bad_request", "attribute missing, malformed or in conflict"},
	CauseNoAllocation:     {"no_allocation", "no allocation on this 5-tuple"},
	CauseMismatch:         {"mismatch", "5-tuple already has an allocation"},
	CauseWrongCredentials: {"wrong_credentials", "allocation belongs to another credential"},
	CauseTransport:        {"transport", "requested transport is not UDP"},
	CauseFamily:           {"family", "address family is not the relay's"},
	CauseQuota:            {"quota", "allocation quota of the pseudonym is reached"},
	CauseCapacity:         {"capacity", "no capacity left"},
	CauseDraining:         {"draining", "server drains"},
	CausePeer:             {"peer", "peer refused by policy"},
	CauseNoPermission:     {"no_permission", "no permission for the peer"},
	CauseChannel:          {"channel", "channel is not bound"},
	CauseTooLong:          {"too_long", "packet too long to wrap"},
	CauseRevoked:          {"revoked", "session of the credential has been revoked"},
	CauseUnknownUser:      {"unknown_user", "no user of that name or hash"},
	CauseRate:             {"rate", "more than the rate of the allocation, its pseudonym or its tenant"},
	CauseConnection:       {"connection", "the peer's connection is there already, or could not be made"},
	CauseMobility:         {"mobility", "mobility is off"},
	CausePending:          {"pending", "no reply yet: the store is being asked for this pushed credential"},
	CauseBlind:            {"blind", "nothing is heard of revocations, and turn.blind is closed"},
	CauseICMP:             {"icmp", "ICMP error of a type that clients are not told of"},
}

// String returns the cause in words.
func (c Cause) String() string { return causes[c].text }

// Label returns the cause as a metric names it.
func (c Cause) Label() string { return causes[c].label }

// EndCause is why an allocation ended.
type EndCause uint8

// The ends of an allocation.
const (
	EndExpired      EndCause = iota // not refreshed in time, or at the end of its credential
	EndDeleted                      // Refresh with LIFETIME 0
	EndRevoked                      // Revoke
	EndShutdown                     // EndAll
	EndDisconnected                 // the client's connection is gone
	EndKilled                       // Kill
	EndDrained                      // the time that Drain gave is over
	NumEnds         = iota
)

// String returns the cause in a word.
func (c EndCause) String() string {
	return [NumEnds]string{"expired", "deleted", "revoked", "shutdown", "disconnected", "killed", "drained"}[c]
}

// Ended tells of an allocation that has ended.
type Ended struct {
	Cause      EndCause
	Owner      string // pseudonym
	Tenant     string // its name
	Credential CredentialKind
	Tuple      Tuple
	Relayed    []netip.AddrPort // IPv4 first
	Age        time.Duration
	Peers      int // permissions installed; one that lapsed and came again is two
	Traffic    Traffic
}

// Traffic counts relayed payload.
type Traffic struct {
	SentPackets, SentBytes         uint64 // client to peer
	ReceivedPackets, ReceivedBytes uint64 // peer to client
}

// Stats counts since New, except Allocations.
type Stats struct {
	Allocations      int // now
	AllocationsTotal uint64
	Ended            [NumEnds]uint64
	Bindings         uint64            // Binding requests answered
	Refused          [NumCauses]uint64 // packets from clients and peers, by Cause
	Unauthenticated  uint64            // 401 responses
	ICMP             uint64            // errors told to clients
	Traffic          Traffic
}

// Stats returns a copy of the counters.
func (c *Core) Stats() Stats {
	c.stats.Allocations = len(c.ids)
	return c.stats
}

// refuse records why a packet is dropped.
func (c *Core) refuse(out *Outbox, why Cause, detail error) {
	out.Cause, out.Detail = why, detail
	c.stats.Refused[why]++
}
