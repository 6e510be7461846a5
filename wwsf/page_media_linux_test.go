//go:build !race

package wwsf

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// Video, devices, guests and credentials on the page; see page_linux_test.go.

func (p *tab) pressed(id string) string {
	return p.str(fmt.Sprintf(`document.querySelector(%q).ariaPressed`, id))
}

// videoDial calls with a picture.
func (p *tab) videoDial(callee string) {
	p.t.Helper()
	p.wait(`!document.querySelector("#dial").hidden`)
	p.do(chromedp.Click("#callee"), chromedp.Evaluate[chromedp.Void](`document.querySelector("#callee").select()`), chromedp.SendKeys("#callee", callee), chromedp.Click("#video-call"))
}

func TestPageMedia(t *testing.T) {
	browser := startChromium(t)

	t.Run("a video call", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		p := newTab(t, browser, "")
		p.logIn(w)
		p.videoDial("bob")
		p.state("active")
		p.wait("wicgate.firstVideo() > 0 && wicgate.firstAudio() > 0")
		p.wait(`(await wicgate.stats()).video.framesDecoded > 20 && document.body.dataset.video === "on" && document.querySelector("#remote-video").videoWidth > 0`)
		invite := w.edge.last("INVITE").body
		for i, line := range strings.Split(invite, "\r\nm=")[1:] {
			if !strings.Contains(line, " typ relay ") {
				t.Errorf("media line %d left without a relay candidate:\n%s", i, line)
			}
		}
		if !strings.Contains(invite, "VP8/90000") || !strings.Contains(invite, "H264/90000") {
			t.Error("the offer lacks VP8 or H264")
		}
		p.wait(`document.querySelector('[data-plot="bitrate"] dd').innerText.includes("bit/s") && document.querySelector('[data-plot="bitrate"] .curve').getAttribute("d")`)
		p.wait(`/\d (min|s)/.test(document.querySelector('#life [data-life="relay"] b').innerText)`)
		if os := p.str(`document.querySelector("#path-summary").innerText`); !strings.Contains(os, "voice and picture are encrypted") {
			t.Errorf("the summary reads %q", os)
		}
		p.picture("video")
		p.do(chromedp.Evaluate[chromedp.Void](`document.querySelector("#plots").scrollIntoView({block: "end"})`))
		p.picture("plots")
		p.do(chromedp.Evaluate[chromedp.Void](`scrollTo(0, 0)`))

		p.do(chromedp.Evaluate[chromedp.Void](`window.cam = wicgate.pc().getSenders().find(s => s.track?.kind === "video").track`), chromedp.Click("#camera"))
		p.wait(`cam.readyState === "ended" && document.querySelector("#local-video").hidden`)
		if got := p.pressed("#camera"); got != "false" {
			t.Errorf("the camera's button is pressed: %s", got)
		}
		p.wait(`wicgate.pc().getSenders().find(s => s.track?.kind === "video").track.readyState === "live"`) // the stand-in
		p.picture("camera-off")
		p.do(chromedp.Click("#camera"))
		p.wait(`document.querySelector("#camera").ariaPressed === "true" && !document.querySelector("#local-video").hidden && wicgate.pc().getSenders().find(s => s.track?.kind === "video").track.label.includes("fake")`)

		// Another microphone and camera in the call.
		p.do(chromedp.Click("#open-settings"))
		p.wait(`document.querySelector("#settings").open && document.querySelector("#microphone-choice").options.length > 2`)
		p.picture("settings")
		for _, c := range [][2]string{{"microphone", "audio"}, {"camera", "video"}} {
			p.do(chromedp.Evaluate[chromedp.Void](fmt.Sprintf(`{ window.old = wicgate.pc().getSenders().find(s => s.track?.kind === %q).track; const s = document.querySelector("#%s-choice"); window.want = s.options[s.options.length-1]; s.value = want.value; s.dispatchEvent(new Event("change")); }`, c[1], c[0])))
			p.wait(fmt.Sprintf(`old.readyState === "ended" && wicgate.pc().getSenders().some(s => s.track?.kind === %q && s.track.readyState === "live" && s.track.getSettings().deviceId === want.value)`, c[1]))
		}
		p.do(chromedp.Click("#close-settings"))
		p.wait(`!document.querySelector("#settings").open`)

		// A microphone that is pulled out is replaced, and that is said.
		p.do(chromedp.Evaluate[chromedp.Void](`{ const t = wicgate.pc().getSenders().find(s => s.track?.kind === "audio").track; window.old = t; t.stop(); t.dispatchEvent(new Event("ended")); }`))
		p.wait(`document.querySelector("#notice-text").innerText.includes("The microphone is gone") && wicgate.pc().getSenders().some(s => s.track?.kind === "audio" && s.track !== old && s.track.readyState === "live")`)
		p.picture("notice")

		p.do(chromedp.Click("#hangup"))
		p.state("ended")
		p.wait(`document.querySelector("#remote-video").srcObject === null`)
		p.clean()
	})

	t.Run("the other side has no video", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		p := newTab(t, browser, "")
		p.logIn(w)
		p.videoDial("soundonly")
		p.state("active")
		p.wait(`document.body.dataset.video === "off" && document.querySelector("#camera").hidden && document.querySelector("#local-video").srcObject === null`)
		p.wait(`document.querySelector("#notice-text").innerText === "soundonly answered without video."`)
		p.wait("wicgate.firstAudio() > 0")
		p.clean()
	})

	t.Run("being called with video", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		p := newTab(t, browser, "")
		p.logIn(w)
		w.edge.invite(`"Carol" <sip:carol@ims.test>`, true)
		p.state("incoming")
		p.wait(`document.querySelector("#incoming-video").innerText === "with video"`)
		p.picture("incoming-video")
		p.do(chromedp.Click("#answer-video"))
		p.state("active")
		p.wait("wicgate.firstVideo() > 0")
		// Somebody else meanwhile is busied, and the person is told.
		w.edge.send(strings.NewReplacer("Call-ID: ", "Call-ID: other-", "z9hG4bKINVITE", "z9hG4bKOTHER", "carol", "dave", "Carol", "Dave").Replace(w.edge.request("INVITE", 1, "v=0\r\n")))
		w.edge.until("SIP/2.0 486")
		p.wait(`document.querySelector("#notice-text").innerText.startsWith("Dave tried to call you")`)
		w.edge.send(w.edge.request("BYE", 2))
		p.state("ended")

		w.edge.invite(`"Carol" <sip:carol@ims.test>`, true)
		p.state("incoming")
		p.do(chromedp.Click("#answer"))
		p.state("active")
		p.wait("wicgate.firstAudio() > 0")
		if got := w.edge.last("SIP/2.0 200").body; !strings.Contains(got, "m=video 0 ") {
			t.Errorf("sound only was asked for, but the answer is\n%s", got)
		}
		if got := p.str("document.body.dataset.video"); got != "off" {
			t.Errorf("data-video is %s", got)
		}
		p.clean()
	})

	t.Run("no camera", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		p := newTab(t, browser, `{ const real = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
			navigator.mediaDevices.getUserMedia = c => c.video && !window.allowed ? Promise.reject(new DOMException("", "NotAllowedError")) : real(c); }`)
		p.logIn(w)
		p.videoDial("bob")
		p.error("This page may not use the camera.")
		p.state("ended")
		p.picture("no-camera")
		p.do(chromedp.Click("#error-help"))
		p.state("active")
		p.wait("wicgate.firstAudio() > 0")
		if got := w.edge.last("INVITE").body; strings.Contains(got, "m=video") {
			t.Error("the call with sound only offers video")
		}
		p.do(chromedp.Click("#hangup"))
		p.state("ended")
		w.edge.invite(`"Carol" <sip:carol@ims.test>`, true)
		p.state("incoming")
		p.do(chromedp.Click("#answer-video"))
		p.error("This page may not use the camera.")
		p.state("incoming")
		p.picture("incoming-no-camera")
		p.do(chromedp.Click("#answer"))
		p.state("active")
		p.wait("wicgate.firstAudio() > 0")
		p.clean()
	})

	t.Run("guests", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.with(func() {
			w.portal = map[string]any{"guests": true, "revocation_endpoint": w.origin + "/oauth/revoke"}
			w.noGuest = http.StatusServiceUnavailable
		})
		p := newTab(t, browser, "")
		p.do(chromedp.Navigate(w.origin), chromedp.WaitVisible("#guest"))
		p.picture("landing-guest")
		p.do(chromedp.Click("#guest"))
		p.error("All places for guests are taken.")
		w.with(func() { w.noGuest = 0 })
		p.do(chromedp.Click("#guest"))
		p.wait(`document.body.dataset.registration === "registered"`)
		if got := p.str(`document.querySelector("#registration").innerText + "|" + document.querySelector("#logout").innerText`); got != "Registered as Guest 7|Leave" {
			t.Errorf("a guest reads %q", got)
		}
		p.dial("guestless")
		p.error("Guests may not call guestless.")
		p.picture("guest-refused")
		p.wait(`wicgate.renew().then(() => true)`)
		revoked := func(want string) {
			t.Helper()
			var got []string
			for end := time.Now().Add(10 * time.Second); len(got) == 0 && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
				w.with(func() { got = w.asked["revoke"] })
			}
			if len(got) != 1 || !strings.Contains(got[0], "token="+want) || !strings.Contains(got[0], "client_id=wic") {
				t.Errorf("revocations: %v, want one of %s", got, want)
			}
			w.with(func() { w.asked["revoke"] = nil })
		}
		p.wait(`document.body.dataset.registration === "registered"`)
		p.do(chromedp.Click("#logout"))
		p.wait(`document.body.dataset.view === "landing"`)
		revoked("refresh-1")
		w.with(func() { w.refreshes = 0 })
		p.do(chromedp.Click("#guest"))
		p.wait(`document.body.dataset.registration === "registered"`)
		p.do(chromedp.Navigate("about:blank"))
		revoked("refresh-0")
	})

	t.Run("credentials are renewed in a call", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.with(func() { w.turnLife = 4 })
		p := newTab(t, browser, "")
		p.logIn(w)
		p.videoDial("bob")
		p.state("active")
		p.wait("wicgate.firstVideo() > 0")
		p.wait("wicgate.restarts() >= 3")
		p.state("active")
		p.do(chromedp.Evaluate[chromedp.Void](`window.before = null`))
		w.with(func() { w.turnLife = 3600 })
		var before, after struct {
			SIP  float64 `json:"sip_expires"`
			TURN float64 `json:"turn_expires"`
		}
		if err := p.eval("wicgate.credentials()", &before); err != nil {
			t.Fatal(err)
		}
		p.wait(`wicgate.renew().then(() => true, e => { window.why = String(e); return false; })`)
		if err := p.eval("wicgate.credentials()", &after); err != nil {
			t.Fatal(err)
		}
		if after.SIP <= before.SIP || after.TURN < before.TURN+3_000_000 {
			t.Errorf("credentials end %+v before and %+v after a renewal", before, after)
		}
		p.wait(`(async () => { const a = (await wicgate.stats()).video.framesDecoded; await new Promise(r => setTimeout(r, 1000)); return (await wicgate.stats()).video.framesDecoded > a; })()`)
		p.clean()
	})

	t.Run("credentials of the edge", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		n := 0
		w.edge.credential = func() string {
			n++
			return fmt.Sprintf(`uri="%s",username="%d:%s",password="%s",expires=%d`, w.turnURL, n, turnUser, turnPass, time.Now().Unix()+int64(3600+n))
		}
		w.with(func() { w.portal = map[string]any{"turn_credential": "edge"} })
		p := newTab(t, browser, "")
		p.logIn(w)
		p.dial("bob")
		p.state("active")
		p.wait("wicgate.firstAudio() > 0")
		p.wait(`wicgate.pc().getConfiguration().iceServers[0].username === "1:` + turnUser + `"`)
		p.wait(`wicgate.renew().then(() => true)`)
		// The second 200 OK, of which JsSIP tells nothing, and the third, asked for by the call.
		p.wait(`wicgate.pc().getConfiguration().iceServers[0].username === "3:` + turnUser + `" && wicgate.restarts() === 1`)
		w.with(func() {
			if w.exchanges != 0 {
				t.Errorf("%d TURN tokens were asked for", w.exchanges)
			}
		})
		p.clean()
	})

	t.Run("a log-in ended by the operator", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		p := newTab(t, browser, "")
		p.logIn(w)
		w.edge.invite(`"Carol" <sip:carol@ims.test>`, false)
		p.state("incoming")
		p.do(chromedp.Click("#answer"))
		p.state("active")
		w.edge.send(w.edge.request("BYE", 2, `Reason: SIP;cause=403;text="Log-in revoked by the operator"`))
		p.error("ended by the operator")
		w.edge.end("Log-in revoked by the operator")
		p.error("Your log-in was ended by the operator.")
		p.wait(`document.body.dataset.view === "landing"`)
		p.picture("revoked")
		p.clean()
	})

	t.Run("a clock that is wrong", func(t *testing.T) {
		t.Parallel()
		for _, c := range []struct {
			ahead time.Duration
			want  string
		}{{10 * time.Second, ""}, {10 * time.Minute, "This computer’s clock is 10 minutes slow."}, {-10 * time.Minute, "This computer’s clock is 10 minutes fast."}} {
			w := newWorld(t)
			w.with(func() { w.ahead = c.ahead })
			p := newTab(t, browser, "")
			p.logIn(w)
			p.dial("bob")
			p.state("active")
			p.wait("wicgate.firstAudio() > 0")
			if got := p.str(`document.querySelector("#notice-text").innerText`); c.want == "" && got != "" || !strings.HasPrefix(got, c.want) {
				t.Errorf("with servers %v ahead the page says %q", c.ahead, got)
			}
			if c.ahead > time.Minute {
				p.picture("clock")
				w.edge.mu.Lock()
				w.edge.register = "401 Unauthorized"
				w.edge.mu.Unlock()
				p.do(chromedp.Click("#hangup"))
				w.edge.drop()
				p.error("clock is 10 minutes slow")
			}
			p.clean()
		}
	})

	t.Run("a credential of another relay", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		p := newTab(t, browser, "")
		p.logIn(w)
		w.with(func() { w.turnURL = startTURN(t, "another secret") })
		p.dial("bob")
		p.error("The relay refused the credential")
		p.clean()
	})

	t.Run("a WebSocket cut in the middle of a registration", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.edge.cuts = 2
		p := newTab(t, browser, `window.states = []; addEventListener("DOMContentLoaded", () => new MutationObserver(() => states.push(document.querySelector("#registration").innerText)).observe(document.body, {attributes: true, attributeFilter: ["data-registration"]}));`)
		p.logIn(w)
		if got := p.str(`states.join("|")`); !strings.Contains(got, "Connection lost, reconnecting") || !strings.HasSuffix(got, "Registered as Alice") {
			t.Errorf("the page told %s", got)
		}
		p.clean()
	})

	t.Run("a token that ran out in sleep", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		p := newTab(t, browser, "")
		p.logIn(w)
		w.edge.mu.Lock()
		w.edge.register = "401 Unauthorized"
		w.edge.mu.Unlock()
		// The wall clock goes on while timers and the steady clock sleep.
		p.do(chromedp.Evaluate[chromedp.Void](`{ const real = Date.now; Date.now = () => real() + 7_200_000; }`))
		w.edge.drop()
		p.wait(`document.querySelector("#registration").innerText === "Renewing your log-in" || document.body.dataset.registration === "refused"`)
		w.edge.mu.Lock()
		w.edge.register = ""
		w.edge.mu.Unlock()
		w.edge.drop()
		p.wait(`document.body.dataset.registration === "registered"`)
		if got := w.edge.last("REGISTER").get("Authorization"); !strings.HasSuffix(got, testToken+"-1") {
			t.Errorf("the last REGISTER bears %q", got)
		}
		p.clean()
	})

	t.Run("a gateway that is not to be reached", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.with(func() {
			w.portal = map[string]any{"sip_url": strings.Replace(w.origin, "https", "wss", 1) + "/nowhere"}
		})
		p := newTab(t, browser, "")
		p.do(chromedp.Navigate(w.origin), chromedp.WaitVisible("#login"), chromedp.Click("#login"))
		p.error("does not trust its certificate")
		p.wait(`document.querySelector("#error-link").href.startsWith("https://localhost:")`)
		p.picture("no-gateway")
		p.clean()
	})
}
