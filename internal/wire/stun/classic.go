package stun

import "encoding/binary"

// This file is STUN as it was first (RFC 3489): without a magic cookie, the transaction ID of 16 bytes
// where cookie and ID are now. Of it there is what a NAT is found out with.

const (
	// AttrSourceAddress is where an answer comes from (RFC 3489 §11.2.5), RESPONSE-ORIGIN now.
	AttrSourceAddress Attr = 0x0004
	// AttrChangedAddress is where one would come from by CHANGE-REQUEST (§11.2.3), OTHER-ADDRESS now.
	AttrChangedAddress Attr = 0x0005
)

// ClassicID is a transaction ID of RFC 3489.
type ClassicID [16]byte

// ParseClassic reads a Binding request of RFC 3489 and its CHANGE-REQUEST, 0 without one. Any other
// attribute that a server must understand is ErrAttribute: RESPONSE-ADDRESS, which has the answer sent
// to somebody else, and those of the shared secret, which nobody had.
func ParseClassic(b []byte) (id ClassicID, change uint32, err error) {
	switch {
	case len(b) < HeaderSize:
		return id, 0, ErrShort
	case binary.BigEndian.Uint16(b) != uint16(NewType(Binding, Request)):
		return id, 0, ErrNotSTUN
	case int(binary.BigEndian.Uint16(b[2:])) != len(b)-HeaderSize:
		return id, 0, ErrLength
	}
	id = ClassicID(b[4:])
	for b = b[HeaderSize:]; len(b) > 0; {
		if len(b) < 4 {
			return id, 0, ErrAttribute
		}
		t, n := Attr(binary.BigEndian.Uint16(b)), int(binary.BigEndian.Uint16(b[2:]))
		if n&3 != 0 || n > len(b)-4 { // §11.2: nothing is padded
			return id, 0, ErrAttribute
		}
		switch v := b[4 : 4+n]; {
		case t == AttrChangeRequest:
			if change, err = ParseUint32(v); err != nil {
				return id, 0, err
			}
		case t < 0x8000:
			return id, 0, ErrAttribute
		}
		b = b[4+n:]
	}
	return id, change, nil
}

// AppendClassicHeader is [AppendHeader] of a Binding response of RFC 3489.
func AppendClassicHeader(dst []byte, id ClassicID) []byte {
	dst = binary.BigEndian.AppendUint16(dst, uint16(NewType(Binding, Success)))
	dst = append(dst, 0, 0)
	return append(dst, id[:]...)
}
