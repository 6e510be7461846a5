package listen

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"testing"
	"time"
)

// clientHelloOf is a ClientHello of OpenSSL 3 for DTLS 1.2, cut to three cipher suites and one extension.
func clientHelloOf(t testing.TB) []byte {
	t.Helper()
	random := bytes.Repeat([]byte{0xab}, randomSize)
	body, err := hex.DecodeString("fefd" + hex.EncodeToString(random) + "00" + "00" + "0006c02bc02f00ff" + "0100" + "000400170000")
	if err != nil {
		t.Fatal(err)
	}
	b := append([]byte{recordHandshake, 0xfe, 0xff}, make([]byte, 10+handshakeHead)...)
	b[12] = byte(handshakeHead + len(body))
	b[recordHead] = clientHello
	putUint24(b[recordHead+1:], len(body))
	putUint24(b[recordHead+9:], len(body))
	return append(b, body...)
}

// withCookie is the ClientHello that follows b.
func withCookie(t testing.TB, b, cookie []byte) []byte {
	t.Helper()
	h, ok := parseHello(b)
	if !ok {
		t.Fatal("no ClientHello")
	}
	body := append(append(bytes.Clone(h.before), byte(len(cookie))), cookie...)
	body = append(body, h.after...)
	out := append(bytes.Clone(b[:recordHead+handshakeHead]), body...)
	renumber(out, h.record.number+1)
	out[12] = byte(handshakeHead + len(body))
	out[recordHead+5] = 1
	putUint24(out[recordHead+1:], len(body))
	putUint24(out[recordHead+9:], len(body))
	return out
}

func TestCookies(t *testing.T) {
	c := newCookies()
	client := netip.MustParseAddrPort("192.0.2.7:4711")
	first := clientHelloOf(t)
	h, ok := parseHello(first)
	if !ok || len(h.cookie) != 0 {
		t.Fatal("no ClientHello")
	}
	now := c.since.Add(100 * time.Second)
	cookie := c.make(now, 3, client, &h)
	if reply := h.reply(nil, cookie); !bytes.Equal(cookieOf(reply), cookie) || len(reply) > len(first) {
		t.Errorf("%x", reply)
	}
	second := withCookie(t, first, cookie)
	h, ok = parseHello(second)
	if !ok || h.seq != 1 || !bytes.Equal(h.cookie, cookie) || !bytes.Equal(h.first(), first) {
		t.Fatalf("%x", second)
	}
	flip := func(at int) *hello {
		b := bytes.Clone(second)
		b[at] ^= 1
		h, ok := parseHello(b)
		if !ok {
			t.Fatalf("byte %d", at)
		}
		return &h
	}
	body := recordHead + handshakeHead
	for name, good := range map[string]bool{
		"same":                c.ok(now, 3, client, &h),
		"last moment":         c.ok(now.Add(cookieLife), 3, client, &h),
		"too old":             !c.ok(now.Add(cookieLife+time.Second), 3, client, &h),
		"of tomorrow":         !c.ok(now.Add(-time.Second), 3, client, &h),
		"another listener":    !c.ok(now, 2, client, &h),
		"another port":        !c.ok(now, 3, netip.MustParseAddrPort("192.0.2.7:4712"), &h),
		"another address":     !c.ok(now, 3, netip.MustParseAddrPort("192.0.2.8:4711"), &h),
		"another server":      !newCookies().ok(now, 3, client, &h),
		"another version":     !c.ok(now, 3, client, flip(body+1)),
		"another random":      !c.ok(now, 3, client, flip(body+5)),
		"another cipher":      !c.ok(now, 3, client, flip(len(second)-6-2-1)),
		"another compression": !c.ok(now, 3, client, flip(len(second)-6-1)),
		"another time":        !c.ok(now, 3, client, flip(body+2+randomSize+2+3)),
		"another MAC":         !c.ok(now, 3, client, flip(body+2+randomSize+2+cookieSize-1)),
	} {
		if !good {
			t.Error(name)
		}
	}
}

func FuzzHello(f *testing.F) {
	first := clientHelloOf(f)
	f.Add(first)
	f.Add(withCookie(f, first, make([]byte, cookieSize)))
	f.Add(withCookie(f, first, []byte{1}))
	f.Add(first[:len(first)-1])
	f.Add([]byte{})
	c, client := newCookies(), netip.MustParseAddrPort("192.0.2.7:4711")
	f.Fuzz(func(t *testing.T, b []byte) {
		for rest, ok := b, true; ok; {
			var r record
			if r, rest, ok = nextRecord(rest); ok && len(r.raw) != recordHead+len(r.body) {
				t.Errorf("%+v", r)
			}
		}
		h, ok := parseHello(b)
		if !ok {
			return
		}
		if len(h.before)+1+len(h.cookie)+len(h.after) != len(h.record.body)-handshakeHead {
			t.Errorf("%+v", h)
		}
		if c.ok(c.since, 0, client, &h) {
			t.Error("a cookie by chance")
		}
		h.reply(nil, c.make(c.since, 0, client, &h))
		if h.record.number == 0 {
			return
		}
		again, ok := parseHello(h.first())
		if !ok || len(again.cookie) != 0 || again.seq != 0 || again.record.number != h.record.number-1 || !bytes.Equal(again.after, h.after) || !bytes.Equal(again.before, h.before) {
			t.Errorf("%+v of %+v", again, h)
		}
	})
}
