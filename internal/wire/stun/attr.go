package stun

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Attr is an attribute type. Types below 0x8000 must be understood by who receives them.
type Attr uint16

// Attributes of RFC 8489, 8656, 7635, 6062, 8016, 5780, 7982 and of ICE (RFC 8445) as far as a server meets them.
const (
	AttrMappedAddress          Attr = 0x0001 // not XORed
	AttrChangeRequest          Attr = 0x0003 // RFC 5780 §7.2: 4 bytes, flags ChangeIP and ChangePort
	AttrUsername               Attr = 0x0006
	AttrMessageIntegrity       Attr = 0x0008 // 20 bytes
	AttrErrorCode              Attr = 0x0009
	AttrUnknownAttributes      Attr = 0x000A
	AttrChannelNumber          Attr = 0x000C // 2 bytes and 2 reserved
	AttrLifetime               Attr = 0x000D // seconds, 4 bytes
	AttrXORPeerAddress         Attr = 0x0012
	AttrData                   Attr = 0x0013
	AttrRealm                  Attr = 0x0014
	AttrNonce                  Attr = 0x0015
	AttrXORRelayedAddress      Attr = 0x0016
	AttrRequestedAddressFamily Attr = 0x0017 // family and 3 reserved
	AttrEvenPort               Attr = 0x0018 // 1 byte: R = 0x80
	AttrRequestedTransport     Attr = 0x0019 // protocol and 3 reserved
	AttrDontFragment           Attr = 0x001A // empty
	AttrAccessToken            Attr = 0x001B // RFC 7635 §6.2: the token itself, not base64
	AttrMessageIntegritySHA256 Attr = 0x001C // 32 bytes
	AttrPasswordAlgorithm      Attr = 0x001D // one algorithm of PASSWORD-ALGORITHMS
	AttrUserhash               Attr = 0x001E // 32 bytes
	AttrXORMappedAddress       Attr = 0x0020
	AttrReservationToken       Attr = 0x0022 // 8 bytes
	AttrPriority               Attr = 0x0024
	AttrUseCandidate           Attr = 0x0025
	AttrPadding                Attr = 0x0026 // RFC 5780 §7.6
	AttrResponsePort           Attr = 0x0027 // RFC 5780 §7.5: 2 bytes and 2 reserved
	AttrConnectionID           Attr = 0x002A // RFC 6062 §6.2.1: 4 bytes

	AttrAdditionalAddressFamily Attr = 0x8000 // family and 3 reserved
	AttrAddressErrorCode        Attr = 0x8001
	AttrPasswordAlgorithms      Attr = 0x8002
	AttrAlternateDomain         Attr = 0x8003 // of ALTERNATE-SERVER's certificate, at most 255 bytes
	AttrICMP                    Attr = 0x8004 // RFC 8656 §18.13: 8 bytes
	AttrSoftware                Attr = 0x8022
	AttrAlternateServer         Attr = 0x8023 // not XORed
	AttrTransmitCounter         Attr = 0x8025 // TRANSACTION_TRANSMIT_COUNTER, RFC 7982 §3.1: 2 reserved, Req, Resp
	AttrFingerprint             Attr = 0x8028
	AttrICEControlled           Attr = 0x8029
	AttrICEControlling          Attr = 0x802A
	AttrResponseOrigin          Attr = 0x802B // RFC 5780 §7.3: not XORed
	AttrOtherAddress            Attr = 0x802C // RFC 5780 §7.4: not XORed
	AttrThirdPartyAuthorization Attr = 0x802E // RFC 7635 §6.1: the server's name
	AttrMobilityTicket          Attr = 0x8030 // RFC 8016 §3.1.2
	// AttrAdditionalFamilyDraft is ADDITIONAL-ADDRESS-FAMILY as drafts of RFC 8656 had it, and clients of
	// their time still do, Debian's turnutils_uclient among them. IANA has given it to nobody.
	AttrAdditionalFamilyDraft Attr = 0x8032
)

// Required reports whether a receiver that does not know t must refuse the message (RFC 8489 §14).
func (t Attr) Required() bool { return t < 0x8000 }

// String returns the type in hexadecimal, as the registry prints it.
func (t Attr) String() string { return fmt.Sprintf("0x%04X", uint16(t)) }

const (
	// FamilyIPv4 and FamilyIPv6 are the address families on the wire (RFC 8489 §14.1).
	FamilyIPv4 = 0x01
	FamilyIPv6 = 0x02
	// ProtocolUDP and ProtocolTCP are the transports of REQUESTED-TRANSPORT (RFC 8656 §18.7, RFC
	// 6062 §6.1), and those of clients: TCP with TLS or not.
	ProtocolUDP = 17
	ProtocolTCP = 6
	// ChangeIP and ChangePort are the flags of CHANGE-REQUEST (RFC 5780 §7.2).
	ChangeIP   = 0x04
	ChangePort = 0x02
	// MaxUsername is the longest USERNAME to send, in bytes: RFC 8489 §14.3 says below 509.
	MaxUsername = 508
)

// ErrValue is returned when an attribute's value has not the form of its type.
var ErrValue = errors.New("stun: attribute value malformed")

// AppendAttr appends an attribute with value v, padded with zeros, to the message m.
func AppendAttr(m []byte, t Attr, v []byte) []byte {
	m = appendAttrHeader(m, t, len(v))
	m = append(m, v...)
	return pad(m, len(v))
}

// AppendText is [AppendAttr] for a string.
func AppendText(m []byte, t Attr, v string) []byte {
	m = appendAttrHeader(m, t, len(v))
	m = append(m, v...)
	return pad(m, len(v))
}

func appendAttrHeader(m []byte, t Attr, size int) []byte {
	m = binary.BigEndian.AppendUint16(m, uint16(t))
	return binary.BigEndian.AppendUint16(m, uint16(size))
}

// pad ends a value of size bytes with zeros: never with what the buffer held before, which was
// another client's packet once (CVE-2020-4067).
func pad(m []byte, size int) []byte {
	for ; size&3 != 0; size++ {
		m = append(m, 0)
	}
	setLength(m)
	return m
}

// AppendUint32 appends an attribute of four bytes, such as LIFETIME.
func AppendUint32(m []byte, t Attr, v uint32) []byte {
	m = appendAttrHeader(m, t, 4)
	m = binary.BigEndian.AppendUint32(m, v)
	setLength(m)
	return m
}

// ParseUint32 reads the value of LIFETIME.
func ParseUint32(v []byte) (uint32, error) {
	if len(v) != 4 {
		return 0, ErrValue
	}
	return binary.BigEndian.Uint32(v), nil
}

// AppendByte appends an attribute of one byte and three reserved ones: REQUESTED-TRANSPORT,
// REQUESTED-ADDRESS-FAMILY, ADDITIONAL-ADDRESS-FAMILY.
func AppendByte(m []byte, t Attr, v byte) []byte {
	m = appendAttrHeader(m, t, 4)
	m = append(m, v, 0, 0, 0)
	setLength(m)
	return m
}

// ParseByte reads what [AppendByte] writes. The reserved bytes are ignored (RFC 8656 §18.5, §18.7).
func ParseByte(v []byte) (byte, error) {
	if len(v) != 4 {
		return 0, ErrValue
	}
	return v[0], nil
}

// ICMP is an ICMP error as RFC 8656 §18.13 reports it.
type ICMP struct {
	Type, Code uint8
	Data       uint32 // the MTU of "too big", else 0
}

// AppendICMP appends the attribute ICMP. Type and code have 8 bits each, as in ICMP; the clause's figure
// draws 7 and 9, which no type fits.
func AppendICMP(m []byte, i ICMP) []byte {
	m = appendAttrHeader(m, AttrICMP, 8)
	m = append(m, 0, 0, i.Type, i.Code)
	m = binary.BigEndian.AppendUint32(m, i.Data)
	setLength(m)
	return m
}

// ParseICMP reads what [AppendICMP] writes.
func ParseICMP(v []byte) (ICMP, error) {
	if len(v) != 8 {
		return ICMP{}, ErrValue
	}
	return ICMP{v[2], v[3], binary.BigEndian.Uint32(v[4:])}, nil
}

// AppendChannelNumber appends CHANNEL-NUMBER (RFC 8656 §18.1).
func AppendChannelNumber(m []byte, n uint16) []byte {
	return AppendUint32(m, AttrChannelNumber, uint32(n)<<16)
}

// ParseChannelNumber reads CHANNEL-NUMBER; the two reserved bytes are ignored.
func ParseChannelNumber(v []byte) (uint16, error) {
	if len(v) != 4 {
		return 0, ErrValue
	}
	return binary.BigEndian.Uint16(v), nil
}

// AppendErrorCode appends ERROR-CODE (RFC 8489 §14.8). code is 300 to 699.
func AppendErrorCode(m []byte, code int, reason string) []byte {
	m = appendAttrHeader(m, AttrErrorCode, 4+len(reason))
	m = append(m, 0, 0, byte(code/100), byte(code%100))
	m = append(m, reason...)
	return pad(m, len(reason))
}

// ParseErrorCode reads ERROR-CODE.
func ParseErrorCode(v []byte) (code int, reason []byte, err error) {
	if len(v) < 4 || v[2]&7 < 3 || v[2]&7 > 6 || v[3] > 99 {
		return 0, nil, ErrValue
	}
	return int(v[2]&7)*100 + int(v[3]), v[4:], nil
}

// AppendUnknownAttributes appends UNKNOWN-ATTRIBUTES (RFC 8489 §14.9).
func AppendUnknownAttributes(m []byte, unknown []Attr) []byte {
	m = appendAttrHeader(m, AttrUnknownAttributes, 2*len(unknown))
	for _, t := range unknown {
		m = binary.BigEndian.AppendUint16(m, uint16(t))
	}
	return pad(m, 2*len(unknown))
}

// AppendAddressErrorCode appends ADDRESS-ERROR-CODE without a reason phrase (RFC 8656 §18.12).
func AppendAddressErrorCode(m []byte, family byte, code int) []byte {
	m = appendAttrHeader(m, AttrAddressErrorCode, 4)
	m = append(m, family, 0, byte(code/100), byte(code%100))
	setLength(m)
	return m
}
