package probe

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"wicgate/internal/siptx"
)

// CoreConfig is how the edge meets the core. All is required.
type CoreConfig struct {
	NextHop        netip.AddrPort // epcscf.core
	Listen         netip.AddrPort // epcscf.listen: the cases come from its address, with another port
	Domain         string
	VisitedNetwork string
	IMPI, IMPU     string // a user that the HSS has
	Begin          func(name string)
	End            func(Step)
}

// Need is a thing that the core must be provisioned with.
type Need struct {
	Where string `json:"where"`
	What  string `json:"what"`
	Value string `json:"value"`
}

// Needs is what an HSS and an S-CSCF must be provisioned with for Trusted Node Authentication (TS
// 33.203 Annex U) of this user by this edge.
func (c CoreConfig) Needs() []Need {
	return []Need{
		{"HSS", "private identity (IMPI)", c.IMPI},
		{"HSS", "public identity (IMPU) of that IMPI, not barred", c.IMPU},
		{"HSS", "visited network that the user may roam to", c.VisitedNetwork},
		{"HSS", "S-CSCF capabilities, or the name of one, for the user", "the S-CSCF behind " + c.NextHop.String()},
		{"I-CSCF, S-CSCF", "trusted node: requests with integrity-protected=\"auth-done\" are authenticated", c.Listen.Addr().String()},
		{"I-CSCF, S-CSCF", "trust domain (TS 24.229 §4.4): P-Asserted-Identity of the edge is kept", c.Listen.Addr().String()},
		{"S-CSCF", "Path (RFC 3327) is stored and followed; the edge listens at", "sip:" + c.Listen.String()},
		{"S-CSCF", "home domain", c.Domain},
	}
}

// coreCase is a REGISTER and what is expected of the core.
type coreCase struct {
	name   string
	clause string
	change func(*siptx.Message)
	ok     bool // 200, else any refusal
	check  string
}

// Core runs positive and negative cases of Trusted Node Authentication against the core. What it
// registers it takes away again.
func Core(ctx context.Context, cfg CoreConfig) Report {
	r := &runner{report: Report{Target: "sip:" + cfg.NextHop.String()}, begin: cfg.Begin, end: cfg.End}
	c := &coreProbe{cfg: cfg, callID: rand.Text(), tag: rand.Text()[:10], contact: strings.ToLower(rand.Text()[:12]) + ".invalid"}
	reached := r.step(ctx, "core", true, c.connect)
	if reached {
		defer func() { _ = c.conn.Close() }()
	}
	const open = "The core registers what it must refuse: whoever reaches it can register as anybody. Correct its configuration."
	set := func(name, value string) func(*siptx.Message) {
		return func(m *siptx.Message) { m.Set(name, value) }
	}
	for _, k := range []coreCase{
		{"trusted registration", "TS 33.203 U.2, TS 24.229 §5.4.1", nil, true, "The core does not take this edge for a trusted node, or lacks the user; what it needs is listed below."},
		{"no integrity-protected", "TS 33.203 P.4", set("Authorization", digest(cfg.IMPI, cfg.Domain, "")), false, open},
		{"integrity-protected=\"no\"", "TS 33.203 P.4", set("Authorization", digest(cfg.IMPI, cfg.Domain, "no")), false, open},
		{"no Authorization", "TS 24.229 §5.4.1.2", func(m *siptx.Message) { m.Del("Authorization") }, false, open},
		{"unknown private identity", "TS 29.228 §6.1.1", set("Authorization", digest("nobody-"+strings.ToLower(rand.Text()[:8])+"@"+cfg.Domain, cfg.Domain, "auth-done")), false, "The HSS must hold IMPI and IMPU together: else any user of a trusted node takes any identity."},
		{"unknown visited network", "TS 33.203 U.1, TS 29.228 §6.1.1", set("P-Visited-Network-ID", `"elsewhere.invalid"`), false, "The HSS must allow registrations from known visited networks alone: it is how the core tells the trusted node."},
		{"no Path", "TS 24.229 §5.2.2, RFC 3327", func(m *siptx.Message) { m.Del("Path"); m.Del("Require") }, false, "Without a Path, calls to the user go to a contact that nobody reaches: the core should refuse it (421, or 4xx)."},
		{"another domain", "RFC 3261 §10.3", func(m *siptx.Message) { m.URI = "sip:elsewhere.invalid" }, false, "The core must register for its own domain alone."},
		{"de-registration", "TS 24.229 §5.4.1.4", set("Expires", "0"), true, "Look into the log of the S-CSCF."},
	} {
		r.step(ctx, k.name+" ("+k.clause+")", reached, func(ctx context.Context) (string, error) { return c.run(ctx, k) })
	}
	if reached {
		after, cancel := context.WithTimeout(context.WithoutCancel(ctx), stepTime)
		defer cancel()
		_, _ = c.ask(after, func(m *siptx.Message) { m.Set("Expires", "0") }) // once more, should a case have registered that must not
	}
	return r.report
}

type coreProbe struct {
	cfg                  CoreConfig
	conn                 net.Conn
	r                    *bufio.Reader
	callID, tag, contact string
	cseq                 int
}

func (c *coreProbe) connect(ctx context.Context) (string, error) {
	d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(c.cfg.Listen.Addr(), 0))}
	conn, err := d.DialContext(ctx, "tcp", c.cfg.NextHop.String())
	if err != nil {
		check := "See epcscf.core, that the S-CSCF or democore runs and speaks SIP over TCP, and that no firewall is between."
		if strings.Contains(err.Error(), "cannot assign") || strings.Contains(err.Error(), "bind") {
			check = "Run this on the edge's machine: the cases come from the address epcscf.listen."
		}
		return "", fault{err, check}
	}
	c.conn, c.r = conn, bufio.NewReaderSize(conn, 64<<10)
	return fmt.Sprintf("TCP from %v to %v", conn.LocalAddr(), conn.RemoteAddr()), nil
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
	m.Add("Path", "<sip:probe@"+c.cfg.Listen.String()+";lr;ob>")
	m.Add("Require", "path")
	m.Add("Supported", "path")
	m.Add("P-Visited-Network-ID", `"`+c.cfg.VisitedNetwork+`"`)
	m.Add("P-Charging-Vector", "icid-value="+rand.Text())
	m.Add("User-Agent", "wicgate probe")
	if change != nil {
		change(m)
	}
	deadline, _ := ctx.Deadline()
	if err := c.conn.SetDeadline(deadline); err != nil {
		return nil, err
	}
	if _, err := c.conn.Write(m.Append(nil)); err != nil {
		return nil, fault{err, "The core has closed the connection: does it take requests of this address?"}
	}
	for {
		b, err := siptx.ReadMessage(c.r, func() {})
		if err != nil {
			return nil, fault{err, "The core closes the connection, or does not answer: look into its log."}
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

func (c *coreProbe) run(ctx context.Context, k coreCase) (string, error) {
	m, err := c.ask(ctx, k.change)
	if err != nil {
		return "", err
	}
	answer := fmt.Sprintf("%d %s", m.Status, m.Reason)
	switch {
	case k.ok && m.Status != 200, !k.ok && m.Status < 300:
		want := "a refusal"
		if k.ok {
			want = "200"
		}
		return "", faultf(k.check, "answered %s where %s is right", answer, want)
	case !k.ok || m.Get("Expires") == "0" || k.change != nil:
		return answer, nil
	}
	var lacks []string
	for _, h := range []string{"Service-Route", "P-Associated-URI"} {
		if m.Get(h) == "" {
			lacks = append(lacks, h)
		}
	}
	if len(lacks) > 0 {
		return "", faultf("An S-CSCF answers with both (TS 24.229 §5.4.1.2.2F): without them calls of the user do not go through it.", "answered %s without %s", answer, strings.Join(lacks, " and "))
	}
	return answer + ", Service-Route " + m.Get("Service-Route") + ", P-Associated-URI " + m.Get("P-Associated-URI"), nil
}

// ErrFailed ends a probe of which a step has failed.
var ErrFailed = errors.New("a step has failed")
