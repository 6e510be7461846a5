package epcscf

import (
	"strings"

	"wicgate/internal/siptx"
)

// passing are the fields, in lower case, that go on both ways: those that two user agents tell each
// other and nobody between them believes. What is not named ends here: what has a meaning inside the
// trust domain, which only this edge may give it (RFC 3325, TS 24.229 §4.4), what names hops, what makes a
// phone act by itself (Replaces, Alert-Info, answer modes), and whatever is defined tomorrow.
var passing = map[string]bool{
	"from": true, "to": true, "call-id": true, "cseq": true, "contact": true,
	"content-type": true, "content-disposition": true, "content-language": true, "mime-version": true,
	"accept": true, "accept-language": true, "allow": true, "supported": true, "require": true, "unsupported": true,
	"user-agent": true, "date": true, "timestamp": true, "expires": true, "min-expires": true, "retry-after": true, "warning": true, "reason": true, "subject": true,
	"session-expires": true, "min-se": true, // RFC 4028
	"accept-contact": true, "reject-contact": true, "request-disposition": true, // RFC 3841
	"recv-info": true, "info-package": true, // RFC 6086
}

// fromBrowser says whether a field may go on to the core.
func fromBrowser(name string) bool {
	n := strings.ToLower(name)
	return passing[n] || n == "privacy" || n == "server"
}

// fromCore says whether a field may go on to the browser. The caller's asserted identity may,
// unless Privacy forbids it (see screenCore).
func fromCore(name string) bool {
	n := strings.ToLower(name)
	return passing[n] || n == "p-asserted-identity"
}

// notOfBody says whether a field says nothing of the body.
func notOfBody(name string) bool {
	n := strings.ToLower(name)
	return !strings.HasPrefix(n, "content-") && n != "mime-version"
}

// screenBrowser makes what of m may go on towards the core: no bearer, no P- field, no route, no Via
// of the browser, no name in Contact.
func screenBrowser(m *siptx.Message) *siptx.Message {
	c := m.Clone()
	c.Keep(fromBrowser)
	contacts := c.List("Contact")
	c.Del("Contact")
	for _, v := range contacts {
		if a, err := siptx.ParseNameAddr(v); err == nil { // without the name that it gives itself
			a.Display = ""
			c.Add("Contact", a.String())
		}
	}
	return c
}

// screenCore makes what of m may go on towards the browser.
func screenCore(m *siptx.Message) *siptx.Message {
	c := m.Clone()
	private := false
	for _, v := range m.All("Privacy") {
		for _, p := range siptx.Split(v, ';') {
			private = private || strings.EqualFold(p, "id") || strings.EqualFold(p, "user") || strings.EqualFold(p, "header")
		}
	}
	c.Keep(func(name string) bool {
		return fromCore(name) && !(private && strings.EqualFold(name, "P-Asserted-Identity"))
	})
	return c
}
