package imsagw

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/pion/ice/v4"
	"github.com/pion/rtp"
	"github.com/pion/srtp/v3"

	"wicgate/internal/iq"
)

// roamer is a browser put together from pion's ICE, DTLS and SRTP that restarts ICE as browsers do: with new
// sockets, and media on the old pair until the new one is nominated.
type roamer struct {
	t           *testing.T
	controlling bool
	cert        tls.Certificate
	print       iq.Fingerprint
	agent       *ice.Agent // the newest
	ufrag, pwd  string     // of it
	candidates  []string
	conn        atomic.Pointer[ice.Conn] // where it sends
	dtls        *queue
	media       chan []byte // SRTP and SRTCP, as it came
	in, out     *srtp.Context
	ended       []func()
	wg          sync.WaitGroup
}

func newRoamer(t *testing.T, controlling bool) *roamer {
	t.Helper()
	cert, print, err := newCertificate()
	if err != nil {
		t.Fatal(err)
	}
	r := &roamer{t: t, controlling: controlling, cert: cert, print: print, media: make(chan []byte, 4096)}
	r.dtls = newQueue(netip.AddrPort{}, func(b []byte, _ netip.AddrPort) (int, error) { return r.conn.Load().Write(b) })
	t.Cleanup(func() {
		for i := len(r.ended) - 1; i >= 0; i-- {
			r.ended[i]()
		}
		r.wg.Wait()
	})
	r.gather()
	return r
}

// gather makes a new generation of the browser's own side.
func (r *roamer) gather() {
	r.t.Helper()
	a, err := ice.NewAgentWithOptions(ice.WithLoggerFactory(noLog{}), ice.WithNetworkTypes([]ice.NetworkType{ice.NetworkTypeUDP4}),
		ice.WithCandidateTypes([]ice.CandidateType{ice.CandidateTypeHost}), ice.WithIncludeLoopback(),
		ice.WithInterfaceFilter(func(n string) bool { return n == "lo" }), ice.WithMulticastDNSMode(ice.MulticastDNSModeDisabled))
	if err != nil {
		r.t.Fatal(err)
	}
	r.ended = append(r.ended, func() { _ = a.GracefulClose() })
	done := make(chan struct{})
	var list []string
	if err := a.OnCandidate(func(c ice.Candidate) {
		if c == nil {
			close(done)
			return
		}
		list = append(list, c.Marshal())
	}); err != nil {
		r.t.Fatal(err)
	}
	if err := a.GatherCandidates(); err != nil {
		r.t.Fatal(err)
	}
	<-done
	r.agent, r.candidates = a, list
	if r.ufrag, r.pwd, err = a.GetLocalUserCredentials(); err != nil {
		r.t.Fatal(err)
	}
}

func (r *roamer) remote() *iq.AccessRemote {
	return &iq.AccessRemote{Ufrag: r.ufrag, Pwd: r.pwd, Fingerprint: r.print, Candidates: r.candidates}
}

// connect brings the newest generation up and sends there from now on.
func (r *roamer) connect(l iq.AccessLocal) {
	r.t.Helper()
	for _, line := range l.Candidates {
		c, err := ice.UnmarshalCandidate(line)
		if err == nil {
			err = r.agent.AddRemoteCandidate(c)
		}
		if err != nil {
			r.t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(r.t.Context(), 8*time.Second)
	defer cancel()
	dial := r.agent.Accept
	if r.controlling {
		dial = r.agent.Dial
	}
	conn, err := dial(ctx, l.Ufrag, l.Pwd)
	if err != nil {
		r.t.Fatal(err)
	}
	r.wg.Go(func() {
		b := make([]byte, 4096)
		for {
			n, err := conn.Read(b)
			if err != nil {
				return
			}
			if b[0] >= 20 && b[0] <= 63 {
				r.dtls.push(b[:n], netip.AddrPort{})
			} else {
				r.media <- append([]byte(nil), b[:n]...)
			}
		}
	})
	r.conn.Store(conn)
}

// secure does the DTLS handshake as the client and makes the SRTP contexts.
func (r *roamer) secure() {
	r.t.Helper()
	c, err := dtls.ClientWithOptions(r.dtls, &net.UDPAddr{}, dtls.WithCertificates(r.cert), dtls.WithSRTPProtectionProfiles(profiles...),
		dtls.WithExtendedMasterSecret(dtls.RequireExtendedMasterSecret), dtls.WithInsecureSkipVerify(true), dtls.WithLoggerFactory(noLog{}))
	if err != nil {
		r.t.Fatal(err)
	}
	r.ended = append(r.ended, func() { _ = c.Close() })
	ctx, cancel := context.WithTimeout(r.t.Context(), 8*time.Second)
	defer cancel()
	if err := c.HandshakeContext(ctx); err != nil {
		r.t.Fatal(err)
	}
	state, _ := c.ConnectionState()
	sum := sha256.Sum256(state.PeerCertificates[0])
	if strings.ReplaceAll(fmt.Sprintf("% X", sum[:]), " ", ":") == r.print.Value {
		r.t.Fatal("the gateway has the browser's certificate")
	}
	p, _ := c.SelectedSRTPProtectionProfile()
	cfg := srtp.Config{Profile: srtp.ProtectionProfile(p)}
	if err := cfg.ExtractSessionKeysFromDTLS(&state, true); err != nil {
		r.t.Fatal(err)
	}
	if r.out, err = srtp.CreateContext(cfg.Keys.LocalMasterKey, cfg.Keys.LocalMasterSalt, cfg.Profile); err == nil {
		r.in, err = srtp.CreateContext(cfg.Keys.RemoteMasterKey, cfg.Keys.RemoteMasterSalt, cfg.Profile, srtp.SRTPReplayProtection(1024), srtp.SRTCPReplayProtection(1024))
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// say sends one packet.
func (r *roamer) say(ssrc uint32, seq uint16) {
	p := rtp.Packet{Header: rtp.Header{Version: 2, PayloadType: 96, SequenceNumber: seq, SSRC: ssrc}, Payload: []byte{1, 2, 3, 4}}
	b, err := p.Marshal()
	if err == nil {
		b, err = r.out.EncryptRTP(nil, b, nil)
	}
	if err == nil {
		_, err = r.conn.Load().Write(b)
	}
	if err != nil {
		r.t.Errorf("the browser sends %d: %v", seq, err)
	}
}

// TestRestart: ICE restarts, three times over, while media flows both ways: by new sockets of the browser, under the
// keys of before, and not a packet is lost. Both ICE roles.
func TestRestart(t *testing.T) {
	for _, offerer := range []bool{false, true} {
		t.Run(fmt.Sprintf("gateway controls %v", offerer), func(t *testing.T) {
			checkLeaks(t)
			l := newLab(t, func(_ *Config, tm *timing) { tm.oldChecks = 200 * time.Millisecond })
			core := newCoreEnd(t)
			r := newRoamer(t, !offerer)
			set := func(seq uint32) iq.LocalStream {
				return l.set(iq.Set{Ref: iq.Ref{Session: "s1", Seq: seq}, Offerer: offerer, Streams: []iq.Stream{{Media: "video", Access: r.remote(), Core: core.remote()}}}).Streams[0]
			}
			local := set(1)
			r.connect(local.Access)
			r.secure()
			l.want(iq.Connected, "s1")

			to := local.Core.RTP
			stop, flowing := make(chan struct{}), sync.WaitGroup{}
			var said, sent, heard, came atomic.Uint64
			flowing.Go(func() { // one packet each way every millisecond
				for seq := uint16(1); ; seq++ {
					r.say(77, seq)
					said.Add(1)
					if _, err := core.rtp.WriteToUDPAddrPort(rtpPacket(t, seq, "core"), to); err != nil {
						t.Error(err)
					}
					sent.Add(1)
					select {
					case <-stop:
						return
					case <-time.After(time.Millisecond):
					}
				}
			})
			quiet := make(chan struct{})
			var reading sync.WaitGroup
			reading.Go(func() {
				for {
					select {
					case b := <-r.media:
						if b[1]&0x7f >= 64 && b[1]&0x7f <= 95 {
							continue // RTCP
						}
						if _, err := r.in.DecryptRTP(nil, b, nil); err != nil {
							t.Errorf("the browser decrypts: %v", err)
						}
						heard.Add(1)
					case <-quiet:
						return
					}
				}
			})
			reading.Go(func() {
				for {
					raw, _ := receive(t, core.rtp, 100*time.Millisecond)
					if raw != nil {
						came.Add(1)
						continue
					}
					select {
					case <-quiet:
						return
					default:
					}
				}
			})
			st := l.of("s1")
			for n := uint32(2); n < 5; n++ {
				time.Sleep(50 * time.Millisecond)
				before := *st.selected.Load()
				r.gather()
				again := set(n)
				if again.Access.Ufrag == local.Access.Ufrag || again.Access.Pwd == local.Access.Pwd {
					t.Error("a restart keeps the gateway's credentials")
				}
				if again.Access.Default != local.Access.Default || again.Core != local.Core || again.Access.Fingerprint != local.Access.Fingerprint {
					t.Errorf("a restart changes more than credentials: %+v, %+v", local, again)
				}
				local = again
				time.Sleep(50 * time.Millisecond) // the answer's way to the browser
				if *st.selected.Load() != before {
					t.Error("the pair changes before the browser has the answer")
				}
				r.connect(local.Access)
				eventually(t, "the new pair is taken", func() bool { return *st.selected.Load() != before })
			}
			eventually(t, "the old generations have ended", func() bool { return len(*st.generations.Load()) == 1 && st.restarting.Load() == 0 })
			close(stop)
			flowing.Wait()
			eventually(t, "all has arrived", func() bool { return heard.Load() == sent.Load() && came.Load() == said.Load() })
			close(quiet)
			reading.Wait()
			if s := l.Stats(); s.Restarts != 3 || s.RestartsFailed != 0 || s.Drops["auth"] != 0 || s.Drops["foreign"] != 0 {
				t.Errorf("%+v", s)
			}
			t.Logf("%d and %d packets", sent.Load(), said.Load())
		})
	}
}

// TestRestartFindsNoPath: the old pair carries on, as it does when the browser takes its offer back; a new Set with the old
// credentials is no restart.
func TestRestartFindsNoPath(t *testing.T) {
	checkLeaks(t)
	l := newLab(t, func(_ *Config, tm *timing) { tm.ice = 300 * time.Millisecond })
	core := newCoreEnd(t)
	b := newBrowser(t)
	local := b.call(l, "s1", core.remote())
	l.want(iq.Connected, "s1")
	b.up()
	bothWaysLight(t, b, local, core)
	set := func(seq uint32, ufrag string) string {
		a := b.remote()
		a.Ufrag += ufrag
		return l.set(iq.Set{Ref: iq.Ref{Session: "s1", Seq: seq}, Streams: []iq.Stream{{Media: "audio", Access: a}}}).Streams[0].Access.Ufrag
	}
	if set(2, "x") == local.Access.Ufrag {
		t.Error("no new ufrag")
	}
	eventually(t, "the restart fails", func() bool { return l.Stats().RestartsFailed == 1 })
	if set(3, "") != local.Access.Ufrag {
		t.Error("the old ufrag is gone")
	}
	set(4, "y")
	set(5, "z") // and again before the first has ended
	if set(6, "") != local.Access.Ufrag {
		t.Error("the offer is taken back, and the old ufrag is gone")
	}
	st := l.of("s1")
	eventually(t, "nothing is left of the restarts", func() bool { return st.restarting.Load() == 0 && len(*st.generations.Load()) == 1 })
	b.say("after", 100, 5)
	if raw, _ := receive(t, core.rtp, 5*time.Second); raw == nil {
		t.Error("media has stopped")
	}
	select {
	case e := <-l.events:
		t.Errorf("event %s", e.Kind)
	default:
	}
}

// TestRestartAfterConsent: consent runs out while a restart is under way, and comes back with the new pair.
func TestRestartAfterConsent(t *testing.T) {
	checkLeaks(t)
	l := newLab(t, func(_ *Config, tm *timing) {
		tm.consentPeriod, tm.consentExpiry = 100*time.Millisecond, 400*time.Millisecond
	})
	core := newCoreEnd(t)
	r := newRoamer(t, true)
	set := func(seq uint32) iq.LocalStream {
		return l.set(iq.Set{Ref: iq.Ref{Session: "s1", Seq: seq}, Streams: []iq.Stream{{Media: "audio", Access: r.remote(), Core: core.remote()}}}).Streams[0]
	}
	r.connect(set(1).Access)
	r.secure()
	l.want(iq.Connected, "s1")
	old := r.agent
	r.gather()
	local := set(2)
	if err := old.GracefulClose(); err != nil { // the network is gone
		t.Fatal(err)
	}
	st := l.of("s1")
	eventually(t, "consent is lost", func() bool { return st.muted.Load() })
	r.connect(local.Access)
	eventually(t, "consent is back", func() bool { return !st.muted.Load() })
	r.say(77, 1)
	if raw, _ := receive(t, core.rtp, 5*time.Second); raw == nil {
		t.Error("no media on the new pair")
	}
	time.Sleep(600 * time.Millisecond) // longer than consent lasts: it is asked for on the new pair
	select {
	case e := <-l.events:
		t.Errorf("event %s", e.Kind)
	default:
	}
	if err := r.agent.GracefulClose(); err != nil {
		t.Fatal(err)
	}
	l.want(iq.ConsentLost, "s1")
}

// TestCandidatesBounded: offer after offer with other candidates under the same credentials does not make the agent grow.
func TestCandidatesBounded(t *testing.T) {
	checkLeaks(t)
	l := newLab(t, nil)
	b := newBrowser(t)
	b.call(l, "s1", nil)
	l.want(iq.Connected, "s1")
	for seq := range uint32(20) {
		a := b.remote()
		a.Candidates = nil
		for i := range uint16(iq.MaxCandidates) {
			a.Candidates = append(a.Candidates, fmt.Sprintf("1 1 udp 1 127.0.0.1 %d typ host", 20000+uint16(seq)*iq.MaxCandidates+i))
		}
		l.set(iq.Set{Ref: iq.Ref{Session: "s1", Seq: seq + 2}, Streams: []iq.Stream{{Media: "audio", Access: a}}})
	}
	time.Sleep(100 * time.Millisecond)
	list, err := (*l.of("s1").generations.Load())[0].agent.GetRemoteCandidates()
	if err != nil || len(list) > maxTold+1 {
		t.Errorf("%d candidates, %v", len(list), err)
	}
}

// TestRestartTakenBack: an offer that restarts ICE is taken back when its pair was nominated already: media goes back to the old
// pair, and consent is asked for there.
func TestRestartTakenBack(t *testing.T) {
	checkLeaks(t)
	l := newLab(t, func(_ *Config, tm *timing) {
		tm.consentPeriod, tm.consentExpiry = 100*time.Millisecond, 400*time.Millisecond
	})
	core := newCoreEnd(t)
	r := newRoamer(t, false)
	set := func(seq uint32) iq.LocalStream {
		return l.set(iq.Set{Ref: iq.Ref{Session: "s1", Seq: seq}, Offerer: true, Streams: []iq.Stream{{Media: "audio", Access: r.remote(), Core: core.remote()}}}).Streams[0]
	}
	r.connect(set(1).Access)
	r.secure()
	l.want(iq.Connected, "s1")
	st := l.of("s1")
	before, old, ufrag, pwd, candidates, conn := *st.selected.Load(), r.agent, r.ufrag, r.pwd, r.candidates, r.conn.Load()
	r.gather()
	r.connect(set(2).Access)
	eventually(t, "the new pair is taken", func() bool { return *st.selected.Load() != before })
	given := r.agent
	r.agent, r.ufrag, r.pwd, r.candidates = old, ufrag, pwd, candidates
	r.conn.Store(conn)
	set(3)
	if err := given.GracefulClose(); err != nil {
		t.Fatal(err)
	}
	if at := *st.selected.Load(); at != before {
		t.Errorf("media goes to %v, the old pair is %v", at, before)
	}
	time.Sleep(600 * time.Millisecond)
	select {
	case e := <-l.events:
		t.Errorf("event %s", e.Kind)
	default:
	}
}
