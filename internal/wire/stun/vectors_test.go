package stun

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/netip"
	"testing"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const shortTermPassword = "VOkJxbRl1RmTxUk/WvJxBt" // RFC 5769 §2

// longTermUser is the user name of RFC 5769 §2.4 in katakana.
const longTermUser = "\u30DE\u30C8\u30EA\u30C3\u30AF\u30B9"

// vectors are whole messages as the RFCs print them.
var vectors = []struct {
	name, hex   string
	typ         Type
	key         func() []byte
	sha256      bool
	fingerprint bool
	texts       map[Attr]string
	mapped      string
}{
	{
		name: "RFC5769-2.1-request", hex: "000100582112a442b7e7a701bc34d686fa87dfae802200105354554e207465737420636c69656e74002400046e0001ff80290008932ff9b151263b36000600096576746a3a68367659202020000800149aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a280280004e57a3bcf",
		typ: NewType(Binding, Request), key: func() []byte { return []byte(shortTermPassword) }, fingerprint: true,
		texts: map[Attr]string{AttrSoftware: "STUN test client", AttrUsername: "evtj:h6vY", AttrPriority: "\x6e\x00\x01\xff", AttrICEControlled: "\x93\x2f\xf9\xb1\x51\x26\x3b\x36"},
	},
	{
		name: "RFC5769-2.2-IPv4-response", hex: "0101003c2112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000080001a147e112a643000800142b91f599fd9e90c38c7489f92af9ba53f06be7d780280004c07d4c96",
		typ: NewType(Binding, Success), key: func() []byte { return []byte(shortTermPassword) }, fingerprint: true,
		texts: map[Attr]string{AttrSoftware: "test vector"}, mapped: "192.0.2.1:32853",
	},
	{
		name: "RFC5769-2.3-IPv6-response", hex: "010100482112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d900080014a382954e4be67bf11784c97c8292c275bfe3ed4180280004c8fb0b4c",
		typ: NewType(Binding, Success), key: func() []byte { return []byte(shortTermPassword) }, fingerprint: true,
		texts: map[Attr]string{AttrSoftware: "test vector"}, mapped: "[2001:db8:1234:5678:11:2233:4455:6677]:32853",
	},
	{
		name: "RFC5769-2.4-long-term", hex: "000100602112a44278ad3433c6ad72c029da412e00060012e3839ee38388e383aae38383e382afe382b900000015001c662f2f3439396b39353464364f4c33346f4c394653547679363473410014000b6578616d706c652e6f72670000080014f67024656dd64a3e02b8e0712e85c9a28ca89666",
		typ: NewType(Binding, Request), key: func() []byte {
			k := MD5.Key([]byte(longTermUser), []byte("example.org"), []byte("TheMatrIX"))
			return k[:]
		},
		texts: map[Attr]string{AttrUsername: longTermUser, AttrRealm: "example.org", AttrNonce: "f//499k954d6OL34oL9FSTvy64sA"},
	},
	{
		// As printed, the length field counts the header too: see TestRFC8489B1. Here it is right, and the
		// MAC is that of another implementation (Python).
		name: "RFC8489-B.1-corrected", hex: "000100882112a44278ad3433c6ad72c029da412e001e00204a3cf38fef6992bda952c6780417da0f24819415569e60b205c46e41407f1704001500296f624d61744a6f733241414143662f2f3439396b39353464364f4c33346f4c394653547679363473410000000014000b6578616d706c652e6f726700001c0020234112fbd4e27f983eb4032836f998216f5b23f8d927753fbc4f882bfbdf0dec",
		typ: NewType(Binding, Request), sha256: true, key: func() []byte {
			k := sha256.Sum256([]byte(longTermUser + ":example.org:TheMatrIX"))
			return k[:]
		},
		texts: map[Attr]string{AttrRealm: "example.org", AttrNonce: "obMatJos2AAACf//499k954d6OL34oL9FSTvy64sA"},
	},
}

func TestVectors(t *testing.T) {
	for _, v := range vectors {
		t.Run(v.name, func(t *testing.T) {
			m, err := Parse(unhex(t, v.hex))
			if err != nil {
				t.Fatal(err)
			}
			if m.Type() != v.typ {
				t.Errorf("type %04x, want %04x", m.Type(), v.typ)
			}
			for a, want := range v.texts {
				if got, ok := m.Get(a); !ok || string(got) != want {
					t.Errorf("attribute %v is %q, want %q", a, got, want)
				}
			}
			if v.mapped != "" {
				a, _ := m.Get(AttrXORMappedAddress)
				got, err := ParseXORAddress(a, m.TransactionID())
				if err != nil || got.String() != v.mapped {
					t.Errorf("XOR-MAPPED-ADDRESS %v, %v, want %s", got, err, v.mapped)
				}
			}
			h := NewHasher()
			if !check(h, m, v.key(), v.sha256) {
				t.Error("message integrity refused")
			}
			if check(h, m, append(v.key(), 1), v.sha256) || check(h, m, nil, v.sha256) {
				t.Error("message integrity accepted under another key")
			}
			if m.HasFingerprint() != v.fingerprint || m.FingerprintOK() != v.fingerprint {
				t.Errorf("fingerprint: has %v, right %v, want %v", m.HasFingerprint(), m.FingerprintOK(), v.fingerprint)
			}
		})
	}
}

func check(h *Hasher, m Message, key []byte, sha bool) bool {
	if sha {
		return h.CheckIntegritySHA256(m, key)
	}
	return h.CheckIntegrity(m, key)
}

// TestRFC8489B1 pins an error in the RFC: in the message of appendix B.1 as printed, the length field
// is 156, the size of the whole message, where 136 follow the header; the MAC was made over that
// wrong length. A strict reader refuses it, and the arithmetic is right otherwise.
func TestRFC8489B1(t *testing.T) {
	b := unhex(t, "0001009c2112a44278ad3433c6ad72c029da412e001e00204a3cf38fef6992bda952c6780417da0f24819415569e60b205c46e41407f1704001500296f624d61744a6f733241414143662f2f3439396b39353464364f4c33346f4c394653547679363473410000000014000b6578616d706c652e6f726700001c0020e4686c8f0edeb59013e07090010a93efccbccc544c0a45d9f830aa6d6f735a01")
	if _, err := Parse(b); !errors.Is(err, ErrLength) {
		t.Errorf("as printed: %v, want %v", err, ErrLength)
	}
	key := sha256.Sum256([]byte(longTermUser + ":example.org:TheMatrIX"))
	d := hmac.New(sha256.New, key[:])
	d.Write(b[:len(b)-36])
	if !bytes.Equal(d.Sum(nil), b[len(b)-32:]) {
		t.Error("the MAC of RFC 8489 B.1 is not HMAC-SHA256 over the bytes as printed")
	}
}

// TestKeyLongTerm holds the value of RFC 8489 §9.2.2, MD5("user:realm:pass").
func TestKeyLongTerm(t *testing.T) {
	if k := MD5.Key([]byte("user"), []byte("realm"), []byte("pass")); hex.EncodeToString(k[:]) != "8493fbc53ba582fb4c044c456bdc40eb" {
		t.Errorf("key %x", k)
	}
}

// TestVectorsCut cuts each message at every byte: nothing that is cut is a message.
func TestVectorsCut(t *testing.T) {
	for _, v := range vectors {
		b := unhex(t, v.hex)
		for n := range len(b) {
			if m, err := Parse(b[:n]); err == nil {
				t.Errorf("%s: %d of %d bytes parse as %v", v.name, n, len(b), m.Type())
			}
			// Cut, and the header tells so: then an attribute is cut.
			if n >= HeaderSize && n&3 == 0 {
				c := bytes.Clone(b[:n])
				setLength(c)
				if m, err := Parse(c); err == nil && check(NewHasher(), m, v.key(), v.sha256) && m.FingerprintOK() {
					t.Errorf("%s: the first %d bytes pass as whole", v.name, n)
				}
			}
		}
		if _, err := Parse(append(bytes.Clone(b), 0, 0, 0, 0)); !errors.Is(err, ErrLength) {
			t.Errorf("%s: four bytes more: %v", v.name, err)
		}
	}
}

// TestVectorsFlipped flips each bit of each byte: integrity or fingerprint must see it.
func TestVectorsFlipped(t *testing.T) {
	h := NewHasher()
	for _, v := range vectors {
		b := unhex(t, v.hex)
		whole, err := Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		covered := len(b)
		if whole.fp != 0 {
			covered = whole.fp
		}
		for i := range b {
			for bit := range 8 {
				c := bytes.Clone(b)
				c[i] ^= 1 << bit
				m, err := Parse(c)
				if err != nil {
					continue
				}
				if i < covered && check(h, m, v.key(), v.sha256) {
					t.Errorf("%s: byte %d bit %d: integrity does not see it", v.name, i, bit)
				}
				if v.fingerprint && m.FingerprintOK() {
					t.Errorf("%s: byte %d bit %d: fingerprint does not see it", v.name, i, bit)
				}
			}
		}
	}
}

// TestVectorsRebuilt builds the three messages of RFC 5769 that pad with spaces and the one that
// pads with zeros from their parts; the last comes out bit for bit.
func TestVectorsRebuilt(t *testing.T) {
	h := NewHasher()
	id := TransactionID(unhex(t, "78ad3433c6ad72c029da412e"))
	m := AppendHeader(nil, NewType(Binding, Request), id)
	m = AppendText(m, AttrUsername, longTermUser)
	m = AppendText(m, AttrNonce, "f//499k954d6OL34oL9FSTvy64sA")
	m = AppendText(m, AttrRealm, "example.org")
	k := MD5.Key([]byte(longTermUser), []byte("example.org"), []byte("TheMatrIX"))
	m = h.AppendIntegrity(m, k[:])
	if want := unhex(t, vectors[3].hex); !bytes.Equal(m, want) {
		t.Errorf("RFC 5769 2.4:\n%x\nwant\n%x", m, want)
	}
	id = TransactionID(unhex(t, "b7e7a701bc34d686fa87dfae"))
	for _, v := range vectors[1:3] {
		m = AppendHeader(nil, NewType(Binding, Success), id)
		m = AppendText(m, AttrSoftware, "test vector")
		m[len(m)-1] = ' '
		m = AppendXORAddress(m, AttrXORMappedAddress, netip.MustParseAddrPort(v.mapped))
		m = AppendFingerprint(h.AppendIntegrity(m, v.key()))
		if want := unhex(t, v.hex); !bytes.Equal(m, want) {
			t.Errorf("%s:\n%x\nwant\n%x", v.name, m, want)
		}
	}
}
