// Package browser drives real browsers through wicgate.
package browser

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"wicgate/test/lab"
)

const chromium = "/usr/bin/chromium"

// Chromium is a headless browser on a host of the lab, with a fake microphone, that trusts one CA.
type Chromium struct {
	t   testing.TB
	ctx context.Context
}

// NewChromium starts the browser on h; nil is this machine, loopback alone. Its certificate checks
// are real: caFile, where there is one, goes into the certificate database of a throw-away home.
func NewChromium(t testing.TB, h *lab.Host, caFile string) *Chromium {
	t.Helper()
	home := t.TempDir()
	db := filepath.Join(home, ".pki", "nssdb")
	if err := os.MkdirAll(db, 0o700); err != nil {
		t.Fatal(err)
	}
	certutil := [][]string{{"-N", "--empty-password"}}
	if caFile != "" {
		certutil = append(certutil, []string{"-A", "-t", "C,,", "-n", "wicgate", "-i", caFile})
	}
	for _, args := range certutil {
		if out, err := exec.Command("certutil", append([]string{"-d", "sql:" + db}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("certutil %v: %v: %s", args, err, out)
		}
	}
	opts := []chromedp.ExecAllocatorOption{
		chromedp.ExecPath(chromium), chromedp.UserDataDir(filepath.Join(home, "profile")), chromedp.Env("TMPDIR="+home, "HOME="+home),
		chromedp.Flag("headless", "new"), chromedp.Flag("no-sandbox", true), chromedp.Flag("disable-gpu", true), chromedp.Flag("disable-quic", true),
		chromedp.Flag("use-fake-device-for-media-stream", true), chromedp.Flag("use-fake-ui-for-media-stream", true),
		chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true),
		chromedp.Flag("no-first-run", true), chromedp.Flag("autoplay-policy", "no-user-gesture-required"),
		chromedp.Flag("disable-features", "WebRtcHideLocalIpsWithMdns"),
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost, EXCLUDE "+lab.Edge),
		// Without a GPU the page's motion takes the CPU that the media needs.
		chromedp.Flag("force-prefers-reduced-motion", true),
		chromedp.Flag("disable-background-timer-throttling", true), chromedp.Flag("disable-backgrounding-occluded-windows", true),
		chromedp.Flag("disable-renderer-backgrounding", true),
		chromedp.ModifyCmdFunc(func(c *exec.Cmd) {
			if h != nil {
				on := h.Command(c.Path, c.Args[1:]...)
				c.Path, c.Args = on.Path, on.Args
			}
			c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		}),
	}
	if h == nil {
		opts = append(opts, chromedp.Flag("allow-loopback-in-peer-connection", true))
	}
	actx, stop := chromedp.NewExecAllocator(context.Background(), opts...)
	t.Cleanup(stop)
	ctx, stopTab := chromedp.NewContext(actx)
	t.Cleanup(stopTab)
	if err := chromedp.Do(ctx, chromedp.Navigate("about:blank")); err != nil {
		t.Fatalf("start chromium: %v", err)
	}
	return &Chromium{t, ctx}
}

// Page is one tab with its own cookies.
type Page struct {
	t    testing.TB
	ctx  context.Context
	Name string
}

// Page opens a tab in a browser context of its own.
func (c *Chromium) Page(name string) *Page {
	c.t.Helper()
	ctx, stop := chromedp.NewContext(c.ctx, chromedp.WithNewBrowserContext())
	c.t.Cleanup(stop)
	// The tab lives as long as the context of its first action: not one of Do's 30 s.
	if err := chromedp.Do(ctx, chromedp.EmulateViewport(1100, 660), chromedp.Navigate("about:blank")); err != nil {
		c.t.Fatalf("open a tab: %v", err)
	}
	return &Page{c.t, ctx, name}
}

// Do runs actions, each call for at most 30 s.
func (p *Page) Do(actions ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, 30*time.Second)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		p.Show("failed")
		p.t.Fatalf("%s: %v (page: %s)", p.Name, err, p.text())
	}
}

// Eval runs JavaScript, awaits it, and reads its value into v; nil throws it away.
func (p *Page) Eval(js string, v any) {
	p.t.Helper()
	if err := p.TryEval(js, v); err != nil {
		p.Show("failed")
		p.t.Fatalf("%s: %v", p.Name, err)
	}
}

// TryEval is Eval that returns the error.
func (p *Page) TryEval(js string, v any) error {
	ctx, cancel := context.WithTimeout(p.ctx, 30*time.Second)
	defer cancel()
	b, err := chromedp.Run(ctx, chromedp.Evaluate[[]byte](js, chromedp.EvalAwaitPromise))
	if err != nil {
		return fmt.Errorf("%.80s: %w", js, err)
	}
	if v == nil {
		return nil
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%.80s: %w in %s", js, err, b)
	}
	return nil
}

// Wait waits until a JavaScript condition holds.
func (p *Page) Wait(limit time.Duration, condition string) {
	p.t.Helper()
	var ok bool
	var err error
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		// A navigation under way ends the evaluation; the next round sees the new page.
		if err = p.TryEval("!!("+condition+")", &ok); err == nil && ok {
			return
		}
	}
	p.Show("failed")
	p.t.Fatalf("%s: not after %v: %s (%v; page: %s)", p.Name, limit, condition, err, p.text())
}

// Click waits until an element can be clicked, and does.
func (p *Page) Click(selector string) {
	p.t.Helper()
	p.Wait(15*time.Second, usable(selector))
	p.Eval(fmt.Sprintf(`document.querySelector(%q).click()`, selector), nil)
}

// Fill waits until a field can be written, and writes it.
func (p *Page) Fill(selector, value string) {
	p.t.Helper()
	p.Wait(15*time.Second, usable(selector))
	p.Eval(fmt.Sprintf(`{ const f = document.querySelector(%q); f.focus(); f.value = %q; f.dispatchEvent(new Event("input", {bubbles: true})); }`, selector, value), nil)
}

// usable: there, visible, not disabled, and the page has loaded its script.
func usable(selector string) string {
	return fmt.Sprintf(`(e => document.readyState === "complete" && e && !e.disabled && e.checkVisibility())(document.querySelector(%q))`, selector)
}

func (p *Page) text() string {
	var s string
	if err := p.TryEval(`location.href + " | " + JSON.stringify(document.body.dataset) + " | " + document.body.innerText`, &s); err != nil {
		return err.Error()
	}
	return strings.Join(strings.Fields(s), " ")
}

// Show saves a picture of the page in the folder that WICGATE_PICTURES names, where it does.
func (p *Page) Show(name string) {
	dir := os.Getenv("WICGATE_PICTURES")
	if dir == "" {
		return
	}
	ctx, cancel := context.WithTimeout(p.ctx, 10*time.Second)
	defer cancel()
	b, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, name+"-"+p.Name+".png"), b, 0o644)
	}
	if err != nil {
		p.t.Logf("picture %s: %v", name, err)
	}
}
