package core

import (
	"crypto/rand"
	"net/netip"

	"wicgate/internal/wire/stun"
)

// Sibling is an address of another server that takes the same credentials.
type Sibling struct {
	Address netip.AddrPort
	// Transport is the one that it takes there, as in [Tuple]; 0 = every one.
	Transport uint8
	// Domain is the name in its certificate, for clients on TLS, at most 255 bytes; "" = the client
	// keeps the one that it knows.
	Domain string
}

// suits reports whether a client on t can be sent there but for the address family.
func (s *Sibling) suits(t Tuple) bool {
	if t.Transport == TransportDTLS {
		return s.Transport != stun.ProtocolTCP
	}
	return s.Transport == 0 || s.Transport == t.Transport
}

// elsewhere refuses an Allocate because we drain or are full: with 300 and a sibling (RFC 8489 §10, RFC 8656
// §7.2), or with 508 where none suits. The client has authenticated, so that the answer has an integrity: who
// could forge it would lead the client to a server of his own. Where all are full, a client goes round
// once: it comes back to none within five minutes.
func (c *Core) elsewhere(r *request, out *Outbox, why Cause) {
	// At random, so that the load of this server falls on all. One of the client's family is a must.
	var first, second *Sibling
	v4 := r.tuple.Client.Addr().Is4()
	var start [1]byte
	rand.Read(start[:]) // never fails
	for i := range c.cfg.Siblings {
		s := &c.cfg.Siblings[(int(start[0])+i)%len(c.cfg.Siblings)]
		switch {
		case !s.suits(r.tuple):
		case s.Address.Addr().Is4() != v4:
			if second == nil {
				second = s
			}
		case first == nil:
			first = s
		}
	}
	if first == nil {
		c.fail(r, out, 508, why, nil)
		return
	}
	c.refuse(out, why, nil)
	out.Code = 300
	m := stun.AppendErrorCode(r.begin(out, stun.Error), 300, "")
	m = stun.AppendAddress(m, stun.AttrAlternateServer, first.Address)
	if second != nil && second.Domain == first.Domain { // there is one ALTERNATE-DOMAIN for both
		m = stun.AppendAddress(m, stun.AttrAlternateServer, second.Address)
	}
	if first.Domain != "" {
		m = stun.AppendText(m, stun.AttrAlternateDomain, first.Domain)
	}
	c.reply(r, out, m)
}
