package probe

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"

	"wicgate/internal/siptx"
)

// flow is a WebSocket with the one registration of a user agent (RFC 7118), and at most one call.
type flow struct {
	p        *probe
	name     string // "A" or "B", for errors
	conn     net.Conn
	in       io.Reader           // of conn, at most maxRead
	messages chan *siptx.Message // closed by the reader; what finds no room is lost
	reading  sync.WaitGroup
	writing  sync.Mutex
	host     string // in Via and Contact: nobody's, RFC 7118 §5
	instance string
	tag      string
	callID   string // of REGISTER
	cseq     int

	// The call.
	call struct {
		id, remoteTag, target string
		routes                []string
		branch                string // of INVITE
		cseq                  int
	}
}

// errClosed: the edge has closed the WebSocket.
var errClosed = errors.New("the edge closed the WebSocket")

func (p *probe) connect(ctx context.Context, name string) (*flow, error) {
	u, err := url.Parse(p.config.SIP)
	if err != nil || u.Scheme != "wss" {
		return nil, faultf("Correct https.url.", "sip_url %q is no wss URL", p.config.SIP)
	}
	d := ws.Dialer{
		Protocols: []string{"sip"}, Timeout: 5 * time.Second,
		Header:    ws.HandshakeHeaderHTTP{"Origin": {strings.TrimSuffix(p.cfg.URL, "/")}},
		TLSConfig: &tls.Config{RootCAs: p.web.roots, ServerName: u.Hostname(), MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}},
	}
	conn, r, hs, err := d.Dial(ctx, p.config.SIP)
	if err != nil {
		var status ws.StatusError
		switch {
		case errors.As(err, &status) && status == 404:
			return nil, faultf("See that the role epcscf runs behind this address.", "no SIP edge at %s", p.config.SIP)
		case errors.As(err, &status) && status == 403:
			return nil, faultf("Use the portal's address as https.url has it: the edge takes WebSockets of that origin alone.", "the edge refuses WebSockets of pages of %s", p.cfg.URL)
		}
		return nil, webFault(err, u.Host)
	}
	if r != nil {
		ws.PutReader(r) // the server speaks after us
	}
	if hs.Protocol != "sip" {
		_ = conn.Close()
		return nil, faultf("See what stands between: a proxy may drop Sec-WebSocket-Protocol.", "the WebSocket's sub-protocol is %q, not sip (RFC 7118 §4)", hs.Protocol)
	}
	f := &flow{p: p, name: name, conn: conn, in: io.LimitReader(conn, maxRead), messages: make(chan *siptx.Message, 64), host: strings.ToLower(rand.Text()[:12]) + ".invalid", instance: uuid(), tag: rand.Text()[:10], callID: rand.Text()}
	f.reading.Go(f.read)
	return f, nil
}

func uuid() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func (f *flow) read() {
	defer close(f.messages)
	for {
		b, err := wsutil.ReadServerText(lockedWriter{f}) // answers pings
		if err != nil {
			return
		}
		m, err := siptx.Parse(b, false)
		if err != nil {
			continue // a keep-alive
		}
		select {
		case f.messages <- m:
		default:
		}
	}
}

// maxRead bounds what is read from an edge in all, in bytes: a probe is told some ten messages.
const maxRead = 4 << 20

// lockedWriter lets the reader answer control frames between our messages.
type lockedWriter struct{ f *flow }

func (w lockedWriter) Read(b []byte) (int, error) { return w.f.in.Read(b) }
func (w lockedWriter) Write(b []byte) (int, error) {
	w.f.writing.Lock()
	defer w.f.writing.Unlock()
	return w.f.conn.Write(b)
}

func (f *flow) send(m string) error {
	if err := f.conn.SetWriteDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return errClosed
	}
	if err := wsutil.WriteClientText(lockedWriter{f}, []byte(m)); err != nil {
		return fmt.Errorf("%w: %w", errClosed, err)
	}
	return nil
}

func (f *flow) close() {
	if f == nil {
		return
	}
	_ = f.conn.Close()
	f.reading.Wait()
}

func (p *probe) closeFlows() {
	p.a.close()
	p.b.close()
}

// next waits for a message that want takes; others are passed over.
func (f *flow) next(ctx context.Context, want func(*siptx.Message) bool) (*siptx.Message, error) {
	for {
		select {
		case m, ok := <-f.messages:
			if !ok {
				return nil, faultf("Look into the log of epcscf.", "%s: %w", f.name, errClosed)
			}
			if want(m) {
				return m, nil
			}
		case <-ctx.Done():
			return nil, faultf("Look into the log of epcscf, and of the core.", "%s: no answer", f.name)
		}
	}
}

// final is the answer to the request of that CSeq.
func final(cseq int, method string) func(*siptx.Message) bool {
	return func(m *siptx.Message) bool {
		n, is, ok := m.CSeq()
		return ok && !m.IsRequest() && m.Status >= 200 && int(n) == cseq && is == method
	}
}

// request writes a request; fields and body follow.
func (f *flow) request(method, uri, branch, callID, to string, cseq int, fields []string, body string) string {
	own := f.p.login.IMS.IMPU[0]
	lines := append([]string{
		method + " " + uri + " SIP/2.0",
		"Via: SIP/2.0/WSS " + f.host + ";branch=" + branch,
		"Max-Forwards: 70",
		"From: <" + own + ">;tag=" + f.tag,
		"To: " + to,
		"Call-ID: " + callID,
		"CSeq: " + strconv.Itoa(cseq) + " " + method,
		"Authorization: Bearer " + f.p.login.Token,
		"Supported: path, outbound, gruu",
		"User-Agent: wicgate probe",
	}, fields...)
	if body != "" {
		lines = append(lines, "Content-Type: application/sdp")
	}
	return strings.Join(append(lines, "Content-Length: "+strconv.Itoa(len(body)), "", body), "\r\n")
}

func branch() string { return "z9hG4bK" + rand.Text()[:16] }

func (f *flow) contact() string { return "<sip:probe@" + f.host + ";transport=ws>" }

// registerFor registers for so many seconds, 0 ends it.
func (f *flow) registerFor(ctx context.Context, seconds int) (*siptx.Message, error) {
	f.cseq++
	contact := fmt.Sprintf(`%s;+sip.instance="<urn:uuid:%s>";reg-id=1;expires=%d`, f.contact(), f.instance, seconds)
	fields := []string{"Contact: " + contact, "Expires: " + strconv.Itoa(seconds)}
	if seconds > 0 && f.p.fromEdge() {
		fields = append(fields, "TURN-Credential: request")
	}
	err := f.send(f.request("REGISTER", "sip:"+f.p.config.Domain, branch(), f.callID, "<"+f.p.login.IMS.IMPU[0]+">", f.cseq, fields, ""))
	if err != nil {
		return nil, faultf("Look into the log of epcscf.", "%w", err)
	}
	m, err := f.next(ctx, final(f.cseq, "REGISTER"))
	if err != nil {
		return nil, err
	}
	if m.Status != 200 {
		return nil, faultf(registerCheck(m.Status), "%s: REGISTER is answered with %d %s", f.name, m.Status, m.Reason)
	}
	return m, nil
}

func registerCheck(status int) string {
	switch status {
	case 401:
		return "The edge refuses the token: epcscf.audience, https.url and the clocks of waf and epcscf belong together; its log names the cause."
	case 403:
		return "The core does not know the identity, or does not take the edge for a trusted node: try wicgate probe --core on the edge's machine."
	case 503, 504:
		return "The core is not reached: see epcscf.core and that the S-CSCF, or democore, runs."
	}
	return "Look into the log of epcscf: try wicgate probe --core on the edge's machine."
}

func (p *probe) register(ctx context.Context) (string, error) {
	var err error
	for _, u := range []struct {
		name string
		f    **flow
	}{{"A", &p.a}, {"B", &p.b}} {
		if *u.f, err = p.connect(ctx, u.name); err != nil {
			return "", err
		}
		m, err := (*u.f).registerFor(ctx, 120)
		if err != nil {
			return "", err
		}
		p.credential = m.Get("TURN-Credential")
	}
	return p.login.IMS.IMPU[0] + ", twice, over " + p.config.SIP, nil
}

// turnCredential is approach 1 of TR 33.872 (6.3.3): the credential that stood in the 200 to REGISTER.
func (p *probe) turnCredential(context.Context) (string, error) {
	var s iceServer
	var until time.Time
	for _, part := range siptx.Split(p.credential, ',') {
		name, v, _ := strings.Cut(strings.TrimSpace(part), "=")
		switch v = strings.Trim(v, `"`); name {
		case "uri":
			s.URLs = append(s.URLs, v)
		case "username":
			s.Username = v
		case "password":
			s.Credential = v
		case "expires":
			if n, err := strconv.ParseInt(v, 10, 64); err == nil {
				until = time.Unix(n, 0)
			}
		}
	}
	if s.Username == "" || s.Credential == "" {
		return "", faultf("Set turn.secrets for epcscf and turn, or take tokens: wwsf.turn_credential token.", "the edge gives no TURN-Credential in its 200 to REGISTER")
	}
	if err := p.take([]iceServer{s}); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d URLs, until %s", len(p.relays), stamp(until)), nil
}

func (p *probe) deregister(ctx context.Context) (string, error) {
	for _, f := range []*flow{p.a, p.b} {
		if _, err := f.registerFor(ctx, 0); err != nil {
			return "", err
		}
	}
	return "both", nil
}

// description is a session description as a browser writes it: audio, one candidate a relay.
func (p *probe) description(ufrag, pwd, setup string) string {
	var print [32]byte
	rand.Read(print[:])
	hex := make([]string, len(print))
	for i, b := range print {
		hex[i] = fmt.Sprintf("%02X", b)
	}
	first := netip.MustParseAddrPort("0.0.0.0:9")
	var candidates string
	for i, t := range p.relays {
		if t.client == nil {
			continue
		}
		if !first.Addr().IsGlobalUnicast() && !first.Addr().IsLoopback() {
			first = t.relayed
		}
		candidates += fmt.Sprintf("a=candidate:%d 1 udp %d %s %d typ relay raddr 0.0.0.0 rport 0\r\n", i+1, 41885439-i, t.relayed.Addr(), t.relayed.Port())
	}
	family := "IP4"
	if first.Addr().Is6() {
		family = "IP6"
	}
	return "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n" +
		fmt.Sprintf("m=audio %d UDP/TLS/RTP/SAVPF 0\r\nc=IN %s %s\r\na=rtpmap:0 PCMU/8000\r\n", first.Port(), family, first.Addr()) +
		candidates + "a=ice-ufrag:" + ufrag + "\r\na=ice-pwd:" + pwd + "\r\na=fingerprint:sha-256 " + strings.Join(hex, ":") + "\r\na=setup:" + setup +
		"\r\na=mid:0\r\na=rtcp-mux\r\na=sendrecv\r\n"
}

func iceWord(n int) string { return strings.ToLower(rand.Text() + rand.Text())[:n] }

// call lets A call the own address, or the callee, and B answer.
func (p *probe) call(ctx context.Context) (string, error) {
	a, to := p.a, p.login.IMS.IMPU[0]
	own := p.cfg.Callee == ""
	if !own {
		to = p.cfg.Callee
	}
	p.gateway.own = iceWord(8)
	a.call.id, a.call.cseq, a.call.branch = rand.Text(), 1, branch()
	invite := a.request("INVITE", to, a.call.branch, a.call.id, "<"+to+">", 1, []string{"Contact: " + a.contact(), "Allow: INVITE, ACK, BYE, CANCEL"}, p.description(p.gateway.own, iceWord(24), "actpass"))
	if err := a.send(invite); err != nil {
		return "", faultf("Look into the log of epcscf.", "%w", err)
	}
	answering, stop := context.WithCancel(ctx)
	defer stop()
	var b sync.WaitGroup
	answered := make(chan error, 1)
	if own {
		b.Go(func() { answered <- p.b.answer(answering, p) })
	}
	m, err := a.next(ctx, func(m *siptx.Message) bool {
		if m.IsRequest() && m.Method == "INVITE" { // the core calls the caller too
			_ = a.send(string(m.Response(486, "Busy Here").Append(nil))) // A's answer decides
			return false
		}
		return final(1, "INVITE")(m)
	})
	stop()
	b.Wait()
	if err != nil {
		return "", err
	}
	if m.Status != 200 {
		_ = a.send(a.request("ACK", to, a.call.branch, a.call.id, m.Get("To"), 1, nil, "")) // RFC 3261 §17.1.1.3; nobody answers an ACK
		check := "Look into the logs of epcscf and of the core."
		switch {
		case own && (m.Status == 480 || m.Status == 404 || m.Status == 482 || m.Status == 486):
			check = "The core does not call the caller's own address: give another with --callee, that answers by itself."
		case m.Status == 480 || m.Status == 404 || m.Status == 486:
			check = "The callee of --callee must be registered and answer by itself: an announcement, an echo service, a conference."
		case m.Status == 503 || m.Status == 500:
			check = "See that the role imsagw runs, and has the name that epcscf uses (imsagw.name)."
		case m.Status == 403:
			check = "Guests may call themselves and whom epcscf.guests.destinations names."
		}
		return "", faultf(check, "INVITE of %s is answered with %d %s", to, m.Status, m.Reason)
	}
	if own {
		if err := <-answered; err != nil {
			return "", err
		}
	}
	a.call.remoteTag, a.call.target = m.ToTag(), to
	if list := m.List("Contact"); len(list) == 1 {
		if c, err := siptx.ParseNameAddr(list[0]); err == nil {
			a.call.target = c.URI
		}
	}
	a.call.routes = m.List("Record-Route")
	if err := a.send(a.within("ACK", a.call.cseq)); err != nil {
		return "", faultf("Look into the log of epcscf.", "%w", err)
	}
	if p.gateway.ufrag, p.gateway.pwd, p.gateway.at, err = readAnswer(string(m.Body)); err != nil {
		return "", faultf("Look into the log of epcscf.", "answer: %w", err)
	}
	return fmt.Sprintf("%s, gateway %v", to, p.gateway.at), nil
}

// within writes a request inside the dialog.
func (f *flow) within(method string, cseq int) string {
	var routes []string
	for i := len(f.call.routes) - 1; i >= 0; i-- {
		routes = append(routes, "Route: "+f.call.routes[i])
	}
	to := "<" + f.call.target + ">;tag=" + f.call.remoteTag
	return f.request(method, f.call.target, branch(), f.call.id, to, cseq, routes, "")
}

// answer takes the call that comes to B.
func (f *flow) answer(ctx context.Context, p *probe) error {
	m, _ := f.next(ctx, func(m *siptx.Message) bool { return m.IsRequest() && m.Method == "INVITE" })
	if m == nil {
		return nil // A is told why
	}
	r := m.Response(200, "OK", siptx.Header{Name: "Contact", Value: f.contact()}, siptx.Header{Name: "Content-Type", Value: "application/sdp"})
	r.Set("To", m.Get("To")+";tag="+f.tag)
	r.Body = []byte(p.description(iceWord(8), iceWord(24), "active"))
	if err := f.send(string(r.Append(nil))); err != nil {
		return faultf("Look into the log of epcscf.", "%w", err)
	}
	return nil
}

// hangUp ends the call by A, and B agrees.
func (p *probe) hangUp(ctx context.Context) (string, error) {
	p.a.call.cseq++
	if err := p.a.send(p.a.within("BYE", p.a.call.cseq)); err != nil {
		return "", faultf("The edge has ended the call itself, by losing the WebSocket.", "%w", err)
	}
	if p.cfg.Callee == "" {
		if m, err := p.b.next(ctx, func(m *siptx.Message) bool { return m.IsRequest() && m.Method == "BYE" }); err == nil {
			_ = p.b.send(string(m.Response(200, "OK").Append(nil))) // A's answer says whether it went well
		}
	}
	m, err := p.a.next(ctx, final(p.a.call.cseq, "BYE"))
	if err != nil {
		return "", err
	}
	if m.Status != 200 {
		return "", faultf("Look into the log of epcscf: the call may have ended by itself.", "BYE is answered with %d %s", m.Status, m.Reason)
	}
	return "BYE", nil
}

// readAnswer finds the gateway in an answer: its first candidate, ufrag and pwd.
func readAnswer(sdp string) (ufrag, pwd string, at netip.AddrPort, err error) {
	for line := range strings.SplitSeq(strings.ReplaceAll(sdp, "\r\n", "\n"), "\n") {
		key, v, _ := strings.Cut(line, ":")
		switch key {
		case "a=ice-ufrag":
			ufrag = v
		case "a=ice-pwd":
			pwd = v
		case "a=candidate":
			c := strings.Fields(v) // RFC 8839 §5.1
			if at.IsValid() || len(c) < 8 || !strings.EqualFold(c[2], "udp") {
				continue
			}
			if a, err := netip.ParseAddrPort(net.JoinHostPort(c[4], c[5])); err == nil {
				at = a
			}
		}
	}
	if ufrag == "" || pwd == "" || !at.IsValid() {
		return "", "", at, errors.New("no gateway in it: ice-ufrag, ice-pwd or candidate is missing")
	}
	return ufrag, pwd, at, nil
}
