//go:build !race

package wwsf

import (
	"strings"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// audit returns what is wrong with the page as it stands: text with less contrast than WCAG 2.2 1.4.3 wants,
// what reaches over the right edge, controls without a name.
const audit = `(() => {
	const wrong = [];
	const rgb = s => (s.match(/[\d.]+/g) || [0, 0, 0, 0]).map(Number);
	const light = c => { const [r, g, b] = c.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
	const ground = e => {
		for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] === 1) return c.slice(0, 3); }
		return [255, 255, 255];
	};
	const who = e => e.tagName.toLowerCase() + (e.id ? "#" + e.id : "." + e.className) + " " + JSON.stringify((e.textContent || "").trim().slice(0, 30));
	const seen = e => e.checkVisibility() && !e.closest(".unseen, .sprite") && getComputedStyle(e).clipPath === "none";
	for (const e of document.querySelectorAll("body *")) {
		if (!seen(e)) continue;
		const r = e.getBoundingClientRect();
		if (r.width > 0 && r.right > innerWidth + 0.5 && !e.closest("svg, .avatar")) wrong.push("over the edge: " + who(e));
		if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
		const s = getComputedStyle(e), a = light(rgb(s.color).slice(0, 3)), b = light(ground(e));
		const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), size = parseFloat(s.fontSize);
		const least = size >= 24 || size >= 18.66 && s.fontWeight >= 700 ? 3 : 4.5;
		if (ratio < least && !e.closest(":disabled")) wrong.push("contrast " + ratio.toFixed(2) + ": " + who(e));
	}
	for (const e of document.querySelectorAll("button, a[href], input, select, video")) {
		if (!seen(e)) continue;
		const name = e.getAttribute("aria-label") || [...(e.labels || [])].map(l => l.textContent).join("") || e.textContent;
		if (!name.trim()) wrong.push("without a name: " + who(e));
		const r = e.getBoundingClientRect();
		if (e.matches("button, select") && (r.height < 24 || r.width < 24)) wrong.push("too small to hit: " + who(e)); // 2.5.8
	}
	if (document.documentElement.scrollWidth > innerWidth) wrong.push("scrolls sideways: " + document.documentElement.scrollWidth);
	return wrong.join("\n");
})()`

// accessible audits a state of the page on a phone and a desk, in light and dark.
func (p *tab) accessible(state string) {
	p.t.Helper()
	for _, scheme := range []string{"light", "dark"} {
		for _, width := range []int64{320, 360, 1280} {
			if _, err := chromedp.Call(p.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: "reduce"}}}); err != nil {
				p.t.Fatal(err)
			}
			p.do(chromedp.EmulateViewport(width, 800))
			if got := p.str(audit); got != "" {
				p.t.Errorf("%s, %s, %d px:\n%s", state, scheme, width, got)
			}
		}
	}
	p.do(chromedp.EmulateViewport(1280, 800))
}

// tabTo presses Tab until an element has the focus.
func (p *tab) tabTo(selector string) {
	p.t.Helper()
	var way []string
	for range 20 {
		p.do(chromedp.KeyEvent(kb.Tab))
		if p.str(`document.activeElement.matches(`+"`"+selector+"`"+`)`) == "true" {
			if p.str(`document.activeElement.matches(":focus-visible") && getComputedStyle(document.activeElement.querySelector("span") || document.activeElement).boxShadow !== "none"`) != "true" {
				p.t.Errorf("the focus on %s is not to be seen", selector)
			}
			return
		}
		way = append(way, p.str(`document.activeElement.id`))
	}
	p.t.Fatalf("Tab never comes to %s: %s", selector, strings.Join(way, " "))
}

// Each state can be read, fits a phone, and can be worked with the keyboard alone.
func TestAccessible(t *testing.T) {
	browser := startChromium(t)
	w := newWorld(t)
	w.with(func() { w.portal = map[string]any{"guests": true} })
	p := newTab(t, browser, "")
	p.do(chromedp.Navigate(w.origin), chromedp.WaitVisible("#guest"))
	p.accessible("landing")
	p.tabTo("#guest")
	p.do(chromedp.Evaluate[chromedp.Void](`document.activeElement.blur()`))
	p.tabTo("#login")
	p.do(chromedp.KeyEvent(kb.Enter))
	p.wait(`document.body.dataset.registration === "registered" && document.activeElement.id === "callee"`)
	p.accessible("idle")

	p.do(chromedp.KeyEvent("busy"), chromedp.KeyEvent(kb.Enter))
	p.error("is busy")
	p.accessible("an error")
	p.do(chromedp.Evaluate[chromedp.Void](`document.querySelector("#callee").select(); document.querySelector("#callee").focus()`), chromedp.KeyEvent("bob"))
	p.tabTo("#video-call")
	p.do(chromedp.KeyEvent(kb.Enter))
	p.state("active")
	p.wait("wicgate.firstVideo() > 0")
	p.wait(`document.querySelector('[data-plot="bitrate"] dd').innerText.includes("bit/s") && document.querySelector("#path").dataset.in === "on"`)
	p.accessible("a call")
	p.tabTo("#mute")
	p.do(chromedp.KeyEvent(" "))
	p.wait(`document.querySelector("#mute").ariaPressed === "true"`)
	p.tabTo("#camera")
	p.do(chromedp.KeyEvent(" "))
	p.wait(`document.querySelector("#camera").ariaPressed === "false"`)
	p.accessible("muted, camera off")
	if got := p.str(`[...document.querySelectorAll(".plot")].map(e => e.getAttribute("aria-label")).join("|")`); !strings.Contains(got, "Bitrate, both ways:") || !strings.Contains(got, "Round trip to the gateway:") {
		t.Errorf("the plots say %q", got)
	}
	p.tabTo("#hangup")
	p.do(chromedp.KeyEvent(kb.Enter))
	p.state("ended")
	p.wait(`document.querySelector("#live").innerText.startsWith("You hung up.")`)

	p.tabTo("#open-settings")
	p.do(chromedp.KeyEvent(kb.Enter))
	p.wait(`document.querySelector("#settings").open`)
	p.accessible("settings")
	p.do(chromedp.KeyEvent(kb.Escape))
	p.wait(`!document.querySelector("#settings").open && document.activeElement.id === "open-settings"`)

	p.do(chromedp.KeyEvent(kb.Enter))
	p.wait(`document.querySelector("#settings").open`)
	w.edge.invite(`"Carol" <sip:carol@ims.test>`, true)
	p.state("incoming")
	p.wait(`!document.querySelector("#settings").open && document.activeElement.id === "incoming"`)
	p.accessible("being called")
	p.tabTo("#answer-video")
	p.do(chromedp.KeyEvent(kb.Enter))
	p.state("active")
	p.clean()
}
