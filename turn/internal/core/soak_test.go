package core

import (
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"wicgate/internal/wire/stun"
)

// TestSoak runs the life of many allocations in virtual time, some hundred at once: by tokens of both shapes
// and of ever new pseudonyms, with permissions, channels, packets both ways, reservations, tickets and moves,
// connections, extensions of sessions, refusals and bad tokens between them; ended by time, by their client,
// by revocation and by the connection. The heap in use is the same, within 5 %, at a tenth of the way and at
// its end, and nothing stays. 100,000 of them; WICGATE_SOAK says how many instead (make soak: ten million).
func TestSoak(t *testing.T) {
	cycles := 100_000
	if raceDetector || testing.Short() {
		cycles = 20_000
	}
	if s := os.Getenv("WICGATE_SOAK"); s != "" {
		var err error
		if cycles, err = strconv.Atoi(s); err != nil || cycles < 1000 {
			t.Fatalf("WICGATE_SOAK=%q: want a number of 1000 or more", s)
		}
	}
	w := newWorld(t, func(c *Config) {
		c.Policy, c.Families, c.TCPRelay, c.Mobility, c.MaxAllocations, c.QuotaTenant = Session, bothFamilies, true, true, 1<<20, 1<<20
	})
	step := &soak{w: w}
	var early int64
	begin := time.Now()
	for i := range cycles {
		step.cycle(i)
		if len(w.core.ids) > soakAtOnce || len(w.core.reserved) > maxReservations || len(w.core.waiting) > soakAtOnce || len(w.core.tickets) > 2*soakAtOnce || len(w.core.conns) > soakAtOnce {
			t.Fatalf("cycle %d: %d allocations, %d reserved, %d waiting, %d tickets, %d connections", i, len(w.core.ids), len(w.core.reserved), len(w.core.waiting), len(w.core.tickets), len(w.core.conns))
		}
		if (i+1)%max(cycles/10, 1) == 0 {
			w.invariants()
			heap := heapInUse()
			if early == 0 {
				early = heap
			}
			t.Logf("%9d cycles, %v of virtual time, %v: %d bytes of heap; %d allocations, %d living", i+1, w.now.Sub(step.first).Round(time.Second), time.Since(begin).Round(time.Second), heap, len(w.core.ids), len(w.core.living))
		}
	}
	// Within 5 %. A heap this small takes a step when one map of it grows, which no number of cycles repeats.
	const mapStep = 128 << 10 // bytes
	if late := heapInUse(); float64(late) > 1.05*float64(early)+mapStep {
		t.Errorf("%d bytes of heap at a tenth of the way, %d at its end", early, late)
	}
	w.sleep(3 * time.Hour)
	w.core.Timeout(w.now, &w.out)
	w.act(Tuple{})
	c := w.core
	if n := len(c.ids) + len(c.tuples) + len(c.relays) + len(c.locals) + len(c.queue) + len(c.tickets) + len(c.conns) + len(c.reserved) + len(c.tenants[0].owners); n != 0 || w.opened != w.closed {
		t.Errorf("%d entries stay; %d sockets opened, %d closed", n, w.opened, w.closed)
	}
	c.Extend(w.now, "last", w.now.Add(time.Minute))
	if len(c.living) > maxLiving {
		t.Errorf("%d sessions are known of", len(c.living))
	}
	runtime.KeepAlive(w)
}

// soakAtOnce bounds the allocations at once.
const soakAtOnce = 2000

// soak is what the cycles share.
type soak struct {
	w     *world
	first time.Time
}

// cycle runs the i-th allocation. The time between two is 1 s, the life of one up to ten minutes, so that
// there are some hundred.
func (s *soak) cycle(i int) {
	w := s.w
	if s.first.IsZero() {
		s.first = w.now
	}
	w.sleep(time.Second)
	w.ended = w.ended[:0]
	w.port = 49152 + uint16(i%4000)*4 // none that is in use
	from := source(i)
	if i%5 == 4 {
		from.Transport = stun.ProtocolTCP
	}
	pseudonym := "p" + strconv.Itoa(i)
	if i%3 == 0 {
		w.core.Extend(w.now, pseudonym, w.now.Add(10*time.Minute))
	}
	c := w.issue(shape(i%2), pseudonym, w.now, time.Hour)
	nonce := w.core.makeNonce(nil, w.now, from, 0)
	if i%16 == 0 {
		nonce = w.nonce(from)
	}
	ask := func(m stun.Method, adds ...add) response { return w.askNonce(from, c, nonce, m, adds...) }
	if i%11 == 0 { // a bad token or MAC first
		bad := c
		bad.key = append([]byte{1}, c.key...)
		w.want(w.askNonce(from, bad, nonce, stun.Allocate, transport(17)), 401)
	}
	adds, proto := []add{}, byte(17)
	switch {
	case i%5 == 4:
		proto = stun.ProtocolTCP
	case i%10 == 1:
		adds = append(adds, pair)
	case i%10 == 2:
		adds = append(adds, attr(stun.AttrMobilityTicket, nil))
	case i%10 == 3:
		adds = append(adds, small(stun.AttrAdditionalAddressFamily, stun.FamilyIPv6))
	}
	r := w.want(ask(stun.Allocate, append(adds, transport(proto))...), 0)
	ticket, reservation := r.get(stun.AttrMobilityTicket), r.get(stun.AttrReservationToken)
	a := w.core.tuples[from]
	w.want(ask(stun.CreatePermission, peer(gateway)), 0)
	w.want(ask(stun.CreatePermission, peer(stranger)), 403)
	if proto == stun.ProtocolTCP {
		ask(stun.Connect, peer(gateway))
		if dial := w.find(Dial); dial != nil && i%2 == 0 {
			w.core.Connected(w.now, dial.Conn, "peer", &w.out)
			w.act(from)
		}
		w.core.Accepted(w.now, a.id, netip.AddrPortFrom(gateway.Addr(), 40001), "peer", &w.out)
		w.act(from)
	} else {
		w.want(ask(stun.ChannelBind, channelNumber(0x4000+uint16(i%64)), peer(gateway)), 0)
		w.core.FromClient(w.now, from, stun.AppendChannelData(nil, 0x4000+uint16(i%64), []byte("media")), &w.out)
		w.fromPeer(from, gateway, "media")
	}
	if reservation != nil && i%20 == 1 {
		next := source(i)
		next.Listener = 1
		w.want(w.askNonce(next, c, w.core.makeNonce(nil, w.now, next, 0), stun.Allocate, transport(17), reserved(reservation)), 0)
	}
	if ticket != nil {
		to := source(i)
		to.Listener = 2
		w.want(w.askNonce(to, c, w.core.makeNonce(nil, w.now, to, 0), stun.Refresh, withTicket(ticket)), 0)
		if i%20 == 2 {
			w.core.FromClient(w.now, to, stun.AppendChannelData(nil, 0x4000+uint16(i%64), []byte("media")), &w.out)
		}
		return // ends by time
	}
	switch i % 4 {
	case 0: // by time
	case 1:
		w.want(ask(stun.Refresh, lifetime(0)), 0)
	case 2:
		w.core.Revoke(w.now, pseudonym, &w.out)
		w.act(from)
	case 3:
		if proto == stun.ProtocolTCP {
			w.core.Disconnected(w.now, from, &w.out)
			w.act(from)
		}
	}
}
