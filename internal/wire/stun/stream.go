package stun

import (
	"encoding/binary"
	"errors"
)

// On a stream (TCP, TLS) messages follow each other without anything between them: STUN is a
// multiple of 4 bytes by itself, ChannelData is padded to one (RFC 8656 §12.5). Each begins with
// enough to tell its size:
//
//	00.. STUN         type, length:     20 + length bytes
//	01.. ChannelData  number, length:   4 + length bytes, rounded up to 4

const (
	// StreamHeaderSize is how many bytes of a message tell its size on a stream.
	StreamHeaderSize = 4
	// MaxStreamSize is the longest message on a stream, padding included.
	MaxStreamSize = HeaderSize + 0xfffc
)

// ErrFraming is returned for bytes that begin no message: the two ends of a stream have lost each
// other, and the connection is of no more use (RFC 8656 §5).
var ErrFraming = errors.New("stun: no message begins here")

// StreamSize returns the size of the message that begins with b, padding included; 0 if b is too
// short to tell. With rfc5766 its channel numbers count too.
func StreamSize(b []byte, rfc5766 bool) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	kind := Classify(b)
	if kind == ProtocolChannel5766 && rfc5766 {
		kind = ProtocolChannel
	}
	if kind != ProtocolSTUN && kind != ProtocolChannel {
		return 0, ErrFraming
	}
	if len(b) < StreamHeaderSize {
		return 0, nil
	}
	n := int(binary.BigEndian.Uint16(b[2:]))
	if kind == ProtocolChannel {
		return ChannelHeaderSize + (n+3)&^3, nil
	}
	if n&3 != 0 {
		return 0, ErrFraming
	}
	return HeaderSize + n, nil
}

// AppendStreamPadding appends the zeros that b, whole messages, needs behind the last one.
func AppendStreamPadding(b []byte) []byte {
	return append(b, make([]byte, -len(b)&3)...)
}
