package claims

import (
	"errors"
	"testing"
	"time"
)

func TestCheck(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	good := SIP{Issuer: "https://waf.test", Subject: "alice", Audience: "epcscf.ims.test", ClientID: "wic",
		IssuedAt: now.Unix() - 10, NotBefore: now.Unix() - 10, Expiry: now.Unix() + 600, ID: "j1", Scope: "openid sip",
		Pseudonym: "p1", IMS: IMS{IMPI: "alice@ims.test", IMPU: []string{"sip:alice@ims.test"}, Scenario: 2}}
	for _, c := range []struct {
		name   string
		change func(*SIP)
		want   error
	}{
		{"good", func(*SIP) {}, nil},
		{"last second", func(c *SIP) { c.Expiry = now.Unix() }, nil},
		{"expired", func(c *SIP) { c.Expiry = now.Unix() - 1 }, ErrExpired},
		{"within leeway", func(c *SIP) { c.NotBefore = now.Add(MaxLeeway).Unix() }, nil},
		{"not yet", func(c *SIP) { c.NotBefore = now.Add(MaxLeeway + time.Second).Unix() }, ErrNotYet},
		{"issued in the future", func(c *SIP) { c.IssuedAt = now.Add(time.Hour).Unix() }, ErrNotYet},
		{"other issuer", func(c *SIP) { c.Issuer = "https://evil.test" }, ErrIssuer},
		{"issuer by prefix", func(c *SIP) { c.Issuer = "https://waf.test.evil" }, ErrIssuer},
		{"other audience", func(c *SIP) { c.Audience = "epcscf.other.test" }, ErrAudience},
		{"no audience", func(c *SIP) { c.Audience = "" }, ErrAudience},
		{"scope missing", func(c *SIP) { c.Scope = "openid" }, ErrScope},
		{"scope by prefix", func(c *SIP) { c.Scope = "sips sipp" }, ErrScope},
		{"no IMPI", func(c *SIP) { c.IMS.IMPI = "" }, ErrIdentity},
		{"no IMPU", func(c *SIP) { c.IMS.IMPU = nil }, ErrIdentity},
		{"empty IMPU", func(c *SIP) { c.IMS.IMPU = []string{"sip:a@b", ""} }, ErrIdentity},
		{"no jti", func(c *SIP) { c.ID = "" }, ErrMalformed},
		{"no exp", func(c *SIP) { c.Expiry = 0 }, ErrMalformed},
		{"no pseudonym", func(c *SIP) { c.Pseudonym = "" }, ErrMalformed},
	} {
		t.Run(c.name, func(t *testing.T) {
			tok := good
			c.change(&tok)
			err := tok.Check(now, []string{"https://other.test", "https://waf.test"}, "epcscf.ims.test")
			if !errors.Is(err, c.want) || (c.want == nil) != (err == nil) {
				t.Errorf("Check = %v, want %v", err, c.want)
			}
		})
	}
}
