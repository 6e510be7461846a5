package browser

import (
	"context"
	"encoding/binary"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/page"
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
func NewChromium(t testing.TB, h *lab.Host, caFile string) Browser {
	t.Helper()
	home := t.TempDir()
	trust(t, filepath.Join(home, ".pki", "nssdb"), caFile)
	opts := []chromedp.ExecAllocatorOption{
		chromedp.ExecPath(chromium), chromedp.UserDataDir(filepath.Join(home, "profile")), chromedp.Env("TMPDIR="+home, "HOME="+home),
		chromedp.Flag("headless", "new"), chromedp.Flag("no-sandbox", true), chromedp.Flag("disable-gpu", true), chromedp.Flag("disable-quic", true),
		chromedp.Flag("use-fake-device-for-media-stream", true), chromedp.Flag("use-file-for-fake-audio-capture", tone(t, home)),
		chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true),
		chromedp.Flag("no-first-run", true), chromedp.Flag("autoplay-policy", "no-user-gesture-required"),
		chromedp.Flag("disable-features", "WebRtcHideLocalIpsWithMdns"),
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost, EXCLUDE "+lab.Edge+", EXCLUDE *.ims.test, EXCLUDE *.ims.test."),
		// Without a GPU the page's motion takes the CPU that the media needs.
		chromedp.Flag("force-prefers-reduced-motion", true),
		chromedp.Flag("disable-background-timer-throttling", true), chromedp.Flag("disable-backgrounding-occluded-windows", true),
		chromedp.Flag("disable-renderer-backgrounding", true),
		chromedp.ModifyCmdFunc(func(c *exec.Cmd) {
			on := h.Command(c.Path, c.Args[1:]...)
			c.Path, c.Args = on.Path, on.Args
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

// Page opens a tab in a browser context of its own.
func (c *Chromium) Page(name string) *Page {
	c.t.Helper()
	ctx, stop := chromedp.NewContext(c.ctx, chromedp.WithNewBrowserContext())
	c.t.Cleanup(stop)
	// The tab lives as long as the context of its first action: not one of Do's 30 s.
	if err := chromedp.Do(ctx, chromedp.EmulateViewport(1100, 660), chromedp.Navigate("about:blank")); err != nil {
		c.t.Fatalf("open a tab: %v", err)
	}
	p := &Page{c.t, chromiumTab{ctx}, name}
	p.permit("microphone", browser.PermissionSettingGranted)
	p.permit("camera", browser.PermissionSettingGranted)
	p.Before(noEchoCancellation)
	return p
}

// tone writes a second of 440 Hz, which Chromium plays as the microphone, over and over. Its own fake
// microphone beeps once a second and is silent between: the first sound of a call would be measured
// up to a second late.
func tone(t testing.TB, dir string) string {
	t.Helper()
	const rate = 48000
	wave := []byte("RIFF\x00\x00\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00")
	wave = binary.LittleEndian.AppendUint32(wave, rate)
	wave = binary.LittleEndian.AppendUint32(wave, 2*rate) // bytes a second
	wave = append(wave, "\x02\x00\x10\x00data"...)        // 16 bits, one channel
	wave = binary.LittleEndian.AppendUint32(wave, 2*rate)
	for i := range rate {
		wave = binary.LittleEndian.AppendUint16(wave, uint16(int16(8000*math.Sin(2*math.Pi*440*float64(i)/rate))))
	}
	binary.LittleEndian.PutUint32(wave[4:], uint32(len(wave)-8))
	path := filepath.Join(dir, "tone.wav")
	if err := os.WriteFile(path, wave, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// noEchoCancellation: both microphones play alike, so that the echo canceller takes the own sound for
// the other's echo, and a side falls silent.
const noEchoCancellation = `{ const real = MediaDevices.prototype.getUserMedia;
MediaDevices.prototype.getUserMedia = function (c) {
  const off = {echoCancellation: false, noiseSuppression: false, autoGainControl: false};
  return real.call(this, c?.audio ? {...c, audio: {...(c.audio === true ? {} : c.audio), ...off}} : c);
}; }`

// chromiumTab is a tab over CDP. The context of a call bounds it; the tab's own carries it.
type chromiumTab struct{ ctx context.Context }

func (c chromiumTab) within(ctx context.Context) (context.Context, context.CancelFunc) {
	end, _ := ctx.Deadline()
	return context.WithDeadline(c.ctx, end)
}

func (c chromiumTab) open(ctx context.Context, url string) error {
	ctx, cancel := c.within(ctx)
	defer cancel()
	return chromedp.Do(ctx, chromedp.Navigate(url))
}

func (c chromiumTab) eval(ctx context.Context, js string) ([]byte, error) {
	ctx, cancel := c.within(ctx)
	defer cancel()
	return chromedp.Run(ctx, chromedp.Evaluate[[]byte](js, chromedp.EvalAwaitPromise))
}

func (c chromiumTab) picture(ctx context.Context) ([]byte, error) {
	ctx, cancel := c.within(ctx)
	defer cancel()
	return chromedp.Run(ctx, chromedp.CaptureScreenshot())
}

// Do runs actions of the Chrome DevTools Protocol, each call for at most 30 s. Only Chromium has them.
func (p *Page) Do(actions ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	tab, ok := p.tab.(chromiumTab)
	if !ok {
		p.t.Fatalf("%s: not a page of Chromium", p.Name)
	}
	ctx, cancel := context.WithTimeout(tab.ctx, 30*time.Second)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		p.Show("failed")
		p.t.Fatalf("%s: %v (page: %s)", p.Name, err, p.text())
	}
}

// Deny refuses pages of this one's user the "microphone" or the "camera", as a person does.
func (p *Page) Deny(device string) {
	p.t.Helper()
	p.permit(device, browser.PermissionSettingDenied)
}

func (p *Page) permit(device string, setting browser.PermissionSetting) {
	p.t.Helper()
	p.Do(chromedp.Func(func(ctx context.Context, _ *chromedp.Target) error {
		_, err := chromedp.CallBrowser(ctx, browser.SetPermission, browser.SetPermissionParams{
			Permission: &browser.PermissionDescriptor{Name: device}, Setting: setting, BrowserContextID: chromedp.FromContext(ctx).BrowserContextID,
		})
		return err
	}))
}

// Before runs JavaScript in each document to come, before the document's own.
func (p *Page) Before(js string) {
	p.t.Helper()
	p.Do(chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{Source: js})
		return err
	}))
}
