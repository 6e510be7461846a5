// Package policy holds pure decisions: no socket, no clock, no state. Who enforces one says so.
//
// Destination policy: whom a guest (TS 24.371 scenario 3, an identity from a pool) may call. The
// default is nobody. The eP-CSCF enforces it.
package policy

import (
	"fmt"
	"slices"
	"strings"
)

// maxDestinations bounds a policy.
const maxDestinations = 10_000

// Destinations are whom somebody may call. The zero value is nobody.
type Destinations struct {
	list    []string
	users   map[string]struct{} // user@host, host in lower case; tel:number
	domains map[string]struct{}
}

// ParseDestinations reads a policy. An entry is a user of the home domain ("alice"), a SIP URI
// without port and parameters ("sip:alice@example.org"), all users of a domain ("*@example.org"), or a
// tel URI ("tel:+4930123").
func ParseDestinations(domain string, entries []string) (Destinations, error) {
	d := Destinations{list: slices.Clone(entries), users: map[string]struct{}{}, domains: map[string]struct{}{}}
	if len(entries) > maxDestinations {
		return Destinations{}, fmt.Errorf("%d destinations, at most %d", len(entries), maxDestinations)
	}
	for _, e := range entries {
		refuse := fmt.Errorf("destination %q: want a user such as alice, sip:alice@example.org, *@example.org or tel:+4930123", e)
		if n, ok := strings.CutPrefix(e, "tel:"); ok {
			if !isNumber(n) {
				return Destinations{}, refuse
			}
			d.users[e] = struct{}{}
			continue
		}
		user, host, ok := strings.Cut(strings.TrimPrefix(e, "sip:"), "@")
		switch {
		case !ok && e == user: // no scheme, no host
			host = domain
		case !ok:
			return Destinations{}, refuse
		}
		host = strings.ToLower(host)
		if !isWord(host, ".-:[]") {
			return Destinations{}, refuse
		}
		switch {
		case user == "*" && e != "*": // "everybody" wants to be said with a domain
			d.domains[host] = struct{}{}
		case isWord(user, "-_.!~'()&=+$,;?/%"):
			d.users[user+"@"+host] = struct{}{}
		default:
			return Destinations{}, refuse
		}
	}
	return d, nil
}

// isNumber takes a global telephone number (RFC 3966 §3) without visual separators.
func isNumber(s string) bool {
	digits, ok := strings.CutPrefix(s, "+")
	return ok && digits != "" && len(digits) <= 15 && strings.Trim(digits, "0123456789") == ""
}

func isWord(s, others string) bool {
	return s != "" && len(s) <= 255 && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune(others, r)
	})
}

// Allows says whether the address of record aor ("sip:user@host", "tel:+…", host in lower case) may be
// called. What is written otherwise than the policy writes it is not allowed, nor is, of all users of a domain, one whose name
// holds what another parser might take for the end of a host, for an escape or for a password.
func (d Destinations) Allows(aor string) bool {
	if strings.HasPrefix(aor, "tel:") {
		_, ok := d.users[aor]
		return ok
	}
	rest, ok := strings.CutPrefix(aor, "sip:")
	if !ok {
		if rest, ok = strings.CutPrefix(aor, "sips:"); !ok {
			return false
		}
	}
	user, host, ok := strings.Cut(rest, "@")
	if !ok || user == "" || strings.Contains(host, "@") {
		return false
	}
	if _, ok = d.users[rest]; !ok {
		_, ok = d.domains[host]
		ok = ok && isWord(user, "-_.!~'()&=+$,")
	}
	return ok
}

// String is the policy as it was written.
func (d Destinations) String() string {
	if len(d.list) == 0 {
		return "nobody"
	}
	return strings.Join(d.list, ", ")
}
