package browser

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"wicgate/imsagw"
	"wicgate/internal/iq"
	"wicgate/internal/keyring"
	"wicgate/internal/listen"
	"wicgate/internal/peerpolicy"
	"wicgate/internal/store"
	"wicgate/internal/token"
	"wicgate/test/lab"
	"wicgate/turn"
)

// echoPage offers audio over the relay alone, and plays what comes back.
const echoPage = `<!doctype html><title>echo</title><audio id=a autoplay></audio><script>
async function offer(servers) {
  window.pc = new RTCPeerConnection({iceServers: servers, iceTransportPolicy: "relay"});
  window.wicgate = {pc: () => pc};
  pc.ontrack = e => { a.srcObject = e.streams[0] || new MediaStream([e.track]); a.play(); };
  const mic = await navigator.mediaDevices.getUserMedia({audio: true});
  pc.addTrack(mic.getAudioTracks()[0], mic);
  const relay = new Promise((ok, no) => {
    pc.onicecandidate = e => { if (e.candidate && e.candidate.candidate.includes(" typ relay ")) ok(); };
    pc.onicecandidateerror = e => no(new Error(e.errorCode + " " + e.errorText));
    setTimeout(() => no(new Error("no relay candidate after 10 s")), 10000);
  });
  await pc.setLocalDescription(await pc.createOffer());
  await relay;
  return pc.localDescription.sdp;
}
</script>`

// TestEcho is the media path alone: Chromium's voice goes through our TURN, with the token in
// USERNAME, to our gateway, out to the core side in the clear, and back the whole way.
func TestEcho(t *testing.T) { testEcho(t, nil, "udp") }

// TestEchoWithoutUDP is the same where no UDP reaches the TURN server: nothing listens for it, as
// behind a firewall that drops it without a word. Chromium is told all ways, and takes TCP. Where it is
// told of TLS alone, it verifies the certificate's name.
func TestEchoWithoutUDP(t *testing.T) {
	t.Run("tcp", func(t *testing.T) { testEcho(t, []string{"udp", "tcp"}, "tcp") })
	t.Run("tls", func(t *testing.T) { testEcho(t, []string{"udp", "tls"}, "tls") })
}

// testEcho lets the page use the ways to the TURN server that are named, of which the one that is
// wanted works.
func testEcho(t *testing.T, ways []string, want string) {
	lo := netip.MustParseAddr("127.0.0.1")
	ring := keyring.New("turn.ims.test")
	cfg := turn.Config{
		Relays: []turn.Relay{{Bind: lo}},
		Tenant: turn.Tenant{
			Name: "turn.ims.test", Keys: ring, Peers: peerpolicy.IMS(peerpolicy.Range{Prefix: netip.PrefixFrom(lo, 32), MinPort: 42000, MaxPort: 42099}),
		},
	}
	caFile := ""
	if want == "udp" {
		cfg.Listen = []netip.AddrPort{netip.AddrPortFrom(lo, 0)}
	} else {
		ca, err := listen.DevelopmentCA(filepath.Join(t.TempDir(), "ca"), []string{"localhost"})
		if err != nil {
			t.Fatal(err)
		}
		caFile = ca.File
		cfg.TCP, cfg.Certificate = []netip.AddrPort{netip.AddrPortFrom(lo, 0)}, ca.GetCertificate
	}
	srv, err := turn.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var urls []string
	if want == "udp" {
		urls = []string{fmt.Sprintf("turn:%v?transport=udp", srv.Addrs()[0])}
	}
	for _, way := range ways {
		port := srv.TCPAddrs()[0].Port()
		switch way {
		case "udp":
			// A socket that takes packets and says nothing, where nothing at all would be answered by ICMP.
			hole, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(lo, port)))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = hole.Close() }() // it has sent nothing
			urls = append(urls, fmt.Sprintf("turn:127.0.0.1:%d?transport=udp", port))
		case "tcp":
			urls = append(urls, fmt.Sprintf("turn:127.0.0.1:%d?transport=tcp", port))
		case "tls":
			urls = append(urls, fmt.Sprintf("turns:localhost:%d?transport=tcp", port))
		}
	}
	bus := store.NewMemory()
	gateway, err := imsagw.New(imsagw.Config{Name: "agw1", Bus: bus,
		Access: imsagw.Side{Bind: lo, MinPort: 42000, MaxPort: 42099}, Core: imsagw.Side{Bind: lo, MinPort: 43000, MaxPort: 43099}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	for _, serve := range []func(context.Context) error{srv.Serve, gateway.Serve} {
		go func() { done <- serve(ctx) }()
	}
	defer func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}()
	edge, err := iq.NewClient(bus, "agw1", "edge1", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	events := make(chan iq.Event, 8)
	stop, err := edge.Events(func(e iq.Event) { events <- e })
	if err != nil {
		t.Fatal(err)
	}
	defer stop()

	// The core side: an echo that also sees that the packets are RTP in the clear.
	echo, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(lo, 0)))
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close() //nolint:errcheck // the test is over
	var opus atomic.Int64
	go func() {
		b := make([]byte, 2048)
		for {
			n, from, err := echo.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			if n > 12 && b[0] == 0x80|b[0]&0x3f && b[1]&0x7f == 111 {
				opus.Add(1)
			}
			if _, err := echo.WriteToUDPAddrPort(b[:n], from); err != nil {
				return
			}
		}
	}()

	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprint(w, echoPage)
	}))
	defer web.Close()
	page := NewChromium(t, nil, caFile).Page("echo")
	page.Open(web.URL)

	servers, err := json.Marshal([]map[string]any{iceServer(t, ring, urls)})
	if err != nil {
		t.Fatal(err)
	}
	var sdp string
	page.Eval(fmt.Sprintf("offer(%s)", servers), &sdp)
	set := iq.Set{Ref: iq.Ref{Epoch: "e", Edge: "edge1", Session: "s1", Seq: 1}, Streams: []iq.Stream{{
		Media: "audio", Access: accessOf(sdp),
		Core: &iq.CoreRemote{RTP: addrOf(echo), RTCP: netip.AddrPortFrom(lo, addrOf(echo).Port()+1)},
	}}}
	local, err := edge.Set(t.Context(), set)
	if err != nil {
		t.Fatal(err)
	}
	page.Eval(fmt.Sprintf("pc.setRemoteDescription({type: 'answer', sdp: %q}).then(() => 1)", answer(sdp, local.Streams[0].Access)), nil)

	select {
	case e := <-events:
		if e.Kind != iq.Connected {
			t.Fatalf("gateway: %s: %s", e.Kind, e.Detail)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("not connected after 10 s")
	}
	m := over(3*time.Second, page)[0]
	t.Logf("3 s: %+v, %d Opus packets seen in the clear", m, opus.Load())
	if m.Local != "relay" || m.RelayProtocol != want || m.SRTP != "SRTP_AEAD_AES_256_GCM" {
		t.Errorf("path: %+v", m)
	}
	if m.Packets < 100 || m.Energy < 0.001 || opus.Load() < 100 {
		t.Errorf("no echo: %+v, %d Opus packets in the clear", m, opus.Load())
	}
	set.Ref.Seq++
	report, err := edge.Release(t.Context(), iq.Release{Ref: set.Ref})
	if err != nil {
		t.Fatal(err)
	}
	if r := report.Streams[0]; r.Profile != "SRTP_AEAD_AES_256_GCM" || r.AccessRx.Packets < 100 || r.CoreRx.Packets < 100 {
		t.Errorf("report: %+v", r)
	}
	page.Eval("pc.close()", nil)
	lab.Eventually(t, 5*time.Second, "zero allocations", func() bool { return srv.Stats().Allocations == 0 })
}

func addrOf(c *net.UDPConn) netip.AddrPort { return c.LocalAddr().(*net.UDPAddr).AddrPort() }

// iceServer is what the WAF tells a browser: the token in USERNAME.
func iceServer(t *testing.T, ring *keyring.Ring, urls []string) map[string]any {
	t.Helper()
	kid := ring.KID("p5eud0nym")
	key, format, _, ok := ring.Key(kid)
	if !ok {
		t.Fatal("no key")
	}
	mac := token.NewMACKey()
	tok, err := token.Seal(format, key, ring.Server(), token.Payload{MACKey: mac, Timestamp: token.NewTimestamp(time.Now()), Lifetime: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	return map[string]any{
		"urls":     urls,
		"username": string(token.AppendUsername(nil, kid, tok)), "credential": string(token.Credential(mac).Expose()),
	}
}
