package siptx

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/emiago/sipgo/sip"
)

// Bounds of one message, in bytes and counts.
const (
	MaxMessage = 64 << 10 // head and body
	MaxHead    = 32 << 10 // start line and header fields
	maxLine    = 8 << 10
	maxFields  = 128
	maxToken   = 256  // branch, tag, Call-ID
	maxURI     = 1024 // as written
)

// Bounds of a message of a client ([ParseClient]): what passes them is still within the bounds of
// the next hop when a proxy has added its routes, identities and charging fields.
const (
	MaxClientMessage = MaxMessage - 8<<10
	maxClientHead    = MaxHead - 8<<10
	maxClientLine    = maxLine - 1<<10
	maxClientFields  = maxFields - 32
	maxClientSeq     = 1<<31 - 1 - 1000 // CSeq of requests: an owner goes on counting in the client's place
	maxClientVia     = 4                // a client writes one
	maxVia           = 32               // of a request that is refused unread
)

// ErrMalformed is the reason for each refusal of Parse; the text names the field.
var ErrMalformed = errors.New("malformed SIP message")

func malformed(format string, a ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrMalformed}, a...)...)
}

// Header is one header field: its name in the long form and its value as it came, unfolded.
type Header struct{ Name, Value string }

// Message is a request or a response. A message from [Parse] has passed its checks: exactly one
// From with a tag (in requests), To, Call-ID and CSeq, a Via with a branch of RFC 3261, and a body
// that agrees with Content-Length.
type Message struct {
	Method string // of a request; empty in a response
	URI    string // Request-URI, as it came
	Status int    // of a response, 100 to 699; 0 in a request
	Reason string
	// Fields but Content-Length, which Append writes.
	Headers []Header
	Body    []byte
	// Local marks a response that no peer has sent: a timeout, or a lost connection.
	Local bool
}

// compact forms of RFC 3261 §7.3.3 and later documents, for the fields that somebody here reads.
var compact = map[string]string{
	"a": "Accept-Contact", "b": "Referred-By", "c": "Content-Type", "d": "Request-Disposition", "e": "Content-Encoding",
	"f": "From", "i": "Call-ID", "j": "Reject-Contact", "k": "Supported", "m": "Contact", "n": "Identity-Info", "o": "Event",
	"r": "Refer-To", "s": "Subject", "t": "To", "u": "Allow-Events", "v": "Via", "x": "Session-Expires", "y": "Identity",
}

var canonical = []string{
	"Accept", "Allow", "Authorization", "Call-ID", "Contact", "Content-Type", "CSeq", "Expires", "Flow-Timer", "From", "Max-Forwards",
	"Path", "Proxy-Authorization", "Proxy-Require", "Reason", "Record-Route", "Require", "Retry-After", "Route", "Service-Route",
	"Session-Expires", "Supported", "To", "User-Agent", "Via", "WWW-Authenticate",
}

var parser = sip.NewParser(sip.WithHeadersParsers(fieldParsers()))

// fieldParsers makes sipgo keep each field verbatim. Only Content-Length is read by it, as the
// body's end depends on it.
func fieldParsers() map[string]sip.HeaderParser {
	verbatim := func(name string) sip.HeaderParser {
		return func(_ []byte, value string) (sip.Header, error) { return sip.NewHeader(name, value), nil }
	}
	length := sip.DefaultHeadersParser()["content-length"]
	m := map[string]sip.HeaderParser{"content-length": length, "l": length}
	for short, long := range compact {
		m[short] = verbatim(long)
		m[strings.ToLower(long)] = verbatim(long)
	}
	for _, long := range canonical {
		m[strings.ToLower(long)] = verbatim(long)
	}
	return m
}

// Parse reads one whole message. needLength is true on streams, where Content-Length is mandatory
// (RFC 3261 §20.14); on a WebSocket it may be absent (RFC 7118 §5). The message does not keep b.
func Parse(b []byte, needLength bool) (*Message, error) {
	head, err := checkBytes(b)
	if err != nil {
		return nil, err
	}
	parsed, n, err := parser.Parse(b, false)
	if err != nil {
		return nil, malformed("%v", brief(err))
	}
	if n != len(b) && len(bytes.TrimLeft(b[n:], "\r\n")) > 0 {
		return nil, malformed("%d bytes after the body", len(b)-n)
	}
	m := &Message{Body: parsed.Body()}
	var fields []sip.Header
	switch p := parsed.(type) {
	case *sip.Request:
		line := string(head[:bytes.IndexByte(head, '\r')])
		parts := strings.Split(line, " ")
		if len(parts) != 3 || parts[2] != "SIP/2.0" {
			return nil, malformed("request line")
		}
		m.Method, m.URI, fields = parts[0], parts[1], p.Headers()
		if !isMethod(m.Method) {
			return nil, malformed("method")
		}
		if _, err := ParseURI(m.URI); err != nil {
			return nil, fmt.Errorf("%w in the request line", err)
		}
	case *sip.Response:
		m.Status, m.Reason, fields = p.StatusCode, p.Reason, p.Headers()
		if m.Status < 100 || m.Status > 699 || p.SipVersion != "SIP/2.0" {
			return nil, malformed("status line")
		}
	}
	for _, f := range fields {
		if strings.EqualFold(f.Name(), "Content-Length") {
			continue
		}
		if !isToken(f.Name()) {
			return nil, malformed("name of a header field")
		}
		if len(f.Name())+len(f.Value())+4 > maxLine { // of a folded field: it is written in one line
			return nil, malformed("field over %d bytes", maxLine)
		}
		m.Headers = append(m.Headers, Header{f.Name(), f.Value()})
	}
	if n := lengths(head); n > 1 || n == 0 && needLength {
		return nil, malformed("%d Content-Length fields", n)
	}
	return m, m.check()
}

// ParseClient is Parse for a message of an untrusted client, whose bounds are lower.
func ParseClient(b []byte, needLength bool) (*Message, error) {
	if len(b) > MaxClientMessage {
		return nil, malformed("over %d bytes", MaxClientMessage)
	}
	m, err := Parse(b, needLength)
	if err != nil {
		return nil, err
	}
	size := 0
	for _, h := range m.Headers {
		n := len(h.Name) + len(h.Value) + 4 // as written
		if n > maxClientLine {
			return nil, malformed("field over %d bytes", maxClientLine)
		}
		size += n
	}
	if size > maxClientHead || len(m.Headers) > maxClientFields {
		return nil, malformed("over %d header fields, or %d bytes of them", maxClientFields, maxClientHead)
	}
	if n := len(m.List("Via")); n > maxClientVia {
		return nil, malformed("%d Via values", n)
	}
	if seq, _, _ := m.CSeq(); m.IsRequest() && seq > maxClientSeq {
		return nil, malformed("CSeq over %d", maxClientSeq)
	}
	return m, nil
}

// fits says why a peer with the bounds of Parse would refuse b, written by Append, for its size.
func fits(b []byte) error {
	_, err := checkBytes(b)
	return err
}

// lengths counts the Content-Length fields. sipgo adds one where there is none, so it cannot be asked.
func lengths(head []byte) int {
	n := 0
	for line := range bytes.SplitSeq(head, []byte("\r\n")) {
		name, _, _ := bytes.Cut(line, []byte(":"))
		if len(line) > 0 && line[0] != ' ' && line[0] != '\t' && isLength(string(bytes.TrimSpace(name))) {
			n++
		}
	}
	return n
}

func isLength(name string) bool {
	return strings.EqualFold(name, "Content-Length") || strings.EqualFold(name, "l")
}

// brief cuts what sipgo's errors quote of the message: it may hold a token.
func brief(err error) string {
	s, _, _ := strings.Cut(err.Error(), ":")
	s, _, _ = strings.Cut(s, "'")
	s, _, _ = strings.Cut(s, "\"")
	return strings.TrimSpace(s)
}

// checkBytes bounds the message and refuses what could end a line for one reader and not for
// another: CR or LF alone, and other control characters, in the head. It returns the head.
func checkBytes(b []byte) ([]byte, error) {
	if len(b) > MaxMessage {
		return nil, malformed("over %d bytes", MaxMessage)
	}
	end := bytes.Index(b, []byte("\r\n\r\n"))
	if end < 0 {
		return nil, malformed("no end of the header fields")
	}
	head := b[:end+2]
	if len(head) > MaxHead {
		return nil, malformed("header fields over %d bytes", MaxHead)
	}
	if !utf8.Valid(head) {
		return nil, malformed("header fields are not UTF-8")
	}
	lines, start := 0, 0
	for i, c := range head {
		switch {
		case c == '\r' && head[i+1] == '\n': // the head ends in CRLF, so i+1 is inside
		case c == '\n' && i > 0 && head[i-1] == '\r':
			lines++
			if i-start > maxLine {
				return nil, malformed("line over %d bytes", maxLine)
			}
			start = i + 1
		case c < ' ' && c != '\t', c == 0x7f:
			return nil, malformed("control character 0x%02x", c)
		}
	}
	if lines > maxFields {
		return nil, malformed("over %d lines of header fields", maxFields)
	}
	return head, nil
}

// check holds the message to RFC 3261 §8.1.1 and §20.
func (m *Message) check() error {
	for _, one := range []string{"From", "To", "Call-ID", "CSeq"} {
		if n := len(m.All(one)); n != 1 {
			return malformed("%d %s fields", n, one)
		}
	}
	for _, few := range []string{"Max-Forwards", "Content-Type", "Expires"} {
		if n := len(m.All(few)); n > 1 {
			return malformed("%d %s fields", n, few)
		}
	}
	via, err := m.Via()
	if err != nil {
		return err
	}
	if branch := via.Params.Get("branch"); !strings.HasPrefix(branch, "z9hG4bK") || len(branch) > maxToken || !isToken(branch) {
		return malformed("branch of the Via")
	}
	for _, name := range []string{"From", "To"} {
		a, err := ParseNameAddr(m.Get(name))
		if err != nil {
			return fmt.Errorf("%w in %s", err, name)
		}
		tag, ok := a.Params.Lookup("tag")
		if ok && (!isToken(tag) || len(tag) > maxToken) || !ok && name == "From" {
			return malformed("tag of %s", name)
		}
	}
	if id := m.CallID(); id == "" || len(id) > maxToken || strings.ContainsAny(id, " \t") {
		return malformed("Call-ID")
	}
	seq, method, ok := m.CSeq()
	if !ok || seq > 1<<31-1 || m.Method != "" && m.Method != method || !isMethod(method) {
		return malformed("CSeq")
	}
	if v := m.Get("Max-Forwards"); m.Method != "" && v != "" {
		if n, err := strconv.ParseUint(v, 10, 8); err != nil || n > 255 {
			return malformed("Max-Forwards")
		}
	}
	return nil
}

// IsRequest tells a request from a response.
func (m *Message) IsRequest() bool { return m.Status == 0 }

// Get is the value of the first field of that name, "" where there is none.
func (m *Message) Get(name string) string {
	for _, h := range m.Headers {
		if strings.EqualFold(h.Name, name) {
			return h.Value
		}
	}
	return ""
}

// All lists the values of the fields of that name as they came.
func (m *Message) All(name string) []string {
	var list []string
	for _, h := range m.Headers {
		if strings.EqualFold(h.Name, name) {
			list = append(list, h.Value)
		}
	}
	return list
}

// List is All with each value split at its commas (RFC 3261 §7.3.1).
func (m *Message) List(name string) []string {
	var list []string
	for _, v := range m.All(name) {
		list = append(list, Split(v, ',')...)
	}
	return list
}

// Has says whether a list of option tags, as in Supported, holds tag.
func (m *Message) Has(name, tag string) bool {
	for _, v := range m.List(name) {
		if strings.EqualFold(v, tag) {
			return true
		}
	}
	return false
}

// Add appends a field.
func (m *Message) Add(name, value string) { m.Headers = append(m.Headers, Header{name, value}) }

// Push puts a field before all others.
func (m *Message) Push(name, value string) {
	m.Headers = append([]Header{{name, value}}, m.Headers...)
}

// Set replaces the fields of that name by one.
func (m *Message) Set(name, value string) {
	for i, h := range m.Headers {
		if strings.EqualFold(h.Name, name) {
			m.Headers[i].Value = value
			rest := m.Headers[i+1:]
			m.Headers = m.Headers[:i+1]
			for _, h := range rest {
				if !strings.EqualFold(h.Name, name) {
					m.Headers = append(m.Headers, h)
				}
			}
			return
		}
	}
	m.Add(name, value)
}

// Keep drops the fields for which keep is false.
func (m *Message) Keep(keep func(name string) bool) {
	kept := m.Headers[:0]
	for _, h := range m.Headers {
		if keep(h.Name) {
			kept = append(kept, h)
		}
	}
	m.Headers = kept
}

// Del drops the fields of that name.
func (m *Message) Del(name string) {
	m.Keep(func(n string) bool { return !strings.EqualFold(n, name) })
}

// Clone is a copy whose fields may be changed. The body is shared; nobody writes into a body.
func (m *Message) Clone() *Message {
	c := *m
	c.Headers = append(make([]Header, 0, len(m.Headers)+8), m.Headers...)
	return &c
}

// CallID of the message.
func (m *Message) CallID() string { return m.Get("Call-ID") }

// CSeq of the message: number and method.
func (m *Message) CSeq() (seq uint32, method string, ok bool) {
	f := strings.Fields(m.Get("CSeq"))
	if len(f) != 2 {
		return 0, "", false
	}
	n, err := strconv.ParseUint(f[0], 10, 32)
	return uint32(n), f[1], err == nil
}

// FromTag and ToTag are "" where there is none.
func (m *Message) FromTag() string { return tagOf(m.Get("From")) }

// ToTag is the tag of To.
func (m *Message) ToTag() string { return tagOf(m.Get("To")) }

func tagOf(v string) string {
	a, err := ParseNameAddr(v)
	if err != nil {
		return ""
	}
	return a.Params.Get("tag")
}

// Via is the topmost Via.
func (m *Message) Via() (Via, error) {
	list := m.List("Via")
	if len(list) == 0 {
		return Via{}, malformed("no Via")
	}
	return ParseVia(list[0])
}

// Append writes the message, with its Content-Length, after dst.
func (m *Message) Append(dst []byte) []byte {
	if m.IsRequest() {
		dst = append(dst, m.Method...)
		dst = append(append(append(dst, ' '), m.URI...), " SIP/2.0\r\n"...)
	} else {
		dst = append(dst, "SIP/2.0 "...)
		dst = append(strconv.AppendInt(dst, int64(m.Status), 10), ' ')
		dst = append(append(dst, m.Reason...), "\r\n"...)
	}
	for _, h := range m.Headers {
		dst = append(append(dst, h.Name...), ": "...)
		dst = append(append(dst, h.Value...), "\r\n"...)
	}
	dst = append(dst, "Content-Length: "...)
	dst = strconv.AppendInt(dst, int64(len(m.Body)), 10)
	dst = append(dst, "\r\n\r\n"...)
	return append(dst, m.Body...)
}

// Response makes an answer to the request m, with the fields that RFC 3261 §8.2.6.2 copies. The
// tag of To is added by [ServerTx.Respond].
func (m *Message) Response(status int, reason string, fields ...Header) *Message {
	r := &Message{Status: status, Reason: reason}
	for _, h := range m.Headers {
		switch {
		case strings.EqualFold(h.Name, "Via"), strings.EqualFold(h.Name, "From"), strings.EqualFold(h.Name, "To"),
			strings.EqualFold(h.Name, "Call-ID"), strings.EqualFold(h.Name, "CSeq"):
			r.Headers = append(r.Headers, h)
		}
	}
	r.Headers = append(r.Headers, fields...)
	return r
}

// Refuse writes an answer to a request that Parse refused, from the lines that can be made out. ok
// is false where a Via, From, To, Call-ID or CSeq is missing, or b is no request (RFC 3261 §8.2.6).
func Refuse(b []byte, status int, reason string) (answer []byte, ok bool) {
	head, _, _ := bytes.Cut(b[:min(len(b), MaxHead)], []byte("\r\n\r\n"))
	lines := strings.Split(string(head), "\r\n")
	if len(lines) > maxFields {
		return nil, false
	}
	start := strings.Fields(lines[0])
	if len(start) != 3 || !isMethod(start[0]) || start[0] == "ACK" || start[2] != "SIP/2.0" {
		return nil, false
	}
	r := &Message{Status: status, Reason: reason}
	found := map[string]bool{}
	for _, line := range lines[1:] {
		name, value, _ := strings.Cut(line, ":")
		name = strings.ToLower(strings.TrimSpace(name))
		if long := compact[name]; long != "" {
			name = strings.ToLower(long)
		}
		value = strings.TrimSpace(value)
		for _, want := range []string{"Via", "From", "To", "Call-ID", "CSeq"} {
			if name != strings.ToLower(want) || found[want] && want != "Via" {
				continue
			}
			if value == "" || len(value) > maxURI || !utf8.ValidString(value) || strings.ContainsFunc(value, func(c rune) bool { return c < ' ' || c == 0x7f }) {
				return nil, false
			}
			found[want] = true
			if r.Add(want, value); len(r.Headers) > maxVia+4 {
				return nil, false
			}
		}
	}
	if len(found) != 5 {
		return nil, false
	}
	return r.Append(nil), true
}
