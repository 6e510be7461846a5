package listen

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
)

// This file is the PROXY protocol (haproxy's proxy-protocol.txt, versions 1 and 2), by which a load
// balancer in front says before the first byte of a connection whose it is.

const (
	proxyV1     = "PROXY "
	proxyV2     = "\r\n\r\n\x00\r\nQUIT\n"
	proxyV1Size = 107 // longest header of version 1, in bytes, CRLF included (§2.1)
	// proxyV2Head is the fixed part of version 2, in bytes (§2.2).
	proxyV2Head = len(proxyV2) + 4
	// proxyV2Rest bounds what version 2 has behind it: addresses of IPv6, 36 bytes, and 512 of TLVs.
	// No TLV has a meaning here.
	proxyV2Rest = 36 + 512
)

var (
	errNoProxyHeader  = errors.New("no PROXY protocol header")
	errBadProxyHeader = errors.New("malformed PROXY protocol header")
)

// parseProxy reads the header at the beginning of b. size is how long it is; where that is more than
// b has, b holds the beginning of a header that wants at least so much. from is the client's address;
// the zero AddrPort where the header names none, because the proxy speaks for itself or does not know.
func parseProxy(b []byte) (from netip.AddrPort, size int, err error) {
	switch {
	case beginsAlike(b, proxyV1):
		return parseProxyV1(b)
	case beginsAlike(b, proxyV2):
		return parseProxyV2(b)
	}
	return from, 0, errNoProxyHeader
}

// beginsAlike says whether b begins with sign, or may yet.
func beginsAlike(b []byte, sign string) bool {
	n := min(len(b), len(sign))
	return string(b[:n]) == sign[:n]
}

// parseProxyV1: "PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n".
func parseProxyV1(b []byte) (from netip.AddrPort, size int, err error) {
	line, _, ended := bytes.Cut(b[:min(len(b), proxyV1Size)], []byte("\r\n"))
	if !ended {
		if len(b) >= proxyV1Size {
			return from, 0, fmt.Errorf("%w: no end of line within %d bytes", errBadProxyHeader, proxyV1Size)
		}
		return from, max(len(b)+1, len(proxyV1)), nil
	}
	size = len(line) + 2
	f := bytes.Split(line[len(proxyV1):], []byte(" "))
	family := string(f[0])
	if family == "UNKNOWN" { // whatever follows is to be ignored
		return from, size, nil
	}
	if family != "TCP4" && family != "TCP6" || len(f) != 5 {
		return from, 0, fmt.Errorf("%w: %.20q", errBadProxyHeader, line)
	}
	var ends [2]netip.AddrPort
	for i := range ends {
		a, err := netip.ParseAddr(string(f[1+i]))
		if err != nil || a.Zone() != "" || a.Is4() != (family == "TCP4") {
			return from, 0, fmt.Errorf("%w: address %.45q of %s", errBadProxyHeader, f[1+i], family)
		}
		text := string(f[3+i])
		port, err := strconv.ParseUint(text, 10, 16)
		if err != nil || text != strconv.FormatUint(port, 10) { // no zeros in front, no sign
			return from, 0, fmt.Errorf("%w: port %.10q", errBadProxyHeader, f[3+i])
		}
		ends[i] = unmap(netip.AddrPortFrom(a, uint16(port)))
	}
	return ends[0], size, nil
}

func parseProxyV2(b []byte) (from netip.AddrPort, size int, err error) {
	if len(b) < proxyV2Head {
		return from, proxyV2Head, nil
	}
	command, family := b[12], b[13]
	rest := int(binary.BigEndian.Uint16(b[14:]))
	switch {
	case command != 0x20 && command != 0x21:
		return from, 0, fmt.Errorf("%w: version and command 0x%02x", errBadProxyHeader, command)
	case rest > proxyV2Rest:
		return from, 0, fmt.Errorf("%w: %d bytes behind the fixed part, at most %d are taken", errBadProxyHeader, rest, proxyV2Rest)
	}
	size = proxyV2Head + rest
	var addresses int
	switch {
	case command == 0x20: // LOCAL: the proxy speaks for itself, and its family is to be ignored
		return from, size, nil
	case family == 0x00: // UNSPEC
		return from, size, nil
	case family == 0x11: // IPv4, STREAM
		addresses = 4 + 4 + 2 + 2
	case family == 0x21: // IPv6, STREAM
		addresses = 16 + 16 + 2 + 2
	default:
		return from, 0, fmt.Errorf("%w: family and protocol 0x%02x", errBadProxyHeader, family)
	}
	if rest < addresses {
		return from, 0, fmt.Errorf("%w: %d bytes of addresses, want %d", errBadProxyHeader, rest, addresses)
	}
	if len(b) < size {
		return from, size, nil
	}
	one := addresses/2 - 2
	a, _ := netip.AddrFromSlice(b[proxyV2Head:][:one]) // 4 or 16 bytes
	return unmap(netip.AddrPortFrom(a, binary.BigEndian.Uint16(b[proxyV2Head+2*one:]))), size, nil
}

// peeked is a connection of which the first bytes were read. Behind a proxy its remote address is
// the client's.
type peeked struct {
	net.Conn
	first  []byte // read and not yet given to Read
	remote net.Addr
}

// more reads on, until first has at least n bytes; it may come to have up to room.
func (p *peeked) more(n, room int) error {
	if cap(p.first) < room {
		p.first = append(make([]byte, 0, room), p.first...)
	}
	for len(p.first) < n {
		got, err := p.Conn.Read(p.first[len(p.first):room])
		p.first = p.first[:len(p.first)+got]
		if err != nil && len(p.first) < n {
			return err
		}
	}
	return nil
}

// proxyHeader reads the header that a proxy must send and returns the client's address.
func (p *peeked) proxyHeader() (from netip.AddrPort, err error) {
	for want, room := 1, proxyV1Size; ; {
		if err := p.more(want, room); err != nil {
			return from, err
		}
		from, size, err := parseProxy(p.first)
		if err != nil {
			return from, err
		}
		if size <= len(p.first) {
			p.first = p.first[size:]
			if from.IsValid() {
				p.remote = net.TCPAddrFromAddrPort(from)
			}
			return from, nil
		}
		want, room = size, max(size, room)
	}
}

// posesAsProxy reads on as long as the connection may begin with a header, and says whether it does.
func (p *peeked) posesAsProxy() bool {
	for _, sign := range []string{proxyV1, proxyV2} {
		for beginsAlike(p.first, sign) {
			if len(p.first) >= len(sign) {
				return true
			}
			if p.more(len(p.first)+1, len(proxyV2)) != nil {
				return false
			}
		}
	}
	return false
}

// Read implements net.Conn.
func (p *peeked) Read(b []byte) (int, error) {
	if len(p.first) == 0 {
		p.first = nil // for the collector
		return p.Conn.Read(b)
	}
	n := copy(b, p.first)
	p.first = p.first[n:]
	return n, nil
}

// RemoteAddr implements net.Conn.
func (p *peeked) RemoteAddr() net.Addr {
	if p.remote != nil {
		return p.remote
	}
	return p.Conn.RemoteAddr()
}
