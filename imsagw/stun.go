package imsagw

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"time"

	"github.com/pion/stun/v4"
)

const (
	stunHeader = 20
	stunCookie = 0x2112A442
	// maxKnown bounds the authenticated sources of Binding requests of one generation: each becomes a
	// candidate in the ICE agent.
	maxKnown = 64
	// maxChecks bounds the requests of ours that wait for an answer.
	maxChecks = 256
	// Checks of ours: so many at once, then so many a second. Candidates number 32 at most.
	checkBurst, checkRate = 100, 50
)

// checks are the Binding requests that left for the browser, so that answers can be told from noise.
type checks struct {
	mu     sync.Mutex // guards the following fields: the agent, consent and the access reader meet here
	sentAt [maxChecks]check
	next   int
	tokens float64
	filled time.Time
	// role and priority are of the agent's last request, to be repeated in consent checks.
	role     stun.RawAttribute
	priority stun.RawAttribute
}

type check struct {
	id  [stun.TransactionIDSize]byte
	to  netip.AddrPort
	own bool // consent's, not the agent's
	set bool
}

// isBindingRequest tells a request from an answer, in what the agent writes.
func isBindingRequest(b []byte) bool {
	return len(b) >= stunHeader && binary.BigEndian.Uint16(b) == 0x0001
}

// sent remembers a request that is about to leave; false: not now, the rate is reached.
// Consent checks, seconds apart, are not counted.
func (c *checks) sent(b []byte, to netip.AddrPort, own bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !own {
		now := time.Now()
		if c.filled.IsZero() {
			c.tokens = checkBurst
		} else {
			c.tokens = min(checkBurst, c.tokens+checkRate*now.Sub(c.filled).Seconds())
		}
		c.filled = now
		if c.tokens < 1 {
			return false
		}
		c.tokens--
		c.learnLocked(b)
	}
	k := check{to: to, own: own, set: true}
	copy(k.id[:], b[8:stunHeader])
	c.sentAt[c.next] = k
	c.next = (c.next + 1) % maxChecks
	return true
}

// inherit goes on at the pace of the generation before, so that a restart is no new burst.
func (c *checks) inherit(before *checks) {
	before.mu.Lock()
	defer before.mu.Unlock()
	c.tokens, c.filled = before.tokens, before.filled
}

// learnLocked reads the ICE attributes of the agent's own request.
func (c *checks) learnLocked(b []byte) {
	for b = b[stunHeader:]; len(b) >= 4; {
		t, n := stun.AttrType(binary.BigEndian.Uint16(b)), int(binary.BigEndian.Uint16(b[2:]))
		if len(b) < 4+n {
			return
		}
		switch {
		case t == stun.AttrPriority && n == 4:
			c.priority = stun.RawAttribute{Type: t, Length: 4, Value: append([]byte(nil), b[4:8]...)}
		case (t == stun.AttrICEControlled || t == stun.AttrICEControlling) && n == 8:
			c.role = stun.RawAttribute{Type: t, Length: 8, Value: append([]byte(nil), b[4:12]...)}
		}
		b = b[min(len(b), 4+(n+3)&^3):]
	}
}

// answered takes back the request that an answer from an address belongs to. RFC 8445 §7.2.5.2.1: the
// answer must come from where the request went.
func (c *checks) answered(id [stun.TransactionIDSize]byte, from netip.AddrPort) (check, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.sentAt {
		if k := &c.sentAt[i]; k.set && k.id == id && k.to == from {
			k.set = false
			return *k, true
		}
	}
	return check{}, false
}

// unanswered puts a request back whose answer was forged.
func (c *checks) unanswered(k check) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k.set = true
	c.sentAt[c.next] = k
	c.next = (c.next + 1) % maxChecks
}

// consentCheck builds a Binding request towards the browser, as RFC 7675 §5.1 wants it: a new
// transaction, authenticated, with the agent's own role and priority, never retransmitted.
func (c *checks) consentCheck(username, password string) (*stun.Message, error) {
	c.mu.Lock()
	role, priority := c.role, c.priority
	c.mu.Unlock()
	setters := []stun.Setter{stun.BindingRequest, stun.TransactionID, stun.NewUsername(username)}
	if role.Value != nil {
		setters = append(setters, role)
	}
	if priority.Value != nil {
		setters = append(setters, priority)
	}
	return stun.Build(append(setters, stun.NewShortTermIntegrity(password), stun.Fingerprint)...)
}

// stunMessage is the access reader's reused message.
type stunMessage struct{ m stun.Message }

// decode reads a STUN message strictly: the length in its header is the datagram's.
func (s *stunMessage) decode(b []byte) bool {
	if len(b) < stunHeader || len(b)%4 != 0 || binary.BigEndian.Uint32(b[4:]) != stunCookie || int(binary.BigEndian.Uint16(b[2:])) != len(b)-stunHeader {
		return false
	}
	s.m.Raw = append(s.m.Raw[:0], b...)
	return s.m.Decode() == nil
}

// fromSTUN screens a STUN message before the ICE agent sees it. A request from a new source must be
// authenticated, so that noise costs one HMAC and no state; an answer must belong to a request of ours,
// come from where that went, and be authenticated by the browser's password. The latter validates the
// address it came from, and renews consent if that is the nominated one.
func (st *stream) fromSTUN(b []byte, from netip.AddrPort) {
	if !st.message.decode(b) {
		st.count.drop(dropMalformed)
		return
	}
	m := &st.message.m
	if m.Type.Method != stun.MethodBinding {
		st.count.drop(dropMalformed)
		return
	}
	var n *generation
	switch m.Type.Class {
	case stun.ClassRequest:
		if n = st.generationOf(m); n == nil {
			st.count.drop(dropSTUN)
			return
		}
		if _, ok := n.known[from]; !ok {
			if stun.MessageIntegrity(n.pwd.Expose()).Check(m) != nil {
				st.count.drop(dropSTUN)
				return
			}
			if len(n.known) >= maxKnown {
				st.count.drop(dropSources)
				return
			}
			n.known[from] = struct{}{}
		}
	case stun.ClassSuccessResponse, stun.ClassErrorResponse:
		var k check
		ok := false
		for _, n = range *st.generations.Load() {
			if k, ok = n.checks.answered(m.TransactionID, from); ok {
				break
			}
		}
		if !ok { // nothing has left before the browser's credentials were known
			st.count.drop(dropSTUN)
			return
		}
		if stun.MessageIntegrity(n.peer.Load().pwd.Expose()).Check(m) != nil {
			n.checks.unanswered(k)
			st.count.drop(dropSTUN)
			return
		}
		if m.Type.Class == stun.ClassSuccessResponse {
			st.validate(from)
			if s := st.selected.Load(); s != nil && *s == from {
				st.consent.renew()
			}
		}
		if k.own {
			return
		}
	default:
		return // an indication keeps a NAT open and wants nothing (RFC 8445 §11)
	}
	if !n.queue.push(b, from) {
		st.count.drop(dropQueue)
	}
}
