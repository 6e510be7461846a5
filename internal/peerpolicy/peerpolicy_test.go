package peerpolicy

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
)

func r(prefix string, ports ...uint16) Range {
	out := Range{Prefix: netip.MustParsePrefix(prefix)}
	if len(ports) == 2 {
		out.MinPort, out.MaxPort = ports[0], ports[1]
	}
	return out
}

func TestGeneral(t *testing.T) {
	p := General()
	for _, c := range []struct {
		addr string
		want error
	}{
		{"8.8.8.8", nil}, {"1.1.1.1", nil}, {"100.63.255.255", nil}, {"100.128.0.0", nil}, {"172.15.255.255", nil}, {"172.32.0.0", nil},
		{"223.255.255.255", nil}, {"2606:4700::1", nil}, {"2a00:1450::1", nil}, {"2001:200::1", nil},
		{"0.0.0.0", ErrInvalid}, {"::", ErrInvalid}, // CVE-2020-26262
		{"0.1.2.3", ErrSpecial}, {"10.0.0.1", ErrSpecial}, {"100.64.0.1", ErrSpecial}, {"100.127.255.255", ErrSpecial},
		{"127.0.0.1", ErrSpecial}, {"127.255.255.254", ErrSpecial}, // CVE-2018-4058
		{"169.254.169.254", ErrSpecial}, {"172.16.0.1", ErrSpecial}, {"172.31.255.255", ErrSpecial}, {"192.0.0.8", ErrSpecial},
		{"192.0.2.1", ErrSpecial}, {"192.88.99.1", ErrSpecial}, {"192.168.255.255", ErrSpecial}, {"198.18.0.1", ErrSpecial},
		{"198.19.255.255", ErrSpecial}, {"198.51.100.7", ErrSpecial}, {"203.0.113.7", ErrSpecial}, {"224.0.0.1", ErrSpecial},
		{"239.255.255.255", ErrSpecial}, {"240.0.0.1", ErrSpecial}, {"255.255.255.255", ErrSpecial},
		{"::1", ErrSpecial}, {"fc00::1", ErrSpecial}, {"fdff::1", ErrSpecial}, {"fe80::1", ErrSpecial}, {"febf::1", ErrSpecial},
		{"fec0::1", ErrSpecial}, {"ff02::1", ErrSpecial}, {"2001:db8::1", ErrSpecial}, {"3fff::1", ErrSpecial}, {"100::1", ErrSpecial},
		{"2001:10::1", ErrSpecial}, {"4000::1", ErrSpecial}, {"5f00::1", ErrSpecial},
		{"::ffff:127.0.0.1", ErrTranslated}, {"::ffff:8.8.8.8", ErrTranslated}, {"::ffff:10.0.0.1", ErrTranslated}, // CVE-2026-27624
		{"::127.0.0.1", ErrTranslated}, {"::8.8.8.8", ErrTranslated}, {"::ffff:0:127.0.0.1", ErrTranslated},
		{"64:ff9b::7f00:1", ErrTranslated}, {"64:ff9b::808:808", ErrTranslated}, {"64:ff9b:1::1", ErrTranslated},
		{"2002:7f00:1::", ErrTranslated}, {"2002:808:808::1", ErrTranslated}, {"2001:0:4136:e378::1", ErrTranslated},
		{"2606:4700::5efe:7f00:1", ErrTranslated}, {"2606:4700::200:5efe:a00:1", ErrTranslated},
		{"fe80::1%eth0", ErrInvalid},
	} {
		a := netip.MustParseAddr(c.addr)
		if err := p.Allow(netip.AddrPortFrom(a, 40000)); !errors.Is(err, c.want) {
			t.Errorf("Allow(%s): %v, want %v", c.addr, err, c.want)
		}
		if err := p.AllowAddr(a); !errors.Is(err, c.want) {
			t.Errorf("AllowAddr(%s): %v, want %v", c.addr, err, c.want)
		}
	}
	if err := p.Allow(netip.MustParseAddrPort("8.8.8.8:0")); !errors.Is(err, ErrInvalid) {
		t.Errorf("port 0: %v", err)
	}
	if err := p.AllowAddr(netip.Addr{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("no address: %v", err)
	}
}

// TestEveryFormOfAPrivateAddress writes each special IPv4 address in each IPv6 form.
func TestEveryFormOfAPrivateAddress(t *testing.T) {
	open := General(r("10.9.0.0/16")) // something is open, and must not open its neighbours
	for _, e := range special4 {
		for _, a := range []netip.Addr{e.prefix.Addr(), last(e.prefix)} {
			b := a.As4()
			hex := fmt.Sprintf("%02x%02x:%02x%02x", b[0], b[1], b[2], b[3])
			for _, form := range []string{a.String(), "::ffff:" + hex, "::" + hex, "64:ff9b::" + hex, "2002:" + hex + "::1", "2606::5efe:" + hex, "2606::200:5efe:" + hex, "::ffff:0:" + hex} {
				x, err := netip.ParseAddr(form)
				if err != nil {
					t.Fatal(err)
				}
				if open.AllowAddr(x) == nil || open.Allow(netip.AddrPortFrom(x, 80)) == nil {
					t.Errorf("%s reaches %s", form, e.err)
				}
			}
		}
	}
}

func last(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}

func TestIMS(t *testing.T) {
	p := IMS(r("192.0.2.10/32", 40000, 40999), r("2001:db8:1::/64", 40000, 40999), r("::ffff:198.51.100.0/120"), Range{})
	for _, c := range []struct {
		peer string
		want error
	}{
		{"192.0.2.10:40000", nil}, {"192.0.2.10:40999", nil}, {"192.0.2.10:39999", ErrNotListed}, {"192.0.2.10:41000", ErrNotListed},
		{"192.0.2.11:40000", ErrNotListed}, {"8.8.8.8:40000", ErrNotListed}, {"127.0.0.1:40000", ErrNotListed},
		{"[2001:db8:1::7]:40500", nil}, {"[2001:db8:2::7]:40500", ErrNotListed}, {"[::ffff:192.0.2.10]:40000", ErrTranslated},
		{"198.51.100.200:1", nil}, {"198.51.100.200:65535", nil},
	} {
		if err := p.Allow(netip.MustParseAddrPort(c.peer)); !errors.Is(err, c.want) {
			t.Errorf("Allow(%s): %v, want %v", c.peer, err, c.want)
		}
	}
	if err := p.AllowAddr(netip.MustParseAddr("192.0.2.10")); err != nil {
		t.Errorf("a permission has no port: %v", err)
	}
	if err := p.AllowAddr(netip.MustParseAddr("192.0.2.11")); !errors.Is(err, ErrNotListed) {
		t.Errorf("neighbour: %v", err)
	}
}

func TestZeroValueRefuses(t *testing.T) {
	var p Policy
	for _, s := range []string{"8.8.8.8:1", "127.0.0.1:1", "[2606:4700::1]:1"} {
		if p.Allow(netip.MustParseAddrPort(s)) == nil {
			t.Errorf("the zero policy allows %s", s)
		}
	}
}

func TestOwnAddresses(t *testing.T) {
	relay := netip.MustParseAddr("8.8.4.4")
	base := General(r("127.0.0.0/8"), r("8.8.4.4/32", 7, 7))
	p := base.WithListeners(netip.MustParseAddrPort("127.0.0.1:3478"), netip.MustParseAddrPort("[::ffff:8.8.4.4]:3478")).WithRelays(relay)
	for _, c := range []struct {
		peer string
		want error
	}{
		{"127.0.0.1:3478", ErrListener}, {"127.0.0.1:3479", nil}, {"8.8.4.4:3478", ErrListener}, {"8.8.4.4:49152", ErrOwnRelay}, {"8.8.4.4:22", ErrOwnRelay}, {"8.8.4.4:7", nil}, {"8.8.8.8:3478", nil},
		{"[::ffff:127.0.0.1]:3478", ErrListener},
	} {
		if err := p.Allow(netip.MustParseAddrPort(c.peer)); !errors.Is(err, c.want) {
			t.Errorf("Allow(%s): %v, want %v", c.peer, err, c.want)
		}
	}
	if err := base.Allow(netip.MustParseAddrPort("127.0.0.1:3478")); err != nil {
		t.Errorf("WithListeners changed its receiver: %v", err)
	}
	// An IMS policy that lists the relay's own address and the listener's: the listener stays shut.
	ims := IMS(r("127.0.0.1/32")).WithListeners(netip.MustParseAddrPort("127.0.0.1:3478")).WithRelays(netip.MustParseAddr("127.0.0.1"))
	if err := ims.Allow(netip.MustParseAddrPort("127.0.0.1:3478")); !errors.Is(err, ErrListener) {
		t.Errorf("own listener in a listed range: %v", err)
	}
	if err := ims.Allow(netip.MustParseAddrPort("127.0.0.1:40000")); err != nil {
		t.Errorf("listed range on the relay's address: %v", err)
	}
}

// TestTranslatorsOpenedByName: NAT64 as written opens the public addresses behind it, no others.
func TestTranslatorsOpenedByName(t *testing.T) {
	p := General(r("64:ff9b::/96"), r("2001::/32"))
	for _, c := range []struct {
		addr string
		want error
	}{
		{"64:ff9b::808:808", nil}, {"64:ff9b::7f00:1", ErrSpecial}, {"64:ff9b::a00:1", ErrSpecial}, {"2001:0:4136:e378::1", ErrTranslated}, {"2002:808:808::", ErrTranslated},
	} {
		if err := p.AllowAddr(netip.MustParseAddr(c.addr)); !errors.Is(err, c.want) {
			t.Errorf("AllowAddr(%s): %v, want %v", c.addr, err, c.want)
		}
	}
	// Nor this server's own listeners.
	p = p.WithListeners(netip.MustParseAddrPort("8.8.8.8:3478"))
	if err := p.Allow(netip.MustParseAddrPort("[64:ff9b::808:808]:3478")); !errors.Is(err, ErrListener) {
		t.Errorf("own listener behind NAT64: %v", err)
	}
	if err := p.Allow(netip.MustParseAddrPort("[64:ff9b::808:808]:3479")); err != nil {
		t.Errorf("beside the listener behind NAT64: %v", err)
	}
}

// TestNAT64Prefixes: an operator's own translator is one as 64:ff9b::/96 is, in each length of RFC 6052 §2.2,
// whose examples these are.
func TestNAT64Prefixes(t *testing.T) {
	forms := map[string]string{ // of 192.0.2.33
		"2001:db8::/32": "2001:db8:c000:221::", "2001:db8:100::/40": "2001:db8:1c0:2:21::", "2001:db8:122::/48": "2001:db8:122:c000:2:2100::",
		"2001:db8:122:300::/56": "2001:db8:122:3c0:0:221::", "2001:db8:122:344::/64": "2001:db8:122:344:c0:2:2100::", "2001:db8:122:344::/96": "2001:db8:122:344::192.0.2.33",
		"2606:4700:64::/96": "2606:4700:64::192.0.2.33", "64:ff9b:1::/48": "64:ff9b:1:c000:2:2100::",
	}
	for prefix, form := range forms {
		n, addr := netip.MustParsePrefix(prefix), netip.MustParseAddr(form)
		if !NAT64(n) {
			t.Errorf("%s is said to be none", prefix)
		}
		if inner, ok := General().WithNAT64(n).embedded(addr); !ok || inner != netip.MustParseAddr("192.0.2.33") {
			t.Errorf("%s carries %v, %v", form, inner, ok)
		}
		// Closed, unless it is opened; then what is inside decides.
		if err := General().WithNAT64(n).AllowAddr(addr); !errors.Is(err, ErrTranslated) {
			t.Errorf("%s: %v", form, err)
		}
		opened := General(r(prefix)).WithNAT64(n)
		if err := opened.AllowAddr(addr); !errors.Is(err, ErrSpecial) {
			t.Errorf("%s opened: %v", form, err)
		}
		if err := General(r(prefix), r("192.0.2.33/32")).WithNAT64(n).AllowAddr(addr); err != nil {
			t.Errorf("%s opened with what is inside: %v", form, err)
		}
		if err := General(r(prefix), r("192.0.2.33/32")).WithNAT64(n).WithClosed(netip.MustParsePrefix("192.0.2.0/24")).AllowAddr(addr); !errors.Is(err, ErrClosed) {
			t.Errorf("%s, closed inside: %v", form, err)
		}
	}
	base := General(r("10.0.0.0/8"))
	if err := base.WithNAT64(netip.MustParsePrefix("2606:4700:64::/96")).AllowAddr(netip.MustParseAddr("2606:4700:65::1")); err != nil {
		t.Errorf("beside a translator: %v", err)
	}
	if base.AllowAddr(netip.MustParseAddr("2606:4700:64::a00:1")) != nil {
		t.Error("WithNAT64 changed its receiver")
	}
	for _, none := range []string{"2001:db8::/33", "2001:db8::/128", "2001:db8::/31", "64:ff9b::/95", "192.0.2.0/32", "::ffff:0:0/96"} {
		if NAT64(netip.MustParsePrefix(none)) {
			t.Errorf("%s is said to be a translator's", none)
		}
	}
	if NAT64(netip.Prefix{}) {
		t.Error("no prefix is said to be a translator's")
	}
}

// TestClosedWins: a closed prefix is refused whatever is open, in every form of its addresses.
func TestClosedWins(t *testing.T) {
	closed := []netip.Prefix{netip.MustParsePrefix("8.8.0.0/16"), netip.MustParsePrefix("10.1.2.3/8"), netip.MustParsePrefix("::ffff:9.9.9.9/128"), netip.MustParsePrefix("2606:4700::/32"), {}}
	open := []Range{r("10.0.0.0/8"), r("11.0.0.0/8"), r("64:ff9b::/96"), r("8.8.8.8/32", 53, 53)}
	for name, base := range map[string]Policy{"general": General(open...), "ims": IMS(open...)} {
		p := base.WithClosed(closed[0]).WithClosed(closed[1:]...)
		for addr, want := range map[string]error{
			"8.8.8.8": ErrClosed, "8.8.255.255": ErrClosed, "10.0.0.1": ErrClosed, "10.255.0.1": ErrClosed, "9.9.9.9": ErrClosed, // the last written IPv4-mapped above
			"11.0.0.1":     nil,
			"2606:4700::1": ErrClosed, "64:ff9b::808:808": ErrClosed, "64:ff9b::a00:1": ErrClosed, "64:ff9b::b00:1": nil, "::ffff:8.8.8.8": ErrTranslated,
		} {
			a := netip.MustParseAddr(addr)
			if err := p.AllowAddr(a); !errors.Is(err, want) {
				t.Errorf("%s: AllowAddr(%s): %v, want %v", name, addr, err, want)
			}
			if err := p.Allow(netip.AddrPortFrom(a, 53)); !errors.Is(err, want) {
				t.Errorf("%s: Allow(%s): %v, want %v", name, addr, err, want)
			}
		}
		if err := base.AllowAddr(netip.MustParseAddr("10.0.0.1")); err != nil {
			t.Errorf("%s: WithClosed changed its receiver: %v", name, err)
		}
	}
}

// TestSpecialPrefixes: a prefix is special in all only if each of its addresses is refused, in part if one is.
func TestSpecialPrefixes(t *testing.T) {
	const all, some, none = 2, 1, 0
	for prefix, want := range map[string]int{
		"10.0.0.0/8": all, "10.1.0.0/16": all, "10.0.0.0/7": some, "0.0.0.0/0": some, "224.0.0.0/3": all, "192.0.2.0/24": all, "192.0.2.0/23": some,
		"192.0.0.0/16": some, "8.8.8.8/32": none, "8.0.0.0/7": none, "203.0.113.9/32": all, "100.64.0.0/10": all, "255.255.255.255/32": all,
		"::/0": some, "::/3": all, "4000::/2": all, "fc00::/7": all, "::ffff:0:0/96": all, "::ffff:8.8.8.8/128": all, "64:ff9b::/96": all, "2002::/16": all, "2001::/32": all,
		"2001::/23": all, "2001::/16": some, "2001:db8::/33": all, "2606:4700::/32": none, "3fff::/20": all, "2000::/3": some, "2000::/4": some, "2800::/5": none,
	} {
		p := netip.MustParsePrefix(prefix)
		got := none
		if whole, part := Special(p); whole {
			got = all
		} else if part {
			got = some
		}
		if got != want {
			t.Errorf("Special(%s) = %v, want %v", prefix, got, want)
		}
		if first := General().AllowAddr(p.Addr()); want == all && first == nil || want == none && first != nil {
			t.Errorf("%s is said to be %d, and %v gives %v", prefix, want, p.Addr(), first)
		}
	}
}

func TestDecidingDoesNotAllocate(t *testing.T) {
	p := General(r("10.0.0.0/8")).WithListeners(netip.MustParseAddrPort("127.0.0.1:3478")).WithRelays(netip.MustParseAddr("8.8.4.4"))
	peers := []netip.AddrPort{netip.MustParseAddrPort("8.8.8.8:1"), netip.MustParseAddrPort("127.0.0.1:1"), netip.MustParseAddrPort("[64:ff9b::7f00:1]:1"), netip.MustParseAddrPort("8.8.4.4:1")}
	if n := testing.AllocsPerRun(100, func() {
		for _, a := range peers {
			_ = p.Allow(a) // the verdicts are tested above
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzAllow: whatever passes the general policy is plain and public, and writing it IPv4-mapped
// does not pass.
func FuzzAllow(f *testing.F) {
	for _, s := range []string{"127.0.0.1", "8.8.8.8", "::1", "::ffff:127.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1"} {
		b, err := netip.MustParseAddr(s).MarshalBinary()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, uint16(80))
	}
	p := General()
	f.Fuzz(func(t *testing.T, b []byte, port uint16) {
		a, ok := netip.AddrFromSlice(b)
		if !ok || p.Allow(netip.AddrPortFrom(a, port)) != nil {
			return
		}
		if port == 0 || a.IsLoopback() || a.IsPrivate() || a.IsMulticast() || a.IsLinkLocalUnicast() || a.IsUnspecified() || !a.IsGlobalUnicast() || a.Is4In6() {
			t.Fatalf("%v allowed", a)
		}
		if p.AllowAddr(a) != nil {
			t.Fatalf("%v allowed with a port only", a)
		}
		if a.Is4() && p.AllowAddr(netip.AddrFrom16(a.As16())) == nil {
			t.Fatalf("%v allowed IPv4-mapped", a)
		}
	})
}
