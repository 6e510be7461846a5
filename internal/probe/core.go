package probe

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"wicgate/internal/siptx"
)

// CoreConfig is how the edge meets the core. All but OtherIMPI is required.
type CoreConfig struct {
	NextHop        netip.AddrPort // epcscf.core
	Listen         netip.AddrPort // epcscf.listen: the cases come from its address, with another port
	Domain         string
	VisitedNetwork string
	IMPI, IMPU     string // a user that the HSS has
	OtherIMPI      string // of another user that the HSS has; "" leaves a case out
	Begin          func(name string)
	End            func(Step)
}

// Need is a thing that the core must be provisioned with.
type Need struct {
	Where  string `json:"where"`
	What   string `json:"what"`
	Value  string `json:"value"`
	Clause string `json:"clause"`
}

// Needs is what an HSS and an S-CSCF must be provisioned with for Trusted Node Authentication (TS
// 33.203 Annex U) of this user by this edge.
func (c CoreConfig) Needs() []Need {
	edge := c.Listen.Addr().String()
	return []Need{
		{"HSS", "private identity (IMPI)", c.IMPI, "TS 23.228 §4.3.3.1"},
		{"HSS", "public identity (IMPU) of that IMPI, not barred, in its implicit registration set", c.IMPU, "TS 29.228 §6.1.2"},
		{"HSS", "for guests: an IMPI and IMPU for each of the pool (waf.guests), or a wildcarded IMPU", "sip:guest-01@" + c.Domain + " and on", "TS 24.371 §6, TS 23.003 §13.5"},
		{"HSS", "visited network that the user may register from", c.VisitedNetwork, "TS 29.228 §6.1.1"},
		{"HSS", "S-CSCF, or capabilities of one, for the user", "the one behind " + c.NextHop.String(), "TS 29.228 §6.1.1"},
		{"I-CSCF, S-CSCF", "trusted node: integrity-protected=\"auth-done\" is believed from this address alone", edge, "TS 33.203 U.1, U.2"},
		{"I-CSCF, S-CSCF", "trusted node's visited network (P-Visited-Network-ID)", c.VisitedNetwork, "TS 33.203 U.1"},
		{"I-CSCF, S-CSCF", "trust domain: P-Asserted-Identity of this address is kept", edge, "TS 24.229 §4.4"},
		{"S-CSCF", "no challenge where auth-done is believed, and 401 or 403 where it is not", "ims_auth or the like off for the edge", "TS 33.203 P.4"},
		{"S-CSCF", "Path is stored and followed, over TCP, to the edge at", "sip:" + c.Listen.String(), "RFC 3327"},
		{"S-CSCF", "home domain", c.Domain, "RFC 3261 §10.3"},
	}
}

// coreCase is a REGISTER and what is expected of the core.
type coreCase struct {
	name   string
	clause string
	change func(*siptx.Message)
	ok     bool   // 200, else a refusal: 4xx or 6xx, or for other a closed connection
	want   string // of a refusal, the usual answer, in words
	other  bool   // from an address that is not the edge's
	check  string
}

// Core runs positive and negative cases of Trusted Node Authentication against the core. What it
// registers it takes away again.
func Core(ctx context.Context, cfg CoreConfig) Report {
	r := &runner{report: Report{Target: "sip:" + cfg.NextHop.String()}, begin: cfg.Begin, end: cfg.End}
	c := &coreProbe{cfg: cfg, callID: rand.Text(), tag: rand.Text()[:10], contact: strings.ToLower(rand.Text()[:12]) + ".invalid"}
	reached := r.step(ctx, "core", true, c.connect)
	defer c.close()
	for _, k := range c.cases() {
		r.demanded(ctx, k.name, k.clause, reached, func(ctx context.Context) (string, error) { return c.run(ctx, k) })
	}
	if reached && c.registered {
		after, cancel := context.WithTimeout(context.WithoutCancel(ctx), stepTime)
		defer cancel()
		_, _ = c.ask(after, set("Expires", "0")) // else it ends by itself within its minute
	}
	return r.report
}

func set(name, value string) func(*siptx.Message) {
	return func(m *siptx.Message) { m.Set(name, value) }
}

func without(names ...string) func(*siptx.Message) {
	return func(m *siptx.Message) {
		for _, n := range names {
			m.Del(n)
		}
	}
}

// as registers a public identity with a private one.
func (c *coreProbe) as(impi, impu string) func(*siptx.Message) {
	return func(m *siptx.Message) {
		m.Set("Authorization", digest(impi, c.cfg.Domain, "auth-done"))
		m.Set("From", "<"+impu+">;tag="+c.tag)
		m.Set("To", "<"+impu+">")
	}
}

// cases are in the order in which they are run: the user is registered from the first to the last.
func (c *coreProbe) cases() []coreCase {
	cfg := c.cfg
	nobody := "nobody-" + strings.ToLower(rand.Text()[:8]) + "@" + cfg.Domain
	const (
		open  = "The core registers what it must refuse: whoever reaches it can register as anybody. Correct its configuration."
		pairs = "The HSS must hold IMPI and IMPU together, and the core must believe it: else any user of a trusted node takes any identity."
		net   = "The I-CSCF, or an S-CSCF that the edge reaches directly, must take trusted registrations from known visited networks alone: by that it knows the trusted node."
	)
	list := []coreCase{
		{name: "trusted registration", clause: "TS 33.203 U.2, TS 24.229 §5.4.1", ok: true, check: "The core does not take this edge for a trusted node, or lacks the user; what it needs is listed below."},
		{name: "the same again", clause: "TS 24.229 §5.4.1.2, re-registration", ok: true, check: "The core takes the first registration and not its renewal: calls would end with the registration. Look into the log of the S-CSCF."},
		{name: "no integrity-protected", clause: "TS 33.203 P.4", change: set("Authorization", digest(cfg.IMPI, cfg.Domain, "")), want: "401 or 403", check: open},
		{name: "integrity-protected=\"no\"", clause: "TS 33.203 P.4", change: set("Authorization", digest(cfg.IMPI, cfg.Domain, "no")), want: "401 or 403", check: open},
		{name: "no Authorization", clause: "TS 24.229 §5.4.1.2", change: without("Authorization"), want: "401 or 403", check: open},
		{name: "unknown private identity", clause: "TS 29.228 §6.1.2", change: c.as(nobody, cfg.IMPU), want: "403", check: pairs},
		{name: "unknown public identity", clause: "TS 29.228 §6.1.2", change: c.as(nobody, "sip:"+nobody), want: "403 or 404", check: "The core registers users that the HSS does not have, or must not have: see what the HSS answers for unknown ones (DIAMETER_ERROR_USER_UNKNOWN)."},
		{name: "unknown visited network", clause: "TS 33.203 U.1, TS 29.228 §6.1.1", change: set("P-Visited-Network-ID", `"elsewhere.invalid"`), want: "403", check: net},
		{name: "no visited network", clause: "TS 33.203 U.1", change: without("P-Visited-Network-ID"), want: "403", check: net},
		{name: "no Path", clause: "TS 24.229 §5.2.2, RFC 3327", change: without("Path", "Require"), want: "421", check: "Without a Path, calls to the user go to a contact that nobody reaches: the core should refuse it."},
		{name: "another domain", clause: "RFC 3261 §10.3", change: func(m *siptx.Message) { m.URI = "sip:elsewhere.invalid" }, want: "403 or 404", check: "The core must register for its own domain alone."},
		{name: "from another address", clause: "TS 33.203 U.1, TS 33.210", other: true, want: "403, or no connection", check: "The core takes any host for a trusted node. Name the edge's address alone there, and keep others away by network domain security."},
		{name: "de-registration", clause: "TS 24.229 §5.4.1.4", change: set("Expires", "0"), ok: true, check: "Look into the log of the S-CSCF."},
	}
	if cfg.OtherIMPI != "" {
		list = slices.Insert(list, 6, coreCase{name: "another user's private identity", clause: "TS 29.228 §6.1.2", change: c.as(cfg.OtherIMPI, cfg.IMPU), want: "403", check: pairs})
	}
	return list
}

type coreProbe struct {
	cfg                  CoreConfig
	conn                 net.Conn // nil: to be opened
	r                    *bufio.Reader
	callID, tag, contact string
	cseq                 int
	registered           bool
	other                netip.Addr // where the last case came from that is not the edge's
}

func (c *coreProbe) close() {
	if c.conn != nil {
		_ = c.conn.Close()
		c.conn = nil
	}
}

func (c *coreProbe) connect(ctx context.Context) (string, error) {
	if err := c.dial(ctx, c.cfg.Listen.Addr()); err != nil {
		check := "See epcscf.core, that the S-CSCF or democore runs and speaks SIP over TCP, and that no firewall is between."
		if errors.Is(err, syscall.EADDRNOTAVAIL) {
			check = "Run this on the edge's machine: the cases come from the address epcscf.listen."
		}
		return "", fault{err, check}
	}
	return fmt.Sprintf("TCP from %v to %v", c.conn.LocalAddr(), c.conn.RemoteAddr()), nil
}

func (c *coreProbe) dial(ctx context.Context, from netip.Addr) error {
	d := net.Dialer{Timeout: 5 * time.Second}
	if !from.IsUnspecified() { // else the kernel chooses, for the edge too
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
	}
	conn, err := d.DialContext(ctx, "tcp", c.cfg.NextHop.String())
	if err != nil {
		return err
	}
	c.conn, c.r = conn, bufio.NewReaderSize(conn, 64<<10)
	return nil
}

// otherAddress is one of this machine that is not the edge's and may reach the core.
func (c *coreProbe) otherAddress() (netip.Addr, bool) {
	hop, edge := c.cfg.NextHop.Addr(), c.cfg.Listen.Addr()
	if hop.IsLoopback() && hop.Is4() { // all of 127.0.0.0/8 is this machine's
		for _, s := range []string{"127.0.99.99", "127.0.99.98"} {
			if a := netip.MustParseAddr(s); a != edge {
				return a, true
			}
		}
	}
	if edge.IsUnspecified() {
		return netip.Addr{}, false
	}
	list, err := net.InterfaceAddrs()
	if err != nil {
		return netip.Addr{}, false
	}
	for _, a := range list {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && p.Addr() != edge && p.Addr().Is4() == hop.Is4() && p.Addr().IsGlobalUnicast() && !p.Addr().IsLoopback() {
			return p.Addr(), true
		}
	}
	return netip.Addr{}, false
}

func digest(impi, domain, protected string) string {
	v := fmt.Sprintf(`Digest username="%s",realm="%s",uri="sip:%s",nonce="",response=""`, impi, domain, domain)
	if protected != "" {
		v += `,integrity-protected="` + protected + `"`
	}
	return v
}

// ask sends the REGISTER of the edge, changed, and returns the core's final answer.
func (c *coreProbe) ask(ctx context.Context, change func(*siptx.Message)) (*siptx.Message, error) {
	c.cseq++
	m := &siptx.Message{Method: "REGISTER", URI: "sip:" + c.cfg.Domain}
	m.Add("Via", "SIP/2.0/TCP "+c.cfg.Listen.String()+";branch="+branch())
	m.Add("Max-Forwards", "70")
	m.Add("From", "<"+c.cfg.IMPU+">;tag="+c.tag)
	m.Add("To", "<"+c.cfg.IMPU+">")
	m.Add("Call-ID", c.callID)
	m.Add("CSeq", strconv.Itoa(c.cseq)+" REGISTER")
	m.Add("Contact", "<sip:probe@"+c.contact+";transport=ws>")
	m.Add("Expires", "60")
	m.Add("Authorization", digest(c.cfg.IMPI, c.cfg.Domain, "auth-done"))
	m.Add("Path", "<sip:probe@"+c.cfg.Listen.String()+";transport=tcp;lr;ob>")
	m.Add("Require", "path")
	m.Add("Supported", "path")
	m.Add("P-Visited-Network-ID", `"`+c.cfg.VisitedNetwork+`"`)
	m.Add("P-Charging-Vector", "icid-value="+rand.Text())
	m.Add("User-Agent", "wicgate probe")
	if change != nil {
		change(m)
	}
	if c.conn == nil { // the core has closed the one before
		if _, err := c.connect(ctx); err != nil {
			return nil, err
		}
	}
	conn := c.conn
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })() // Ctrl-C does not wait for a mute core
	if _, err := conn.Write(m.Append(nil)); err != nil {
		c.close()
		return nil, fault{fmt.Errorf("%w: %w", errCoreClosed, err), "Does the core take connections of this address?"}
	}
	for {
		b, err := siptx.ReadMessage(c.r, func() {})
		if err != nil {
			c.close()
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return nil, faultf("Something takes the connection and does not answer SIP: is epcscf.core the S-CSCF's address, and is it overloaded? A core that drops what it should refuse is hard to tell from one that is dead.", "no answer to REGISTER")
			}
			return nil, fault{fmt.Errorf("%w: %w", errCoreClosed, err), "Look into the log of the core: does it take connections of this address?"}
		}
		if len(b) == 0 {
			continue
		}
		res, err := siptx.Parse(b, true)
		if err != nil {
			return nil, fault{err, "The core's answer is malformed."}
		}
		if final(c.cseq, "REGISTER")(res) {
			return res, nil
		}
	}
}

// errCoreClosed: the core ended the connection and has not answered.
var errCoreClosed = errors.New("the core closed the connection")

func (c *coreProbe) run(ctx context.Context, k coreCase) (string, error) {
	if k.other {
		from, ok := c.otherAddress()
		if !ok {
			return "", errSkip("this machine has no other address that reaches the core: try it from another host")
		}
		c.close()
		c.other = from
		defer c.close() // the next case comes from the edge again
		if err := c.dial(ctx, from); err != nil {
			return fmt.Sprintf("from %v: %v", from, err), nil
		}
	}
	m, err := c.ask(ctx, k.change)
	switch {
	case k.other && err != nil:
		return fmt.Sprintf("from %v: %v", c.other, err), nil
	case err != nil:
		return "", err
	}
	answer := fmt.Sprintf("%d %s", m.Status, m.Reason)
	switch {
	case k.ok && m.Status != 200:
		return "", faultf(k.check, "answered %s where 200 is right", answer)
	case !k.ok && m.Status < 300:
		// It is taken away at once.
		_, _ = c.ask(ctx, func(m *siptx.Message) {
			if k.change != nil {
				k.change(m)
			}
			m.Set("Expires", "0")
		})
		return "", faultf(k.check, "answered %s where %s is right", answer, k.want)
	case !k.ok && (m.Status < 400 || m.Status/100 == 5 && !c.registered):
		return "", faultf("The core registers nothing, but by failing: look into its log, and see that it reaches the HSS.", "answered %s where %s is right", answer, k.want)
	case !k.ok && m.Status/100 == 5: // Kamailio's way where the HSS says no
		return answer + ": refused, though " + k.want + " is usual", nil
	case k.other:
		return fmt.Sprintf("from %v: %s", c.other, answer), nil
	case !k.ok:
		return answer, nil
	}
	c.registered = k.name != "de-registration"
	if !c.registered {
		return answer, nil
	}
	var lacks []string
	for _, h := range []string{"Path", "Service-Route", "P-Associated-URI"} {
		if m.Get(h) == "" {
			lacks = append(lacks, h)
		}
	}
	if len(lacks) > 0 {
		return "", faultf("An S-CSCF answers with Path (RFC 3327 §5.3), Service-Route and P-Associated-URI (TS 24.229 §5.4.1.2): without them calls to or of the user go astray.", "answered %s without %s", answer, strings.Join(lacks, ", "))
	}
	if aors := associated(m); len(aors) == 0 || !slices.Contains(aors, siptx.AOROf(c.cfg.IMPU)) {
		return "", faultf("The HSS must hold the identity in the implicit registration set of the IMPI, and not barred.", "answered %s, but P-Associated-URI %s lacks %s", answer, m.Get("P-Associated-URI"), c.cfg.IMPU)
	}
	return answer + ", Service-Route " + m.Get("Service-Route") + ", P-Associated-URI " + strings.Join(m.List("P-Associated-URI"), ", "), nil
}

func associated(m *siptx.Message) (list []string) {
	for _, v := range m.List("P-Associated-URI") {
		list = append(list, siptx.AOROf(v))
	}
	return list
}
