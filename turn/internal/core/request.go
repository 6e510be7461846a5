package core

import (
	"encoding/binary"
	"time"

	"wicgate/internal/wire/stun"
)

// request is a message of a client, taken apart. Slices are views of the packet; a nil slice is an
// absent attribute.
type request struct {
	msg    stun.Message
	method stun.Method
	tuple  Tuple
	now    time.Time

	username, realm, nonce, token              []byte
	lifetime, transport, family, channel, data []byte
	additional, evenPort, reservation, peer    []byte
	userhash, algorithm, algorithms, counter   []byte
	dontFragment                               []byte
	change, responsePort, padding, connection  []byte
	ticket                                     []byte        // empty = asked for
	unknown                                    [16]stun.Attr // the first unknown required attributes
	unknowns                                   int

	tenant *tenant        // whom it is for: the challenger, then the credential's
	alg    stun.Algorithm // of the client's key
	// features are what its nonce announces.
	features stun.Features

	// After authentication:
	cred *credential
	key  []byte // of the answer's integrity, nil = none
}

// read takes m apart. Of several attributes of one type the first counts (RFC 8489 §14), except
// XOR-PEER-ADDRESS, of which CreatePermission reads all.
func (r *request) read(m stun.Message, t Tuple, now time.Time) {
	*r = request{msg: m, method: m.Method(), tuple: t, now: now}
	for typ, v := range m.All() {
		var field *[]byte
		switch typ {
		case stun.AttrUsername:
			field = &r.username
		case stun.AttrRealm:
			field = &r.realm
		case stun.AttrNonce:
			field = &r.nonce
		case stun.AttrAccessToken:
			field = &r.token
		case stun.AttrLifetime:
			field = &r.lifetime
		case stun.AttrRequestedTransport:
			field = &r.transport
		case stun.AttrRequestedAddressFamily:
			field = &r.family
		case stun.AttrAdditionalAddressFamily, stun.AttrAdditionalFamilyDraft:
			field = &r.additional
		case stun.AttrEvenPort:
			field = &r.evenPort
		case stun.AttrReservationToken:
			field = &r.reservation
		case stun.AttrChannelNumber:
			field = &r.channel
		case stun.AttrXORPeerAddress:
			field = &r.peer
		case stun.AttrData:
			field = &r.data
		case stun.AttrUserhash:
			field = &r.userhash
		case stun.AttrPasswordAlgorithm:
			field = &r.algorithm
		case stun.AttrPasswordAlgorithms:
			field = &r.algorithms
		case stun.AttrTransmitCounter:
			field = &r.counter
		case stun.AttrDontFragment:
			field = &r.dontFragment
		case stun.AttrChangeRequest:
			field = &r.change
		case stun.AttrResponsePort:
			field = &r.responsePort
		case stun.AttrPadding:
			field = &r.padding
		case stun.AttrMobilityTicket:
			field = &r.ticket
		case stun.AttrConnectionID:
			field = &r.connection
		case stun.AttrMappedAddress, stun.AttrXORMappedAddress, stun.AttrXORRelayedAddress, stun.AttrErrorCode, stun.AttrUnknownAttributes,
			stun.AttrPriority, stun.AttrUseCandidate:
			continue // known, and of no meaning here
		default:
			if typ.Required() {
				r.unknownAttr(typ)
			}
			continue
		}
		if *field == nil {
			*field = v
		}
	}
}

func (r *request) unknownAttr(t stun.Attr) {
	if r.unknowns < len(r.unknown) {
		r.unknown[r.unknowns] = t
	}
	r.unknowns++
}

// forget drops the views of the packet and the key.
func (r *request) forget() { *r = request{} }

// begin starts the answer of class cl in the Outbox.
func (r *request) begin(out *Outbox, cl stun.Class) []byte {
	return stun.AppendHeader(out.scratch[:0], stun.NewType(r.method, cl), r.msg.TransactionID())
}

// reply finishes the answer m: integrity of the kind the request had, if it was authenticated
// (RFC 8489 §9.2.4; never both kinds, Firefox drops that), fingerprint if the request had one.
func (c *Core) reply(r *request, out *Outbox, m []byte) {
	m = appendCounter(m, r.echo())
	c.finish(out, r.tuple, m, r.key, r.msg.HasIntegritySHA256(), r.msg.HasFingerprint())
}

// echo is what TRANSACTION_TRANSMIT_COUNTER is answered with (RFC 7982 §3.3), nil = not at all: Req comes
// back; Resp is 0, for no transaction is remembered.
func (r *request) echo() []byte {
	if len(r.counter) != 4 {
		return nil
	}
	return []byte{0, 0, r.counter[2], 0}
}

func appendCounter(m, counter []byte) []byte {
	if counter == nil {
		return m
	}
	return stun.AppendAttr(m, stun.AttrTransmitCounter, counter)
}

func (c *Core) finish(out *Outbox, t Tuple, m, key []byte, sha256, fingerprint bool) {
	switch {
	case key == nil:
	case sha256:
		m = c.hasher.AppendIntegritySHA256(m, key)
	default:
		m = c.hasher.AppendIntegrity(m, key)
	}
	if fingerprint {
		m = stun.AppendFingerprint(m)
	}
	out.Actions = append(out.Actions, Action{Kind: ToClient, Tuple: t, Data: m})
}

// fail answers with an error. No reason phrase: nobody shows it, and it would make the reply that
// a spoofed request sends to a victim longer.
func (c *Core) fail(r *request, out *Outbox, code int, why Cause, detail error) {
	c.refuse(out, why, detail)
	out.Code = code
	m := stun.AppendErrorCode(r.begin(out, stun.Error), code, "")
	switch code {
	case 420:
		m = stun.AppendUnknownAttributes(m, r.unknown[:min(r.unknowns, len(r.unknown))])
	case 401, 438:
		if code == 401 {
			c.stats.Unauthenticated++
		}
		t := c.challenger(r.tuple)
		m = stun.AppendText(m, stun.AttrRealm, t.Name)
		var nonce [stun.CookieSize + nonceLen]byte
		f := t.features()
		m = stun.AppendAttr(m, stun.AttrNonce, c.makeNonce(nonce[:0], r.now, r.tuple, f))
		if f&stun.PasswordAlgorithms != 0 {
			m = stun.AppendAttr(m, stun.AttrPasswordAlgorithms, offer)
		}
		if !t.NoAccessToken {
			m = stun.AppendText(m, stun.AttrThirdPartyAuthorization, t.Name) // RFC 7635 §6.1
		}
	}
	c.reply(r, out, m)
}

// seconds reads LIFETIME.
func seconds(v []byte) (time.Duration, bool) {
	if len(v) != 4 {
		return 0, false
	}
	return time.Duration(binary.BigEndian.Uint32(v)) * time.Second, true
}
