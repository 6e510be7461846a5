package stun

import (
	"encoding/binary"
	"net/netip"
)

// AppendXORAddress appends an address attribute in its XORed form (RFC 8489 §14.2). An IPv4-mapped
// IPv6 address is written as the IPv4 address it stands for.
func AppendXORAddress(m []byte, t Attr, a netip.AddrPort) []byte {
	ip := a.Addr().Unmap()
	mask := m[4:20] // magic cookie and transaction id
	if ip.Is4() {
		v := ip.As4()
		m = appendAttrHeader(m, t, 8)
		m = append(m, 0, FamilyIPv4)
		m = binary.BigEndian.AppendUint16(m, a.Port()^MagicCookie>>16)
		for i, b := range v {
			m = append(m, b^mask[i])
		}
		setLength(m)
		return m
	}
	v := ip.As16()
	m = appendAttrHeader(m, t, 20)
	m = append(m, 0, FamilyIPv6)
	m = binary.BigEndian.AppendUint16(m, a.Port()^MagicCookie>>16)
	for i, b := range v {
		m = append(m, b^mask[i])
	}
	setLength(m)
	return m
}

// AppendAddress appends an address attribute as it is: MAPPED-ADDRESS, ALTERNATE-SERVER (RFC 8489
// §14.1, §14.15), RESPONSE-ORIGIN, OTHER-ADDRESS (RFC 5780 §7). Mapped addresses as AppendXORAddress.
func AppendAddress(m []byte, t Attr, a netip.AddrPort) []byte {
	ip := a.Addr().Unmap()
	family, size := byte(FamilyIPv4), 8
	if ip.Is6() {
		family, size = FamilyIPv6, 20
	}
	m = appendAttrHeader(m, t, size)
	m = append(m, 0, family)
	m = binary.BigEndian.AppendUint16(m, a.Port())
	if v := ip.As16(); ip.Is6() {
		m = append(m, v[:]...)
	} else {
		m = append(m, v[12:]...)
	}
	setLength(m)
	return m
}

// ParseAddress reads what [AppendAddress] writes; as ParseXORAddress it unmaps nothing.
func ParseAddress(v []byte) (netip.AddrPort, error) {
	if len(v) < 4 {
		return netip.AddrPort{}, ErrValue
	}
	port := binary.BigEndian.Uint16(v[2:])
	switch {
	case v[1] == FamilyIPv4 && len(v) == 8:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(v[4:])), port), nil
	case v[1] == FamilyIPv6 && len(v) == 20:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(v[4:])), port), nil
	}
	return netip.AddrPort{}, ErrValue
}

// ParseXORAddress reads an address attribute in its XORed form. The address comes as it was
// written: family IPv6 with ::ffff:a.b.c.d stays that, for the peer policy to see and refuse.
func ParseXORAddress(v []byte, id TransactionID) (netip.AddrPort, error) {
	if len(v) < 4 {
		return netip.AddrPort{}, ErrValue
	}
	port := binary.BigEndian.Uint16(v[2:]) ^ MagicCookie>>16
	switch {
	case v[1] == FamilyIPv4 && len(v) == 8:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{v[4] ^ 0x21, v[5] ^ 0x12, v[6] ^ 0xA4, v[7] ^ 0x42}), port), nil
	case v[1] == FamilyIPv6 && len(v) == 20:
		ip := [16]byte{v[4] ^ 0x21, v[5] ^ 0x12, v[6] ^ 0xA4, v[7] ^ 0x42}
		for i := range id {
			ip[4+i] = v[8+i] ^ id[i]
		}
		return netip.AddrPortFrom(netip.AddrFrom16(ip), port), nil
	}
	return netip.AddrPort{}, ErrValue
}
