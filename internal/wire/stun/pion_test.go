package stun

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"

	pion "github.com/pion/stun/v4"
)

// FuzzAgainstPion reads the same bytes here and with pion/stun, an implementation that shares nothing
// with this one. What a message is taken for must be the same, but for the differences that are named
// here. A difference between two readers on one path is what smuggling lives by.
func FuzzAgainstPion(f *testing.F) {
	for _, v := range vectors {
		f.Add(unhex(f, v.hex))
	}
	h := NewHasher()
	key := []byte(shortTermPassword)
	base := AppendText(AppendHeader(nil, NewType(Allocate, Request), TransactionID{1, 2, 3}), AttrUsername, "o1.kid.x.AAAA")
	base = AppendXORAddress(base, AttrXORPeerAddress, netip.MustParseAddrPort("[2001:db8::1]:9"))
	one := h.AppendIntegrity(bytes.Clone(base), key)
	for _, m := range [][]byte{
		base, one, AppendFingerprint(bytes.Clone(base)), AppendFingerprint(bytes.Clone(one)), h.AppendIntegritySHA256(bytes.Clone(one), key),
		h.AppendIntegrity(h.AppendIntegritySHA256(bytes.Clone(base), key), key), h.AppendIntegrity(bytes.Clone(one), key),
		AppendUint32(bytes.Clone(one), AttrLifetime, 0), AppendUint32(AppendFingerprint(bytes.Clone(base)), AttrLifetime, 0),
		AppendAttr(bytes.Clone(base), AttrMessageIntegrity, []byte("short")), AppendAttr(bytes.Clone(base), AttrFingerprint, []byte("odd")),
		append(bytes.Clone(base), 0, 0, 0, 0), AppendErrorCode(bytes.Clone(base), 438, "Stale Nonce"), AppendAttr(bytes.Clone(base), 0x8020, []byte("old")),
		AppendChannelData(nil, 0x4000, []byte("x")),
	} {
		f.Add(m)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		theirs := &pion.Message{Raw: bytes.Clone(b)}
		theirErr := theirs.Decode()
		ours, err := Parse(b)
		if err != nil {
			// Messages that pion takes and we do not:
			for _, stricter := range []error{
				ErrNotSTUN,     // RFC 8489 §5: the first two bits MUST be zero. pion leaves that to its caller.
				ErrUnaligned,   // §5: the last two bits of the length are zero. pion takes any that its attributes fill.
				ErrLength,      // §6.3 of a datagram: pion takes bytes behind the message, we none (those before it both refuse).
				ErrIntegrity,   // §14.5, §14.6: other sizes than 20 and 32. pion says so when it verifies, and not when nobody does.
				ErrFingerprint, // §14.7: "MUST be the last attribute", of 4 bytes. pion takes it anywhere, of any size.
			} {
				if errors.Is(err, stricter) {
					return
				}
			}
			if theirErr == nil {
				t.Fatalf("refused with %v, and taken by pion: %x", err, b)
			}
			return
		}
		if theirErr != nil { // There is nothing that we take and pion does not.
			t.Fatalf("taken, and refused by pion with %v: %x", theirErr, b)
		}
		if uint16(ours.Method()) != uint16(theirs.Type.Method) || byte(ours.Class()) != byte(theirs.Type.Class) || ours.TransactionID() != theirs.TransactionID {
			t.Fatalf("%v %v %x, pion: %v %x", ours.Method(), ours.Class(), ours.TransactionID(), theirs.Type, theirs.TransactionID)
		}

		// The attributes: pion lists the integrity and the fingerprint among them, we do not; and between
		// MESSAGE-INTEGRITY and MESSAGE-INTEGRITY-SHA256 neither lists any.
		rest := theirs.Attributes
		for typ, v := range ours.All() {
			want := pion.AttrType(typ)
			if typ == 0x8020 {
				want = pion.AttrXORMappedAddress // pion takes the number that drafts of RFC 5389 had for it; we take none of drafts
			}
			if len(rest) == 0 || rest[0].Type != want || !bytes.Equal(rest[0].Value, v) {
				t.Fatalf("attribute %v of %x, pion has %v", typ, v, rest)
			}
			rest = rest[1:]
		}
		seen := map[pion.AttrType]bool{}
		for _, a := range rest {
			seen[a.Type] = true
			if a.Type != pion.AttrMessageIntegrity && a.Type != pion.AttrMessageIntegritySHA256 && a.Type != pion.AttrFingerprint {
				t.Fatalf("pion sees %v, which is behind the integrity for us", a)
			}
		}
		if ours.HasIntegrity() != seen[pion.AttrMessageIntegrity] || ours.HasIntegritySHA256() != seen[pion.AttrMessageIntegritySHA256] || ours.HasFingerprint() != seen[pion.AttrFingerprint] {
			t.Fatalf("integrity %v, of SHA-256 %v, fingerprint %v; pion: %v", ours.HasIntegrity(), ours.HasIntegritySHA256(), ours.HasFingerprint(), seen)
		}
		// What is right and what is not. pion has no MESSAGE-INTEGRITY-SHA256.
		if ours.HasFingerprint() && ours.FingerprintOK() != (pion.Fingerprint.Check(theirs) == nil) {
			t.Fatalf("fingerprint right: %v, pion: %v", ours.FingerprintOK(), pion.Fingerprint.Check(theirs))
		}
		if ours.HasIntegrity() && h.CheckIntegrity(ours, key) != (pion.NewShortTermIntegrity(shortTermPassword).Check(theirs) == nil) {
			t.Fatalf("integrity right: %v, pion: %v", h.CheckIntegrity(ours, key), !h.CheckIntegrity(ours, key))
		}
		comparePionValues(t, ours, theirs)

		// What one signs the other verifies.
		if ours.HasIntegrity() || ours.HasIntegritySHA256() || ours.HasFingerprint() || len(b) > 60000 {
			return
		}
		signed := AppendFingerprint(h.AppendIntegrity(bytes.Clone(b), key))
		there := &pion.Message{Raw: bytes.Clone(signed)}
		if err := there.Decode(); err != nil {
			t.Fatal(err)
		}
		if err := there.Check(pion.NewShortTermIntegrity(shortTermPassword), pion.Fingerprint); err != nil {
			t.Fatalf("pion says of %x: %v", signed, err)
		}
		if err := pion.NewShortTermIntegrity(shortTermPassword).AddTo(theirs); err != nil {
			t.Fatal(err)
		}
		if err := pion.Fingerprint.AddTo(theirs); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(theirs.Raw, signed) {
			t.Fatalf("pion signs %x, we %x", theirs.Raw, signed)
		}
	})
}

// comparePionValues reads the first attribute of each type as an address and as an error code.
func comparePionValues(t *testing.T, ours Message, theirs *pion.Message) {
	t.Helper()
	done := map[Attr]bool{0x8020: true, Attr(pion.AttrXORMappedAddress): true} // two types for pion, see above
	for typ, v := range ours.All() {
		if done[typ] {
			continue
		}
		done[typ] = true
		var a pion.XORMappedAddress
		theirErr := a.GetFromAs(theirs, pion.AttrType(typ))
		x, err := ParseXORAddress(v, ours.TransactionID())
		switch {
		case err == nil && theirErr == nil:
			ip, _ := netip.AddrFromSlice(a.IP)
			if x.Addr() != ip || int(x.Port()) != a.Port {
				t.Fatalf("XOR address %x is %v, with pion %v", v, x, a)
			}
		case err == nil && v[0] == 0: // pion wants zero in the byte that receivers MUST ignore (RFC 8489 §14.1)
			t.Fatalf("XOR address %x is %v, with pion %v", v, x, theirErr)
		case theirErr == nil && (len(v) == 8 && v[1] == FamilyIPv4 || len(v) == 20 && v[1] == FamilyIPv6):
			t.Fatalf("XOR address %x is %v with pion, and for us %v", v, a, err)
			// Shorter values pion fills with zeros; an address cut short is none for us.
		}
	}
	v, ok := ours.Get(AttrErrorCode)
	if !ok {
		return
	}
	var e pion.ErrorCodeAttribute
	theirErr := e.GetFrom(theirs)
	code, reason, err := ParseErrorCode(v)
	switch {
	case err == nil && (theirErr != nil || int(e.Code) != code || !bytes.Equal(e.Reason, reason)):
		t.Fatalf("error code %x is %d %q, with pion %v, %v", v, code, reason, e, theirErr)
	case err != nil && theirErr == nil && v[3] <= 99 && e.Code >= 300 && e.Code <= 699: // pion takes classes and numbers that §14.8 has not
		t.Fatalf("error code %x is %v with pion, and for us %v", v, e, err)
	}
}
