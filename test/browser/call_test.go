package browser

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"wicgate/test/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

const portal = "https://" + lab.Edge + ":8443/"

// configuration of the lab: the default, with the addresses of its picture.
func configuration(t testing.TB, keys string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "wicgate.yaml")
	text := fmt.Sprintf(`
log: {level: debug}
https: {listen: "%[1]s:8443", url: "https://%[1]s:8443"}
turn: {listen: ["%[1]s:3478"], urls: ["turn:%[1]s:3478?transport=udp"], relay: {bind: %[2]s}, keys: %[4]s}
imsagw: {access: {bind: %[3]s}}
`, lab.Edge, lab.Relay, lab.Gateway, keys)
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// logIn takes a page from the portal to the registered state.
func logIn(p *Page, user, password string) {
	p.t.Helper()
	p.Do(chromedp.Navigate(portal))
	p.Click("#login")
	p.Fill("input[name=username]", user)
	p.Fill("input[name=password]", password)
	p.Click("button[type=submit]")
	p.Wait(15*time.Second, `document.body.dataset.registration === "registered"`)
}

// dial starts a call, as a person does.
func dial(p *Page, callee string) {
	p.t.Helper()
	p.Fill("#callee", callee)
	p.Click("#call")
}

func callState(p *Page, limit time.Duration, state string) {
	p.t.Helper()
	p.Wait(limit, fmt.Sprintf(`document.body.dataset.call === %q`, state))
}

// media is what getStats says about a call.
type media struct {
	Local, RelayProtocol, SRTP, DTLS string
	Sent, Received                   float64 // bytes over the selected pair
	Packets, Energy                  float64 // inbound audio
}

const mediaJS = `(async () => {
  const out = {Local: "", RelayProtocol: "", SRTP: "", DTLS: "", Sent: 0, Received: 0, Packets: 0, Energy: 0};
  const pc = wicgate.pc();
  if (!pc) return out;
  const all = await pc.getStats();
  all.forEach(s => {
    if (s.type === "transport") {
      out.SRTP = s.srtpCipher; out.DTLS = s.dtlsState;
      const pair = all.get(s.selectedCandidatePairId);
      if (pair) {
        out.Sent = pair.bytesSent; out.Received = pair.bytesReceived;
        const local = all.get(pair.localCandidateId);
        out.Local = local.candidateType; out.RelayProtocol = local.relayProtocol;
      }
    }
    if (s.type === "inbound-rtp" && s.kind === "audio") { out.Packets = s.packetsReceived; out.Energy = s.totalAudioEnergy; }
  });
  return out;
})()`

func (p *Page) media() (m media) {
	p.t.Helper()
	p.Eval(mediaJS, &m)
	return m
}

// over measures both pages across a span of real media.
func over(span time.Duration, pages ...*Page) (diff []media) {
	var before []media
	for _, p := range pages {
		before = append(before, p.media())
	}
	time.Sleep(span) // media runs in real time
	for i, p := range pages {
		m := p.media()
		m.Sent -= before[i].Sent
		m.Received -= before[i].Received
		m.Packets -= before[i].Packets
		m.Energy -= before[i].Energy
		diff = append(diff, m)
	}
	return diff
}

// system is wicgate as two processes, so that TURN can be stopped alone, and two pages.
type system struct {
	t          *testing.T
	wic, edge  *lab.Host
	config     string
	core, turn *lab.Process
	turnData   string
	alice, bob *Page
}

func newSystem(t *testing.T) *system {
	wic, edge := lab.Pair(t)
	data := lab.DataFolder(t)
	s := &system{t: t, wic: wic, edge: edge, config: configuration(t, filepath.Join(data, "turn-keys.json")), turnData: lab.DataFolder(t)}
	s.core = lab.Start(t, edge, data, "--config", s.config, "waf", "wwsf", "epcscf", "imsagw", "democore")
	s.startTURN()
	// A browser each: a page that is not in front gets no clicks.
	ca := filepath.Join(data, "ca", "ca.pem")
	s.alice, s.bob = NewChromium(t, wic, ca).Page("alice"), NewChromium(t, wic, ca).Page("bob")
	return s
}

func (s *system) startTURN() {
	s.t.Helper()
	s.turn = lab.Start(s.t, s.edge, s.turnData, "--config", s.config, "turn")
}

func (s *system) call() {
	s.t.Helper()
	dial(s.alice, "bob")
	callState(s.bob, 10*time.Second, "incoming")
	s.bob.Click("#answer")
	callState(s.alice, 10*time.Second, "active")
	callState(s.bob, 10*time.Second, "active")
}

// quiet waits until nothing of any call is left.
func (s *system) quiet(limit time.Duration) {
	s.t.Helper()
	lab.Eventually(s.t, limit, "zero calls at the edge, the core and the gateway, zero allocations", func() bool {
		return s.core.Count("epcscf", "Calls") == 0 && s.core.Count("democore", "Calls") == 0 &&
			s.core.Count("imsagw", "Sessions") == 0 && s.turn.Count("turn", "Allocations") == 0
	})
}

func TestTwoPagesTalk(t *testing.T) {
	s := newSystem(t)

	t.Run("the gateway is out of the browser's reach", func(t *testing.T) {
		out, err := s.wic.Command("ip", "route", "get", lab.Gateway).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "unreachable") {
			t.Errorf("ip route get %s = %s, %v", lab.Gateway, out, err)
		}
	})

	t.Run("log in and register", func(t *testing.T) {
		p := s.alice
		p.Do(chromedp.Navigate(portal))
		p.Click("#login")
		p.Fill("input[name=username]", "alice")
		p.Fill("input[name=password]", "wrong-wrong-wrong")
		p.Click("button[type=submit]")
		p.Wait(10*time.Second, `document.querySelector("[role=alert]")?.innerText`)
		if n := s.core.Count("epcscf", "Bindings"); n != 0 {
			t.Errorf("%v bindings after a wrong password", n)
		}
		logIn(s.alice, "alice", s.core.Password("alice"))
		logIn(s.bob, "bob", s.core.Password("bob"))
		if n := s.core.Count("epcscf", "Bindings"); n != 2 {
			t.Errorf("%v bindings, want 2", n)
		}
		if n := s.core.Count("democore", "Registrations"); n != 2 {
			t.Errorf("%v registrations at the core, want 2", n)
		}
	})
	if t.Failed() {
		return
	}

	t.Run("audio both ways through the relay", func(t *testing.T) {
		s.call()
		if n := s.turn.Count("turn", "Allocations"); n < 2 {
			t.Errorf("%v allocations during the call, want one for each page", n)
		}
		callState(s.alice, time.Second, "active")
		s.alice.Wait(5*time.Second, `document.querySelector("audio")?.srcObject`)
		begin, before := time.Now(), s.count()
		diff := over(5*time.Second, s.alice, s.bob)
		after, span := s.count(), time.Since(begin)
		for i, p := range []*Page{s.alice, s.bob} {
			m := diff[i]
			t.Logf("%s over 5 s: %+v", p.Name, m)
			if m.Local != "relay" || m.RelayProtocol != "udp" {
				t.Errorf("%s: local candidate %q over %q, want relay over udp", p.Name, m.Local, m.RelayProtocol)
			}
			if m.SRTP != "SRTP_AEAD_AES_256_GCM" || m.DTLS != "connected" {
				t.Errorf("%s: SRTP %q, DTLS %q", p.Name, m.SRTP, m.DTLS)
			}
			if m.Packets < 200 || m.Sent < 5000 || m.Received < 5000 {
				t.Errorf("%s: %v packets, %v bytes out, %v in over 5 s", p.Name, m.Packets, m.Sent, m.Received)
			}
			if m.Energy < 0.001 {
				t.Errorf("%s: silence: energy %v", p.Name, m.Energy)
			}
		}
		witnesses(t, before, after, diff, span.Seconds()/5)
		s.alice.Show("call")
		s.bob.Show("call")
	})
	if t.Failed() {
		return
	}

	t.Run("a muted sender is told apart", func(t *testing.T) {
		s.alice.Click("#mute")
		time.Sleep(500 * time.Millisecond) // what was spoken before is still on its way
		m := over(3*time.Second, s.bob)[0]
		if m.Packets < 100 || m.Energy > 0.0001 {
			t.Errorf("bob hears a muted alice: %v packets, energy %v", m.Packets, m.Energy)
		}
		s.alice.Click("#mute")
		time.Sleep(500 * time.Millisecond)
		if m := over(3*time.Second, s.bob)[0]; m.Energy < 0.001 {
			t.Errorf("bob hears nothing of an unmuted alice: energy %v", m.Energy)
		}
	})

	t.Run("after BYE nothing is left", func(t *testing.T) {
		s.bob.Click("#hangup")
		s.alice.Wait(5*time.Second, `["idle", "ended"].includes(document.body.dataset.call)`)
		s.quiet(10 * time.Second)
	})

	t.Run("failures in words", func(t *testing.T) {
		dial(s.alice, "bob")
		callState(s.bob, 10*time.Second, "incoming")
		s.bob.Click("#decline")
		s.alice.Wait(5*time.Second, `document.querySelector("#error").innerText !== ""`)
		s.quiet(10 * time.Second)
		dial(s.alice, "nobody")
		s.alice.Wait(10*time.Second, `["idle", "ended"].includes(document.body.dataset.call) && document.querySelector("#error").innerText !== ""`)
		s.quiet(10 * time.Second)
		dial(s.alice, "bob")
		callState(s.bob, 10*time.Second, "incoming")
		s.alice.Click("#hangup") // CANCEL
		s.bob.Wait(5*time.Second, `["idle", "ended"].includes(document.body.dataset.call)`)
		s.quiet(10 * time.Second)
	})

	t.Run("click to first audio", func(t *testing.T) {
		const calls = 20
		var took []float64
		for range calls {
			s.call()
			var ms float64
			s.alice.Wait(10*time.Second, "wicgate.firstAudio() !== null")
			s.alice.Eval("wicgate.firstAudio()", &ms)
			took = append(took, ms)
			s.alice.Click("#hangup")
			s.bob.Wait(5*time.Second, `["idle", "ended"].includes(document.body.dataset.call)`)
		}
		s.quiet(10 * time.Second)
		slices.Sort(took)
		lab.Figure(t, "click to first audio", "median 600 ms", "median %.0f ms of %d (%.0f-%.0f)", took[calls/2], calls, took[0], took[calls-1])
	})

	t.Run("without TURN there is no media, and the call ends", func(t *testing.T) {
		s.call()
		if m := over(time.Second, s.bob)[0]; m.Packets < 20 {
			t.Fatalf("no media before: %v packets", m.Packets)
		}
		if err := s.turn.Stop(); err != nil {
			t.Errorf("TURN: %v", err)
		}
		time.Sleep(500 * time.Millisecond)
		for i, m := range over(2*time.Second, s.alice, s.bob) {
			if m.Packets != 0 {
				t.Errorf("page %d: %v packets with TURN stopped", i, m.Packets)
			}
		}
		// Consent ends after 30 s (RFC 7675); the edge then ends the call.
		for _, p := range []*Page{s.alice, s.bob} {
			p.Wait(45*time.Second, `["idle", "ended"].includes(document.body.dataset.call)`)
		}
		lab.Eventually(t, 5*time.Second, "zero calls and sessions", func() bool {
			return s.core.Count("epcscf", "Calls") == 0 && s.core.Count("imsagw", "Sessions") == 0
		})
		s.startTURN()
		s.call()
		s.alice.Click("#hangup")
		s.quiet(10 * time.Second)
	})

	t.Run("a page that goes takes its call and its registration along", func(t *testing.T) {
		s.call()
		s.bob.Do(chromedp.Navigate("about:blank"))
		s.alice.Wait(10*time.Second, `["idle", "ended"].includes(document.body.dataset.call)`)
		s.quiet(15 * time.Second)
		lab.Eventually(t, 5*time.Second, "one binding, one registration", func() bool {
			return s.core.Count("epcscf", "Bindings") == 1 && s.core.Count("democore", "Registrations") == 1
		})
	})

	t.Run("no token reached the core or a log", func(t *testing.T) {
		for _, p := range []*lab.Process{s.core, s.turn} {
			for _, leak := range []string{"Bearer ey", "eyJ", s.core.Password("alice"), s.core.Password("bob")} {
				if strings.Contains(p.Log(), leak) {
					t.Errorf("the log holds %q", leak)
				}
			}
		}
	})
}

// witnesses: what TURN and the gateway counted agrees with what the pages received. Their counters
// are read before and after the pages', and so over a span that is longer by the factor longer.
func witnesses(t *testing.T, before, after map[string]float64, diff []media, longer float64) {
	t.Helper()
	pages := diff[0].Packets + diff[1].Packets
	for name := range before {
		n := after[name] - before[name]
		t.Logf("%-28s %4.0f packets over %.2f times the span; the pages received %.0f", name, n, longer, pages)
		if n < pages*0.95 || n > pages*longer*1.1+20 { // RTCP, DTLS and consent checks go the same way
			t.Errorf("%s: %v packets over %.2f times the span, the pages received %v", name, n, longer, pages)
		}
	}
}

// count reads the witnesses.
func (s *system) count() map[string]float64 {
	s.t.Helper()
	return map[string]float64{
		"turn, client to peer":     s.turn.Count("turn", "ToPeerPackets"),
		"turn, peer to client":     s.turn.Count("turn", "ToClientPackets"),
		"gateway, browser to core": s.core.Count("imsagw", "CoreTx", "packets"),
		"gateway, core to browser": s.core.Count("imsagw", "AccessTx", "packets"),
	}
}
