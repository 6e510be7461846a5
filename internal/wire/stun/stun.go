// Package stun reads and writes STUN messages (RFC 8489), the TURN methods, attributes and
// ChannelData (RFC 8656) and the attributes of third-party authorization (RFC 7635).
//
// It holds no socket, clock, log or lock, decides nothing about credentials, and knows no
// retransmission. Parsing returns views into the caller's bytes; appending writes into the
// caller's buffer. Neither allocates.
//
// A message is a header of 20 bytes and a list of attributes, all big-endian:
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+---+---------------------------+-------------------------------+
//	|0 0| M11…M7 C1 M6…M4 C0 M3…M0  | length after the header, x4   |
//	+---+---------------------------+-------------------------------+
//	|                 magic cookie 0x2112A442                       |
//	+---------------------------------------------------------------+
//	|                 transaction id, 96 bits                       |
//	+-------------------------------+-------------------------------+
//	| attribute type                | length of the value alone     |
//	+-------------------------------+-------------------------------+
//	| value, then padding of any content to a multiple of 4         |
//	+---------------------------------------------------------------+
//
// What follows MESSAGE-INTEGRITY is not protected by it, and so is not there for a reader
// (RFC 8489 §14.5): only MESSAGE-INTEGRITY-SHA256 and FINGERPRINT are seen behind it.
package stun

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
)

const (
	// HeaderSize is the length of a STUN header, in bytes.
	HeaderSize = 20
	// MagicCookie stands in bytes 4 to 7 of every message (RFC 8489 §5).
	MagicCookie = 0x2112A442
)

// Method is a STUN method, 12 bits.
type Method uint16

// Methods of RFC 8489, RFC 8656 and RFC 6062.
const (
	Binding           Method = 0x001
	Allocate          Method = 0x003
	Refresh           Method = 0x004
	Send              Method = 0x006 // indications only
	Data              Method = 0x007 // indications only
	CreatePermission  Method = 0x008
	ChannelBind       Method = 0x009
	Connect           Method = 0x00A
	ConnectionBind    Method = 0x00B
	ConnectionAttempt Method = 0x00C // indications only
)

// String returns the standard's name of m, or its number.
func (m Method) String() string {
	switch m {
	case Binding:
		return "Binding"
	case Allocate:
		return "Allocate"
	case Refresh:
		return "Refresh"
	case Send:
		return "Send"
	case Data:
		return "Data"
	case CreatePermission:
		return "CreatePermission"
	case ChannelBind:
		return "ChannelBind"
	case Connect:
		return "Connect"
	case ConnectionBind:
		return "ConnectionBind"
	case ConnectionAttempt:
		return "ConnectionAttempt"
	}
	return fmt.Sprintf("method 0x%03x", uint16(m))
}

// Class is the class of a message, 2 bits.
type Class uint8

// The four classes (RFC 8489 §5).
const (
	Request Class = iota
	Indication
	Success
	Error
)

// Type is the message type as it stands in the first two bytes: method and class interleaved.
type Type uint16

// NewType interleaves m and c (RFC 8489 §5, figure 3).
func NewType(m Method, c Class) Type {
	return Type(m&0x00f | m&0x070<<1 | m&0xf80<<2 | Method(c&1)<<4 | Method(c&2)<<7)
}

// Method returns the method bits of t.
func (t Type) Method() Method { return Method(t&0x000f | t>>1&0x0070 | t>>2&0x0f80) }

// Class returns the class bits of t.
func (t Type) Class() Class { return Class(t>>4&1 | t>>7&2) }

// TransactionID is the 96-bit id that ties an answer to its request.
type TransactionID [12]byte

// Why a message was not taken. Parse returns one of these as it is, unwrapped.
var (
	ErrShort       = errors.New("stun: shorter than a header")
	ErrNotSTUN     = errors.New("stun: first two bits are not zero")
	ErrCookie      = errors.New("stun: no magic cookie")
	ErrLength      = errors.New("stun: length field differs from the bytes received")
	ErrUnaligned   = errors.New("stun: length is no multiple of 4")
	ErrAttribute   = errors.New("stun: attribute runs past the end")
	ErrIntegrity   = errors.New("stun: message integrity attribute of a wrong size")
	ErrFingerprint = errors.New("stun: fingerprint of a wrong size or not last")
)

// Message is a view of one parsed message. It is valid as long as the bytes it was parsed from.
type Message struct {
	raw []byte
	end int // where the visible attributes end: at the first integrity attribute or the fingerprint
	// Offsets of the attribute headers, 0 = absent.
	mi, mi256, fp int
}

// Parse reads the one message that b holds, no more and no less: a datagram, or what a stream's
// framing has cut out. Everything is checked here that needs no key: structure, sizes, and that
// FINGERPRINT is last. The fingerprint's value is left to [Message.FingerprintOK].
func Parse(b []byte) (Message, error) {
	if len(b) < HeaderSize {
		return Message{}, ErrShort
	}
	if b[0]&0xc0 != 0 {
		return Message{}, ErrNotSTUN
	}
	if binary.BigEndian.Uint32(b[4:]) != MagicCookie {
		return Message{}, ErrCookie
	}
	n := int(binary.BigEndian.Uint16(b[2:]))
	if n&3 != 0 {
		return Message{}, ErrUnaligned
	}
	if n != len(b)-HeaderSize {
		return Message{}, ErrLength
	}
	m := Message{raw: b, end: len(b)}
	for at := HeaderSize; at < len(b); {
		if m.fp != 0 {
			return Message{}, ErrFingerprint // RFC 8489 §14.7: it MUST be the last attribute
		}
		if len(b)-at < 4 {
			return Message{}, ErrAttribute
		}
		typ := Attr(binary.BigEndian.Uint16(b[at:]))
		size := int(binary.BigEndian.Uint16(b[at+2:]))
		next := at + 4 + (size+3)&^3
		if next > len(b) {
			return Message{}, ErrAttribute
		}
		switch typ {
		case AttrMessageIntegrity:
			// A second one, or one behind MESSAGE-INTEGRITY-SHA256, is not there for us.
			if m.mi != 0 || m.mi256 != 0 {
				break
			}
			if size != sha1Size {
				return Message{}, ErrIntegrity
			}
			m.mi = at
			m.end = min(m.end, at)
		case AttrMessageIntegritySHA256:
			if m.mi256 != 0 {
				break
			}
			// RFC 8489 §14.6 allows 16 to 32 bytes where a usage says so; TURN does not.
			if size != sha256Size {
				return Message{}, ErrIntegrity
			}
			m.mi256 = at
			m.end = min(m.end, at)
		case AttrFingerprint:
			if size != 4 {
				return Message{}, ErrFingerprint
			}
			m.fp = at
			m.end = min(m.end, at)
		}
		at = next
	}
	return m, nil
}

// Raw returns the bytes of the message.
func (m Message) Raw() []byte { return m.raw }

// Type returns the message type.
func (m Message) Type() Type { return Type(binary.BigEndian.Uint16(m.raw)) }

// Method returns the method.
func (m Message) Method() Method { return m.Type().Method() }

// Class returns the class.
func (m Message) Class() Class { return m.Type().Class() }

// TransactionID returns the transaction id.
func (m Message) TransactionID() TransactionID { return TransactionID(m.raw[8:20]) }

// All ranges over the attributes that a reader may see, in their order: those before the first
// integrity attribute or the fingerprint. These three themselves are not among them.
func (m Message) All() iter.Seq2[Attr, []byte] {
	return func(yield func(Attr, []byte) bool) {
		for at := HeaderSize; at < m.end; {
			size := int(binary.BigEndian.Uint16(m.raw[at+2:]))
			if !yield(Attr(binary.BigEndian.Uint16(m.raw[at:])), m.raw[at+4:at+4+size:at+4+size]) {
				return
			}
			at += 4 + (size+3)&^3
		}
	}
}

// Get returns the value of the first visible attribute of type t (RFC 8489 §14: of several, the
// first counts).
func (m Message) Get(t Attr) (value []byte, ok bool) {
	for at := HeaderSize; at < m.end; {
		size := int(binary.BigEndian.Uint16(m.raw[at+2:]))
		if Attr(binary.BigEndian.Uint16(m.raw[at:])) == t {
			return m.raw[at+4 : at+4+size : at+4+size], true
		}
		at += 4 + (size+3)&^3
	}
	return nil, false
}

// HasIntegrity reports whether the message carries MESSAGE-INTEGRITY.
func (m Message) HasIntegrity() bool { return m.mi != 0 }

// HasIntegritySHA256 reports whether the message carries MESSAGE-INTEGRITY-SHA256.
func (m Message) HasIntegritySHA256() bool { return m.mi256 != 0 }

// HasFingerprint reports whether the message carries FINGERPRINT, right or wrong.
func (m Message) HasFingerprint() bool { return m.fp != 0 }

// AppendHeader appends the header of a message without attributes. The Append functions for
// attributes take and return that message alone, from its header on, and keep its length field.
func AppendHeader(dst []byte, t Type, id TransactionID) []byte {
	dst = binary.BigEndian.AppendUint16(dst, uint16(t))
	dst = append(dst, 0, 0, 0x21, 0x12, 0xA4, 0x42)
	return append(dst, id[:]...)
}

// setLength writes the length field of the message m.
func setLength(m []byte) { binary.BigEndian.PutUint16(m[2:], uint16(len(m)-HeaderSize)) }
