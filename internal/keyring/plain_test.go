package keyring

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"wicgate/internal/secret"
	"wicgate/internal/token"
)

// samplePlain is a ring with a key of each format.
func samplePlain(t testing.TB) *Ring {
	t.Helper()
	at := time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)
	r, err := NewPlain(server,
		PlainKey{"hs512", token.A256CBCHS512, secret.Random(64), at, at.Add(240000 * time.Hour)},
		PlainKey{"draft/13+=", token.Draft13, secret.Random(32), time.Time{}, at.Add(240000 * time.Hour)},
		PlainKey{"union", token.A128GCM, secret.Random(16), at, time.Time{}},
		PlainKey{"north", token.A256GCM, secret.Random(32), time.Time{}, time.Time{}})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestDerivedFormats: K has the size that its format wants, and what is sealed under it opens.
func TestDerivedFormats(t *testing.T) {
	for _, f := range []token.Format{token.A256GCM, token.A128GCM, token.A256CBCHS512, token.Draft13} {
		r := New(server)
		r.keys.Load().masters[0].format = f
		if err := r.Rotate(time.Now(), MinOverlap); err != nil {
			t.Fatal(err)
		}
		key, g, _, ok := r.Key(r.KID("p"))
		if !ok || g != f || len(key.Expose()) != f.KeySize() {
			t.Errorf("%v: %v, %d bytes", f, g, len(key.Expose()))
		}
	}
}

func TestPlainKeys(t *testing.T) {
	r := samplePlain(t)
	for _, p := range r.Plain(time.Now()) {
		key, f, who, ok := r.Key(p.KID)
		if !ok || !key.Equal(p.K) || f != p.Enc || who != "" {
			t.Errorf("%s: %v %q %v", p.KID, f, who, ok)
		}
		tok, err := token.Seal(f, key, server, token.Payload{MACKey: token.NewMACKey(), Timestamp: token.NewTimestamp(time.Now()), Lifetime: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		for _, q := range r.Plain(time.Now()) {
			if _, err := token.Open(q.Enc, q.K, server, tok); (err == nil) != (q.KID == p.KID) {
				t.Errorf("sealed under %s, opens under %s: %v", p.KID, q.KID, err)
			}
		}
	}
	for _, kid := range []string{"", "nort", "north.p", "NORTH", "north "} {
		if _, _, _, ok := r.Key(kid); ok {
			t.Errorf("%q is taken", kid)
		}
	}
	if !r.IsPlain() || r.KID("p") != "hs512" || r.KID("q") != r.Current() {
		t.Errorf("KID %q", r.KID("p"))
	}
	if err := r.Rotate(time.Now(), MinOverlap); err == nil {
		t.Error("rotated as if it had masters")
	}
	good := PlainKey{"k", token.A256GCM, secret.Random(32), time.Time{}, time.Time{}}
	now := time.Now()
	for name, list := range map[string][]PlainKey{
		"no kid":            {{"", good.Enc, good.K, good.From, good.Exp}},
		"a long kid":        {{strings.Repeat("k", maxKID+1), good.Enc, good.K, good.From, good.Exp}},
		"a space":           {{"a b", good.Enc, good.K, good.From, good.Exp}},
		"not ASCII":         {{"\xc3\xa9", good.Enc, good.K, good.From, good.Exp}},
		"a short key":       {{"k", good.Enc, secret.Random(31), good.From, good.Exp}},
		"no key":            {{"k", good.Enc, secret.Bytes{}, good.From, good.Exp}},
		"no format":         {{"k", 0, good.K, good.From, good.Exp}},
		"ends before it is": {{"k", good.Enc, good.K, now, now}},
		"twice":             {good, good},
	} {
		if _, err := NewPlain(server, list...); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// TestPlainLife follows a ring's keys for a month: there is always one that seals, it was known a
// quarter of its life before, and each opens until the last token sealed under it has ended.
func TestPlainLife(t *testing.T) {
	for _, where := range []string{"memory", "file"} {
		t.Run(where, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "ring")
			synctest.Test(t, func(t *testing.T) {
				const life = 48 * time.Hour
				r, err := NewPlain(server)
				var other *Ring // another process with the same file
				if where == "file" {
					if r, err = OpenPlain(path, server); err == nil {
						other, err = OpenPlain(path, server)
					}
				}
				if err != nil {
					t.Fatal(err)
				}
				if r.KID("p") != "" {
					t.Error("a key from nowhere")
				}
				known, lastUse := map[string]time.Time{}, map[string]time.Time{}
				for range 30 * 24 {
					now := time.Now()
					if err := r.Renew(now, token.A256GCM, life); err != nil {
						t.Fatal(err)
					}
					for _, p := range r.Plain(now) {
						if known[p.KID].IsZero() {
							known[p.KID] = now
						}
					}
					kid := r.KID("p")
					if _, used := lastUse[kid]; !used && len(lastUse) > 0 && now.Sub(known[kid]) < life/4-time.Hour {
						t.Fatalf("%q was made %v before its first use", kid, now.Sub(known[kid]))
					}
					lastUse[kid] = now
					for kid, used := range lastUse {
						if _, _, _, ok := r.Key(kid); !ok && now.Sub(used) < MinOverlap {
							t.Fatalf("%q opens nothing %v after its use", kid, now.Sub(used))
						} else if ok && now.Sub(used) > MinOverlap+time.Hour {
							t.Fatalf("%q opens %v after its use", kid, now.Sub(used))
						}
					}
					time.Sleep(time.Hour)
					if other != nil {
						if err := other.Renew(time.Now(), token.A256GCM, life); err != nil { // neither makes a second one
							t.Fatal(err)
						}
					}
				}
				if n := len(lastUse); n != 15 {
					t.Errorf("%d keys in 30 days", n)
				}
				if n := len(r.Plain(time.Now())); n > 3 {
					t.Errorf("%d keys are kept", n)
				}
				// The issuer stood still: the last key seals nothing after its end, and a new one does at once.
				time.Sleep(5 * life)
				if r.KID("p") != "" {
					t.Error("seals with a key that has ended")
				}
				if err := r.Renew(time.Now(), token.Draft13, life); err != nil || r.KID("p") == "" {
					t.Errorf("%q, %v", r.KID("p"), err)
				}
			})
		})
	}
}

func TestPlainFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "plain")
	// As a person writes it.
	text := `{"version": 1, "server": "` + server + `", "kid_mode": "plain",
	  "keys": [{"kid": "north", "enc": "A256GCM", "k": "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE"}],
	  "nonce_secrets": [{"key": "` + base64.StdEncoding.EncodeToString(make([]byte, 32)) + `", "created": "2026-01-01T00:00:00Z"}]}`
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(text)
	r, err := OpenPlain(path, server)
	if err != nil {
		t.Fatal(err)
	}
	if k, f, _, ok := r.Key("north"); !ok || string(k.Expose()) != "01234567890123456789012345678901" || f != token.A256GCM || r.KID("p") != "north" {
		t.Error("the key is another")
	}
	if err := r.Renew(time.Now(), token.A256GCM, time.Hour); err != nil || len(r.Plain(time.Now())) != 1 {
		t.Errorf("a key without an end is replaced: %v", err)
	}
	if _, err := OpenFile(path, server); err == nil || !strings.Contains(err.Error(), "masters are asked for") {
		t.Errorf("as derived: %v", err)
	}
	for name, c := range map[string][2]string{
		"base64, not url": {`MDEyMzQ1`, `MD/yMzQ1`},
		"padded":          {`Nzg5MDE"`, `Nzg5MDE="`},
		"short":           {`Nzg5MDE"`, `Nzg5"`},
		"unknown enc":     {`A256GCM`, `A256CBC`},
		"kid":             {`"north"`, `"no th"`},
		"field":           {`"enc"`, `"alg"`},
	} {
		write(strings.Replace(text, c[0], c[1], 1))
		if _, err := OpenPlain(path, server); err == nil {
			t.Errorf("%s: taken", name)
		} else if strings.Contains(err.Error(), "MDEyMzQ1") {
			t.Errorf("%s: the error shows a key: %v", name, err)
		}
	}
	// What a ring writes comes back, with mode 0600.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if r, err = OpenPlain(path, server); err != nil {
		t.Fatal(err)
	}
	given := samplePlain(t).Plain(time.Now())
	if fresh, err := r.Learn(time.Now(), given...); err != nil || len(fresh) != 4 {
		t.Fatal(fresh, err)
	}
	again, err := OpenPlain(path, server)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range given {
		if k, f, _, ok := again.Key(p.KID); !ok || !k.Equal(p.K) || f != p.Enc {
			t.Errorf("%s is lost", p.KID)
		}
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Error(st.Mode(), err)
	}
}

func TestLearn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, err := NewPlain(server)
		if err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		k1 := PlainKey{"k1", token.A256GCM, secret.Random(32), time.Time{}, now.Add(time.Hour)}
		k2 := PlainKey{"k2", token.A256GCM, secret.Random(32), time.Time{}, now.Add(3 * time.Hour)}
		learn := func(want int, list ...PlainKey) {
			t.Helper()
			if fresh, err := r.Learn(time.Now(), list...); err != nil || len(fresh) != want {
				t.Errorf("%v, %v", fresh, err)
			}
		}
		learn(1, k1)
		before := r.keys.Load()
		learn(0, k1)
		if r.keys.Load() != before {
			t.Error("the same is written again")
		}
		learn(1, k2) // and k1 is no longer named
		if r.KID("p") != "k2" {
			t.Error(r.KID("p"))
		}
		for _, p := range []PlainKey{{"k1", token.A256GCM, secret.Random(32), time.Time{}, k1.Exp}, {"k1", token.Draft13, k1.K, time.Time{}, k1.Exp}} {
			if _, err := r.Learn(time.Now(), PlainKey{"k3", k1.Enc, secret.Random(32), time.Time{}, k1.Exp}, p); !errors.Is(err, ErrKID) {
				t.Errorf("another key under an old kid: %v", err)
			}
		}
		if _, _, _, ok := r.Key("k3"); ok {
			t.Error("half of what was refused is there")
		}
		time.Sleep(time.Hour + MinOverlap - 1)
		if k, _, _, ok := r.Key("k1"); !ok || !k.Equal(k1.K) {
			t.Error("the old key ends before its tokens")
		}
		time.Sleep(time.Nanosecond)
		if _, _, _, ok := r.Key("k1"); ok {
			t.Error("the old key has no end")
		}
		var flood []PlainKey
		for range MaxPlain + 1 {
			flood = append(flood, PlainKey{newID(), token.A256GCM, secret.Random(32), time.Time{}, time.Now().Add(time.Hour)})
		}
		if _, err := r.Learn(time.Now(), flood...); !errors.Is(err, ErrTooMany) {
			t.Errorf("a flood: %v", err)
		}
		if _, _, _, ok := r.Key("k2"); !ok {
			t.Error("a flood makes it forget")
		}
	})
}

// TestKeep: keys are there as long as it runs, and it ends when told.
func TestKeep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, err := NewPlain(server)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Keep(ctx, token.A256GCM, MinKeyLife, slog.New(slog.NewTextHandler(io.Discard, nil))) }()
		synctest.Wait()
		for range 200 {
			if r.KID("p") == "" {
				t.Fatal("no key to seal with")
			}
			time.Sleep(30 * time.Minute)
		}
		if n := len(r.Plain(time.Now())); n > 27 {
			t.Errorf("%d keys", n)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
