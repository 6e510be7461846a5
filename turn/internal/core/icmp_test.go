package core

import (
	"net/netip"
	"testing"
	"time"

	"wicgate/internal/wire/stun"
)

// TestICMP: the clause's types reach the client as a Data indication, also beside a channel, if the inner
// destination has a permission (RFC 8656 §11.5).
func TestICMP(t *testing.T) {
	w := newWorld(t, families(bothFamilies))
	c := w.issue(inUsername, "p1", w.now, time.Hour)
	w.want(w.ask(alice, c, stun.Allocate, transport(17), also(2)), 0)
	w.want(w.ask(alice, c, stun.ChannelBind, channelNumber(0x4000), peer(gateway)), 0)
	w.want(w.ask(alice, c, stun.CreatePermission, peer(gateway6)), 0)
	id := w.core.tuples[alice].id
	noPort := netip.AddrPortFrom(gateway.Addr(), 0)
	stranger6 := ap("[2001:db8:1::11]:40000")
	for _, x := range []struct {
		peer  netip.AddrPort
		in    stun.ICMP
		data  uint32
		cause Cause
	}{
		{gateway, stun.ICMP{Type: 3, Code: 3}, 0, CauseNone},
		{gateway, stun.ICMP{Type: 3, Code: 1, Data: 77}, 0, CauseNone}, // only an MTU is passed on
		{gateway, stun.ICMP{Type: 3, Code: 4, Data: 1280}, 1280, CauseNone},
		{noPort, stun.ICMP{Type: 3, Code: 4, Data: 1280}, 1280, CauseNone},
		{gateway, stun.ICMP{Type: 11, Code: 0, Data: 77}, 0, CauseNone},
		{netip.AddrPortFrom(gateway.Addr(), 9), stun.ICMP{Type: 3, Code: 3}, 0, CauseNone}, // ports do not count
		{gateway, stun.ICMP{Type: 0}, 0, CauseICMP},
		{gateway, stun.ICMP{Type: 1}, 0, CauseICMP},
		{gateway, stun.ICMP{Type: 2}, 0, CauseICMP},
		{gateway, stun.ICMP{Type: 4}, 0, CauseICMP},
		{gateway, stun.ICMP{Type: 12}, 0, CauseICMP},
		{stranger, stun.ICMP{Type: 3, Code: 3}, 0, CauseNoPermission},
		{gateway6, stun.ICMP{Type: 1, Code: 4}, 0, CauseNone},
		{gateway6, stun.ICMP{Type: 2, Code: 0, Data: 1280}, 1280, CauseNone},
		{gateway6, stun.ICMP{Type: 3, Code: 0}, 0, CauseNone},
		{gateway6, stun.ICMP{Type: 4}, 0, CauseICMP},
		{gateway6, stun.ICMP{Type: 11}, 0, CauseICMP},
		{stranger6, stun.ICMP{Type: 1}, 0, CauseNoPermission},
	} {
		w.core.FromNetwork(w.now, id, x.peer, x.in, &w.out)
		if w.out.Cause != x.cause || (len(w.out.Actions) == 1) != (x.cause == CauseNone) {
			t.Errorf("%v %+v: %v, %d actions", x.peer, x.in, w.out.Cause, len(w.out.Actions))
			continue
		}
		if x.cause != CauseNone {
			continue
		}
		a := w.out.Actions[0]
		m, err := stun.Parse(a.Data)
		if err != nil || m.Type() != stun.NewType(stun.Data, stun.Indication) || a.Kind != ToClient || a.Tuple != alice || a.ID != id {
			t.Fatalf("%+v, %v", a, err)
		}
		v, _ := m.Get(stun.AttrXORPeerAddress)
		if p, err := stun.ParseXORAddress(v, m.TransactionID()); err != nil || p != x.peer {
			t.Errorf("XOR-PEER-ADDRESS %v, want %v", p, x.peer)
		}
		v, _ = m.Get(stun.AttrICMP)
		if got, err := stun.ParseICMP(v); err != nil || got != (stun.ICMP{Type: x.in.Type, Code: x.in.Code, Data: x.data}) {
			t.Errorf("%v %+v: %x", x.peer, x.in, v)
		}
		if _, ok := m.Get(stun.AttrData); ok {
			t.Error("with DATA")
		}
	}
	if n := w.core.Stats().ICMP; n != 9 {
		t.Errorf("%d counted", n)
	}
	w.sleep(PermissionLifetime)
	if w.core.FromNetwork(w.now, id, gateway, stun.ICMP{Type: 3, Code: 3}, &w.out); w.out.Cause != CauseNoPermission {
		t.Errorf("without a permission: %v", w.out.Cause)
	}
	w.sleep(300 * time.Second)
	if w.core.FromNetwork(w.now, id, gateway, stun.ICMP{Type: 3, Code: 3}, &w.out); w.out.Cause != CauseNoAllocation {
		t.Errorf("without an allocation: %v", w.out.Cause)
	}
}
