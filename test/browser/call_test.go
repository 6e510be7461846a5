package browser

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"wicgate/test/lab"
)

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
	anew                             bool    // see over
}

const mediaJS = `(async () => {
  const out = {Local: "", RelayProtocol: "", SRTP: "", DTLS: "", Sent: 0, Received: 0, Packets: 0, Energy: 0};
  const pc = wicgate.pc();
  if (!pc) return out;
  const all = await pc.getStats();
  let pair;
  all.forEach(s => {
    if (s.type === "transport") {
      out.SRTP = s.srtpCipher; out.DTLS = s.dtlsState;
      pair ??= all.get(s.selectedCandidatePairId);
    }
    if (s.type === "candidate-pair" && s.selected) pair = s; // Firefox
    if (s.type === "inbound-rtp" && s.kind === "audio") { out.Packets = s.packetsReceived; out.Energy = s.totalAudioEnergy; }
  });
  if (pair) {
    out.Sent = pair.bytesSent; out.Received = pair.bytesReceived;
    const local = all.get(pair.localCandidateId);
    out.Local = local.candidateType; out.RelayProtocol = local.relayProtocol;
  }
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
		if m.Packets < before[i].Packets { // a new description: Chromium counts its receiver anew
			before[i].Packets, before[i].Energy, m.anew = 0, 0, true
		}
		m.Sent -= before[i].Sent
		m.Received -= before[i].Received
		m.Packets -= before[i].Packets
		m.Energy -= before[i].Energy
		diff = append(diff, m)
	}
	return diff
}

// connect takes two registered pages to an active call.
func connect(from, to *Page) {
	from.t.Helper()
	dial(from, to.Name)
	callState(to, 10*time.Second, "incoming")
	to.Click("#answer")
	callState(from, 10*time.Second, "active")
	callState(to, 10*time.Second, "active")
}

func (s *system) call() {
	s.t.Helper()
	connect(s.alice, s.bob)
}

// ended waits until a page has no call.
func ended(p *Page, limit time.Duration) {
	p.t.Helper()
	p.Wait(limit, `["idle", "ended"].includes(document.body.dataset.call)`)
}

// firstAudio waits for the first sound of a call, and returns when it came after the click.
func firstAudio(p *Page) time.Duration {
	p.t.Helper()
	var ms float64
	p.Wait(10*time.Second, "wicgate.firstAudio() !== null")
	p.Eval("wicgate.firstAudio()", &ms)
	return time.Duration(ms * float64(time.Millisecond))
}

// heard checks that both pages heard each other over a span through the relay, over one of protocols
// towards the relay, by what they measured and by what TURN and the gateway counted.
func (s *system) heard(span time.Duration, protocols ...string) {
	s.t.Helper()
	begin, before := time.Now(), s.count()
	diff := over(span, s.alice, s.bob)
	after, longer := s.count(), time.Since(begin).Seconds()/span.Seconds()
	for i, p := range []*Page{s.alice, s.bob} {
		m := diff[i]
		s.t.Logf("%s over %v: %+v", p.Name, span, m)
		if m.Local != "relay" || !slices.Contains(protocols, m.RelayProtocol) {
			s.t.Errorf("%s: local candidate %q over %q, want relay over %v", p.Name, m.Local, m.RelayProtocol, protocols)
		}
		if m.SRTP != "SRTP_AEAD_AES_256_GCM" || m.DTLS != "connected" {
			s.t.Errorf("%s: SRTP %q, DTLS %q", p.Name, m.SRTP, m.DTLS)
		}
		if least := span.Seconds() * 20; m.Packets < least || m.Sent < least*25 || m.Received < least*25 {
			s.t.Errorf("%s: %v packets, %v bytes out, %v in over %v", p.Name, m.Packets, m.Sent, m.Received, span)
		}
		if m.Energy < 0.001 {
			s.t.Errorf("%s: silence: energy %v", p.Name, m.Energy)
		}
	}
	witnesses(s.t, before, after, diff, longer)
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
	s := newSystem(t, plan{keys: keys{"turn": {"urls": turnURLs(lab.TURNName)[:1]}}, turn: keys{}})

	t.Run("the gateway is out of the browser's reach", func(t *testing.T) {
		out, err := s.wic.Command("ip", "route", "get", lab.Gateway).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "No route to host") {
			t.Errorf("ip route get %s = %s, %v", lab.Gateway, out, err)
		}
	})

	t.Run("log in and register", func(t *testing.T) {
		p := s.alice
		p.Open(portal)
		p.Click("#login")
		p.Fill("input[name=username]", "alice")
		p.Fill("input[name=password]", "wrong-wrong-wrong")
		p.Click("button[type=submit]")
		p.Wait(10*time.Second, `document.querySelector("[role=alert]")?.innerText`)
		if n := s.core.Count("epcscf", "Bindings"); n != 0 {
			t.Errorf("%v bindings after a wrong password", n)
		}
		s.logIn()
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
		s.heard(5*time.Second, "udp")
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
		ended(s.alice, 5*time.Second)
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
		ended(s.bob, 5*time.Second)
		s.quiet(10 * time.Second)
	})

	t.Run("click to first audio", func(t *testing.T) {
		const calls = 20
		var took []float64
		for range calls {
			s.call()
			took = append(took, firstAudio(s.alice).Seconds()*1000)
			s.alice.Click("#hangup")
			ended(s.bob, 5*time.Second)
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
			ended(p, 45*time.Second)
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
		s.bob.Open("about:blank")
		ended(s.alice, 10*time.Second)
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
