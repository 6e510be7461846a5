package epcscf

import (
	"strings"

	"wicgate/internal/siptx"
)

// Fields that end at this edge, in lower case. Each has a meaning inside the trust domain that only
// this edge may give it (RFC 3325, TS 24.229 §4.4), or names hops that are hidden from the other side.
var hopFields = map[string]bool{
	"via": true, "route": true, "record-route": true, "path": true, "service-route": true, "max-forwards": true,
	"authorization": true, "proxy-authorization": true, "proxy-authenticate": true, "www-authenticate": true,
	"authentication-info": true, "proxy-authentication-info": true, "proxy-require": true,
	"security-client": true, "security-server": true, "security-verify": true,
	"feature-caps": true, "authorization-entity": true, "identity": true, "identity-info": true, "history-info": true, "privacy": true,
	"resource-share": true, "service-interact-info": true, "cellular-network-info": true, "priority-share": true,
	"response-source": true, "attestation-info": true, "origination-id": true, "additional-identity": true,
	"relayed-charge": true, "resource-priority": true, "geolocation": true, "geolocation-routing": true,
	"content-length": true, "turn-credential": true,
}

// fromBrowser says whether a field may go on to the core. Everything with P- goes: all of those are
// given, or not, by this edge.
func fromBrowser(name string) bool {
	n := strings.ToLower(name)
	return n == "privacy" || !hopFields[n] && !strings.HasPrefix(n, "p-")
}

// fromCore says whether a field may go on to the browser. The caller's asserted identity may,
// unless Privacy forbids it (see screenCore).
func fromCore(name string) bool {
	n := strings.ToLower(name)
	return n == "p-asserted-identity" || !hopFields[n] && !strings.HasPrefix(n, "p-") && n != "server"
}

// screenBrowser makes what of m may go on towards the core: no bearer, no P- field, no route, no Via
// of the browser.
func screenBrowser(m *siptx.Message) *siptx.Message {
	c := m.Clone()
	c.Keep(fromBrowser)
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
