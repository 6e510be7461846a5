package siptx

import (
	"net/netip"
	"strings"

	"github.com/emiago/sipgo/sip"
)

// Params are the parameters of a header field, in order. Values are as written, with their quotes.
type Params []Header

// Lookup finds a parameter by its name, in any case.
func (p Params) Lookup(name string) (value string, ok bool) {
	for _, kv := range p {
		if strings.EqualFold(kv.Name, name) {
			return kv.Value, true
		}
	}
	return "", false
}

// Get is Lookup where absence and emptiness are the same.
func (p Params) Get(name string) string { v, _ := p.Lookup(name); return v }

// Set replaces or adds a parameter.
func (p *Params) Set(name, value string) {
	for i, kv := range *p {
		if strings.EqualFold(kv.Name, name) {
			(*p)[i].Value = value
			return
		}
	}
	*p = append(*p, Header{name, value})
}

// Del removes a parameter.
func (p *Params) Del(name string) {
	kept := (*p)[:0]
	for _, kv := range *p {
		if !strings.EqualFold(kv.Name, name) {
			kept = append(kept, kv)
		}
	}
	*p = kept
}

func (p Params) append(b *strings.Builder) {
	for _, kv := range p {
		b.WriteString(";" + kv.Name)
		if kv.Value != "" {
			b.WriteString("=" + kv.Value)
		}
	}
}

// parseParams reads ";a=b;c". An empty s is no parameters.
func parseParams(s string) (Params, error) {
	var p Params
	s = strings.TrimSpace(s)
	if s == "" {
		return nil, nil
	}
	if s[0] != ';' {
		return nil, malformed("parameters")
	}
	for _, part := range Split(s[1:], ';') {
		name, value, _ := strings.Cut(part, "=")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		if !isToken(name) || len(p) >= 32 {
			return nil, malformed("parameters")
		}
		if _, twice := p.Lookup(name); twice {
			return nil, malformed("parameter %s twice", name)
		}
		p = append(p, Header{name, value})
	}
	return p, nil
}

// Split cuts s at sep where sep stands outside of quotes and angle brackets, and trims the parts.
// Empty parts are left out.
func Split(s string, sep byte) []string {
	var list []string
	start, angle, quoted := 0, false, false
	add := func(part string) {
		if part = strings.TrimSpace(part); part != "" {
			list = append(list, part)
		}
	}
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case quoted && c == '\\':
			i++
		case c == '"' && !angle:
			quoted = !quoted
		case quoted:
		case c == '<':
			angle = true
		case c == '>':
			angle = false
		case c == sep && !angle:
			add(s[start:i])
			start = i + 1
		}
	}
	add(s[start:])
	return list
}

// NameAddr is a name-addr or addr-spec with its parameters (RFC 3261 §20.10), as in From, Contact
// and Route.
type NameAddr struct {
	Display string // with its quotes, as it came
	URI     string
	Params  Params
}

// ParseNameAddr reads one, from which the URI has been checked by [ParseURI].
func ParseNameAddr(s string) (NameAddr, error) {
	var a NameAddr
	var rest string
	s = strings.TrimSpace(s)
	open := indexOutsideQuotes(s, '<')
	if open < 0 { // addr-spec: every parameter is the field's (RFC 3261 §20)
		uri, params, found := strings.Cut(s, ";")
		a.URI = strings.TrimSpace(uri)
		if found {
			rest = ";" + params
		}
		if strings.ContainsAny(a.URI, "\",?") {
			return a, malformed("address")
		}
	} else {
		a.Display = strings.TrimSpace(s[:open])
		end := strings.IndexByte(s[open:], '>')
		if end < 0 {
			return a, malformed("address without >")
		}
		a.URI, rest = s[open+1:open+end], s[open+end+1:]
	}
	if _, err := ParseURI(a.URI); err != nil {
		return a, err
	}
	var err error
	a.Params, err = parseParams(rest)
	return a, err
}

func indexOutsideQuotes(s string, c byte) int {
	quoted := false
	for i := 0; i < len(s); i++ {
		switch {
		case quoted && s[i] == '\\':
			i++
		case s[i] == '"':
			quoted = !quoted
		case s[i] == c && !quoted:
			return i
		}
	}
	return -1
}

// String writes the name-addr form.
func (a NameAddr) String() string {
	var b strings.Builder
	if a.Display != "" {
		b.WriteString(a.Display + " ")
	}
	b.WriteString("<" + a.URI + ">")
	a.Params.append(&b)
	return b.String()
}

// URI is a SIP, SIPS or tel URI in its parts.
type URI struct {
	Scheme string // "sip", "sips" or "tel", in lower case
	User   string // with its password, if any; the whole number of a tel URI
	Host   string // in lower case, without brackets
	Port   uint16 // 0 where absent
	Params Params
}

// ParseURI reads a SIP, SIPS or tel URI and refuses other schemes. Headers ("?…") are refused: a
// URI in a message must not carry them (RFC 3261 §19.1.1, table 1), and they would let a peer write header fields.
func ParseURI(s string) (URI, error) {
	var u URI
	if len(s) > maxURI || strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c >= 0x7f || c == '<' || c == '>' || c == '"' }) {
		return u, malformed("URI")
	}
	var p sip.Uri
	if err := sip.ParseUri(s, &p); err != nil {
		return u, malformed("URI: %s", brief(err))
	}
	u.Scheme = strings.ToLower(p.Scheme)
	switch u.Scheme {
	case "tel":
		u.User = p.Raw()
		if u.User == "" {
			return u, malformed("tel URI")
		}
		return u, nil
	case "sip", "sips":
	default:
		return u, malformed("URI scheme")
	}
	if p.Wildcard || p.HierarhicalSlashes || p.Headers != nil || p.Port < 0 || p.Port > 65535 {
		return u, malformed("URI")
	}
	u.User, u.Port = p.User, uint16(p.Port)
	if p.Password != "" {
		u.User += ":" + p.Password
	}
	u.Host = strings.ToLower(strings.Trim(p.Host, "[]"))
	if !isHost(u.Host) {
		return u, malformed("host of a URI")
	}
	for _, kv := range p.UriParams {
		u.Params = append(u.Params, Header{kv.K, kv.V})
	}
	return u, nil
}

// AOR is the address of record: scheme, user and host, without port and parameters (RFC 3261
// §10.3 step 5). A tel URI is its own.
func (u URI) AOR() string {
	switch {
	case u.Scheme == "tel":
		return "tel:" + u.User
	case u.User == "":
		return u.Scheme + ":" + u.Host
	}
	return u.Scheme + ":" + u.User + "@" + u.Host
}

// AddrPort is the address of a URI whose host is an address; the port is 5060 where absent.
func (u URI) AddrPort() (netip.AddrPort, bool) {
	a, err := netip.ParseAddr(u.Host)
	if err != nil {
		return netip.AddrPort{}, false
	}
	port := u.Port
	if port == 0 {
		port = 5060
	}
	return netip.AddrPortFrom(a.Unmap(), port), true
}

// AOROf is the address of record of a field such as From, "" if there is none.
func AOROf(field string) string {
	a, err := ParseNameAddr(field)
	if err != nil {
		return ""
	}
	u, err := ParseURI(a.URI)
	if err != nil {
		return ""
	}
	return u.AOR()
}

// Via is one Via value.
type Via struct {
	Transport string
	SentBy    string
	Params    Params
}

// ParseVia reads one.
func ParseVia(s string) (Via, error) {
	var v Via
	head, params, found := strings.Cut(s, ";")
	protocol, version, ok1 := strings.Cut(head, "/")
	version, rest, ok2 := strings.Cut(version, "/")
	f := strings.Fields(rest)
	if !ok1 || !ok2 || !strings.EqualFold(strings.TrimSpace(protocol), "SIP") || strings.TrimSpace(version) != "2.0" || len(f) < 2 {
		return v, malformed("Via")
	}
	v.Transport, v.SentBy = strings.ToUpper(f[0]), strings.Join(f[1:], "")
	if !isToken(v.Transport) || !isHost(strings.Trim(v.SentBy, "[]")) {
		return v, malformed("Via")
	}
	var err error
	if found {
		v.Params, err = parseParams(";" + params)
	}
	return v, err
}

func isMethod(s string) bool {
	if s == "" || len(s) > 16 {
		return false
	}
	for _, c := range []byte(s) {
		if c < 'A' || c > 'Z' {
			return false
		}
	}
	return true
}

// isToken is token of RFC 3261 §25.1.
func isToken(s string) bool {
	if s == "" {
		return false
	}
	for _, c := range []byte(s) {
		switch {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z':
		case strings.IndexByte("-.!%*_+`'~", c) >= 0:
		default:
			return false
		}
	}
	return true
}

// isHost is generous: a name, an address, with a port or without.
func isHost(s string) bool {
	if s == "" || len(s) > 255+6 {
		return false
	}
	for _, c := range []byte(s) {
		switch {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z':
		case strings.IndexByte("-._:[]", c) >= 0:
		default:
			return false
		}
	}
	return true
}
