package core

import (
	"net/netip"
	"time"

	"wicgate/internal/wire/stun"
)

type state uint8

// An allocation is opening from the accepted Allocate until the relay socket is there, and then
// open until end, which is final. Opened after end closes the socket again.
const (
	opening state = iota
	open
	ended
)

// allocation is RFC 8656 §3.2's: a relayed address, the 5-tuple that controls it, a credential,
// a time to expiry, permissions and channels.
type allocation struct {
	id       ID
	tuple    Tuple
	state    state
	tcp      bool      // RFC 6062: the relay sockets are TCP's
	mobile   *mobility // nil = it cannot move
	owner    string
	books    *owner // the tenant's, of owner
	families byte   // that Open asked for
	next     bool   // and whether the port behind it too, to be held
	created  answer // the Allocate, to answer it and its retransmissions

	halves [2]half // IPv4, IPv6; one where none is asked for by ADDITIONAL-ADDRESS-FAMILY

	cur      *credential
	old      *credential // replaced by a Refresh, still verifying until oldUntil
	oldUntil time.Time

	born     time.Time
	expires  time.Time // the first of the halves', and while opening the time for it
	extended time.Time // by the issuer: how long the session lives
	place    int       // in the expiryQueue

	permissions map[netip.Addr]time.Time // IP address -> expiry
	peers       int                      // permissions ever installed
	channels    map[uint16]*channel
	byPeer      map[netip.AddrPort]*channel
	conns       map[netip.AddrPort]*conn // of a TCP allocation, by peer
	traffic     Traffic
	meter       meter
}

// Socket is a relay socket that has been opened.
type Socket struct {
	Relay   any            // what actions name it by
	Relayed netip.AddrPort // as clients and peers see it
	// Local is how this machine reaches it, where that is not Relayed: behind a one-to-one NAT, which
	// need not send back what comes from inside.
	Local netip.AddrPort
}

// half is the relay socket of one address family, with an expiry of its own (RFC 8656 §8.1).
type half struct {
	Socket  // zero = there is none, or no more
	expires time.Time
}

func (h *half) open() bool { return h.Relay != nil }

// familyAt is the place of addr's family in arrays of two. IPv4-mapped addresses are IPv6 here, as on
// the wire.
func familyAt(addr netip.Addr) int {
	if addr.Is4() {
		return 0
	}
	return 1
}

// half returns the one that relays to addr; it need not be open.
func (a *allocation) half(addr netip.Addr) *half { return &a.halves[familyAt(addr)] }

// relayed returns the relayed addresses, IPv4 first.
func (a *allocation) relayed() (out []netip.AddrPort) {
	for i := range a.halves {
		if a.halves[i].open() {
			out = append(out, a.halves[i].Relayed)
		}
	}
	return out
}

// latest returns when the last of the halves expires.
func (a *allocation) latest() time.Time {
	if a.state == opening {
		return a.expires
	}
	if a.halves[0].expires.After(a.halves[1].expires) {
		return a.halves[0].expires
	}
	return a.halves[1].expires
}

// answer is what is needed to answer an Allocate later, or again.
type answer struct {
	id          stun.TransactionID
	lifetime    time.Duration
	sha256      bool
	fingerprint bool
	counter     []byte // TRANSACTION_TRANSMIT_COUNTER of the answer, nil = none
	reservation []byte // RESERVATION-TOKEN, nil = none
	ticket      []byte // MOBILITY-TICKET, nil = none
	failed      [2]int // by family, for ADDRESS-ERROR-CODE: why the one of two that was asked for is not given
}

// channel is a binding of a number to a peer. It relays until expires, and bars both from other
// bindings for ChannelQuarantine more.
type channel struct {
	number  uint16
	peer    netip.AddrPort
	expires time.Time
}

func (a *allocation) expired(now time.Time) bool { return !now.Before(a.expires) }

// previous returns the replaced credential while it still verifies, else nil.
func (a *allocation) previous(now time.Time) *credential {
	if a.old != nil && now.Before(a.oldUntil) {
		return a.old
	}
	return nil
}

// knows reports whether cred, as authenticate found it, is the allocation's.
func (a *allocation) knows(cred *credential, now time.Time) bool {
	return cred == a.cur || cred == a.previous(now)
}

// permitted reports whether a permission for addr is in force (RFC 8656 §3.3: ports do not count).
func (a *allocation) permitted(addr netip.Addr, now time.Time) bool {
	until, ok := a.permissions[addr]
	return ok && now.Before(until)
}

// permit installs or renews a permission. There must be room.
func (a *allocation) permit(addr netip.Addr, now time.Time) {
	if a.permissions == nil {
		a.permissions = make(map[netip.Addr]time.Time, 2)
	}
	if _, known := a.permissions[addr]; !known {
		a.peers++
	}
	a.permissions[addr] = now.Add(PermissionLifetime)
}

// sweep drops permissions that have expired and channels whose quarantine is over.
func (a *allocation) sweep(now time.Time) {
	for addr, until := range a.permissions {
		if !now.Before(until) {
			delete(a.permissions, addr)
		}
	}
	for n, ch := range a.channels {
		if !now.Before(ch.expires.Add(ChannelQuarantine)) {
			delete(a.channels, n)
			delete(a.byPeer, ch.peer)
		}
	}
}

// hardEnd is the instant that no Refresh takes the allocation beyond (DESIGN, What happens when a
// credential ends). The rule is about allocations, so it is the same for both shapes of a token;
// RFC 7635 §4.1.1's cap at the token's own life is what Strict does. News that say less than was granted
// before them take nothing back: the client counts on it, and the next news may say more.
func (c *Core) hardEnd(cred *credential, extended time.Time) time.Time {
	end := cred.ends
	if end.IsZero() {
		return time.Unix(1<<37, 0) // a static user's, far away; removed from the file, Recheck ends it
	}
	if cred.tenant.Policy == Strict {
		return end
	}
	if cred.tenant.Policy == Session && !extended.IsZero() && !c.blind {
		if extended.After(end) {
			end = extended
		}
		return end.Add(SessionSlack)
	}
	return end.Add(cred.tenant.GraceMax)
}

// grant returns the lifetime for an allocation under cred that asks for the value v of LIFETIME, nil
// if it has not asked (RFC 8656 §7.2: at least the default, at most an hour), capped by the hard
// end. Zero or less means that the credential's time is over.
func (c *Core) grant(v []byte, cred *credential, extended, now time.Time) time.Duration {
	life := DefaultLifetime
	if want, ok := seconds(v); ok {
		life = min(max(want, DefaultLifetime), MaxLifetime)
	}
	return min(life, c.hardEnd(cred, extended).Sub(now).Truncate(time.Second))
}

// expiryQueue is a heap of all allocations by expiry, for container/heap.
type expiryQueue []*allocation

func (q expiryQueue) Len() int           { return len(q) }
func (q expiryQueue) Less(i, j int) bool { return q[i].expires.Before(q[j].expires) }
func (q expiryQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].place, q[j].place = i, j
}

// Push adds x.
func (q *expiryQueue) Push(x any) {
	a := x.(*allocation)
	a.place = len(*q)
	*q = append(*q, a)
}

// Pop removes the last one.
func (q *expiryQueue) Pop() any {
	last := len(*q) - 1
	a := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	return a
}
