package turnclient

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"wicgate/internal/secret"
	"wicgate/internal/wire/stun"
)

// script is a server that answers the n-th packet with what f returns; nil = silence.
func script(t *testing.T, f func(n int, m stun.Message) []byte) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		<-done
	})
	go func() {
		defer close(done)
		buf := make([]byte, 2048)
		for n := 0; ; n++ {
			k, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			m, err := stun.Parse(buf[:k])
			if err != nil {
				t.Errorf("packet %d: %v", n, err)
				return
			}
			if b := f(n, m); b != nil {
				if _, err := c.WriteToUDPAddrPort(b, from); err != nil {
					t.Error(err)
				}
			}
		}
	}()
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

func answer(m stun.Message, cl stun.Class) []byte {
	return stun.AppendHeader(nil, stun.NewType(m.Method(), cl), m.TransactionID())
}

func challenge(m stun.Message, code int, nonce string) []byte {
	b := stun.AppendErrorCode(answer(m, stun.Error), code, "")
	b = stun.AppendText(b, stun.AttrRealm, "r")
	b = stun.AppendText(b, stun.AttrNonce, nonce)
	return stun.AppendText(b, stun.AttrThirdPartyAuthorization, "name")
}

func granted(m stun.Message) []byte {
	a := netip.MustParseAddrPort("192.0.2.1:49152")
	b := stun.AppendXORAddress(answer(m, stun.Success), stun.AttrXORRelayedAddress, a)
	b = stun.AppendUint32(b, stun.AttrLifetime, 600)
	return stun.AppendXORAddress(b, stun.AttrXORMappedAddress, a)
}

func dial(t *testing.T, server netip.AddrPort, cr Credential) *Client {
	t.Helper()
	c, err := Dial(Config{Server: server, Credential: cr, RTO: 30 * time.Millisecond, Tries: 4})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func TestAllocate(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	h := stun.NewHasher()
	key := stun.MD5.Key([]byte("u"), []byte("r"), []byte("p"))
	addr := script(t, func(n int, m stun.Message) []byte {
		nonce, _ := m.Get(stun.AttrNonce)
		switch n {
		case 0: // lost
			return nil
		case 1:
			if m.HasIntegrity() {
				t.Error("the first Allocate is signed")
			}
			return challenge(m, 401, "n1")
		case 2:
			if string(nonce) != "n1" || !h.CheckIntegrity(m, key[:]) {
				t.Errorf("nonce %q, or integrity wrong", nonce)
			}
			return challenge(m, 438, "n2")
		case 3: // an answer under another key must be dropped
			return h.AppendIntegrity(granted(m), []byte("other"))
		case 4: // and one without integrity
			return granted(m)
		case 5: // an error other than the four without integrity too
			return stun.AppendErrorCode(answer(m, stun.Error), 486, "")
		default:
			if string(nonce) != "n2" {
				t.Errorf("nonce %q", nonce)
			}
			return h.AppendIntegrity(granted(m), key[:])
		}
	})
	c := dial(t, addr, LongTerm("u", secret.New([]byte("p"))))
	a, err := c.Allocate(t.Context(), time.Hour)
	if err != nil || a.Lifetime != 600*time.Second || a.Relayed.Port() != 49152 || c.Dropped() != 3 || c.ThirdPartyAuthorization() != "name" {
		t.Errorf("%+v, %v, %d dropped, %q", a, err, c.Dropped(), c.ThirdPartyAuthorization())
	}
}

func TestErrors(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	h := stun.NewHasher()
	key := stun.MD5.Key([]byte("u"), []byte("r"), []byte("p"))
	addr := script(t, func(_ int, m stun.Message) []byte {
		if !m.HasIntegrity() {
			return challenge(m, 401, "n")
		}
		switch m.Method() {
		case stun.Allocate:
			return challenge(m, 401, "n") // again, although we had signed: the credential is wrong
		case stun.Refresh:
			b := stun.AppendErrorCode(answer(m, stun.Error), 420, "why")
			b = stun.AppendUnknownAttributes(b, []stun.Attr{stun.AttrDontFragment})
			return h.AppendIntegrity(b, key[:])
		case stun.CreatePermission:
			return challenge(m, 438, "n") // for ever
		}
		return nil
	})
	c := dial(t, addr, LongTerm("u", secret.New([]byte("p"))))
	if _, err := c.Allocate(t.Context(), 0); Code(err) != 401 {
		t.Errorf("Allocate: %v", err)
	}
	var e *Error
	if _, err := c.Refresh(t.Context(), 0); !errors.As(err, &e) || e.Code != 420 || e.Reason != "why" || len(e.Unknown) != 1 || !strings.Contains(err.Error(), "0x001A") {
		t.Errorf("Refresh: %v", err)
	}
	if err := c.CreatePermission(t.Context(), addr); err == nil || Code(err) != 0 {
		t.Errorf("CreatePermission: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.ChannelBind(ctx, addr); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ChannelBind: %v", err)
	}
	if _, err := c.Receive(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Receive: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Receive(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("Receive after Close: %v", err)
	}
	if _, err := c.Binding(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("Binding after Close: %v", err)
	}
}

// TestAlternate: RFC 8489 §10. A 300 is followed if its integrity is good, and leads nowhere twice.
func TestAlternate(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	key := stun.MD5.Key([]byte("u"), []byte("r"), []byte("p"))
	away := func(m stun.Message, to netip.AddrPort, key []byte) []byte {
		b := stun.AppendErrorCode(answer(m, stun.Error), 300, "")
		b = stun.AppendAddress(b, stun.AttrAlternateServer, to)
		if key == nil {
			return b
		}
		return stun.NewHasher().AppendIntegrity(b, key) // servers are goroutines
	}
	elsewhere := netip.MustParseAddrPort("127.0.0.1:1")
	second := script(t, func(_ int, m stun.Message) []byte {
		if nonce, _ := m.Get(stun.AttrNonce); string(nonce) != "n" { // the first one's is good here too
			t.Errorf("nonce %q", nonce)
		}
		return stun.NewHasher().AppendIntegrity(granted(m), key[:])
	})
	first := script(t, func(n int, m stun.Message) []byte {
		switch n {
		case 0:
			return challenge(m, 401, "n")
		case 1: // forged: no integrity, then a wrong one
			return away(m, elsewhere, nil)
		case 2:
			return away(m, elsewhere, []byte("other"))
		}
		return away(m, second, key[:])
	})
	c := dial(t, first, LongTerm("u", secret.New([]byte("p"))))
	if _, err := c.Allocate(t.Context(), 0); err != nil || c.Server() != second || c.Dropped() != 2 {
		t.Errorf("%v, at %v, %d dropped", err, c.Server(), c.Dropped())
	}

	for name, q := range map[string]struct {
		to   func(self netip.AddrPort) netip.AddrPort
		want string
	}{
		"to itself":         {func(self netip.AddrPort) netip.AddrPort { return self }, "has sent us away within 5m0s"},
		"to another family": {func(netip.AddrPort) netip.AddrPort { return netip.MustParseAddrPort("[::1]:3478") }, "none of its own address family"},
	} {
		self := make(chan netip.AddrPort, 1) // its own address, which it is told once
		server := script(t, func(n int, m stun.Message) []byte {
			if n == 0 {
				return challenge(m, 401, "n")
			}
			return away(m, q.to(<-self), key[:])
		})
		self <- server
		c := dial(t, server, LongTerm("u", secret.New([]byte("p"))))
		if _, err := c.Allocate(t.Context(), 0); !errors.Is(err, ErrAlternate) || !strings.Contains(err.Error(), q.want) {
			t.Errorf("%s: %v", name, err)
		}
	}

	// Who has not authenticated follows nobody.
	bare := script(t, func(_ int, m stun.Message) []byte { return away(m, elsewhere, nil) })
	if _, err := dial(t, bare, Credential{}).Allocate(t.Context(), 0); Code(err) != 300 {
		t.Errorf("unauthenticated: %v", err)
	}
}
