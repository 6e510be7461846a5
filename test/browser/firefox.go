package browser

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"

	"wicgate/test/lab"
)

const firefox = "/usr/bin/firefox-esr"

// preferences of Firefox: a fake microphone and camera that ask nobody, sound without a click, TURN
// on this machine's own addresses, and no business of its own on the network.
const preferences = `
user_pref("media.navigator.streams.fake", true);
user_pref("media.navigator.permission.disabled", true);
user_pref("media.autoplay.default", 0);
user_pref("media.autoplay.blocking_policy", 0);
user_pref("media.peerconnection.ice.loopback", true);
user_pref("media.gmp-manager.updateEnabled", false);
user_pref("network.captive-portal-service.enabled", false);
user_pref("network.connectivity-service.enabled", false);
user_pref("network.trr.mode", 5);
user_pref("network.dns.disablePrefetch", true);
user_pref("network.prefetch-next", false);
user_pref("network.http.speculative-parallel-limit", 0);
user_pref("services.settings.server", "data:,#remote-settings-dummy/v1");
user_pref("app.update.disabledForTesting", true);
user_pref("app.normandy.enabled", false);
user_pref("browser.safebrowsing.blockedURIs.enabled", false);
user_pref("browser.safebrowsing.malware.enabled", false);
user_pref("browser.safebrowsing.phishing.enabled", false);
user_pref("browser.safebrowsing.downloads.enabled", false);
user_pref("browser.shell.checkDefaultBrowser", false);
user_pref("browser.startup.page", 0);
user_pref("browser.startup.homepage_override.mstone", "ignore");
user_pref("browser.newtabpage.enabled", false);
user_pref("browser.newtabpage.activity-stream.feeds.system.topstories", false);
user_pref("browser.aboutwelcome.enabled", false);
user_pref("browser.region.network.url", "");
user_pref("browser.search.update", false);
user_pref("browser.sessionstore.resume_from_crash", false);
user_pref("datareporting.policy.dataSubmissionEnabled", false);
user_pref("datareporting.policy.dataSubmissionPolicyBypassNotification", true);
user_pref("toolkit.telemetry.server", "data:,");
user_pref("extensions.systemAddon.update.enabled", false);
user_pref("extensions.update.enabled", false);
user_pref("security.OCSP.enabled", 0);
user_pref("ui.prefersReducedMotion", 1);
user_pref("dom.min_background_timeout_value", 4);
user_pref("dom.timeout.enable_budget_timer_throttling", false);
`

// Firefox is a headless Firefox ESR on a host of the lab, with a fake microphone and camera, that
// trusts one CA. It is driven by WebDriver BiDi (W3C), which it speaks itself.
type Firefox struct {
	t testing.TB
	c *bidi
}

// NewFirefox starts the browser on h; nil is this machine. Its certificate checks are real, as
// NewChromium's are.
func NewFirefox(t testing.TB, h *lab.Host, caFile string) Browser {
	t.Helper()
	home := t.TempDir()
	profile := filepath.Join(home, "profile")
	trust(t, profile, caFile)
	if err := os.WriteFile(filepath.Join(profile, "user.js"), []byte(preferences), 0o600); err != nil {
		t.Fatal(err)
	}
	url, err := startFirefox(t, h, home, profile)
	if err != nil {
		t.Fatalf("start firefox: %v", err)
	}
	c, err := dialBiDi(h, url)
	if err != nil {
		t.Fatalf("firefox: %v", err)
	}
	t.Cleanup(c.close)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := c.call(ctx, "session.new", map[string]any{"capabilities": map[string]any{}}, nil); err != nil {
		t.Fatalf("firefox: %v", err)
	}
	return &Firefox{t, c}
}

// startFirefox starts the process and returns the URL at which it listens. The test's end kills its
// process group: browser.close takes up to 25 s.
func startFirefox(t testing.TB, h *lab.Host, home, profile string) (string, error) {
	cmd := h.Command(firefox, "--headless", "--no-remote", "--profile", profile, "--remote-debugging-port", "0")
	cmd.Env = append(os.Environ(), "HOME="+home, "TMPDIR="+home, "MOZ_CRASHREPORTER_DISABLE=1", "XDG_RUNTIME_DIR="+home)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return "", err
	}
	started, read, ended := make(chan error, 1), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread() // the parent's death is that of the thread which forked
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			<-read
			cmd.Wait() //nolint:errcheck // it gets killed
		}
	}()
	if err := <-started; err != nil {
		return "", err
	}
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) //nolint:errcheck // it may have gone
		<-ended
	})
	url := make(chan string, 1)
	var said strings.Builder // of read's goroutine, until that has ended
	go func() {
		defer close(read)
		lines := bufio.NewScanner(stderr)
		for lines.Scan() {
			if _, at, ok := strings.Cut(lines.Text(), "WebDriver BiDi listening on "); ok {
				url <- strings.TrimSpace(at)
				break
			}
			said.WriteString(lines.Text() + "\n")
		}
		io.Copy(io.Discard, stderr) //nolint:errcheck // so that it can write on
	}()
	select {
	case u := <-url:
		return u, nil
	case <-read:
		return "", errors.New("ended: " + said.String())
	case <-time.After(60 * time.Second):
		return "", errors.New("said nothing of WebDriver BiDi within 60 s")
	}
}

// Page opens a window in a user context of its own.
func (f *Firefox) Page(name string) *Page {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var user struct{ UserContext string }
	var tab firefoxTab
	err := f.c.call(ctx, "browser.createUserContext", map[string]any{}, &user)
	if err == nil {
		err = f.c.call(ctx, "browsingContext.create", map[string]any{"type": "window", "userContext": user.UserContext}, &tab)
	}
	if err == nil {
		err = f.c.call(ctx, "browsingContext.setViewport", map[string]any{"context": tab.Context, "viewport": map[string]int{"width": 1100, "height": 660}}, nil)
	}
	if err != nil {
		f.t.Fatalf("open a window: %v", err)
	}
	tab.c = f.c
	return &Page{f.t, tab, name}
}

// firefoxTab is a window over BiDi.
type firefoxTab struct {
	c       *bidi
	Context string
}

func (f firefoxTab) open(ctx context.Context, url string) error {
	return f.c.call(ctx, "browsingContext.navigate", map[string]any{"context": f.Context, "url": url, "wait": "complete"}, nil)
}

func (f firefoxTab) eval(ctx context.Context, js string) ([]byte, error) {
	var r struct {
		Result           struct{ Value json.RawMessage }
		ExceptionDetails *struct{ Text string }
	}
	err := f.c.call(ctx, "script.evaluate", map[string]any{
		"expression": "Promise.resolve(" + js + ").then(v => JSON.stringify(v) ?? 'null')", "target": map[string]any{"context": f.Context},
		"awaitPromise": true, "userActivation": true,
	}, &r)
	if err != nil {
		return nil, err
	}
	if r.ExceptionDetails != nil {
		return nil, errors.New(r.ExceptionDetails.Text)
	}
	var text string
	if err := json.Unmarshal(r.Result.Value, &text); err != nil {
		return nil, err
	}
	return []byte(text), nil
}

func (f firefoxTab) picture(ctx context.Context) ([]byte, error) {
	var r struct{ Data string }
	if err := f.c.call(ctx, "browsingContext.captureScreenshot", map[string]any{"context": f.Context}, &r); err != nil {
		return nil, err
	}
	return base64.StdEncoding.DecodeString(r.Data)
}

// bidi is a WebDriver BiDi connection: commands and their answers. Events are not asked for.
type bidi struct {
	conn *websocket.Conn
	done chan struct{} // closed when the reader has ended

	mu      sync.Mutex // guards the following fields
	last    int
	waiting map[int]chan<- answerBiDi
}

type answerBiDi struct {
	ID      int
	Type    string
	Result  json.RawMessage
	Error   string
	Message string
}

// dialBiDi connects from the host h, on whose loopback Firefox listens.
func dialBiDi(h *lab.Host, url string) (*bidi, error) {
	dial := func(ctx context.Context, network, addr string) (c net.Conn, err error) {
		err = h.In(func() error {
			c, err = (&net.Dialer{}).DialContext(ctx, network, addr)
			return err
		})
		return c, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, _, err := websocket.Dial(ctx, url+"/session", &websocket.DialOptions{HTTPClient: &http.Client{Transport: &http.Transport{DialContext: dial}}}) //nolint:bodyclose // the connection owns it
	if err != nil {
		return nil, err
	}
	conn.SetReadLimit(64 << 20) // pictures
	b := &bidi{conn: conn, done: make(chan struct{}), waiting: map[int]chan<- answerBiDi{}}
	go b.read()
	return b, nil
}

func (b *bidi) read() {
	defer close(b.done)
	for {
		_, text, err := b.conn.Read(context.Background())
		if err != nil {
			return
		}
		var a answerBiDi
		if json.Unmarshal(text, &a) != nil || a.Type == "event" {
			continue
		}
		b.mu.Lock()
		if to := b.waiting[a.ID]; to != nil {
			to <- a // has room for it
			delete(b.waiting, a.ID)
		}
		b.mu.Unlock()
	}
}

// call sends a command and reads its result into v, unless that is nil.
func (b *bidi) call(ctx context.Context, method string, params map[string]any, v any) error {
	got := make(chan answerBiDi, 1)
	b.mu.Lock()
	b.last++
	id := b.last
	b.waiting[id] = got
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		delete(b.waiting, id)
		b.mu.Unlock()
	}()
	text, err := json.Marshal(map[string]any{"id": id, "method": method, "params": params})
	if err != nil {
		return err
	}
	if err := b.conn.Write(ctx, websocket.MessageText, text); err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	select {
	case a := <-got:
		if a.Type != "success" {
			return fmt.Errorf("%s: %s: %s", method, a.Error, a.Message)
		}
		if v == nil {
			return nil
		}
		return json.Unmarshal(a.Result, v)
	case <-b.done:
		return fmt.Errorf("%s: the browser has gone", method)
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", method, ctx.Err())
	}
}

func (b *bidi) close() {
	b.conn.CloseNow() //nolint:errcheck // the browser is killed next
	<-b.done
}
