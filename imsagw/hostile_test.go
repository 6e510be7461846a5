package imsagw

import (
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pion/srtp/v3"
	"github.com/pion/stun/v4"

	"wicgate/internal/iq"
)

// handPeer is a browser of which only ICE is there, written by hand: it can do what no library would.
type handPeer struct {
	t          *testing.T
	ufrag, pwd string
	gw         iq.AccessLocal
	role       stun.AttrType // of its checks
	stop       chan struct{}
	wg         sync.WaitGroup
	mu         sync.Mutex // guards the following fields
	silent     bool
	forge      bool // answer with another password
}

func newHandPeer(t *testing.T) *handPeer {
	p := &handPeer{t: t, ufrag: "peer", pwd: "peerpeerpeerpeerpeerpeer", role: stun.AttrICEControlling, stop: make(chan struct{})}
	t.Cleanup(func() { close(p.stop); p.wg.Wait() })
	return p
}

func (p *handPeer) remote() *iq.AccessRemote {
	return &iq.AccessRemote{Ufrag: p.ufrag, Pwd: p.pwd, Fingerprint: iq.Fingerprint{Hash: "sha-256", Value: strings.TrimSuffix(strings.Repeat("00:", 32), ":")}}
}

// socket opens one address of the peer. It answers the gateway's checks; what else it gets is handed out.
func (p *handPeer) socket(ip string) (*net.UDPConn, chan *stun.Message) {
	p.t.Helper()
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(mustAddr(ip+":0")))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { closeAll([]*net.UDPConn{conn}) })
	answers := make(chan *stun.Message, 64)
	p.wg.Go(func() {
		b := make([]byte, 2048)
		for {
			if err := conn.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
				return
			}
			n, from, err := conn.ReadFromUDPAddrPort(b)
			select {
			case <-p.stop:
				return
			default:
			}
			if err != nil {
				if errors.Is(err, net.ErrClosed) {
					return
				}
				continue
			}
			m := &stun.Message{Raw: append([]byte(nil), b[:n]...)}
			if m.Decode() != nil {
				continue // DTLS or SRTP
			}
			p.mu.Lock()
			silent, forge := p.silent, p.forge
			p.mu.Unlock()
			switch {
			case m.Type != stun.BindingRequest:
				select {
				case answers <- m:
				default:
				}
			case !silent:
				pwd := p.pwd
				if forge {
					pwd += "x"
				}
				r, err := stun.Build(m, stun.BindingSuccess, &stun.XORMappedAddress{IP: from.Addr().AsSlice(), Port: int(from.Port())},
					stun.NewShortTermIntegrity(pwd), stun.Fingerprint)
				if err == nil {
					_, err = conn.WriteToUDPAddrPort(r.Raw, from)
				}
				if err != nil {
					p.t.Errorf("peer: %v", err)
				}
			}
		}
	})
	return conn, answers
}

// check sends a Binding request to the gateway.
func (p *handPeer) check(conn *net.UDPConn, pwd string, priority uint32, nominate bool) [stun.TransactionIDSize]byte {
	p.t.Helper()
	be := func(v uint64, n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[n-1-i] = byte(v >> (8 * i))
		}
		return b
	}
	s := []stun.Setter{stun.BindingRequest, stun.TransactionID, stun.NewUsername(p.gw.Ufrag + ":" + p.ufrag),
		stun.RawAttribute{Type: p.role, Value: be(1<<60, 8)}, stun.RawAttribute{Type: stun.AttrPriority, Value: be(uint64(priority), 4)}}
	if nominate {
		s = append(s, stun.RawAttribute{Type: stun.AttrUseCandidate})
	}
	m, err := stun.Build(append(s, stun.NewShortTermIntegrity(pwd), stun.Fingerprint)...)
	if err != nil {
		p.t.Fatal(err)
	}
	if _, err := conn.WriteToUDPAddrPort(m.Raw, p.gw.Default); err != nil {
		p.t.Fatal(err)
	}
	return m.TransactionID
}

// of finds the only stream of a session.
func (l *lab) of(session string) *stream {
	l.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for k, s := range l.sessions {
		if k.session == session {
			return s.streams[0]
		}
	}
	l.t.Fatalf("no session %s", session)
	return nil
}

func (st *stream) at(a netip.AddrPort) bool {
	s := st.selected.Load()
	return s != nil && *s == a
}

// TestNominatedAgain: a browser that moves to a path of lower priority is followed, and consent with it.
func TestNominatedAgain(t *testing.T) {
	checkLeaks(t)
	l := newLab(t, func(_ *Config, tm *timing) {
		tm.consentPeriod, tm.consentExpiry = 30*time.Millisecond, 400*time.Millisecond
	})
	p := newHandPeer(t)
	p.gw = l.set(iq.Set{Ref: iq.Ref{Session: "s1", Seq: 1}, Streams: []iq.Stream{{Media: "audio", Access: p.remote()}}}).Streams[0].Access
	st := l.of("s1")
	a, _ := p.socket("127.0.0.1")
	b, _ := p.socket("127.0.0.2")
	eventually(t, "the first path is nominated", func() bool { p.check(a, p.gw.Pwd, 1<<30, true); return st.at(addrOf(a)) })
	eventually(t, "the second path is nominated", func() bool { p.check(b, p.gw.Pwd, 1<<10, true); return st.at(addrOf(b)) })
	if !st.isValid(addrOf(a)) || !st.isValid(addrOf(b)) {
		t.Error("a validated address is forgotten")
	}
	// The first path goes; consent lives by the second.
	closeAll([]*net.UDPConn{a})
	time.Sleep(600 * time.Millisecond)
	if st.muted.Load() {
		t.Error("consent lost, though the nominated path answers")
	}
	p.mu.Lock()
	p.forge = true
	p.mu.Unlock()
	l.want(iq.ConsentLost, "s1") // forged answers do not count
	if l.Stats().Drops["stun"] == 0 {
		t.Error("forged answers are not counted")
	}
}

// TestSTUNScreen: requests without our password and answers without a request change nothing.
func TestSTUNScreen(t *testing.T) {
	checkLeaks(t)
	l := newLab(t, func(_ *Config, tm *timing) { tm.handshake = 300 * time.Millisecond })
	p := newHandPeer(t)
	p.gw = l.set(iq.Set{Ref: iq.Ref{Session: "s1", Seq: 1}, Streams: []iq.Stream{{Media: "audio", Access: p.remote()}}}).Streams[0].Access
	st := l.of("s1")
	conn, answers := p.socket("127.0.0.1")
	for range 20 {
		p.check(conn, p.gw.Pwd+"x", 1<<30, true)
	}
	gw := p.gw
	p.gw.Ufrag = "other" // the right password, another's name
	for range 20 {
		p.check(conn, gw.Pwd, 1<<30, true)
	}
	p.gw = gw
	// An answer to a request never sent, with the right password of the browser.
	m, err := stun.Build(stun.BindingSuccess, stun.TransactionID, stun.NewShortTermIntegrity(p.pwd), stun.Fingerprint)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.WriteToUDPAddrPort(m.Raw, gw.Default); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all are dropped", func() bool { return l.Stats().Drops["stun"] == 41 })
	select {
	case m := <-answers:
		t.Errorf("the gateway answers %v", m)
	default:
	}
	if st.selected.Load() != nil || st.isValid(addrOf(conn)) {
		t.Error("an address is taken without proof")
	}
	// The right one is answered at once, and nominated after the gateway's own check.
	id := p.check(conn, gw.Pwd, 1<<30, true)
	select {
	case m := <-answers:
		if m.TransactionID != id || stun.MessageIntegrity(gw.Pwd).Check(m) != nil {
			t.Errorf("answer %v", m)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("no answer")
	}
	eventually(t, "the path is nominated", func() bool { return st.at(addrOf(conn)) })
	// Now the peer never says a DTLS word.
	if e := l.want(iq.DTLSFailed, "s1"); !strings.HasPrefix(e.Detail, "no-hello: ") {
		t.Errorf("cause %q", e.Detail)
	}
	// Sources beyond the bound are not let to the agent, however well they prove themselves.
	for range maxKnown + 10 {
		c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(mustAddr("127.0.0.1:0")))
		if err != nil {
			t.Fatal(err)
		}
		defer closeAll([]*net.UDPConn{c}) // later: its port must not come again
		p.check(c, gw.Pwd, 1, false)
	}
	eventually(t, "sources are bounded", func() bool { return l.Stats().Drops["sources"] >= 11 })
}

// TestEarlyChecks: a browser's checks may be quicker than its answer's way through signalling.
func TestEarlyChecks(t *testing.T) {
	checkLeaks(t)
	l := newLab(t, nil)
	p := newHandPeer(t)
	p.gw = l.set(iq.Set{Ref: iq.Ref{Session: "s1", Seq: 1}, Offerer: true, Streams: []iq.Stream{{Media: "audio"}}}).Streams[0].Access
	conn, answers := p.socket("127.0.0.1")
	st := l.of("s1")
	p.role = stun.AttrICEControlled
	p.check(conn, p.gw.Pwd, 1<<30, false)
	time.Sleep(20 * time.Millisecond)
	if st.selected.Load() != nil {
		t.Error("a pair before the browser is known")
	}
	l.set(iq.Set{Ref: iq.Ref{Session: "s1", Seq: 2}, Offerer: true, Streams: []iq.Stream{{Media: "audio", Access: p.remote()}}})
	select {
	case m := <-answers: // the early check was kept
		if m.Type != stun.BindingSuccess {
			t.Errorf("answer %v", m)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the early check is not answered")
	}
	eventually(t, "a pair without any candidate in SDP", func() bool { return st.at(addrOf(conn)) })
}

// TestChecksArePaced: candidates in an SDP do not make the gateway a source of traffic.
func TestChecksArePaced(t *testing.T) {
	checkLeaks(t)
	l := newLab(t, nil)
	p := newHandPeer(t)
	victim, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(mustAddr("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll([]*net.UDPConn{victim})
	r := p.remote()
	line := func(ip string, port uint16) string {
		return "1 1 udp 2130706431 " + ip + " " + itoa(port) + " typ host"
	}
	for i := range iq.MaxCandidates - 6 {
		r.Candidates = append(r.Candidates, line("127.0.0."+itoa(uint16(i+1)), addrOf(victim).Port()))
	}
	r.Candidates = append(r.Candidates, line("224.0.0.1", 9), line("0.0.0.0", 9), line("::1", 9), line("abc.local", 9), "1 2 udp 1 127.0.0.1 9 typ host", "nonsense")
	l.set(iq.Set{Ref: iq.Ref{Session: "s1", Seq: 1}, Streams: []iq.Stream{{Media: "audio", Access: r}}})
	eventually(t, "the rate is reached", func() bool { return l.Stats().Drops["pace"] > 0 })
	n := 0
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		if b, _ := receive(t, victim, 100*time.Millisecond); b != nil {
			n++
		}
	}
	if n == 0 || n > checkBurst+2*checkRate {
		t.Errorf("%d checks at one address in a second", n)
	}
	if d := l.Stats().Drops["send"]; d != 0 {
		t.Errorf("%d checks at addresses that should have been passed over", d)
	}
}

// TestGarbageOnEverySocket of a call that goes on, from a stranger and, forged, from the right host.
func TestGarbageOnEverySocket(t *testing.T) {
	checkLeaks(t)
	l := newLab(t, nil)
	core := newCoreEnd(t)
	b := newBrowser(t)
	local := b.call(l, "s1", core.remote())
	l.want(iq.Connected, "s1")
	b.up()
	stranger, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(mustAddr("127.0.0.7:0")))
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll([]*net.UDPConn{stranger})
	random := rand.New(rand.NewPCG(1, 2))
	// SRTP under keys of the stranger's own, as foreign as can be.
	alien, err := srtp.CreateContext(make([]byte, 32), make([]byte, 12), srtp.ProtectionProfileAeadAes256Gcm)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 300 {
		junk := make([]byte, random.IntN(1400))
		for j := range junk {
			junk[j] = byte(random.Uint32())
		}
		if len(junk) > 0 && i%3 == 0 {
			junk[0] = byte(random.IntN(4)) // STUN
		}
		if i%5 == 0 {
			if junk, err = alien.EncryptRTP(nil, audio(t, 1, uint16(i)), nil); err != nil {
				t.Fatal(err)
			}
		}
		for _, to := range []netip.AddrPort{local.Access.Default, local.Core.RTP, local.Core.RTCP} {
			if _, err := stranger.WriteToUDPAddrPort(junk, to); err != nil {
				t.Fatal(err)
			}
			if to != local.Access.Default && i%10 == 0 {
				if _, err := core.rtp.WriteToUDPAddrPort(junk, to); err != nil {
					t.Fatal(err)
				}
			}
		}
		if i%20 == 0 {
			time.Sleep(time.Millisecond)
		}
	}
	if _, err := stranger.WriteToUDPAddrPort(make([]byte, maxPacket+1), local.Access.Default); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the stranger is dropped", func() bool {
		d := l.Stats().Drops
		return d["foreign"] >= 60 && d["malformed"] > 0 && d["unknown"] > 0 && d["oversize"] == 1
	})
	if raw, _ := receive(t, core.rtp, 20*time.Millisecond); raw != nil {
		t.Errorf("the core gets %x", raw)
	}
	bothWaysLight(t, b, local, core)
}

// bothWaysLight proves that a call still carries media.
func bothWaysLight(t *testing.T, b *browser, local iq.LocalStream, core *coreEnd) {
	t.Helper()
	b.say("still", 5000, 5)
	raw, _ := receive(t, core.rtp, 5*time.Second)
	if !strings.Contains(string(raw), "still 50") {
		t.Errorf("core gets %q", raw)
	}
	for i := range 5 {
		if _, err := core.rtp.WriteToUDPAddrPort(rtpPacket(t, uint16(40000+i), "back"), local.Core.RTP); err != nil {
			t.Fatal(err)
		}
	}
	for {
		if string(b.hear().Payload) == "back" {
			return
		}
	}
}

// TestEdgeReleasesInItsHandler: an edge that ends the session while it hears the event must not lock up
// the gateway, on a bus where both are one process.
func TestEdgeReleasesInItsHandler(t *testing.T) {
	checkLeaks(t)
	l := newLab(t, nil)
	done := make(chan error, 1)
	stop, err := l.edge.Events(func(e iq.Event) {
		_, err := l.edge.Release(t.Context(), iq.Release{Ref: iq.Ref{Session: e.Ref.Session, Seq: 9}})
		done <- err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	b := newBrowser(t)
	b.call(l, "s1", nil)
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("locked up")
	}
	if n := l.Stats().Sessions; n != 0 {
		t.Errorf("%d sessions", n)
	}
}

// TestReleaseAtAnyMoment of a call's start; the leak check is the assertion.
func TestReleaseAtAnyMoment(t *testing.T) {
	checkLeaks(t)
	l := newLab(t, nil)
	for i, wait := range []time.Duration{0, time.Millisecond, 3 * time.Millisecond, 6 * time.Millisecond, 10 * time.Millisecond, 15 * time.Millisecond, 25 * time.Millisecond} {
		b := newBrowser(t)
		name := "s" + itoa(uint16(i))
		b.call(l, name, nil)
		time.Sleep(wait)
		began := time.Now()
		l.release(name, 2)
		if d := time.Since(began); d > iq.Deadline/2 {
			t.Errorf("release after %v took %v", wait, d)
		}
	}
}

// TestHelloIsHeld until ICE validates its source, if that has proved itself; no longer, and not for others.
func TestHelloIsHeld(t *testing.T) {
	w := newWire(t, srtp.ProtectionProfileAeadAes256Gcm)
	early, stranger := mustAddr("127.0.0.3:5000"), mustAddr("127.0.0.4:5000")
	(*w.generations.Load())[0].known[early] = struct{}{}
	w.fromAccess([]byte{22, 1}, stranger)
	for i := range 2 * maxHeld {
		w.fromAccess([]byte{22, byte(i)}, early)
	}
	if n := len(w.dtlsQueue.in); n != 0 || w.hello.Load() != nil {
		t.Fatalf("%d packets reach DTLS before their source is validated", n)
	}
	w.validate(stranger) // of another address
	if n := len(w.dtlsQueue.in); n != 0 {
		t.Fatalf("%d packets reach DTLS", n)
	}
	w.validate(early)
	if n := len(w.dtlsQueue.in); n != maxHeld || *w.hello.Load() != early || len(w.held) != 0 {
		t.Errorf("%d packets reach DTLS, %d held", n, len(w.held))
	}
	if d := w.count.drops[dropForeign].Load(); d != 1+maxHeld {
		t.Errorf("%d dropped", d)
	}
	// The validated addresses are bounded, and the nominated one stays.
	nominated := *w.selected.Load()
	w.validate(nominated)
	for i := range uint16(3 * maxValid) {
		w.validate(netip.AddrPortFrom(early.Addr(), 6000+i))
	}
	if n := len(*w.valid.Load()); n != maxValid || !w.isValid(nominated) {
		t.Errorf("%d validated addresses kept", n)
	}
}
