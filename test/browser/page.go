// Package browser drives real browsers through wicgate: Chromium over CDP (chromium.go), Firefox ESR
// over WebDriver BiDi (firefox.go). A Page is the same for both, so that a test is written once.
package browser

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Browser opens pages, each with cookies of its own.
type Browser interface {
	Page(name string) *Page
}

// Page is one tab.
type Page struct {
	t    testing.TB
	tab  tab
	Name string
}

// tab is what a Page needs of its browser. Each context has a deadline.
type tab interface {
	open(ctx context.Context, url string) error
	// eval awaits a JavaScript expression and returns its value as JSON.
	eval(ctx context.Context, js string) ([]byte, error)
	picture(ctx context.Context) ([]byte, error)
}

// Open goes to a URL.
func (p *Page) Open(url string) {
	p.t.Helper()
	if err := p.TryOpen(url); err != nil {
		p.Show("failed")
		p.t.Fatalf("%s: open %s: %v (page: %s)", p.Name, url, err, p.text())
	}
}

// TryOpen is Open that returns the error.
func (p *Page) TryOpen(url string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return p.tab.open(ctx, url)
}

// Eval awaits a JavaScript expression and reads its value into v; nil throws it away.
func (p *Page) Eval(js string, v any) {
	p.t.Helper()
	if err := p.TryEval(js, v); err != nil {
		p.Show("failed")
		p.t.Fatalf("%s: %v", p.Name, err)
	}
}

// TryEval is Eval that returns the error.
func (p *Page) TryEval(js string, v any) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	b, err := p.tab.eval(ctx, js)
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

// Wait waits until a JavaScript condition, or what it promises, holds.
func (p *Page) Wait(limit time.Duration, condition string) {
	p.t.Helper()
	var ok bool
	var err error
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		// A navigation under way ends the evaluation; the next round sees the new page.
		if err = p.TryEval("(async () => !!await ("+condition+"))()", &ok); err == nil && ok {
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
	p.Eval(fmt.Sprintf(`(f => { f.focus(); f.value = %q; f.dispatchEvent(new Event("input", {bubbles: true})); })(document.querySelector(%q))`, value, selector), nil)
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
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	b, err := p.tab.picture(ctx)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, name+"-"+p.Name+".png"), b, 0o644)
	}
	if err != nil {
		p.t.Logf("picture %s: %v", name, err)
	}
}

// trust makes a certificate database that knows one more CA; "" knows none.
func trust(t testing.TB, db, caFile string) {
	t.Helper()
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
}
