package core

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"wicgate/internal/wire/stun"
)

// square is what NAT discovery is done with in these tests: listeners 0 to 3.
func square() *NATDiscovery {
	n := &NATDiscovery{Listeners: [2][2]uint16{{0, 1}, {2, 3}}}
	for i, ip := range []string{"192.0.2.1", "192.0.2.2"} {
		for p, port := range []uint16{3478, 3479} {
			n.Addrs[i][p] = netip.AddrPortFrom(netip.MustParseAddr(ip), port)
		}
	}
	return n
}

// TestClassic: RFC 3489 §8.1, as bytes, and nothing for what could be turned against others.
func TestClassic(t *testing.T) {
	n := square()
	n.Classic = true
	w := newWorld(t, func(c *Config) { c.NATDiscovery = n })
	id := "000102030405060708090a0b0c0d0e0f"
	ask := func(at Tuple, packet string) string {
		b, err := hex.DecodeString(packet)
		if err != nil {
			t.Fatal(err)
		}
		w.core.FromClient(w.now, at, b, &w.out)
		a := w.find(ToClient)
		if a == nil {
			return ""
		}
		if a.Tuple.Client != at.Client {
			t.Errorf("answered to %v", a.Tuple.Client)
		}
		return fmt.Sprintf("%d %x", a.Tuple.Listener, a.Data)
	}
	who := alice
	who.Client = netip.MustParseAddrPort("198.51.100.7:40000")
	answer := func(from, source string) string {
		return from + " 01010024" + id + "00010008" + "00019c40c6336407" + "00040008" + source + "00050008" + "00010d97c0000202"
	}
	for packet, want := range map[string]string{
		"00010000" + id:                                           answer("0", "00010d96c0000201"),
		"00010008" + id + "0003000400000000":                      answer("0", "00010d96c0000201"),
		"00010008" + id + "0003000400000002":                      answer("1", "00010d97c0000201"),
		"00010008" + id + "0003000400000004":                      answer("2", "00010d96c0000202"),
		"00010010" + id + "800000040000000100030004" + "00000006": answer("3", "00010d97c0000202"),
		// RESPONSE-ADDRESS and USERNAME; a short CHANGE-REQUEST, one past the end, other lengths; a response; a shared secret
		"0001000c" + id + "0002000800010d96c0000209": "",
		"00010008" + id + "0006000461626364":         "",
		"00010004" + id + "00030000":                 "",
		"00010008" + id + "0003000800000000":         "",
		"00010006" + id + "000300020000":             "",
		"00010004" + id:                              "",
		"00010000" + id[2:]:                          "",
		"01010000" + id:                              "",
		"00020000" + id:                              "",
	} {
		if got := ask(who, packet); got != want {
			t.Errorf("%s:\n%s, want\n%s", packet, got, want)
		}
	}
	fifth, tcp := who, who
	fifth.Listener, tcp.Transport = 9, stun.ProtocolTCP
	for _, at := range []Tuple{fifth, tcp} {
		if got := ask(at, "00010000"+id); got != "" {
			t.Errorf("at %v: %s", at, got)
		}
	}
	// Budgeted as all answers to strangers are, and off unless it is asked for.
	answered := 0
	for range 2 * defaultBurst {
		if ask(who, "00010000"+id) != "" {
			answered++
		}
	}
	if answered > defaultBurst {
		t.Errorf("%d answers at once", answered)
	}
	n.Classic = false
	w.sleep(time.Hour)
	if got := ask(who, "00010000"+id); got != "" {
		t.Errorf("off: %s", got)
	}
}

// TestNATDiscovery: RFC 5780 §6.1, by each flag of CHANGE-REQUEST on each of the four listeners.
func TestNATDiscovery(t *testing.T) {
	n := square()
	w := newWorld(t, func(c *Config) { c.NATDiscovery = n })
	addr := func(r response, a stun.Attr) netip.AddrPort {
		t.Helper()
		got, err := stun.ParseAddress(r.get(a))
		if err != nil {
			t.Fatalf("%v: %v in %v", a, err, r)
		}
		return got
	}
	flags := func(f uint32) add {
		return func(m []byte) []byte { return stun.AppendUint32(m, stun.AttrChangeRequest, f) }
	}
	for i := range 2 {
		for p := range 2 {
			at := alice
			at.Listener = n.Listeners[i][p]
			for f, want := range map[uint32][2]int{0: {i, p}, stun.ChangeIP: {i ^ 1, p}, stun.ChangePort: {i, p ^ 1}, stun.ChangeIP | stun.ChangePort: {i ^ 1, p ^ 1}} {
				r := w.packet(at, w.build(stun.Binding, stun.Request, flags(f)))
				from := n.Addrs[want[0]][want[1]]
				if r.code != 0 || w.from.Listener != n.Listeners[want[0]][want[1]] || w.from.Client != alice.Client || addr(r, stun.AttrResponseOrigin) != from {
					t.Errorf("at %v, flags %x: %v from listener %d, RESPONSE-ORIGIN %v, want %v", n.Addrs[i][p], f, r, w.from.Listener, addr(r, stun.AttrResponseOrigin), from)
				}
				if addr(r, stun.AttrOtherAddress) != n.Addrs[i^1][p^1] || addr(r, stun.AttrMappedAddress) != alice.Client {
					t.Errorf("at %v: OTHER-ADDRESS %v, MAPPED-ADDRESS %v", n.Addrs[i][p], addr(r, stun.AttrOtherAddress), addr(r, stun.AttrMappedAddress))
				}
			}
		}
	}
	port := attr(stun.AttrResponsePort, []byte{0x1f, 0x90, 0, 0})
	pad := attr(stun.AttrPadding, make([]byte, 8))
	other, tcp := alice, alice
	other.Listener, tcp.Transport = 9, stun.ProtocolTCP
	for name, c := range map[string]struct {
		at   Tuple
		adds []add
		code int
	}{
		"RESPONSE-PORT is off":             {alice, []add{port}, 420},
		"PADDING is off":                   {alice, []add{pad}, 420},
		"CHANGE-REQUEST on a fifth socket": {other, []add{flags(2)}, 420},
		"CHANGE-REQUEST on a connection":   {tcp, []add{flags(2)}, 420},
		"a short CHANGE-REQUEST":           {alice, []add{attr(stun.AttrChangeRequest, []byte{1})}, 400},
	} {
		if r := w.packet(c.at, w.build(stun.Binding, stun.Request, c.adds...)); r.code != c.code {
			t.Errorf("%s: %v, want %d", name, r, c.code)
		}
	}
	if r := w.packet(other, w.build(stun.Binding, stun.Request)); r.code != 0 || r.get(stun.AttrOtherAddress) != nil || r.get(stun.AttrMappedAddress) != nil {
		t.Errorf("a fifth socket says %v", r)
	}

	n.Reflect = true
	if r := w.packet(alice, w.build(stun.Binding, stun.Request, port)); r.code != 0 || w.from.Client != netip.AddrPortFrom(alice.Client.Addr(), 8080) {
		t.Errorf("RESPONSE-PORT: %v to %v", r, w.from.Client)
	}
	if r := w.packet(alice, w.build(stun.Binding, stun.Request, pad, flags(stun.ChangePort))); r.code != 0 || len(r.get(stun.AttrPadding)) != paddingSize || w.from.Listener != 1 {
		t.Errorf("PADDING: %v, %d bytes", r, r.size)
	}
	for name, adds := range map[string][]add{"both": {port, pad}, "port 0": {attr(stun.AttrResponsePort, make([]byte, 4))}, "short": {attr(stun.AttrResponsePort, []byte{1})}} {
		if r := w.packet(alice, w.build(stun.Binding, stun.Request, adds...)); r.code != 400 {
			t.Errorf("%s: %v, want 400", name, r)
		}
	}
	c := w.issue(inUsername, "p1", w.now, 3600e9)
	w.want(w.ask(alice, c, stun.Allocate, transport(17), flags(2)), 420)
	w.invariants()
}
