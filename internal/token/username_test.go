package token

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"wicgate/internal/secret"
)

func TestUsername(t *testing.T) {
	tok := rfcToken(t)
	for _, kid := range []string{"3140Gj", "m4STER_-.pSEUDONYM0pseudonym1_-", "a", "-._"} {
		u := AppendUsername([]byte("x"), kid, tok)[1:]
		if want := "o1." + kid + ".AAxoNGozazJsMm40YjVhfvE0o9XkTpoZzH3BBLDAPQOypVHY_fXNO23KbxDPt35bLd7ITSk6XFBJk1nwwuJvdg"; string(u) != want {
			t.Errorf("AppendUsername = %s\nwant %s", u, want)
		}
		k, b, ok, err := ParseUsername(u)
		if k != kid || !bytes.Equal(b, tok) || !ok || err != nil {
			t.Errorf("ParseUsername(%s) = %q %x %v %v", u, k, b, ok, err)
		}
	}
	if u := AppendUsername(nil, "m4STER_-.pSEUDONYM0pseudonym1_-", tok); len(u) != 121 {
		t.Errorf("a derived kid makes a USERNAME of %d bytes", len(u))
	}
}

func TestParseUsernameRefuses(t *testing.T) {
	for _, u := range []string{"", "o", "o1", "O1.k.AAAA", "alice", "1433895918:gorst", "o2.k.AAAA", " o1.k.AAAA"} {
		if kid, tok, ok, err := ParseUsername([]byte(u)); ok || err != nil || kid != "" || tok != nil {
			t.Errorf("%q is taken for one of ours: %v", u, err)
		}
	}
	for _, c := range []struct{ name, username string }{
		{"nothing", "o1."},
		{"no kid", "o1.AAAA"},
		{"empty kid", "o1..AAAA"},
		{"empty pseudonym", "o1.k..AAAA"},
		{"empty master", "o1..p.AAAA"},
		{"three parts", "o1.a.b.c.AAAA"},
		{"no token", "o1.k."},
		{"padding", "o1.k.AA=="},
		{"plus", "o1.k.AAA+"},
		{"slash", "o1.k.AAA/"},
		{"trailing bits", "o1.k.AB"},
		{"trailing bits of three", "o1.k.AAB"},
		{"lone character", "o1.k.AAAAA"},
		{"line feed", "o1.k.AA\nAA"},
		{"carriage return", "o1.k.AAAA\r"},
		{"zero byte", "o1.k.AAA\x00"},
		{"not ASCII", "o1.k.AAA\xc3\xa9"},
		{"kid with a colon", "o1.k:l.AAAA"},
		{"kid not ASCII", "o1.\xc3\xa9.AAAA"},
		{"kid with a space", "o1.k .AAAA"},
		{"too long", "o1.k." + strings.Repeat("A", 504)},
	} {
		t.Run(c.name, func(t *testing.T) {
			kid, tok, ok, err := ParseUsername([]byte(c.username))
			if !ok || !errors.Is(err, ErrUsername) || kid != "" || tok != nil {
				t.Errorf("%q %x %v %v", kid, tok, ok, err)
			}
		})
	}
	if _, _, ok, err := ParseUsername([]byte("o1.kkkk." + strings.Repeat("A", 500))); !ok || err != nil {
		t.Errorf("508 bytes: %v %v", ok, err)
	}
	if _, _, ok, err := ParseUsername([]byte("o1.kkkkk." + strings.Repeat("A", 500))); !ok || !errors.Is(err, ErrUsername) {
		t.Errorf("509 bytes: %v %v", ok, err)
	}
}

// A token cut or changed at any character of its USERNAME never yields the same token again.
func TestUsernameHasOneForm(t *testing.T) {
	tok := rfcToken(t)
	u := AppendUsername(nil, "m.p", tok)
	for i := range u {
		if _, got, _, err := ParseUsername(u[:i]); err == nil && bytes.Equal(got, tok) {
			t.Errorf("cut at %d is the same token", i)
		}
		for c := range 256 {
			if byte(c) == u[i] {
				continue
			}
			v := bytes.Clone(u)
			v[i] = byte(c)
			kid, got, _, err := ParseUsername(v)
			if err == nil && kid == "m.p" && bytes.Equal(got, tok) {
				t.Errorf("%q is a second USERNAME of the same token", v)
			}
		}
	}
}

// The values were made by openssl, from the hex of the mac_key:
//
//	printf 'wicgate turn credential' |
//	  openssl dgst -sha256 -mac HMAC -macopt hexkey:$MAC_KEY -binary | basenc --base64url | tr -d =
func TestCredential(t *testing.T) {
	for _, c := range []struct{ macKey, want string }{
		{"5a6b736a7077656f6978586d766e36373533346d", "8aH9s1MY4uDS7IOZg7i6VS7E98XPrfE8EnMTBrxFrfI"},
		{"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f", "0JbN1mN6SflU0uh7uU2lrkh3YKp8IIFRbhJvG36eiAg"},
		{"000102030405060708090a0b0c0d0e0f00000000", "3QiLoNsFgOk9cHekCo1A3PvuaKcVQmgbS4gkwAQyfyI"},
		// coturn's reading of the same key, by HMAC's zero padding:
		{"000102030405060708090a0b0c0d0e0f", "3QiLoNsFgOk9cHekCo1A3PvuaKcVQmgbS4gkwAQyfyI"},
	} {
		if got := Credential(secret.New(unhex(t, c.macKey))).Expose(); string(got) != c.want {
			t.Errorf("Credential(%s) = %s, want %s", c.macKey, got, c.want)
		}
	}
}

func FuzzParseUsername(f *testing.F) {
	tok := rfcToken(f)
	f.Add(AppendUsername(nil, "3140Gj", tok))
	f.Add(AppendUsername(nil, "m4STER_-.pSEUDONYM0pseudonym1_-", tok))
	f.Add([]byte("o1.k.AA=="))
	f.Add([]byte("o1.k.AB"))
	f.Add([]byte("o1.a.b.c.AAAA"))
	f.Add([]byte("1433895918:gorst"))
	f.Fuzz(func(t *testing.T, u []byte) {
		kid, tok, ok, err := ParseUsername(u)
		switch {
		case !ok && (err != nil || kid != "" || tok != nil):
			t.Fatal("a foreign USERNAME with a result")
		case ok && err != nil && (kid != "" || tok != nil):
			t.Fatal("an error with a result")
		case ok && err == nil:
			if again := AppendUsername(nil, kid, tok); !bytes.Equal(again, u) {
				t.Fatalf("%q became %q", u, again)
			}
			if strings.Count(kid, ".") > 1 || len(tok) == 0 || len(u) > MaxUsername {
				t.Fatalf("%q %x", kid, tok)
			}
		}
	})
}
