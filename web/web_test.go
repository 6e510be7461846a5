package web

import (
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"
)

var reference = regexp.MustCompile(`(?:href|src)="(/[^"]*)"`)

// Every file that an entry refers to is there, and every file there is referred to.
func TestReferences(t *testing.T) {
	files := Files()
	used := map[string]bool{Index: true, Missing: true}
	for _, entry := range []string{Index, Missing} {
		f, ok := files[entry]
		if !ok {
			t.Fatalf("dist lacks %s", entry)
		}
		n := 0
		for _, m := range reference.FindAllStringSubmatch(string(f.Body), -1) {
			name := strings.TrimPrefix(m[1], "/")
			if name == "" {
				continue // the portal itself
			}
			n++
			if _, ok := files[name]; !ok {
				t.Errorf("%s refers to %s, which is not in dist", entry, m[1])
			}
			used[name] = true
		}
		if n < 2 {
			t.Errorf("%s refers to %d files: it must have a style and more", entry, n)
		}
	}
	for name := range files {
		if !used[name] {
			t.Errorf("dist holds %s, to which nothing refers", name)
		}
	}
}

// What wwsf serves as immutable has the hash of its content in its name.
func TestHashedNames(t *testing.T) {
	hashed := regexp.MustCompile(`^assets/[a-z]+-[0-9A-Z]{8}\.(js|css|svg|txt)$`)
	for name, f := range Files() {
		if name == Index || name == Missing {
			continue
		}
		if !hashed.MatchString(name) {
			t.Errorf("%s has no content hash in its name", name)
		}
		if f.Type == "application/octet-stream" {
			t.Errorf("%s has no media type", name)
		}
	}
}

// The page runs under a policy without 'unsafe-inline' and without foreign origins.
func TestNothingInline(t *testing.T) {
	for _, entry := range []string{Index, Missing} {
		html := string(Files()[entry].Body)
		for _, bad := range []string{" style=", "<style", " onclick=", " onload=", "javascript:", "http://", "https://"} {
			if strings.Contains(html, bad) {
				t.Errorf("%s holds %q", entry, bad)
			}
		}
		for _, tag := range regexp.MustCompile(`<script[^>]*>`).FindAllString(html, -1) {
			if !strings.Contains(tag, ` src="`) {
				t.Errorf("%s holds an inline script: %s", entry, tag)
			}
		}
	}
}

// What the page's own sources promise to tests and to readers of a screen is in the HTML.
func TestHooks(t *testing.T) {
	html := string(Files()[Index].Body)
	for _, id := range []string{"login", "callee", "call", "answer", "decline", "hangup", "mute", "error", "live", "path", "remote",
		"guest", "video-call", "answer-video", "camera", "settings", "microphone-choice", "camera-choice", "speaker-choice", "remote-video", "local-video", "life", "plots"} {
		if strings.Count(html, ` id="`+id+`"`) != 1 {
			t.Errorf("want one element #%s", id)
		}
	}
	for _, want := range []string{`<html lang="en">`, `role="alert"`, `role="status"`, `role="alertdialog"`, `<label for="callee">`} {
		if !strings.Contains(html, want) {
			t.Errorf("page lacks %s", want)
		}
	}
}

// No secret, no log of SIP messages, no trace of the machine that built it.
func TestBundle(t *testing.T) {
	home, _ := os.UserHomeDir()
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for name, f := range Files() {
		for _, bad := range []*regexp.Regexp{
			regexp.MustCompile(`-----BEGIN`),
			regexp.MustCompile(`eyJ[A-Za-z0-9_-]{8,}\.`), // a JWT
			regexp.MustCompile(`(?i)client_secret|api[_-]?key`),
			regexp.MustCompile(`\bo1\.[A-Za-z0-9._-]{20,}`), // a TURN user name
			regexp.MustCompile(`sourceMappingURL`),
			regexp.MustCompile(`\beval\(|new Function\(`),
			regexp.MustCompile(`localStorage`), // where the package "debug" keeps its switch
		} {
			if m := bad.Find(f.Body); m != nil {
				t.Errorf("%s holds %q", name, m)
			}
		}
		for _, place := range []string{wd, home} {
			if len(place) > 5 && bytes.Contains(f.Body, []byte(place)) {
				t.Errorf("%s names a folder of the building machine", name)
			}
		}
	}
}

func TestGzip(t *testing.T) {
	for name, f := range Files() {
		z := f.Gzip()
		if z == nil {
			if len(f.Body) > 1000 {
				t.Errorf("%s (%d bytes) does not compress", name, len(f.Body))
			}
			continue
		}
		r, err := gzip.NewReader(bytes.NewReader(z))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, f.Body) {
			t.Errorf("%s: %v, or not the same after decompression", name, err)
		}
	}
}
