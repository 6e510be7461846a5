package siptx

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
)

const invite = "INVITE sip:bob@ims.test SIP/2.0\r\n" +
	"Via: SIP/2.0/WSS i3o7be1l57ig.invalid;branch=z9hG4bK4108163\r\n" +
	"Max-Forwards: 69\r\n" +
	"To: <sip:bob@ims.test>\r\n" +
	"From: \"Alice, \\\"A\\\"\" <sip:alice@ims.test>;tag=0lb8fddege\r\n" +
	"Call-ID: jla9dfp9m1tmj4eldg6hic\r\n" +
	"CSeq: 1 INVITE\r\n" +
	"Contact: <sip:siqjun3h@i3o7be1l57ig.invalid;transport=ws;ob>;+sip.instance=\"<urn:uuid:7ca7f58d;,x y>\"\r\n" +
	"Content-Length: 3\r\n\r\nv=0"

// with applies edits, each "old → new", to the good INVITE.
func with(edits ...string) string {
	m := invite
	for _, e := range edits {
		old, to, _ := strings.Cut(e, " → ")
		m = strings.ReplaceAll(m, strings.ReplaceAll(old, `\r\n`, "\r\n"), strings.ReplaceAll(to, `\r\n`, "\r\n"))
	}
	return m
}

func TestParseKeepsFieldsAsTheyCame(t *testing.T) {
	m, err := Parse([]byte(invite), true)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(m.Append(nil)); got != invite {
		t.Errorf("written again:\n%s", got)
	}
	if m.Method != "INVITE" || m.URI != "sip:bob@ims.test" || string(m.Body) != "v=0" || m.FromTag() != "0lb8fddege" || m.ToTag() != "" || m.CallID() != "jla9dfp9m1tmj4eldg6hic" {
		t.Errorf("read as %+v", m)
	}
	a, err := ParseNameAddr(m.Get("Contact"))
	if err != nil || a.URI != "sip:siqjun3h@i3o7be1l57ig.invalid;transport=ws;ob" || a.Params.Get("+SIP.instance") != `"<urn:uuid:7ca7f58d;,x y>"` {
		t.Errorf("Contact %+v, %v", a, err)
	}
	if from, err := ParseNameAddr(m.Get("From")); err != nil || from.Display != `"Alice, \"A\""` {
		t.Errorf("From %+v, %v", from, err)
	}
}

func TestParseLongNames(t *testing.T) {
	m, err := Parse([]byte(with("Via: → v: ", "To: → t:", "From: → f:", "Call-ID: → i:", "Contact: → m:", "Content-Length: → l:", "Max-Forwards: 69 → Subject: folded\\r\\n \t on", "CSeq: → cSeq :")), true)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"Via", "To", "From", "Call-ID", "Contact", "CSeq"} {
		if m.Get(name) == "" {
			t.Errorf("no %s", name)
		}
	}
	if m.Get("Subject") != "folded on" {
		t.Errorf("Subject %q", m.Get("Subject"))
	}
}

func TestParseRefuses(t *testing.T) {
	for _, c := range []struct{ name, m string }{
		{"empty", ""},
		{"no head end", "INVITE sip:b@x SIP/2.0\r\n"},
		{"not SIP", "GET / HTTP/1.1\r\nHost: x\r\n\r\n"},
		{"SIP/1.0", with("sip:bob@ims.test SIP/2.0 → sip:bob@ims.test SIP/1.0")},
		{"lower-case method", with("INVITE → invite")},
		{"two spaces", with("INVITE sip → INVITE  sip")},
		{"http URI", with("INVITE sip:bob@ims.test → INVITE http://x")},
		{"URI with headers", with("INVITE sip:bob@ims.test → INVITE sip:bob@ims.test?P-Asserted-Identity=x")},
		{"no Via", with("Via: → Vi: ")},
		{"Via without branch", with(";branch=z9hG4bK4108163 → ")},
		{"branch of RFC 2543", with("z9hG4bK → 1")},
		{"no From", with("From: → Frm:")},
		{"From without tag", with(";tag=0lb8fddege → ")},
		{"two From", with("Max-Forwards: 69 → From: <sip:x@y>;tag=2")},
		{"no To", with("To: → T0:")},
		{"no Call-ID", with("Call-ID: → CallID:")},
		{"no CSeq", with("CSeq: → Seq:")},
		{"CSeq of another method", with("CSeq: 1 INVITE → CSeq: 1 BYE")},
		{"CSeq too high", with("CSeq: 1 → CSeq: 2147483648")},
		{"CSeq no number", with("CSeq: 1 → CSeq: one")},
		{"Max-Forwards 256", with("Max-Forwards: 69 → Max-Forwards: 256")},
		{"Max-Forwards negative", with("Max-Forwards: 69 → Max-Forwards: -1")},
		{"two Max-Forwards", with("Max-Forwards: 69 → Max-Forwards: 69\\r\\nMax-Forwards: 70")},
		{"two Content-Length", with("Content-Length: 3 → Content-Length: 3\\r\\nContent-Length: 3")},
		{"Content-Length too long", with("Content-Length: 3 → Content-Length: 4")},
		{"Content-Length too short", with("Content-Length: 3 → Content-Length: 2")},
		{"Content-Length negative", with("Content-Length: 3 → Content-Length: -3")},
		{"no Content-Length", with("Content-Length: 3\\r\\n → ")},
		{"LF alone", with("Max-Forwards: 69 → Subject: x\nP-Asserted-Identity: <sip:bob@ims.test>")},
		{"CR alone", with("Max-Forwards: 69 → Subject: x\rP-Asserted-Identity: <sip:bob@ims.test>")},
		{"NUL", with("Max-Forwards: 69 → Subject: \x00")},
		{"not UTF-8", with("Max-Forwards: 69 → Subject: \xff")},
		{"field without colon", with("Max-Forwards: 69 → Subject")},
		{"field name with a space", with("Max-Forwards: 69 → Sub ject: x")},
		{"long line", with("Max-Forwards: 69 → Subject: " + strings.Repeat("x", maxLine))},
		{"many fields", with("Max-Forwards: 69 → " + strings.Repeat("X: y\r\n", maxFields) + "X: y")},
		{"big body", with("Content-Length: 3 → Content-Length: 70000", "v=0 → "+strings.Repeat("x", 70000))},
		{"status 99", "SIP/2.0 99 X\r\n" + strings.SplitN(invite, "\r\n", 2)[1]},
		{"parameter twice", with(";tag=0lb8fddege → ;tag=1;tag=2")},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, err := Parse([]byte(c.m), true)
			if !errors.Is(err, ErrMalformed) {
				t.Errorf("read as %+v, %v", m, err)
			}
		})
	}
	if _, err := Parse([]byte(with("Content-Length: 3\\r\\n → ")), false); err != nil {
		t.Errorf("on a WebSocket Content-Length may be absent: %v", err)
	}
}

func TestRefuseAnswersWhatCanBeAnswered(t *testing.T) {
	b, ok := Refuse([]byte(with("CSeq: 1 → CSeq: one")), 400, "Bad Request")
	if !ok || !bytes.HasPrefix(b, []byte("SIP/2.0 400 Bad Request\r\nVia: SIP/2.0/WSS i3o7be1l57ig.invalid;branch=z9hG4bK4108163\r\n")) {
		t.Errorf("%v\n%s", ok, b)
	}
	for _, m := range []string{"", "x", invite[:40], with("Via: → V1: "), with("INVITE → ACK"), "SIP/2.0 200 OK\r\n" + strings.SplitN(invite, "\r\n", 2)[1], with("Call-ID: → Call-ID: \x00")} {
		if b, ok := Refuse([]byte(m), 400, "Bad Request"); ok {
			t.Errorf("%q is answered with\n%s", m, b)
		}
	}
}

func TestFields(t *testing.T) {
	m := &Message{Headers: []Header{{"Route", "<sip:a;lr>, <sip:b,c;lr>"}, {"X", "1"}, {"route", `"x, y" <sip:d;lr>`}}}
	if got := m.List("ROUTE"); len(got) != 3 || got[1] != "<sip:b,c;lr>" || got[2] != `"x, y" <sip:d;lr>` {
		t.Errorf("List %q", got)
	}
	m.Set("Route", "<sip:e>")
	if got := m.All("Route"); len(got) != 1 || got[0] != "<sip:e>" {
		t.Errorf("Set %q", got)
	}
	m.Push("Via", "v")
	m.Del("x")
	if len(m.Headers) != 2 || m.Headers[0].Name != "Via" {
		t.Errorf("%v", m.Headers)
	}
	c := m.Clone()
	c.Set("Via", "w")
	if m.Get("Via") != "v" {
		t.Error("a clone shares its fields")
	}
}

func TestParseURI(t *testing.T) {
	for _, c := range []struct{ in, aor string }{
		{"sip:alice@IMS.test", "sip:alice@ims.test"},
		{"sip:alice@ims.test:5060;transport=ws", "sip:alice@ims.test"},
		{"sips:a@x", "sips:a@x"},
		{"sip:ims.test", "sip:ims.test"},
		{"sip:a@[2001:db8::1]:5060", "sip:a@2001:db8::1"},
		{"tel:+15551234", "tel:+15551234"},
	} {
		if u, err := ParseURI(c.in); err != nil || u.AOR() != c.aor {
			t.Errorf("%s: %q, %v", c.in, u.AOR(), err)
		}
	}
	for _, bad := range []string{"", "sip:", "sip:a@", "alice@ims.test", "mailto:a@b", "sip:a@b?x=y", "sip:a b@c", "sip:a@b>", "sip://a@b", "sip:a@b:99999", "*", "tel:", "sip:a@b\"c", "sip:a@b:x", "sip:" + strings.Repeat("a", maxURI)} {
		if u, err := ParseURI(bad); err == nil {
			t.Errorf("%q is read as %+v", bad, u)
		}
	}
}

func TestReadMessage(t *testing.T) {
	stream := "\r\n" + invite + "\r\n\r\n" + invite
	r := bufio.NewReaderSize(strings.NewReader(stream), streamBuffer)
	for i, want := range []string{invite, "", invite} {
		b, err := ReadMessage(r, func() {})
		if err != nil || string(b) != want {
			t.Fatalf("%d: %q, %v", i, b, err)
		}
	}
	if _, err := ReadMessage(r, func() {}); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
}

// TestReadMessageCut cuts a stream at every byte: no cut may be taken for a message.
func TestReadMessageCut(t *testing.T) {
	for n := range len(invite) {
		b, err := ReadMessage(bufio.NewReaderSize(strings.NewReader(invite[:n]), streamBuffer), func() {})
		if err == nil {
			t.Fatalf("cut at %d: %q", n, b)
		}
		if n > 0 && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("cut at %d: %v", n, err)
		}
		if _, err := Parse([]byte(invite[:n]), true); err == nil {
			t.Fatalf("cut at %d is a message", n)
		}
	}
}

func TestReadMessageRefuses(t *testing.T) {
	for _, c := range []struct{ name, s string }{
		{"CR without LF", "\rX"},
		{"no Content-Length", with("Content-Length: 3\\r\\n → ")},
		{"two Content-Length", with("Content-Length: 3 → Content-Length: 3\\r\\nl: 3")},
		{"Content-Length over the bound", with("Content-Length: 3 → Content-Length: 70000")},
		{"Content-Length folded", with("Content-Length: 3 → Content-Length:\\r\\n 3")},
		{"Content-Length in a fold", with("Content-Length: 3 → X: y\\r\\n Content-Length: 3")},
		{"endless line", strings.Repeat("x", 1<<20)},
		{"endless fields", "INVITE sip:b@x SIP/2.0\r\n" + strings.Repeat("X: y\r\n", 1<<16)},
		{"LF alone", "INVITE sip:b@x SIP/2.0\nContent-Length: 0\n\r\n"},
	} {
		if b, err := ReadMessage(bufio.NewReaderSize(strings.NewReader(c.s), streamBuffer), func() {}); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %q, %v", c.name, b, err)
		}
	}
}

// FuzzParse: what passes is written so that it reads the same, and each accessor is safe.
func FuzzParse(f *testing.F) {
	f.Add([]byte(invite))
	f.Add([]byte(with("Via: → v: ", "Max-Forwards: 69 → Subject: a\\r\\n b")))
	f.Add([]byte("SIP/2.0 200 OK\r\n" + strings.SplitN(invite, "\r\n", 2)[1]))
	f.Add([]byte(with("<sip:bob@ims.test> → tel:+1;tag=x")))
	f.Fuzz(func(t *testing.T, b []byte) {
		Refuse(b, 400, "Bad Request")
		m, err := Parse(b, false)
		if err != nil {
			return
		}
		first := m.Append(nil)
		again, err := Parse(first, true)
		if err != nil {
			t.Fatalf("written, it is refused: %v\n%q", err, first)
		}
		if second := again.Append(nil); !bytes.Equal(first, second) {
			t.Fatalf("written twice:\n%q\n%q", first, second)
		}
		if m.IsRequest() {
			if _, err := Parse(m.Response(400, "x").Append(nil), true); err != nil {
				t.Fatalf("its answer is refused: %v", err)
			}
		}
		for _, h := range m.Headers {
			if a, err := ParseNameAddr(h.Value); err == nil {
				if _, err := ParseNameAddr(a.String()); err != nil {
					t.Fatalf("%q reads, and written %q does not: %v", h.Value, a.String(), err)
				}
			}
		}
	})
}

// FuzzReadMessage: what a stream yields is never longer than the bound and never invented.
func FuzzReadMessage(f *testing.F) {
	f.Add([]byte(invite + "\r\n\r\n" + invite))
	f.Add([]byte("\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bufio.NewReaderSize(bytes.NewReader(b), streamBuffer)
		for {
			m, err := ReadMessage(r, func() {})
			if err != nil {
				return
			}
			if len(m) > MaxMessage || !bytes.Contains(b, m) {
				t.Fatalf("%d bytes that were not there", len(m))
			}
		}
	})
}
