package waf

import (
	"encoding/base64"
	"encoding/json"
	"testing"
	"time"

	"wicgate/internal/keyring"
	"wicgate/internal/token"
)

// TestExchangePlain: tokens for TURN servers elsewhere, sealed under the plain key of now in the format
// of that key; a server without URLs is none for a browser, and one without a key gets no token.
func TestExchangePlain(t *testing.T) {
	plain := func(name string) *keyring.Ring {
		r, err := keyring.NewPlain(name)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	coturn, draft, empty := plain("coturn.test"), plain("draft.test"), plain("empty.test")
	for r, f := range map[*keyring.Ring]token.Format{coturn: token.A256GCM, draft: token.Draft13} {
		if err := r.Renew(time.Now(), f, 24*time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	l := newLab(t, func(c *Config) {
		c.Rings = append(c.Rings, coturn, draft, empty)
		c.TURNURLs["coturn.test"] = []string{"turn:coturn.test:3478"}
	})
	tok, _ := l.sipToken("alice")
	for _, r := range []*keyring.Ring{coturn, draft} {
		resp := l.request("POST", "/oauth/token", exchangeOf(tok, "audience", r.Server()))
		var got turnToken
		if err := json.NewDecoder(resp.Body).Decode(&got); err != nil || resp.StatusCode != 200 {
			t.Fatalf("%s: %d %v", r.Server(), resp.StatusCode, err)
		}
		want := r.Plain(time.Now())[0]
		raw, err := base64.StdEncoding.DecodeString(got.AccessToken)
		if err != nil || got.KID != want.KID {
			t.Fatalf("%s: kid %q, %v", r.Server(), got.KID, err)
		}
		p, err := token.Open(want.Enc, want.K, r.Server(), raw)
		if err != nil || base64.StdEncoding.EncodeToString(p.MACKey.Expose()) != got.Key {
			t.Errorf("%s: %v", r.Server(), err)
		}
		if n := len(got.ICEServers); r == coturn && n != 1 || r == draft && n != 0 {
			t.Errorf("%s: ice_servers %v", r.Server(), got.ICEServers)
		}
	}
	if resp := l.request("POST", "/oauth/token", exchangeOf(tok, "audience", "empty.test")); resp.StatusCode != 503 {
		t.Errorf("no key: %d", resp.StatusCode)
	}
}
