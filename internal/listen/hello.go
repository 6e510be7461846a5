package listen

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"net/netip"
	"time"

	"wicgate/internal/secret"
)

// This file is what DTLS 1.2 (RFC 6347) has before there is an association: ClientHello and
// HelloVerifyRequest, with a cookie that is verified without a memory of the client.

const (
	recordAlert     = 21
	recordHandshake = 22
	recordData      = 23
	recordHead      = 13 // type 1, version 2, epoch 2, sequence number 6, length 2 (RFC 6347 §4.1)
	handshakeHead   = 12 // type 1, length 3, message_seq 2, fragment_offset 3, fragment_length 3 (§4.2.2)

	clientHello        = 1
	helloVerifyRequest = 3
	randomSize         = 32

	// cookieSize is what pion draws, and has to be: its cookie is replaced by ours.
	cookieSize = 4 + 16
	// cookieLife is how long a cookie is valid: some times of what a client waits before it sends again.
	cookieLife = 30 * time.Second
	// helloReplySize is a whole HelloVerifyRequest, which is shorter than any ClientHello: nobody is
	// worth being reflected at.
	helloReplySize = recordHead + handshakeHead + 3 + cookieSize
)

// record is one record at the beginning of a datagram.
type record struct {
	kind   byte
	epoch  uint16
	number uint64 // 48 bits
	body   []byte
	raw    []byte
}

// nextRecord cuts the first record off b; ok is false where there is none.
func nextRecord(b []byte) (r record, rest []byte, ok bool) {
	if len(b) < recordHead || b[1] != 0xfe {
		return r, nil, false
	}
	end := recordHead + int(binary.BigEndian.Uint16(b[11:]))
	if len(b) < end {
		return r, nil, false
	}
	number := binary.BigEndian.Uint64(b[3:])
	return record{kind: b[0], epoch: uint16(number >> 48), number: number & (1<<48 - 1), body: b[recordHead:end:end], raw: b[:end:end]}, b[end:], true
}

// renumber gives the record at the beginning of b, of epoch 0, another sequence number.
func renumber(b []byte, number uint64) { binary.BigEndian.PutUint64(b[3:], number) }

func uint24(b []byte) int { return int(b[0])<<16 | int(binary.BigEndian.Uint16(b[1:])) }

func putUint24(b []byte, n int) {
	b[0] = byte(n >> 16)
	binary.BigEndian.PutUint16(b[1:], uint16(n))
}

// hello is a ClientHello in one record and unfragmented, as those are that stateless servers can take
// (RFC 6347 §4.2.2).
type hello struct {
	record record
	seq    uint16 // message_seq
	random [randomSize]byte
	before []byte // version, random and session id
	cookie []byte
	core   []byte // cipher suites and compression methods
	after  []byte // core and extensions
}

func parseHello(b []byte) (h hello, ok bool) {
	r, _, ok := nextRecord(b)
	if !ok || r.kind != recordHandshake || r.epoch != 0 || len(r.body) < handshakeHead {
		return h, false
	}
	head, body := r.body[:handshakeHead], r.body[handshakeHead:]
	if head[0] != clientHello || uint24(head[1:]) != len(body) || uint24(head[6:]) != 0 || uint24(head[9:]) != len(body) {
		return h, false
	}
	h.record, h.seq = r, binary.BigEndian.Uint16(head[4:])
	at := 2 + randomSize
	if len(body) <= at || body[at] > 32 {
		return h, false
	}
	h.random = [randomSize]byte(body[2:at])
	at += 1 + int(body[at])
	if len(body) <= at {
		return h, false
	}
	h.before = body[:at]
	size := int(body[at])
	if at++; len(body) < at+size {
		return h, false
	}
	h.cookie, h.after = body[at:at+size], body[at+size:]
	if len(h.after) < 2 {
		return h, false
	}
	at = 2 + int(binary.BigEndian.Uint16(h.after))
	if len(h.after) <= at {
		return h, false
	}
	at += 1 + int(h.after[at])
	if len(h.after) < at {
		return h, false
	}
	h.core = h.after[:at]
	return h, true
}

// first returns the datagram of the ClientHello that came before h, which had no cookie.
func (h *hello) first() []byte {
	size := len(h.before) + 1 + len(h.after)
	b := make([]byte, recordHead+handshakeHead, recordHead+handshakeHead+size)
	copy(b, h.record.raw[:recordHead])
	renumber(b, h.record.number-1)
	binary.BigEndian.PutUint16(b[11:], uint16(handshakeHead+size))
	head := b[recordHead:]
	head[0] = clientHello
	putUint24(head[1:], size)
	putUint24(head[9:], size)
	b = append(append(b, h.before...), 0)
	return append(b, h.after...)
}

// cookies makes and verifies cookies: a time, and a MAC over it, the client's address, the listener
// and what of its ClientHello must stay as it is (RFC 6347 §4.2.1).
type cookies struct {
	key   secret.Bytes
	since time.Time
}

func newCookies() *cookies {
	key := make([]byte, sha256.Size)
	rand.Read(key)
	return &cookies{key: secret.New(key), since: time.Now()}
}

func (c *cookies) make(now time.Time, listener int, client netip.AddrPort, h *hello) []byte {
	return c.seal(uint32(now.Sub(c.since)/time.Second), listener, client, h)
}

func (c *cookies) seal(seconds uint32, listener int, client netip.AddrPort, h *hello) []byte {
	in := binary.BigEndian.AppendUint32(nil, seconds)
	mac := hmac.New(sha256.New, c.key.Expose())
	ip := client.Addr().As16()
	mac.Write(binary.BigEndian.AppendUint16(append(binary.BigEndian.AppendUint32(in, uint32(listener)), ip[:]...), client.Port())) // a hash never fails to write
	mac.Write(h.before)
	mac.Write(h.core)
	return append(in, mac.Sum(nil)[:cookieSize-len(in)]...)
}

// ok says whether h bears a cookie that was made for it within cookieLife.
func (c *cookies) ok(now time.Time, listener int, client netip.AddrPort, h *hello) bool {
	if len(h.cookie) != cookieSize {
		return false
	}
	seconds := binary.BigEndian.Uint32(h.cookie)
	age := now.Sub(c.since) - time.Duration(seconds)*time.Second
	return age >= 0 && age <= cookieLife && subtle.ConstantTimeCompare(h.cookie, c.seal(seconds, listener, client, h)) == 1
}

// reply appends the HelloVerifyRequest to h. It bears the version of DTLS 1.0, whatever will be
// agreed, and the record's number is that of the ClientHello (RFC 6347 §4.2.1).
func (h *hello) reply(dst, cookie []byte) []byte {
	at := len(dst)
	dst = append(dst, make([]byte, helloReplySize)...)
	b := dst[at:]
	renumber(b, h.record.number)
	b[0], b[1], b[2] = recordHandshake, 0xfe, 0xff
	binary.BigEndian.PutUint16(b[11:], helloReplySize-recordHead)
	head := b[recordHead:]
	head[0] = helloVerifyRequest
	putUint24(head[1:], 3+cookieSize)
	putUint24(head[9:], 3+cookieSize)
	body := head[handshakeHead:]
	body[0], body[1], body[2] = 0xfe, 0xff, cookieSize
	copy(body[3:], cookie)
	return dst
}

// cookieOf returns the cookie in a datagram that is a HelloVerifyRequest, a part of b; nil if it is none.
func cookieOf(b []byte) []byte {
	r, _, ok := nextRecord(b)
	if !ok || r.kind != recordHandshake || r.epoch != 0 || len(r.body) != handshakeHead+3+cookieSize || r.body[0] != helloVerifyRequest {
		return nil
	}
	return r.body[handshakeHead+3:]
}
