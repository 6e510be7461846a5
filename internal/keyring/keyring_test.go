package keyring

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"wicgate/internal/secret"
	"wicgate/internal/token"
)

const server = "turn.ims.test"

func fixed(t testing.TB) *Ring {
	t.Helper()
	b := make([]byte, 32)
	for i := range b {
		b[i] = byte(i)
	}
	r := New(server)
	r.keys.Store(&keys{
		masters: []master{{id: "m4STER_-", key: secret.New(b), format: token.A256GCM}},
		nonces:  []nonceSecret{{key: secret.New(b)}},
	})
	return r
}

// The keys were derived by openssl from the master 000102...1f:
//
//	INFO=$(printf 'wicgate stun-key\0m4STER_-.pSEUDONYM0pseudonym1_-' | od -An -tx1 -v | tr -d ' \n')
//	openssl kdf -keylen 32 -kdfopt digest:SHA256 -kdfopt hexkey:000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f \
//	  -kdfopt hexinfo:$INFO HKDF | tr -d :
func TestKeyVectors(t *testing.T) {
	r := fixed(t)
	for _, c := range []struct{ pseudonym, key string }{
		{"pSEUDONYM0pseudonym1_-", "1F3723B5697DC1F4EA4CF64470233FB59BDD2676FC6DA41432E1662458E0BDC6"},
		{"a", "EEA732D06127CE8DB02318C7CF2EC63FAD5EC4EE89035A440D94594E22927250"},
	} {
		kid := r.KID(c.pseudonym)
		key, f, p, ok := r.Key(kid)
		if got := fmt.Sprintf("%X", key.Expose()); !ok || got != c.key || f != token.A256GCM || p != c.pseudonym {
			t.Errorf("Key(%q) = %s %v %q %v, want %s", kid, got, f, p, ok, c.key)
		}
	}
}

func TestKeyRefuses(t *testing.T) {
	r := fixed(t)
	for _, kid := range []string{"", ".", "m4STER_-", "m4STER_-.", ".p", "m4STER_-.p.q", "m4STER_-..p", "m4STER_-.p ", "m4STER_-.p\x00",
		"m4STER_-.\xc3\xa9", "m4STER_-.p:q", "other.p", "m4ster_-.p", "m4STER_-." + strings.Repeat("p", MaxPseudonym+1)} {
		if key, f, p, ok := r.Key(kid); ok || !key.IsZero() || f != 0 || p != "" {
			t.Errorf("Key(%q) is taken", kid)
		}
	}
	if _, _, _, ok := r.Key("m4STER_-." + strings.Repeat("p", MaxPseudonym)); !ok {
		t.Error("the longest pseudonym is refused")
	}
}

// A token is good for the pseudonym it was sealed for, and for no other.
func TestTokenOfOnePseudonym(t *testing.T) {
	r := New(server)
	if r.Server() != server || !strings.HasPrefix(r.KID("p"), r.Current()+".") {
		t.Error("names are wrong")
	}
	key, f, _, ok := r.Key(r.KID("alice"))
	if !ok {
		t.Fatal("own kid unknown")
	}
	tok, err := token.Seal(f, key, r.Server(), token.Payload{MACKey: token.NewMACKey(), Timestamp: token.NewTimestamp(time.Now()), Lifetime: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	u := token.AppendUsername(nil, r.KID("alice"), tok)
	kid, tok, ok, err := token.ParseUsername(u)
	if !ok || err != nil {
		t.Fatal(err)
	}
	key, f, who, ok := r.Key(kid)
	if _, err := token.Open(f, key, server, tok); err != nil || who != "alice" || !ok {
		t.Errorf("%q: %v", who, err)
	}
	key, f, _, _ = r.Key(r.KID("bob"))
	if _, err := token.Open(f, key, server, tok); !errors.Is(err, token.ErrSealed) {
		t.Errorf("opens for bob: %v", err)
	}
}

func TestRotate(t *testing.T) {
	for _, where := range []string{"memory", "file"} {
		t.Run(where, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "ring")
			synctest.Test(t, func(t *testing.T) {
				r := New(server)
				if where == "file" {
					var err error
					if r, err = OpenFile(path, server); err != nil {
						t.Fatal(err)
					}
				}
				old, oldKID, oldNonce := r.Current(), r.KID("p"), r.NonceSecrets()[0]
				oldKey, _, _, _ := r.Key(oldKID)

				for _, short := range []time.Duration{0, -time.Hour, MinOverlap - 1} {
					if err := r.Rotate(time.Now(), short); !errors.Is(err, ErrOverlap) || r.Current() != old {
						t.Errorf("overlap %v: %v", short, err)
					}
				}
				if err := r.Rotate(time.Now(), MinOverlap); err != nil {
					t.Fatal(err)
				}
				if r.Current() == old {
					t.Error("no new master")
				}
				if n := r.NonceSecrets(); len(n) != 2 || !n[0].Equal(oldNonce) || n[1].Equal(oldNonce) {
					t.Error("nonce secrets are wrong")
				}
				time.Sleep(nonceSettle)
				if n := r.NonceSecrets(); len(n) != 2 || n[0].Equal(oldNonce) || !n[1].Equal(oldNonce) {
					t.Error("nonce secrets are wrong once all nodes have them")
				}
				// The longest token that was sealed a moment before the rotation.
				time.Sleep(MinOverlap - nonceSettle - time.Nanosecond)
				if k, _, _, ok := r.Key(oldKID); !ok || !k.Equal(oldKey) {
					t.Error("the old master ends before the tokens made with it")
				}
				time.Sleep(time.Nanosecond)
				if _, _, _, ok := r.Key(oldKID); ok {
					t.Error("the old master has no end")
				}
				if len(r.NonceSecrets()) != 1 {
					t.Error("the old nonce secret has no end")
				}
				if _, _, _, ok := r.Key(r.KID("p")); !ok {
					t.Error("the new master ended too")
				}
				// A second rotation drops it.
				if err := r.Rotate(time.Now(), MinOverlap); err != nil || len(r.keys.Load().masters) != 2 {
					t.Errorf("%d masters, %v", len(r.keys.Load().masters), err)
				}
				var err error
				for i := 0; i < 2*MaxMasters && err == nil; i++ {
					err = r.Rotate(time.Now(), MinOverlap)
				}
				if !errors.Is(err, ErrTooMany) || len(r.keys.Load().masters) != MaxMasters {
					t.Errorf("%d masters, %v", len(r.keys.Load().masters), err)
				}
				if where == "file" {
					again, err := OpenFile(path, server)
					if err != nil || again.Current() != r.Current() || len(again.keys.Load().masters) != MaxMasters {
						t.Errorf("the file holds something else: %v", err)
					}
				}
			})
		})
	}
}

func TestFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "turn.json")
	r, err := OpenFile(path, server)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if names, _ := filepath.Glob(filepath.Join(dir, "*")); len(names) != 1 {
		t.Errorf("files left over: %v", names)
	}
	if names, _ := filepath.Glob(filepath.Join(dir, ".*")); len(names) != 0 {
		t.Errorf("files left over: %v", names)
	}
	s, err := OpenFile(path, server)
	if err != nil {
		t.Fatal(err)
	}
	a, _, _, _ := r.Key(r.KID("p"))
	b, _, _, ok := s.Key(r.KID("p"))
	if !ok || !a.Equal(b) || r.Current() != s.Current() || !r.NonceSecrets()[0].Equal(s.NonceSecrets()[0]) {
		t.Error("a restart forgets the keys")
	}
}

// Another process sees a rotation without being told, but does not look at the file for every kid
// that a stranger makes up.
func TestRotationIsSeenByOthers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "turn.json")
	synctest.Test(t, func(t *testing.T) {
		waf, err := OpenFile(path, server)
		if err != nil {
			t.Fatal(err)
		}
		turn, err := OpenFile(path, server)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, _, ok := turn.Key("unknown.p"); ok {
			t.Fatal("unknown master")
		}
		if err := waf.Rotate(time.Now(), MinOverlap); err != nil {
			t.Fatal(err)
		}
		if _, _, _, ok := turn.Key(waf.KID("p")); ok {
			t.Error("the file is read again within a second")
		}
		time.Sleep(lookEvery)
		if _, _, _, ok := turn.Key(waf.KID("p")); !ok {
			t.Error("the rotation is not seen")
		}
		if turn.Current() != waf.Current() {
			t.Error("still seals with the old master")
		}
		// Both may rotate: neither loses the other's.
		if err := waf.Rotate(time.Now(), MinOverlap); err != nil {
			t.Fatal(err)
		}
		kid := waf.KID("p")
		if err := turn.Rotate(time.Now(), MinOverlap); err != nil {
			t.Fatal(err)
		}
		if err := waf.Reload(); err != nil {
			t.Fatal(err)
		}
		if _, _, _, ok := waf.Key(kid); !ok || len(waf.keys.Load().masters) != 4 {
			t.Errorf("%d masters", len(waf.keys.Load().masters))
		}
		// A file that went bad changes nothing, and is told.
		if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(lookEvery)
		if _, _, _, ok := waf.Key("unknown.p"); ok || waf.Err() == nil {
			t.Errorf("Err = %v", waf.Err())
		}
		if err := waf.Rotate(time.Now(), MinOverlap); err == nil {
			t.Error("a bad file is overwritten")
		}
		if _, _, _, ok := waf.Key(kid); !ok {
			t.Error("a bad file makes the ring forget")
		}
	})
}

// TestNonceSecretsOfSiblings: a nonce is made with a secret that each node has, while one of them has seen a
// rotation and another has not; and a node that is asked for no new master sees it too.
func TestNonceSecretsOfSiblings(t *testing.T) {
	path := filepath.Join(t.TempDir(), "turn.json")
	synctest.Test(t, func(t *testing.T) {
		var nodes [2]*Ring
		for i := range nodes {
			var err error
			if nodes[i], err = OpenFile(path, server); err != nil {
				t.Fatal(err)
			}
		}
		operator, err := OpenFile(path, server)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		nodes[0].NonceSecrets()
		nodes[1].NonceSecrets() // and has just looked
		old := nodes[0].NonceSecrets()[0]
		if err := operator.Rotate(time.Now(), MinOverlap); err != nil {
			t.Fatal(err)
		}
		time.Sleep(lookEvery)
		if _, _, _, ok := nodes[0].Key(operator.KID("p")); !ok {
			t.Fatal("the first does not see the rotation")
		}
		rotated := time.Now()
		for time.Since(rotated) < 2*nonceSettle {
			for i, n := range nodes {
				with := n.NonceSecrets()[0]
				for j, o := range nodes {
					if !slices.ContainsFunc(o.NonceSecrets(), with.Equal) {
						t.Fatalf("after %v: node %d makes nonces that node %d does not take", time.Since(rotated), i, j)
					}
				}
			}
			time.Sleep(time.Second)
		}
		for i, n := range nodes {
			if n.NonceSecrets()[0].Equal(old) {
				t.Errorf("node %d still makes nonces with the old secret", i)
			}
		}
	})
}

func TestFileAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "turn.json")
	const n = 16
	current := make([]string, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			r, err := OpenFile(path, server)
			if err != nil {
				t.Error(err)
				return
			}
			current[i] = r.Current()
		})
	}
	wg.Wait()
	for _, c := range current {
		if c != current[0] {
			t.Fatalf("two rings in one file: %q, %q", c, current[0])
		}
	}
}

func TestFileRefused(t *testing.T) {
	dir := t.TempDir()
	if _, err := OpenFile(filepath.Join(dir, "good"), server); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(filepath.Join(dir, "good"))
	if err != nil {
		t.Fatal(err)
	}
	var form fileForm
	if err := json.Unmarshal(good, &form); err != nil {
		t.Fatal(err)
	}
	keyText := base64.StdEncoding.EncodeToString(form.Masters[0].Key)
	end := time.Date(2040, 1, 1, 0, 0, 0, 0, time.UTC)
	changed := func(change func(*fileForm)) []byte {
		var f fileForm
		if err := json.Unmarshal(good, &f); err != nil {
			t.Fatal(err)
		}
		change(&f)
		b, err := json.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, c := range []struct {
		name string
		file []byte
		mode fs.FileMode
		want string
	}{
		{"good", good, 0o600, ""},
		{"read only", good, 0o400, ""},
		{"group may read", good, 0o640, "mode 0640, others than its owner can reach what is in it\n  hint: chmod 600"},
		{"world may read", good, 0o604, "mode 0604"},
		{"world may write", good, 0o602, "mode 0602"},
		{"empty", nil, 0o600, "not a key file: empty"},
		{"cut", good[:len(good)/2], 0o600, "not a key file"},
		{"garbage", []byte("\x00\xff\x00"), 0o600, "not a key file: no JSON at byte 1"},
		{"key in the place of a number", bytes.Replace(good, []byte(`"version": 1`), []byte(`"version": "`+keyText+`"`), 1), 0o600, "wrong type at byte"},
		{"key as a field", bytes.Replace(good, []byte(`"version"`), []byte(`"`+keyText+`": 1, "version"`), 1), 0o600, "unknown field"},
		{"key as a time", changedTime(good, keyText), 0o600, "not a key file"},
		{"bad base64", bytes.Replace(good, []byte(keyText), []byte(keyText[:20]+"!"+keyText[21:]), 1), 0o600, "not a key file"},
		{"trailing", append(bytes.Clone(good), '{'), 0o600, "more follows"},
		{"trailing text", append(bytes.Clone(good), "x"...), 0o600, "more follows"},
		{"too large", bytes.Repeat([]byte(" "), maxFile+1), 0o600, "is longer than 65536 bytes"},
		{"other version", changed(func(f *fileForm) { f.Version = 2 }), 0o600, "version 2, this program knows 1"},
		{"other server", changed(func(f *fileForm) { f.Server = "turn.other.test" }), 0o600, `keys of TURN server "turn.other.test", not of "turn.ims.test"`},
		{"no master", changed(func(f *fileForm) { f.Masters = nil }), 0o600, "no master"},
		{"no nonce secret", changed(func(f *fileForm) { f.NonceSecrets = nil }), 0o600, "no nonce secret"},
		{"bad id", changed(func(f *fileForm) { f.Masters[0].ID = "a.b" }), 0o600, "no usable id"},
		{"unknown enc", changed(func(f *fileForm) { f.Masters[0].Enc = "A192GCM" }), 0o600, `for "A192GCM"`},
		{"other enc", changed(func(f *fileForm) { f.Masters[0].Enc = "A256CBC-HS512" }), 0o600, ""},
		{"plain", changed(func(f *fileForm) { f.KIDMode, f.Masters = "plain", nil }), 0o600, "other kid_mode: masters are asked for"},
		{"plain keys too", changed(func(f *fileForm) { f.Keys = []plainForm{{KID: "k"}} }), 0o600, "holds masters and plain keys"},
		{"unknown mode", changed(func(f *fileForm) { f.KIDMode = "odd" }), 0o600, `kid_mode "odd"`},
		{"short key", changed(func(f *fileForm) { f.Masters[0].Key = f.Masters[0].Key[:31] }), 0o600, "31 bytes, want 32"},
		{"short nonce secret", changed(func(f *fileForm) { f.NonceSecrets[0].Key = nil }), 0o600, "0 bytes, want 32"},
		{"first with an end", changed(func(f *fileForm) { f.Masters[0].Retire = end }), 0o600, "the first has no end"},
		{"first nonce secret with an end", changed(func(f *fileForm) { f.NonceSecrets[0].Retire = end }), 0o600, "the first has no end"},
		{"second without an end", changed(func(f *fileForm) {
			f.Masters = append(f.Masters, f.Masters[0])
			f.Masters[1].ID = "other"
		}), 0o600, "all others have one"},
		{"twice", changed(func(f *fileForm) {
			f.Masters = append(f.Masters, f.Masters[0])
			f.Masters[1].Retire = end
		}), 0o600, "there twice"},
		{"too many", changed(func(f *fileForm) {
			for range MaxMasters {
				f.Masters = append(f.Masters, f.Masters[0])
			}
		}), 0o600, "more than 16"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "f")
			if err := os.WriteFile(path, c.file, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, c.mode); err != nil {
				t.Fatal(err)
			}
			_, err := OpenFile(path, server)
			if (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path)) {
				t.Errorf("OpenFile = %v, want %q", err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), keyText[:16]) {
				t.Errorf("the error shows a key: %v", err)
			}
			if now, rerr := os.ReadFile(path); rerr != nil || !bytes.Equal(now, c.file) {
				t.Error("the file was changed")
			}
		})
	}
	if _, err := OpenFile(filepath.Join(dir, "no", "such", "folder"), server); err == nil {
		t.Error("a folder was made")
	}
	if _, err := OpenFile(dir, server); err == nil || !strings.Contains(err.Error(), "no regular file") {
		t.Errorf("a folder as a file: %v", err)
	}
	if _, err := OpenFile(filepath.Join(dir, "x"), ""); err == nil {
		t.Error("no server name")
	}
}

func changedTime(good []byte, text string) []byte {
	i := bytes.Index(good, []byte(`"created": "`)) + len(`"created": "`)
	j := i + bytes.IndexByte(good[i:], '"')
	return append(append(bytes.Clone(good[:i]), text...), good[j:]...)
}

func TestNothingPrintsAKey(t *testing.T) {
	r := fixed(t)
	if err := r.Rotate(time.Now(), MinOverlap); err != nil {
		t.Fatal(err)
	}
	key, _, _, _ := r.Key(r.KID("p"))
	secrets := []secret.Bytes{key}
	for _, m := range r.keys.Load().masters {
		secrets = append(secrets, m.key)
	}
	secrets = append(secrets, r.NonceSecrets()...)
	k := r.keys.Load()
	var out strings.Builder
	plain := samplePlain(t)
	for _, p := range plain.keys.Load().plain {
		secrets = append(secrets, p.K)
	}
	for _, v := range []any{plain, plain.keys.Load().plain, plain.Plain(time.Now()), r, *k, k, k.masters, k.masters[0], &k.masters[0], k.nonces, key} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
			fmt.Fprintf(&out, verb, v)
		}
		slog.New(slog.NewJSONHandler(&out, nil)).Info("m", "v", v)
		slog.New(slog.NewTextHandler(&out, nil)).Info("m", "v", v)
	}
	for _, s := range secrets {
		b := s.Expose()
		for _, form := range []string{string(b), hex.EncodeToString(b), strings.ToUpper(hex.EncodeToString(b)),
			base64.StdEncoding.EncodeToString(b), strings.Trim(fmt.Sprintf("%d", b), "[]")} {
			if strings.Contains(out.String(), form) {
				t.Errorf("a key is printed as %.20s...", form)
			}
		}
	}
}

func BenchmarkKey(b *testing.B) {
	r := fixed(b)
	kid := r.KID("pSEUDONYM0pseudonym1_-")
	b.ReportAllocs()
	for b.Loop() {
		r.Key(kid)
	}
}

func FuzzParseFile(f *testing.F) {
	derived, plain := New(server), samplePlain(f)
	good, err := derived.encode(derived.keys.Load())
	if err != nil {
		f.Fatal(err)
	}
	alsoGood, err := plain.encode(plain.keys.Load())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(alsoGood)
	f.Add([]byte(`{"version":1,"server":"turn.ims.test","masters":[],"nonce_secrets":[]}`))
	f.Add([]byte(`{`))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, r := range []*Ring{derived, plain} {
			k, err := r.parseFile(b)
			if err != nil {
				continue
			}
			again, err := r.encode(k)
			if err != nil {
				continue // a year that JSON cannot write once in UTC
			}
			l, err := r.parseFile(again)
			if err != nil || len(l.masters) != len(k.masters) || len(l.nonces) != len(k.nonces) || len(l.plain) != len(k.plain) {
				t.Fatalf("does not come back: %v", err)
			}
			for i, p := range k.plain {
				if l.plain[i].KID != p.KID || !l.plain[i].K.Equal(p.K) || !l.plain[i].Exp.Equal(p.Exp) {
					t.Fatalf("%v does not come back", p)
				}
			}
		}
	})
}
