package imsagw

import (
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/pion/rtcp"
	"github.com/pion/rtp"

	"wicgate/internal/iq"
)

// bothWays proves media and RTCP in clear at the core and decrypted at the browser.
func bothWays(t *testing.T, b *browser, local iq.LocalStream, core *coreEnd) {
	t.Helper()
	b.say("hello", 100, 20)
	var p rtp.Packet
	raw, from := receive(t, core.rtp, 5*time.Second)
	if err := p.Unmarshal(raw); err != nil {
		t.Fatalf("what the core gets is not RTP: %v: %x", err, raw)
	}
	if !strings.HasPrefix(string(p.Payload), "hello 1") || p.PayloadType != 111 || p.SequenceNumber < 100 {
		t.Errorf("core gets %v %q", p.Header, p.Payload)
	}
	if from != local.Core.RTP {
		t.Errorf("RTP comes from %v, the SDP says %v", from, local.Core.RTP)
	}
	// The core answers with every other packet out of order.
	for i := range 20 {
		if _, err := core.rtp.WriteToUDPAddrPort(rtpPacket(t, uint16(65530+(i^1)), "answer"), local.Core.RTP); err != nil {
			t.Fatal(err)
		}
	}
	for range 20 {
		if p := b.hear(); string(p.Payload) != "answer" || p.SSRC != coreSSRC {
			t.Errorf("browser hears %v %q", p.Header, p.Payload)
		}
	}
	// RTCP: the core's sender report reaches the browser's receiver; the browser's reaches the core's odd port.
	sr, err := (&rtcp.SenderReport{SSRC: coreSSRC, NTPTime: 1 << 40, RTPTime: 5}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := core.rtcp.WriteToUDPAddrPort(sr, local.Core.RTCP); err != nil {
		t.Fatal(err)
	}
	if err := b.pc.WriteRTCP([]rtcp.Packet{&rtcp.PictureLossIndication{SenderSSRC: 1, MediaSSRC: coreSSRC}}); err != nil {
		t.Fatal(err)
	}
	for {
		raw, from := receive(t, core.rtcp, 5*time.Second)
		if raw == nil {
			t.Fatal("no RTCP at the core")
		}
		pkts, err := rtcp.Unmarshal(raw)
		if err != nil || from != local.Core.RTCP {
			t.Fatalf("RTCP from %v: %v", from, err)
		}
		if pli, ok := pkts[0].(*rtcp.PictureLossIndication); ok {
			if pli.MediaSSRC != coreSSRC {
				t.Errorf("RTCP changed: %v", pli)
			}
			break
		}
	}
}

func TestCallBothWays(t *testing.T) {
	for _, tc := range []struct {
		name     string
		place    func(*browser, *lab, string, *iq.CoreRemote) iq.LocalStream
		profiles []dtls.SRTPProtectionProfile
		want     string
	}{
		{"browser offers", (*browser).call, nil, "SRTP_AEAD_AES_256_GCM"},
		{"gateway offers", (*browser).take, nil, "SRTP_AEAD_AES_256_GCM"},
		{"browser prefers the old", (*browser).call, []dtls.SRTPProtectionProfile{dtls.SRTP_AES128_CM_HMAC_SHA1_80, dtls.SRTP_AEAD_AES_128_GCM, dtls.SRTP_AEAD_AES_256_GCM}, "SRTP_AEAD_AES_256_GCM"},
		{"128 bits", (*browser).call, []dtls.SRTPProtectionProfile{dtls.SRTP_AES128_CM_HMAC_SHA1_80, dtls.SRTP_AEAD_AES_128_GCM}, "SRTP_AEAD_AES_128_GCM"},
		{"only the old", (*browser).take, []dtls.SRTPProtectionProfile{dtls.SRTP_AES128_CM_HMAC_SHA1_80}, "SRTP_AES128_CM_HMAC_SHA1_80"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			checkLeaks(t)
			l := newLab(t, nil)
			core := newCoreEnd(t)
			b := newBrowser(t, tc.profiles...)
			local := tc.place(b, l, "s1", core.remote())
			l.want(iq.Connected, "s1")
			b.up()
			bothWays(t, b, local, core)
			eventually(t, "all is counted", func() bool {
				// The peers hear a packet a moment before it is counted.
				st := l.Stats()
				return st.AccessTx.Packets == 21 && st.CoreTx.Packets == st.AccessRx.Packets
			})
			st := l.Stats()
			r := l.release("s1", 9).Streams[0]
			if r.Profile != tc.want {
				t.Errorf("profile %s, want %s", r.Profile, tc.want)
			}
			if r.AccessRx.Packets < 21 || r.CoreTx != r.AccessRx || r.CoreRx.Packets != 21 || r.AccessTx != r.CoreRx || r.Discarded != 0 {
				t.Errorf("report %+v", r)
			}
			if st.Sessions != 1 || st.Connected != 1 || st.CoreTx.Packets < 21 || st.AccessTx.Packets != 21 {
				t.Errorf("stats %+v", st)
			}
			after := l.Stats()
			if after.Sessions != 0 || after.SessionsTotal != 1 || after.AccessRx != r.AccessRx || after.CoreRx != r.CoreRx {
				t.Errorf("stats after release %+v", after)
			}
		})
	}
}

// TestTwoSessions joins two browsers of one gateway: their media must cross the core-facing sockets.
func TestTwoSessions(t *testing.T) {
	checkLeaks(t)
	l := newLab(t, nil)
	a, b := newBrowser(t), newBrowser(t)
	// As the edge does it: A's offer goes to the core with A's core ports, B's leg is offered by us.
	la := a.offer(l, "a", nil)
	lb := b.takeFrom(l, "b", &iq.CoreRemote{RTP: la.Core.RTP, RTCP: la.Core.RTCP}, a.ssrc())
	l.set(iq.Set{Ref: iq.Ref{Session: "a", Seq: 2}, Streams: []iq.Stream{{Media: "audio", Core: &iq.CoreRemote{RTP: lb.Core.RTP, RTCP: lb.Core.RTCP}}}})
	a.accept(answer, sdp(la.Access, "passive", b.ssrc()))
	seen := map[string]bool{}
	for range 2 {
		e := <-l.events
		if e.Kind != iq.Connected {
			t.Fatalf("event %+v", e)
		}
		seen[e.Ref.Session] = true
	}
	if !seen["a"] || !seen["b"] {
		t.Errorf("connected: %v", seen)
	}
	a.up()
	b.up()
	a.say("from a", 1, 50)
	b.say("from b", 1, 50)
	if p := b.hear(); !strings.HasPrefix(string(p.Payload), "from a") {
		t.Errorf("b hears %q", p.Payload)
	}
	if p := a.hear(); !strings.HasPrefix(string(p.Payload), "from b") {
		t.Errorf("a hears %q", p.Payload)
	}
	ra, rb := l.release("a", 3).Streams[0], l.release("b", 3).Streams[0]
	if ra.CoreTx.Packets < 50 || rb.CoreTx.Packets < 50 || ra.CoreRx.Packets == 0 || ra.CoreRx.Packets > rb.CoreTx.Packets {
		t.Errorf("core side: a %+v, b %+v", ra, rb)
	}
}

// TestWrongFingerprint: DTLS fails, the edge hears it, and the core gets nothing.
func TestWrongFingerprint(t *testing.T) {
	checkLeaks(t)
	l := newLab(t, nil)
	core := newCoreEnd(t)
	b, other := newBrowser(t), newBrowser(t)
	other.describe(func() (d, error) { return other.pc.CreateOffer(nil) })
	b.describe(func() (d, error) { return b.pc.CreateOffer(nil) })
	remote := b.remote()
	remote.Fingerprint = other.remote().Fingerprint
	local := l.set(iq.Set{Ref: iq.Ref{Session: "s1", Seq: 1}, Streams: []iq.Stream{{Media: "audio", Access: remote, Core: core.remote()}}}).Streams[0]
	b.accept(answer, sdp(local.Access, "passive", coreSSRC))
	if e := l.want(iq.DTLSFailed, "s1"); !strings.HasPrefix(e.Detail, "fingerprint: ") {
		t.Errorf("cause %q", e.Detail)
	}
	for i := range uint16(20) {
		err := b.track.WriteRTP(&rtp.Packet{Header: rtp.Header{Version: 2, SequenceNumber: i}, Payload: []byte("secret")})
		if err != nil && !errors.Is(err, io.ErrClosedPipe) { // it may have heard the alert by now
			t.Fatal(err)
		}
	}
	if _, err := core.rtp.WriteToUDPAddrPort(rtpPacket(t, 1, "answer"), local.Core.RTP); err != nil {
		t.Fatal(err)
	}
	if raw, _ := receive(t, core.rtp, 200*time.Millisecond); raw != nil {
		t.Errorf("the core gets %q", raw)
	}
	st := l.Stats()
	if st.DTLSFailures["fingerprint"] != 1 || st.CoreTx.Packets != 0 || st.AccessTx.Packets != 0 || st.Connected != 0 {
		t.Errorf("stats %+v", st)
	}
	if r := l.release("s1", 2).Streams[0]; r.Profile != "" {
		t.Errorf("profile %q without keys", r.Profile)
	}
}

func TestNoCommonProfile(t *testing.T) {
	checkLeaks(t)
	l := newLab(t, nil)
	b := newBrowser(t, dtls.SRTP_AES128_CM_HMAC_SHA1_32)
	b.call(l, "s1", nil)
	if e := l.want(iq.DTLSFailed, "s1"); !strings.HasPrefix(e.Detail, "profile: ") {
		t.Errorf("cause %q", e.Detail)
	}
	if st := l.Stats(); st.DTLSFailures["profile"] != 1 {
		t.Errorf("stats %+v", st)
	}
}

// TestConsentLost: the browser falls silent; sending stops both ways, and the edge hears it.
func TestConsentLost(t *testing.T) {
	checkLeaks(t)
	l := newLab(t, func(_ *Config, tm *timing) {
		tm.consentPeriod, tm.consentExpiry = 40*time.Millisecond, 300*time.Millisecond
	})
	core := newCoreEnd(t)
	b := newBrowser(t)
	local := b.call(l, "s1", core.remote())
	l.want(iq.Connected, "s1")
	b.up()
	// Answered checks keep consent well past its expiry.
	for range 8 {
		b.say("here", 1, 50)
	}
	select {
	case e := <-l.events:
		t.Fatalf("event %+v while the browser answers", e)
	default:
	}
	b.hangUp()
	l.want(iq.ConsentLost, "s1")
	before := l.Stats()
	for i := range 10 {
		if _, err := core.rtp.WriteToUDPAddrPort(rtpPacket(t, uint16(i), "anybody"), local.Core.RTP); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "core media is dropped for want of consent", func() bool { return l.Stats().Drops["consent"] >= 10 })
	if st := l.Stats(); st.AccessTx != before.AccessTx || st.ConsentLost != 1 {
		t.Errorf("stats %+v, before %+v", st, before)
	}
}

func TestICEFailed(t *testing.T) {
	checkLeaks(t)
	l := newLab(t, func(_ *Config, tm *timing) {
		tm.ice, tm.linger, tm.sweep = 150*time.Millisecond, 100*time.Millisecond, 20*time.Millisecond
	})
	b := newBrowser(t)
	b.describe(func() (d, error) { return b.pc.CreateOffer(nil) })
	l.set(iq.Set{Ref: iq.Ref{Session: "s1", Seq: 1}, Streams: []iq.Stream{{Media: "audio", Access: b.remote()}}})
	l.want(iq.ICEFailed, "s1")
	// The edge does not care; the gateway does.
	eventually(t, "a failed session is released", func() bool { return l.Stats().Sessions == 0 })
	if st := l.Stats(); st.ICEFailed != 1 || st.Abandoned != 1 {
		t.Errorf("stats %+v", st)
	}
	_, err := l.edge.Set(t.Context(), iq.Set{Ref: iq.Ref{Session: "s1", Seq: 2}, Streams: []iq.Stream{{Media: "audio"}}})
	if !errors.Is(err, iq.ErrUnknownSession) {
		t.Errorf("a Set of an abandoned session: %v", err)
	}
	if _, err := l.edge.Release(t.Context(), iq.Release{Ref: iq.Ref{Session: "s1", Seq: 3}}); !errors.Is(err, iq.ErrUnknownSession) {
		t.Errorf("a Release of an abandoned session: %v", err)
	}
}

// TestAbandoned: reserved sessions end by themselves, the ringing one later.
func TestAbandoned(t *testing.T) {
	checkLeaks(t)
	l := newLab(t, func(_ *Config, tm *timing) {
		tm.reserve, tm.answer, tm.sweep = 50*time.Millisecond, 400*time.Millisecond, 10*time.Millisecond
	})
	core := newCoreEnd(t)
	l.set(iq.Set{Ref: iq.Ref{Session: "bare", Seq: 1}, Streams: []iq.Stream{{Media: "audio"}}})
	l.set(iq.Set{Ref: iq.Ref{Session: "ringing", Seq: 1}, Offerer: true, Streams: []iq.Stream{{Media: "audio", Core: core.remote()}}})
	eventually(t, "the bare session ends", func() bool { return l.Stats().Sessions == 1 })
	eventually(t, "the ringing session ends", func() bool { return l.Stats().Sessions == 0 })
}

// TestPortsComeBack: a range is used up, refused, and used again after a release.
func TestPortsComeBack(t *testing.T) {
	checkLeaks(t)
	var l *lab
	// A range that is free now may be taken a moment later: try some.
	for try := range 20 {
		base := uint16(20000 + 100*try)
		cfg := Config{Name: "agw1", Access: Side{Bind: loopback, MinPort: base, MaxPort: base + 49}, Core: Side{Bind: loopback, MinPort: base + 51, MaxPort: base + 57}}
		cfg.Bus = nopBus{}
		if _, err := New(cfg); err != nil {
			continue
		}
		l = newLab(t, func(c *Config, _ *timing) { c.Access, c.Core = cfg.Access, cfg.Core })
		break
	}
	if l == nil {
		t.Fatal("no free range of ports found")
	}
	set := func(name string, seq uint32) (iq.Local, error) {
		return l.edge.Set(t.Context(), iq.Set{Ref: iq.Ref{Session: name, Seq: seq}, Streams: []iq.Stream{{Media: "audio"}}})
	}
	names := []string{"a", "b", "c", "d", "e", "f"}
	used := map[uint16]bool{}
	n := 0
	for _, name := range names {
		local, err := set(name, 1)
		if errors.Is(err, iq.ErrCapacity) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		n++
		rtp, rtcp := local.Streams[0].Core.RTP.Port(), local.Streams[0].Core.RTCP.Port()
		if rtp%2 != 0 || rtcp != rtp+1 || used[rtp] {
			t.Errorf("core ports %d, %d", rtp, rtcp)
		}
		used[rtp] = true
	}
	if n == 0 || n > 3 { // 51 to 57 holds three pairs: 52, 54, 56
		t.Fatalf("%d sessions found a pair of ports", n)
	}
	before := l.Stats().Sessions
	if _, err := set("z", 1); !errors.Is(err, iq.ErrCapacity) {
		t.Errorf("a session too many: %v", err)
	}
	if after := l.Stats().Sessions; after != before {
		t.Errorf("a refused Set leaves %d sessions, there were %d", after, before)
	}
	l.release("a", 2)
	if _, err := set("y", 1); err != nil {
		t.Errorf("after a release: %v", err)
	}
	// Two streams where one pair is left: nothing is kept of the first.
	l.release("y", 2)
	two := iq.Set{Ref: iq.Ref{Session: "x", Seq: 1}, Streams: []iq.Stream{{Media: "audio"}, {Media: "video"}}}
	if _, err := l.edge.Set(t.Context(), two); !errors.Is(err, iq.ErrCapacity) {
		t.Errorf("two streams where one fits: %v", err)
	}
	if _, err := set("w", 1); err != nil {
		t.Errorf("after a refused pair of streams: %v", err)
	}
}

func TestMaxSessions(t *testing.T) {
	checkLeaks(t)
	l := newLab(t, func(c *Config, _ *timing) { c.MaxSessions = 2 })
	for i, want := range []error{nil, nil, iq.ErrCapacity} {
		_, err := l.edge.Set(t.Context(), iq.Set{Ref: iq.Ref{Session: string(rune('a' + i)), Seq: 1}, Streams: []iq.Stream{{Media: "audio"}}})
		if !errors.Is(err, want) {
			t.Errorf("session %d: %v, want %v", i+1, err, want)
		}
	}
}

// TestSetIsIdempotent over the bus: the same Ref reserves once.
func TestSetIsIdempotent(t *testing.T) {
	checkLeaks(t)
	l := newLab(t, nil)
	s := iq.Set{Ref: iq.Ref{Session: "s1", Seq: 1}, Offerer: true, Streams: []iq.Stream{{Media: "audio"}}}
	one, two := l.set(s), l.set(s)
	if one.Streams[0].Access.Ufrag != two.Streams[0].Access.Ufrag || one.Streams[0].Access.Pwd != two.Streams[0].Access.Pwd || one.Streams[0].Core != two.Streams[0].Core {
		t.Errorf("two answers: %+v, %+v", one, two)
	}
	if st := l.Stats(); st.Sessions != 1 || st.SessionsTotal != 1 {
		t.Errorf("stats %+v", st)
	}
	// A new epoch of the same edge ends what the old one held.
	s.Session, s.Epoch = "s2", "another"
	l.set(s)
	if st := l.Stats(); st.Sessions != 1 || st.SessionsTotal != 2 {
		t.Errorf("stats after a new epoch %+v", st)
	}
}

func TestWhatASetMayNotChange(t *testing.T) {
	checkLeaks(t)
	l := newLab(t, nil)
	core := newCoreEnd(t)
	b := newBrowser(t)
	b.call(l, "s1", core.remote())
	l.want(iq.Connected, "s1")
	b.up()
	good := func() iq.Set {
		return iq.Set{Ref: iq.Ref{Session: "s1", Seq: 2}, Streams: []iq.Stream{{Media: "audio", Access: b.remote(), Core: core.remote()}}}
	}
	for name, spoil := range map[string]func(*iq.Set){
		"offerer": func(s *iq.Set) { s.Offerer = true },
		"media":   func(s *iq.Set) { s.Streams[0].Media = "video" },
		"fingerprint": func(s *iq.Set) {
			v := []byte(s.Streams[0].Access.Fingerprint.Value)
			if v[0] == '0' {
				v[0] = '1'
			} else {
				v[0] = '0'
			}
			s.Streams[0].Access.Fingerprint.Value = string(v)
		},
		"core of IPv6":        func(s *iq.Set) { s.Streams[0].Core.RTP = mustAddr("[2001:db8::1]:4000") },
		"unreachable by RTCP": func(s *iq.Set) { s.Streams[0].Core.RTCP = mustAddr("[2001:db8::1]:4000") },
	} {
		s := good()
		spoil(&s)
		if _, err := l.edge.Set(t.Context(), s); !errors.Is(err, iq.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The call goes on, and moves to another core address.
	moved := newCoreEnd(t)
	s := good()
	s.Streams[0].Core = moved.remote()
	l.set(s)
	b.say("moved", 1, 5)
	if raw, _ := receive(t, moved.rtp, 5*time.Second); raw == nil {
		t.Error("nothing at the new core address")
	}
	// Hold: the unspecified address stops media.
	s.Seq, s.Streams[0].Core.RTP = 3, mustAddr("0.0.0.0:4000")
	l.set(s)
	before := l.Stats().CoreTx.Packets
	b.say("held", 10, 5)
	eventually(t, "held media is dropped", func() bool { return l.Stats().Drops["no-remote"] >= 5 })
	if after := l.Stats().CoreTx.Packets; after != before {
		t.Errorf("%d packets reach a core on hold", after-before)
	}
	// A second m-line may come, never go.
	s.Seq, s.Streams = 4, append(s.Streams, iq.Stream{Media: "video"})
	if two := l.set(s); len(two.Streams) != 2 || two.Streams[1].Core.RTP == two.Streams[0].Core.RTP {
		t.Errorf("second stream: %+v", two)
	}
	s.Seq, s.Streams = 5, s.Streams[:1]
	if _, err := l.edge.Set(t.Context(), s); !errors.Is(err, iq.ErrInvalid) {
		t.Errorf("an m-line goes away: %v", err)
	}
}

func TestCorePeers(t *testing.T) {
	g, err := New(Config{Name: "agw1", Bus: nopBus{}, Access: Side{Bind: loopback}, Core: Side{Bind: mustAddr("0.0.0.0:0").Addr(), Advertise: mustAddr("10.0.0.1:0").Addr()},
		CorePeers: prefixes("10.0.0.0/8", "127.0.0.0/8")})
	if err != nil {
		t.Fatal(err)
	}
	for addr, want := range map[string]bool{
		"10.1.2.3:4000": true, "192.0.2.1:4000": false, "127.0.0.1:4000": false, "[::ffff:10.1.2.3]:4000": true, "[2001:db8::1]:4000": false,
	} {
		err := g.checkCore(iq.CoreRemote{RTP: mustAddr(addr), RTCP: mustAddr("10.1.2.3:4001")})
		if (err == nil) != want || err != nil && !errors.Is(err, iq.ErrInvalid) {
			t.Errorf("%s: %v", addr, err)
		}
	}
}

func TestConfigIsChecked(t *testing.T) {
	side := Side{Bind: loopback}
	for name, tc := range map[string]struct {
		cfg  Config
		want string
	}{
		"no bus":       {Config{Name: "agw1", Access: side, Core: side}, "bus"},
		"no bind":      {Config{Name: "agw1", Bus: nopBus{}, Core: side}, "imsagw.access.bind"},
		"no advertise": {Config{Name: "agw1", Bus: nopBus{}, Access: side, Core: Side{Bind: mustAddr("0.0.0.0:0").Addr()}}, "imsagw.core.advertise"},
		"multicast":    {Config{Name: "agw1", Bus: nopBus{}, Access: Side{Bind: mustAddr("224.0.0.1:0").Addr()}, Core: side}, "unicast"},
		"families":     {Config{Name: "agw1", Bus: nopBus{}, Access: Side{Bind: loopback, Advertise: mustAddr("[2001:db8::1]:0").Addr()}, Core: side}, "two families"},
		"range":        {Config{Name: "agw1", Bus: nopBus{}, Access: Side{Bind: loopback, MinPort: 5000, MaxPort: 4000}, Core: side}, "imsagw.access.ports: 5000 to 4000"},
		"one port":     {Config{Name: "agw1", Bus: nopBus{}, Access: side, Core: Side{Bind: loopback, MinPort: 5001, MaxPort: 5002}}, "room for 2"},
		"not ours":     {Config{Name: "agw1", Bus: nopBus{}, Access: Side{Bind: mustAddr("192.0.2.1:0").Addr()}, Core: side}, "imsagw.access"},
		"max sessions": {Config{Name: "agw1", Bus: nopBus{}, Access: side, Core: side, MaxSessions: -1}, "max_sessions"},
	} {
		if _, err := New(tc.cfg); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want it to name %q", name, err, tc.want)
		}
	}
	g, err := New(Config{Name: "Not A Name", Bus: nopBus{}, Access: side, Core: side})
	if err == nil {
		err = g.Serve(t.Context())
	}
	if err == nil {
		t.Error("a bad name is served")
	}
}
