package stun

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"errors"
	"net/netip"
	"testing"
)

func TestTypes(t *testing.T) {
	for _, c := range []struct {
		m    Method
		c    Class
		want Type
	}{
		{Binding, Request, 0x0001}, {Binding, Indication, 0x0011}, {Binding, Success, 0x0101}, {Binding, Error, 0x0111},
		{Allocate, Request, 0x0003}, {Allocate, Error, 0x0113}, {Refresh, Request, 0x0004}, {Send, Indication, 0x0016},
		{Data, Indication, 0x0017}, {CreatePermission, Request, 0x0008}, {ChannelBind, Success, 0x0109}, {0xfff, Error, 0x3fff}, {0x080, Request, 0x0200},
	} {
		got := NewType(c.m, c.c)
		if got != c.want || got.Method() != c.m || got.Class() != c.c {
			t.Errorf("%v class %d: type %04x, want %04x; back: %v %d", c.m, c.c, got, c.want, got.Method(), got.Class())
		}
	}
	for _, m := range []Method{Binding, Allocate, Refresh, Send, Data, CreatePermission, ChannelBind, 0x00a} {
		if m.String() == "" {
			t.Errorf("method %d has no name", m)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	head := func(n int, attrs ...byte) []byte {
		return append([]byte{0, 1, byte(n >> 8), byte(n), 0x21, 0x12, 0xa4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, attrs...)
	}
	for _, c := range []struct {
		name string
		b    []byte
		want error
	}{
		{"empty", nil, ErrShort},
		{"19 bytes", head(0)[:19], ErrShort},
		{"channel data", append([]byte{0x40}, head(0)[1:]...), ErrNotSTUN},
		{"no cookie (RFC 3489)", append([]byte{0, 1, 0, 0, 0, 0, 0, 0}, head(0)[8:]...), ErrCookie},
		{"length not a multiple of 4", head(3, 0, 6, 0), ErrUnaligned},
		{"length beyond the packet", head(8, 0, 6, 0, 0), ErrLength},
		{"length short of the packet", head(0, 0, 6, 0, 0), ErrLength},
		{"attribute beyond the end", head(8, 0, 6, 0, 5, 1, 2, 3, 4), ErrAttribute},
		{"attribute of 65535 bytes", head(4, 0, 6, 0xff, 0xff), ErrAttribute},
		{"integrity of 16 bytes", head(20, append([]byte{0, 8, 0, 16}, make([]byte, 16)...)...), ErrIntegrity},
		{"SHA-256 truncated to 16 bytes", head(20, append([]byte{0, 0x1c, 0, 16}, make([]byte, 16)...)...), ErrIntegrity},
		{"fingerprint of 8 bytes", head(12, append([]byte{0x80, 0x28, 0, 8}, make([]byte, 8)...)...), ErrFingerprint},
		{"fingerprint not last", head(12, 0x80, 0x28, 0, 4, 0, 0, 0, 0, 0, 6, 0, 0), ErrFingerprint},
	} {
		if _, err := Parse(c.b); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	if _, err := Parse(head(0)); err != nil {
		t.Errorf("bare header: %v", err)
	}
}

// TestBehindIntegrity: what stands behind MESSAGE-INTEGRITY is not there (RFC 8489 §14.5; coturn
// ab762f33 and pion obeyed it).
func TestBehindIntegrity(t *testing.T) {
	h := NewHasher()
	key := []byte("key")
	build := func() []byte {
		return AppendText(AppendHeader(nil, NewType(Refresh, Request), TransactionID{1}), AttrUsername, "alice")
	}
	m := h.AppendIntegrity(build(), key)
	m = AppendUint32(m, AttrLifetime, 30)
	m = AppendText(m, AttrUsername, "mallory")
	m = h.AppendIntegritySHA256(m, []byte("other"))
	m = AppendText(m, AttrRealm, "late")
	m = AppendAttr(m, AttrMessageIntegrity, make([]byte, 3)) // a second one, even a broken one
	m = AppendFingerprint(m)
	p, err := Parse(m)
	if err != nil {
		t.Fatal(err)
	}
	if !h.CheckIntegrity(p, key) || !h.CheckIntegritySHA256(p, []byte("other")) || !p.FingerprintOK() {
		t.Error("integrity, SHA-256 and fingerprint behind it must be found")
	}
	if _, ok := p.Get(AttrLifetime); ok {
		t.Error("LIFETIME behind MESSAGE-INTEGRITY is visible")
	}
	if _, ok := p.Get(AttrRealm); ok {
		t.Error("REALM behind MESSAGE-INTEGRITY-SHA256 is visible")
	}
	n := 0
	for typ, v := range p.All() {
		if n++; typ != AttrUsername || string(v) != "alice" {
			t.Errorf("attribute %v %q is visible", typ, v)
		}
	}
	if n != 1 {
		t.Errorf("%d attributes visible, want 1", n)
	}

	// Only MESSAGE-INTEGRITY-SHA256 counts when MESSAGE-INTEGRITY comes behind it.
	m = h.AppendIntegritySHA256(build(), key)
	m = h.AppendIntegrity(m, key)
	p, err = Parse(m)
	if err != nil || p.HasIntegrity() || h.CheckIntegrity(p, key) || !h.CheckIntegritySHA256(p, key) {
		t.Errorf("MESSAGE-INTEGRITY behind SHA-256: %v, %v", p.HasIntegrity(), err)
	}
}

func TestFirstOfTwoCounts(t *testing.T) {
	m := AppendHeader(nil, NewType(Allocate, Request), TransactionID{})
	m = AppendText(m, AttrUsername, "first")
	m = AppendText(m, AttrUsername, "second")
	p, err := Parse(m)
	if err != nil {
		t.Fatal(err)
	}
	if v, _ := p.Get(AttrUsername); string(v) != "first" {
		t.Errorf("USERNAME %q", v)
	}
}

// TestHMAC compares with crypto/hmac for keys around the block size.
func TestHMAC(t *testing.T) {
	h := NewHasher()
	for _, n := range []int{0, 1, 16, 20, 32, 63, 64, 65, 200} {
		key := bytes.Repeat([]byte{0xa5}, n)
		base := AppendText(AppendHeader(nil, NewType(Refresh, Request), TransactionID{7}), AttrNonce, "n")
		m := h.AppendIntegrity(bytes.Clone(base), key)
		ref := hmac.New(sha1.New, key)
		setLength(m)
		ref.Write(m[:len(m)-24])
		if !bytes.Equal(ref.Sum(nil), m[len(m)-20:]) {
			t.Errorf("SHA-1, key of %d bytes: wrong", n)
		}
		m = h.AppendIntegritySHA256(bytes.Clone(base), key)
		ref = hmac.New(sha256.New, key)
		ref.Write(m[:len(m)-36])
		if !bytes.Equal(ref.Sum(nil), m[len(m)-32:]) {
			t.Errorf("SHA-256, key of %d bytes: wrong", n)
		}
	}
	// RFC 7635 and coturn: 16 random bytes and 4 zero bytes are the same key either way.
	m := h.AppendIntegrity(AppendHeader(nil, 1, TransactionID{}), append(bytes.Repeat([]byte{9}, 16), 0, 0, 0, 0))
	p, _ := Parse(m)
	if !h.CheckIntegrity(p, bytes.Repeat([]byte{9}, 16)) {
		t.Error("HMAC does not pad keys with zeros")
	}
}

func TestAddresses(t *testing.T) {
	id := TransactionID{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}
	for _, s := range []string{"0.0.0.0:0", "192.0.2.1:65535", "[::]:1", "[2001:db8::5]:3478", "[ff02::1]:9"} {
		a := netip.MustParseAddrPort(s)
		m := AppendXORAddress(AppendHeader(nil, 1, id), AttrXORPeerAddress, a)
		p, err := Parse(m)
		if err != nil {
			t.Fatal(err)
		}
		v, _ := p.Get(AttrXORPeerAddress)
		if got, err := ParseXORAddress(v, id); err != nil || got != a {
			t.Errorf("%s: %v, %v", s, got, err)
		}
		if _, err := ParseXORAddress(v[:len(v)-1], id); !errors.Is(err, ErrValue) {
			t.Errorf("%s cut: %v", s, err)
		}
		v[1] ^= 3
		if _, err := ParseXORAddress(v, id); !errors.Is(err, ErrValue) {
			t.Errorf("%s with the other family: %v", s, err)
		}
	}
	// Written IPv4-mapped, it is sent as IPv4; received as family IPv6, it stays visible as mapped.
	m := AppendXORAddress(AppendHeader(nil, 1, id), AttrXORPeerAddress, netip.MustParseAddrPort("[::ffff:127.0.0.1]:5"))
	if p, _ := Parse(m); len(p.Raw()) != HeaderSize+12 {
		t.Error("IPv4-mapped address written as IPv6")
	}
	v := []byte{0, 2, 0, 0, 0x21, 0x12, 0xa4, 0x42, 1, 2, 3, 4, 5, 6, 0xff ^ 7, 0xff ^ 8, 127 ^ 9, 10, 11, 1 ^ 12}
	if got, err := ParseXORAddress(v, id); err != nil || !got.Addr().Is4In6() {
		t.Errorf("::ffff:127.0.0.1 read as %v, %v", got, err)
	}
}

func TestSmallAttributes(t *testing.T) {
	m := AppendHeader(nil, NewType(Allocate, Error), TransactionID{})
	m = AppendErrorCode(m, 438, "")
	m = AppendUnknownAttributes(m, []Attr{AttrDontFragment, 0x7f01, 0x0003})
	m = AppendUint32(m, AttrLifetime, 3600)
	m = AppendByte(m, AttrRequestedTransport, ProtocolUDP)
	m = AppendChannelNumber(m, 0x4001)
	m = AppendAddressErrorCode(m, FamilyIPv6, 440)
	m = AppendICMP(m, ICMP{Type: 3, Code: 4, Data: 1280})
	p, err := Parse(m)
	if err != nil {
		t.Fatal(err)
	}
	get := func(a Attr) []byte { v, _ := p.Get(a); return v }
	if i, err := ParseICMP(get(AttrICMP)); err != nil || i != (ICMP{3, 4, 1280}) || string(get(AttrICMP)) != "\x00\x00\x03\x04\x00\x00\x05\x00" {
		t.Errorf("ICMP %x, %v", get(AttrICMP), err)
	}
	if _, err := ParseICMP(get(AttrLifetime)); err == nil {
		t.Error("ICMP of 4 bytes")
	}
	if code, reason, err := ParseErrorCode(get(AttrErrorCode)); code != 438 || len(reason) != 0 || err != nil {
		t.Errorf("ERROR-CODE %d %q %v", code, reason, err)
	}
	if !bytes.Equal(get(AttrUnknownAttributes), []byte{0, 0x1a, 0x7f, 1, 0, 3}) {
		t.Errorf("UNKNOWN-ATTRIBUTES %x", get(AttrUnknownAttributes))
	}
	if v, err := ParseUint32(get(AttrLifetime)); v != 3600 || err != nil {
		t.Errorf("LIFETIME %d %v", v, err)
	}
	if v, err := ParseByte(get(AttrRequestedTransport)); v != 17 || err != nil {
		t.Errorf("REQUESTED-TRANSPORT %d %v", v, err)
	}
	if v, err := ParseChannelNumber(get(AttrChannelNumber)); v != 0x4001 || err != nil {
		t.Errorf("CHANNEL-NUMBER %x %v", v, err)
	}
	if v := get(AttrAddressErrorCode); !bytes.Equal(v, []byte{2, 0, 4, 40}) {
		t.Errorf("ADDRESS-ERROR-CODE %x", v)
	}
	for _, v := range [][]byte{nil, {0, 0, 2, 0}, {0, 0, 7, 0}, {0, 0, 4, 100}} {
		if _, _, err := ParseErrorCode(v); err == nil {
			t.Errorf("ERROR-CODE %x accepted", v)
		}
	}
	if _, err := ParseUint32([]byte{1}); err == nil {
		t.Error("LIFETIME of one byte accepted")
	}
	if _, err := ParseByte([]byte{17}); err == nil {
		t.Error("REQUESTED-TRANSPORT of one byte accepted")
	}
	if _, err := ParseChannelNumber([]byte{0x40, 0}); err == nil {
		t.Error("CHANNEL-NUMBER of two bytes accepted")
	}
	if !Attr(0x7fff).Required() || Attr(0x8000).Required() {
		t.Error("comprehension-required ends at 0x7fff")
	}
}

// TestPaddingIsZero: what the buffer held before does not leave with the message (CVE-2020-4067).
func TestPaddingIsZero(t *testing.T) {
	dirty := bytes.Repeat([]byte{0xee}, 256)
	for n := range 9 {
		m := AppendHeader(dirty[:0], 1, TransactionID{})
		m = AppendText(m, AttrSoftware, "12345678"[:n])
		m = AppendErrorCode(m, 400, "12345678"[:n])
		if bytes.IndexByte(m, 0xee) >= 0 {
			t.Errorf("value of %d bytes: old bytes in %x", n, m)
		}
	}
}

func TestChannelData(t *testing.T) {
	b := AppendChannelData(nil, 0x4abc, []byte("hello"))
	for _, tail := range []string{"", "\x00\x00\x00", "beyond"} {
		ch, data, err := ParseChannelData(append(bytes.Clone(b), tail...))
		if err != nil || ch != 0x4abc || string(data) != "hello" {
			t.Errorf("with tail %q: %x %q %v", tail, ch, data, err)
		}
	}
	for n := range len(b) {
		if _, _, err := ParseChannelData(b[:n]); err == nil {
			t.Errorf("cut to %d bytes: accepted", n)
		}
	}
	for _, ch := range []uint16{0x0001, 0x3fff, 0x8000, 0xffff} {
		if _, _, err := ParseChannelData(AppendChannelData(nil, ch, nil)); err == nil {
			t.Errorf("channel %04x accepted", ch)
		}
	}
	if _, data, err := ParseChannelData(AppendChannelData(nil, MaxChannel, nil)); err != nil || len(data) != 0 {
		t.Errorf("empty ChannelData: %v", err)
	}
	head := make([]byte, 4)
	PutChannelHeader(head, 0x4abc, 5)
	if !bytes.Equal(head, b[:4]) {
		t.Errorf("header %x", head)
	}
}

func TestDataIndication(t *testing.T) {
	id := TransactionID{1, 2, 3}
	for _, peer := range []string{"192.0.2.1:5000", "[2001:db8::1]:5000", "[::ffff:192.0.2.1]:5000"} {
		for n := range 9 {
			buf := bytes.Repeat([]byte{0xee}, DataHeadroom+n+3)
			copy(buf[DataHeadroom:], "payload!"[:n])
			m, err := Parse(PutDataIndication(buf, n, id, netip.MustParseAddrPort(peer)))
			if err != nil {
				t.Fatalf("%s, %d bytes: %v", peer, n, err)
			}
			a, _ := m.Get(AttrXORPeerAddress)
			from, err := ParseXORAddress(a, id)
			data, _ := m.Get(AttrData)
			want := netip.MustParseAddrPort(peer)
			if m.Type() != NewType(Data, Indication) || err != nil || from != netip.AddrPortFrom(want.Addr().Unmap(), want.Port()) || string(data) != "payload!"[:n] {
				t.Errorf("%s, %d bytes: %v %v %q", peer, n, from, err, data)
			}
			if bytes.IndexByte(m.Raw(), 0xee) >= 0 {
				t.Errorf("%s, %d bytes: old bytes in %x", peer, n, m.Raw())
			}
		}
	}
}

func TestClassify(t *testing.T) {
	want := func(c int) Protocol {
		switch {
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
	for c := range 256 {
		if got := Classify([]byte{byte(c)}); got != want(c) {
			t.Errorf("first byte %d: %d", c, got)
		}
	}
	if Classify(nil) != ProtocolUnknown {
		t.Error("nothing is something")
	}
}

func TestNothingAllocates(t *testing.T) {
	b := unhex(t, vectors[0].hex)
	h := NewHasher()
	key := []byte(shortTermPassword)
	buf := make([]byte, 0, 512)
	peer := netip.MustParseAddrPort("192.0.2.1:5000")
	payload := make([]byte, 160)
	room := make([]byte, DataHeadroom+163)
	for name, f := range map[string]func(){
		"parse": func() {
			m, err := Parse(b)
			if err != nil {
				t.Fatal(err)
			}
			for a := range m.All() {
				if a == 0 {
					t.Fatal()
				}
			}
			m.Get(AttrUsername)
			m.FingerprintOK()
		},
		"verify": func() {
			m, _ := Parse(b)
			if !h.CheckIntegrity(m, key) {
				t.Fatal()
			}
		},
		"build": func() {
			m := AppendHeader(buf, NewType(Allocate, Success), TransactionID{1})
			m = AppendXORAddress(m, AttrXORRelayedAddress, peer)
			m = AppendUint32(m, AttrLifetime, 600)
			m = AppendErrorCode(m, 401, "")
			m = h.AppendIntegrity(m, key)
			m = h.AppendIntegritySHA256(m, key)
			AppendFingerprint(m)
		},
		"channel data": func() {
			c := AppendChannelData(buf, 0x4000, payload)
			if _, _, err := ParseChannelData(c); err != nil {
				t.Fatal(err)
			}
		},
		"data indication": func() {
			PutDataIndication(room, 160, TransactionID{1}, peer)
		},
	} {
		if n := testing.AllocsPerRun(200, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// FuzzParseClassic: no bytes crash the reader, what it takes is a Binding request without an address to answer to,
// and its transaction ID comes back as it was.
func FuzzParseClassic(f *testing.F) {
	f.Add(append([]byte{0, 1, 0, 0}, make([]byte, 16)...))
	f.Add(append(append([]byte{0, 1, 0, 8}, make([]byte, 16)...), 0, 3, 0, 4, 0, 0, 0, 6))
	f.Add(append(append([]byte{0, 1, 0, 12}, make([]byte, 16)...), 0, 2, 0, 8, 0, 1, 1, 1, 1, 1, 1, 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		id, _, err := ParseClassic(b)
		if err != nil {
			return
		}
		if !bytes.HasPrefix(b, []byte{0, 1}) || !bytes.Equal(AppendClassicHeader(nil, id)[4:], b[4:20]) {
			t.Fatalf("%x", b)
		}
		for rest := b[20:]; len(rest) > 0; rest = rest[4+int(rest[3])+int(rest[2])<<8:] {
			if a := Attr(rest[0])<<8 | Attr(rest[1]); a < 0x8000 && a != AttrChangeRequest {
				t.Fatalf("attribute %v of %x", a, b)
			}
		}
	})
}

// FuzzParse: no bytes crash the reader, and a message written again from what was read is read
// the same.
func FuzzParse(f *testing.F) {
	for _, v := range vectors {
		f.Add(unhex(f, v.hex))
	}
	f.Add(AppendChannelData(nil, 0x4000, []byte("x")))
	f.Add([]byte{0, 1, 0, 8, 0x21, 0x12, 0xa4, 0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80, 0x28, 0, 4, 0, 0, 0, 0})
	h := NewHasher()
	f.Fuzz(func(t *testing.T, b []byte) {
		if ch, data, err := ParseChannelData(b); err == nil {
			again := AppendChannelData(nil, ch, data)
			if !bytes.HasPrefix(b, again) {
				t.Fatalf("ChannelData %x written as %x", b, again)
			}
		}
		m, err := Parse(b)
		if err != nil {
			return
		}
		again := AppendHeader(nil, m.Type(), m.TransactionID())
		n := 0
		for typ, v := range m.All() {
			n++
			if typ == AttrMessageIntegrity || typ == AttrMessageIntegritySHA256 || typ == AttrFingerprint {
				t.Fatalf("attribute %v among the visible", typ)
			}
			again = AppendAttr(again, typ, v)
			if a, err := ParseXORAddress(v, m.TransactionID()); err == nil && !a.Addr().Is4In6() {
				x := AppendXORAddress(AppendHeader(nil, 1, m.TransactionID()), typ, a)
				p, err := Parse(x)
				if err != nil {
					t.Fatal(err)
				}
				w, _ := p.Get(typ)
				if !bytes.Equal(w[1:], v[1:]) {
					t.Fatalf("address %x written as %x", v, w)
				}
			}
			if code, reason, err := ParseErrorCode(v); err == nil {
				x := AppendErrorCode(AppendHeader(nil, 1, TransactionID{}), code, string(reason))
				if c, r, err := ParseErrorCode(x[HeaderSize+4 : HeaderSize+4+len(v)]); err != nil || c != code || !bytes.Equal(r, reason) {
					t.Fatalf("error code %x written as %x", v, x)
				}
			}
		}
		again = AppendFingerprint(h.AppendIntegrity(again, []byte("k")))
		p, err := Parse(again)
		if err != nil || !p.FingerprintOK() || !h.CheckIntegrity(p, []byte("k")) || p.Type() != m.Type() || p.TransactionID() != m.TransactionID() {
			t.Fatalf("%x written as %x: %v", b, again, err)
		}
		for typ := range p.All() {
			n--
			v1, _ := m.Get(typ)
			v2, _ := p.Get(typ)
			if !bytes.Equal(v1, v2) {
				t.Fatalf("attribute %v: %x written as %x", typ, v1, v2)
			}
		}
		if n != 0 {
			t.Fatal("attributes lost or gained")
		}
		h.CheckIntegrity(m, nil)
		h.CheckIntegritySHA256(m, nil)
		m.FingerprintOK()
	})
}

func BenchmarkCheckIntegrity(b *testing.B) {
	m, err := Parse(unhex(b, vectors[3].hex))
	if err != nil {
		b.Fatal(err)
	}
	h, key := NewHasher(), vectors[3].key()
	b.ReportAllocs()
	for b.Loop() {
		h.CheckIntegrity(m, key)
	}
}

func BenchmarkParse(b *testing.B) {
	msg := unhex(b, vectors[0].hex)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(msg); err != nil {
			b.Fatal(err)
		}
	}
}
