package stun

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

// ChannelData (RFC 8656 §12.4) is a channel number, a length and that many bytes. Over UDP padding
// may follow, over TCP it must, to a multiple of 4:
//
//	+-------------------------------+-------------------------------+
//	| channel number 0x4000…0x4FFF  | length of the data            |
//	+-------------------------------+-------------------------------+

const (
	// ChannelHeaderSize is the length of a ChannelData header, in bytes.
	ChannelHeaderSize = 4
	// MinChannel and MaxChannel bound the channel numbers (RFC 8656 §12: narrower than RFC 5766).
	MinChannel = 0x4000
	MaxChannel = 0x4FFF
	// MaxChannel5766 is the highest number in RFC 5766 §11, which older clients choose from.
	MaxChannel5766 = 0x7FFF
)

// ErrChannelData is returned for bytes that are no ChannelData message.
var ErrChannelData = errors.New("stun: malformed ChannelData")

// ParseChannelData reads the ChannelData message at the start of b and returns a view of its data. Its
// number is one of RFC 5766: which of them can be bound is not for a reader to say.
// Bytes behind it count as padding and are ignored (RFC 8656 §12.6).
func ParseChannelData(b []byte) (channel uint16, data []byte, err error) {
	if len(b) < ChannelHeaderSize {
		return 0, nil, ErrChannelData
	}
	channel = binary.BigEndian.Uint16(b)
	n := int(binary.BigEndian.Uint16(b[2:]))
	if channel < MinChannel || channel > MaxChannel5766 || n > len(b)-ChannelHeaderSize {
		return 0, nil, ErrChannelData
	}
	return channel, b[4 : 4+n : 4+n], nil
}

// PutChannelHeader writes a ChannelData header for n bytes of data, at most 65535, into b[:4].
func PutChannelHeader(b []byte, channel uint16, n int) {
	_ = b[3]
	binary.BigEndian.PutUint16(b, channel)
	binary.BigEndian.PutUint16(b[2:], uint16(n))
}

// AppendChannelData appends a ChannelData message without padding, as UDP wants it.
func AppendChannelData(dst []byte, channel uint16, data []byte) []byte {
	dst = binary.BigEndian.AppendUint16(dst, channel)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(data)))
	return append(dst, data...)
}

// Protocol is what a packet's first byte says it is (RFC 7983 §7, RFC 9443).
type Protocol uint8

// The protocols that share a port with STUN.
const (
	ProtocolUnknown     Protocol = iota
	ProtocolSTUN                 // 0…3
	ProtocolZRTP                 // 16…19
	ProtocolDTLS                 // 20…63
	ProtocolChannel              // 64…79: ChannelData
	ProtocolChannel5766          // 80…127: ChannelData in RFC 5766 alone
	ProtocolRTP                  // 128…191: RTP and RTCP
)

// Classify returns the protocol of packet b by its first byte.
func Classify(b []byte) Protocol {
	if len(b) == 0 {
		return ProtocolUnknown
	}
	switch c := b[0]; {
	case c <= 3:
		return ProtocolSTUN
	case c >= 16 && c <= 19:
		return ProtocolZRTP
	case c >= 20 && c <= 63:
		return ProtocolDTLS
	case c >= 64 && c <= 79:
		return ProtocolChannel
	case c >= 80 && c <= 127:
		return ProtocolChannel5766
	case c >= 128 && c <= 191:
		return ProtocolRTP
	}
	return ProtocolUnknown
}

// DataHeadroom is the room before a payload in which [PutDataIndication] writes its header.
const DataHeadroom = HeaderSize + 4 + 20 + 4

// PutDataIndication makes the n bytes that stand in buf at [DataHeadroom] a Data indication from
// peer (RFC 8656 §11.6), in place. The message, which it returns, begins in the headroom and may
// need 3 bytes behind the payload for padding. It must not be longer than 65555 bytes.
func PutDataIndication(buf []byte, n int, id TransactionID, peer netip.AddrPort) []byte {
	start := 0
	if peer.Addr().Unmap().Is4() {
		start = 12
	}
	m := AppendHeader(buf[start:start], NewType(Data, Indication), id)
	m = AppendXORAddress(m, AttrXORPeerAddress, peer)
	m = appendAttrHeader(m, AttrData, n)
	return pad(m[:len(m)+n], n)
}
