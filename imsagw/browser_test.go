package imsagw

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/pion/ice/v4"
	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"
	"go.uber.org/goleak"

	"wicgate/internal/iq"
	"wicgate/internal/store"
)

var loopback = netip.MustParseAddr("127.0.0.1")

// checkLeaks is the first line of a test with goroutines: it looks once everything else is cleaned up.
func checkLeaks(t *testing.T) {
	t.Helper()
	t.Cleanup(func() { goleak.VerifyNone(t) })
}

// lab is a gateway, the edge's client, and the events.
type lab struct {
	*Gateway
	t      *testing.T
	bus    *store.Memory
	edge   *iq.Client
	events chan iq.Event
	stop   context.CancelFunc
	served chan error
}

// newLab starts a gateway on loopback. change may be nil.
func newLab(t *testing.T, change func(*Config, *timing)) *lab {
	t.Helper()
	l := &lab{t: t, bus: store.NewMemory(), events: make(chan iq.Event, 64), served: make(chan error, 1)}
	cfg := Config{Name: "agw1", Access: Side{Bind: loopback}, Core: Side{Bind: loopback}, Bus: l.bus}
	tm := defaultTiming
	if change != nil {
		change(&cfg, &tm)
	}
	var err error
	if l.Gateway, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	l.Gateway.timing = tm
	ctx, cancel := context.WithCancel(context.Background())
	l.stop = cancel
	go func() { l.served <- l.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-l.served; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if n := l.Stats().Sessions; n != 0 {
			t.Errorf("%d sessions outlive Serve", n)
		}
	})
	if l.edge, err = iq.NewClient(l.bus, "agw1", "edge1", nil); err != nil {
		t.Fatal(err)
	}
	unsubscribe, err := l.edge.Events(func(e iq.Event) { l.events <- e })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(unsubscribe)
	eventually(t, "the gateway answers", func() bool {
		_, err := l.edge.Release(t.Context(), iq.Release{Ref: iq.Ref{Session: "none"}})
		return errors.Is(err, iq.ErrUnknownSession)
	})
	return l
}

// want waits for the next event and checks its kind and session.
func (l *lab) want(kind iq.EventKind, session string) iq.Event {
	l.t.Helper()
	select {
	case e := <-l.events:
		if e.Kind != kind || e.Ref.Session != session {
			l.t.Fatalf("event %s of %s (%s), want %s of %s", e.Kind, e.Ref.Session, e.Detail, kind, session)
		}
		return e
	case <-time.After(8 * time.Second):
		l.t.Fatalf("no event %s of %s; stats %+v", kind, session, l.Stats())
	}
	panic("unreachable")
}

func (l *lab) set(s iq.Set) iq.Local {
	l.t.Helper()
	local, err := l.edge.Set(l.t.Context(), s)
	if err != nil {
		l.t.Fatal(err)
	}
	return local
}

func (l *lab) release(session string, seq uint32) iq.Report {
	l.t.Helper()
	r, err := l.edge.Release(l.t.Context(), iq.Release{Ref: iq.Ref{Session: session, Seq: seq}})
	if err != nil {
		l.t.Fatal(err)
	}
	return r
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not within 5 s: %s", what)
}

// browser is a pion/webrtc peer with one Opus track each way, seen as its SDP.
type browser struct {
	t      *testing.T
	pc     *webrtc.PeerConnection
	track  *webrtc.TrackLocalStaticRTP
	sender *webrtc.RTPSender
	heard  chan *rtp.Packet
}

// newBrowser makes one. profiles nil: pion's own, which are the browsers'.
func newBrowser(t *testing.T, profiles ...dtls.SRTPProtectionProfile) *browser {
	t.Helper()
	m := &webrtc.MediaEngine{}
	if err := m.RegisterCodec(webrtc.RTPCodecParameters{
		RTPCodecCapability: webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeOpus, ClockRate: 48000, Channels: 2}, PayloadType: 111,
	}, webrtc.RTPCodecTypeAudio); err != nil {
		t.Fatal(err)
	}
	se := webrtc.SettingEngine{LoggerFactory: noLog{}}
	se.SetIncludeLoopbackCandidate(true)
	se.SetInterfaceFilter(func(n string) bool { return n == "lo" })
	se.SetNetworkTypes([]webrtc.NetworkType{webrtc.NetworkTypeUDP4})
	se.SetICEMulticastDNSMode(ice.MulticastDNSModeDisabled)
	if profiles != nil {
		se.SetSRTPProtectionProfiles(profiles...)
	}
	pc, err := webrtc.NewAPI(webrtc.WithMediaEngine(m), webrtc.WithSettingEngine(se)).NewPeerConnection(webrtc.Configuration{})
	if err != nil {
		t.Fatal(err)
	}
	b := &browser{t: t, pc: pc, heard: make(chan *rtp.Packet, 1024)}
	t.Cleanup(b.hangUp)
	if b.track, err = webrtc.NewTrackLocalStaticRTP(webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeOpus, ClockRate: 48000, Channels: 2}, "a", "s"); err != nil {
		t.Fatal(err)
	}
	if b.sender, err = pc.AddTrack(b.track); err != nil {
		t.Fatal(err)
	}
	pc.OnTrack(func(tr *webrtc.TrackRemote, _ *webrtc.RTPReceiver) {
		for {
			p, _, err := tr.ReadRTP()
			if err != nil {
				return
			}
			select {
			case b.heard <- p:
			default:
			}
		}
	})
	return b
}

func (b *browser) hangUp() {
	if err := b.pc.GracefulClose(); err != nil {
		b.t.Errorf("close the browser: %v", err)
	}
}

// remote reads what the edge reads from the browser's own SDP.
func (b *browser) remote() *iq.AccessRemote {
	b.t.Helper()
	r := &iq.AccessRemote{}
	for line := range strings.Lines(b.pc.LocalDescription().SDP) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), ":")
		switch k {
		case "a=ice-ufrag":
			r.Ufrag = v
		case "a=ice-pwd":
			r.Pwd = v
		case "a=fingerprint":
			r.Fingerprint.Hash, r.Fingerprint.Value, _ = strings.Cut(v, " ")
		case "a=candidate":
			r.Candidates = append(r.Candidates, v)
		}
	}
	if len(r.Candidates) == 0 {
		b.t.Fatalf("no candidates in\n%s", b.pc.LocalDescription().SDP)
	}
	return r
}

// ssrc of the browser's own track.
func (b *browser) ssrc() webrtc.SSRC { return b.sender.GetParameters().Encodings[0].SSRC }

// coreSSRC is the source of a plain core end.
const coreSSRC = 7000

// sdp writes the gateway's side as the edge does; ssrc is the far end's.
func sdp(l iq.AccessLocal, setup string, ssrc webrtc.SSRC) string {
	var s strings.Builder
	fmt.Fprintf(&s, "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0\r\n")
	fmt.Fprintf(&s, "m=audio %d UDP/TLS/RTP/SAVPF 111\r\nc=IN IP4 %v\r\na=mid:0\r\na=sendrecv\r\na=rtcp-mux\r\n", l.Default.Port(), l.Default.Addr())
	fmt.Fprintf(&s, "a=ice-ufrag:%s\r\na=ice-pwd:%s\r\na=fingerprint:%s %s\r\na=setup:%s\r\n", l.Ufrag, l.Pwd, l.Fingerprint.Hash, l.Fingerprint.Value, setup)
	fmt.Fprintf(&s, "a=rtpmap:111 opus/48000/2\r\na=ssrc:%d cname:far\r\na=msid:far audio\r\n", ssrc)
	for _, c := range l.Candidates {
		fmt.Fprintf(&s, "a=candidate:%s\r\n", c)
	}
	s.WriteString("a=end-of-candidates\r\n")
	return s.String()
}

func (b *browser) describe(own func() (webrtc.SessionDescription, error)) {
	b.t.Helper()
	d, err := own()
	if err != nil {
		b.t.Fatal(err)
	}
	done := webrtc.GatheringCompletePromise(b.pc)
	if err := b.pc.SetLocalDescription(d); err != nil {
		b.t.Fatal(err)
	}
	<-done
}

// call is the browser offering through the gateway to a core address.
func (b *browser) call(l *lab, session string, core *iq.CoreRemote) iq.LocalStream {
	b.t.Helper()
	local := b.offer(l, session, core)
	b.accept(webrtc.SDPTypeAnswer, sdp(local.Access, "passive", coreSSRC))
	return local
}

// offer is the first half of call: the browser has no answer yet.
func (b *browser) offer(l *lab, session string, core *iq.CoreRemote) iq.LocalStream {
	b.t.Helper()
	b.describe(func() (webrtc.SessionDescription, error) { return b.pc.CreateOffer(nil) })
	return l.set(iq.Set{Ref: iq.Ref{Session: session, Seq: 1}, Streams: []iq.Stream{{Media: "audio", Access: b.remote(), Core: core}}}).Streams[0]
}

// take is the browser answering an offer of the gateway.
func (b *browser) take(l *lab, session string, core *iq.CoreRemote) iq.LocalStream {
	b.t.Helper()
	return b.takeFrom(l, session, core, coreSSRC)
}

func (b *browser) takeFrom(l *lab, session string, core *iq.CoreRemote, ssrc webrtc.SSRC) iq.LocalStream {
	b.t.Helper()
	local := l.set(iq.Set{Ref: iq.Ref{Session: session, Seq: 1}, Offerer: true, Streams: []iq.Stream{{Media: "audio", Core: core}}}).Streams[0]
	b.accept(webrtc.SDPTypeOffer, sdp(local.Access, "actpass", ssrc))
	b.describe(func() (webrtc.SessionDescription, error) { return b.pc.CreateAnswer(nil) })
	again := l.set(iq.Set{Ref: iq.Ref{Session: session, Seq: 2}, Offerer: true, Streams: []iq.Stream{{Media: "audio", Access: b.remote()}}}).Streams[0]
	if again.Access.Ufrag != local.Access.Ufrag || again.Core != local.Core {
		b.t.Errorf("a later Set changes the gateway's side: %+v, %+v", local, again)
	}
	return local
}

func (b *browser) accept(kind webrtc.SDPType, text string) {
	b.t.Helper()
	if err := b.pc.SetRemoteDescription(webrtc.SessionDescription{Type: kind, SDP: text}); err != nil {
		b.t.Fatalf("%v\n%s", err, text)
	}
}

// up waits until the browser has keys too.
func (b *browser) up() {
	b.t.Helper()
	eventually(b.t, "the browser is connected", func() bool { return b.pc.ConnectionState() == webrtc.PeerConnectionStateConnected })
}

// say sends n Opus packets whose payload begins with word.
func (b *browser) say(word string, from, n int) {
	b.t.Helper()
	for i := from; i < from+n; i++ {
		p := &rtp.Packet{Header: rtp.Header{Version: 2, SequenceNumber: uint16(i), Timestamp: uint32(i * 960)}, Payload: []byte(word + " " + strconv.Itoa(i))}
		if err := b.track.WriteRTP(p); err != nil {
			b.t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
}

// hear waits for the next packet.
func (b *browser) hear() *rtp.Packet {
	b.t.Helper()
	select {
	case p := <-b.heard:
		return p
	case <-time.After(5 * time.Second):
		b.t.Fatal("the browser hears nothing")
		return nil
	}
}

// coreEnd is a plain RTP peer in the core: RTP on an even port, RTCP on the next.
type coreEnd struct {
	t         *testing.T
	rtp, rtcp *net.UDPConn
}

func newCoreEnd(t *testing.T) *coreEnd {
	t.Helper()
	r, err := newPortRange("test", Side{Bind: loopback}, 2)
	if err != nil {
		t.Fatal(err)
	}
	conns, err := r.open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeAll(conns) })
	return &coreEnd{t, conns[0], conns[1]}
}

func addrOf(c *net.UDPConn) netip.AddrPort { return c.LocalAddr().(*net.UDPAddr).AddrPort() }

func (c *coreEnd) remote() *iq.CoreRemote {
	return &iq.CoreRemote{RTP: addrOf(c.rtp), RTCP: addrOf(c.rtcp)}
}

// receive reads one datagram, or returns nil after wait.
func receive(t *testing.T, conn *net.UDPConn, wait time.Duration) ([]byte, netip.AddrPort) {
	t.Helper()
	b := make([]byte, 4096)
	if err := conn.SetReadDeadline(time.Now().Add(wait)); err != nil {
		t.Fatal(err)
	}
	n, from, err := conn.ReadFromUDPAddrPort(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, netip.AddrPort{}
	}
	if err != nil {
		t.Fatal(err)
	}
	return b[:n], from
}

// rtpPacket writes a plain packet of the core's source.
func rtpPacket(t *testing.T, seq uint16, payload string) []byte {
	t.Helper()
	p := rtp.Packet{Header: rtp.Header{Version: 2, PayloadType: 111, SequenceNumber: seq, Timestamp: uint32(seq) * 960, SSRC: coreSSRC}, Payload: []byte(payload)}
	b, err := p.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return b
}
