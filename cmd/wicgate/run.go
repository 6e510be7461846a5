package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"wicgate/democore"
	"wicgate/epcscf"
	"wicgate/imsagw"
	"wicgate/internal/acme"
	"wicgate/internal/check"
	"wicgate/internal/config"
	"wicgate/internal/iq"
	"wicgate/internal/keyring"
	"wicgate/internal/life"
	"wicgate/internal/listen"
	"wicgate/internal/policy"
	"wicgate/internal/secret"
	"wicgate/internal/session"
	"wicgate/internal/store"
	"wicgate/waf"
	"wicgate/wwsf"
)

const sipPath = "/sip"

var allRoles = []string{"turn", "waf", "wwsf", "epcscf", "imsagw", "democore"}

type runCmd struct {
	Roles  []string `arg:"" optional:"" enum:"turn,waf,wwsf,epcscf,imsagw,democore" help:"turn, waf, wwsf, epcscf, imsagw, democore. Default: all." placeholder:"ROLE"`
	Config string   `help:"Configuration file; wicgate.yaml in the source explains every key. Default: none, all roles on loopback." type:"existingfile" placeholder:"FILE"`
	Data   string   `help:"Folder for keys, the development CA and state. Made if it is not there." default:"wicgate-data" type:"path" placeholder:"DIR"`

	Takeover bool          `help:"Take over from the wicgate that runs with this data folder: its sockets and TURN sessions, without a lost call. It then ends. For turn alone."`
	Within   time.Duration `help:"With --takeover: how long the other may keep its connections (TCP, TLS, DTLS), which cannot move; 0 to 24h." default:"12h" placeholder:"TIME"`
}

// Help implements [kong.HelpProvider].
func (runCmd) Help() string {
	return `Roles that are named run in this process, on one machine or apart on many. "wicgate check" says beforehand whether they would.

Examples:

	wicgate run                            all six on loopback, for a first call
	wicgate run --config wicgate.yaml      all six, as the file says
	wicgate run turn --config turn.yaml    a TURN server alone
	wicgate run waf wwsf epcscf imsagw     with an operator's core
	wicgate run turn --takeover            a new version, in place of the one that runs
`
}

// Run implements the command run.
func (c *runCmd) Run(out io.Writer) error {
	file, err := config.Load(c.Config)
	if err != nil {
		return err
	}
	ctx, stop := untilSignal()
	defer stop()
	if c.Within < 0 || c.Within > 24*time.Hour {
		return misuse(fmt.Sprintf("--within %v: want 0 to 24h", c.Within))
	}
	h := &house{file: file, data: c.Data, roles: c.Roles, stats: map[string]func() any{}}
	h.reloader.begin(c.Config, file)
	defer h.reloader.end()
	h.log = newLog(file.Log.Format, &h.reloader.level)
	ctx = h.prepare(ctx)
	if len(h.roles) == 0 {
		h.roles = allRoles
	}
	if err := refuse(check.Cheap(check.Input{File: file, Data: c.Data, Roles: h.roles}), h.log); err != nil {
		return err
	}
	if c.Takeover {
		err = h.follow(ctx, c.Within)
	} else {
		h.lock, err = lockData(c.Data)
	}
	if err != nil {
		return err
	}
	defer h.lock.Close()
	defer h.close()
	h.ready = func() { h.greet(out, time.Since(started)) }
	if err := h.build(); err != nil {
		return err
	}
	if !c.Takeover {
		h.ready()
	}
	err = life.Run(ctx, h.log, h.parts...)
	switch {
	case err != nil:
	case h.gone.Load():
		fmt.Fprintf(out, "wicgate has handed over to process %d and ended.\n", h.Process().Next)
	default:
		fmt.Fprintln(out, "wicgate has drained and ended.")
	}
	return err
}

func newLog(format string, level slog.Leveler) *slog.Logger {
	opts := &slog.HandlerOptions{Level: level}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, opts))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, opts))
}

// house is what runs in this process: the roles, and what joins them.
type house struct {
	file  *config.File
	data  string
	roles []string
	log   *slog.Logger

	parts   []life.Part           // in the order of starting
	stats   map[string]func() any // by role
	closers []func()

	bus      *store.NATS
	rings    *keyring.Ring
	foreign  []*keyring.Ring // of TURN servers elsewhere, plain, see openKeys
	ca       *listen.CA      // nil where a certificate is configured
	files    *listen.Files   // of the certificate, where it is configured
	acme     *acme.Client    // nil: certificates are not got by ACME
	cert     func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	client   *http.Client
	users    []waf.User // demo users, where there are any
	news     news
	reloader reloader
	operator
	succession
	shared *listen.Handover // where turn.listen_tcp has the address of https.listen; else nil
}

func (h *house) has(role string) bool { return slices.Contains(h.roles, role) }

func (h *house) close() {
	for _, c := range slices.Backward(h.closers) {
		c()
	}
}

// build makes the parts, each after those it needs. Sockets open here, so a taken port is told
// before anything is served.
func (h *house) build() error {
	if err := h.openDoor(); err != nil {
		return err
	}
	mux := http.NewServeMux()
	front := false
	for _, step := range []struct {
		when  bool
		build func(*http.ServeMux) error
	}{
		{h.has("waf") || h.has("epcscf") || h.has("imsagw") || h.has("turn") && h.file.Bus.URL != "" || h.usesACME(), h.openBus},
		{h.has("waf") || h.has("epcscf") || h.has("turn"), h.openNews},
		{h.has("waf") || h.has("turn"), h.openKeys},
		{h.has("waf") || h.has("wwsf") || h.has("epcscf"), func(*http.ServeMux) error { front = true; return nil }},
		{h.usesTLS(), h.openTrust},
		{h.has("turn"), h.turn},
		{h.has("imsagw"), h.imsagw},
		{h.has("democore"), h.democore},
		{h.has("waf"), h.waf},
		{h.has("epcscf"), h.epcscf},
		{h.has("wwsf"), h.wwsf},
	} {
		if step.when {
			if err := step.build(mux); err != nil {
				return err
			}
		}
	}
	if h.news.follower != nil {
		if err := h.followNews(); err != nil {
			return err
		}
	}
	if front {
		if err := h.front(mux); err != nil {
			return err
		}
	}
	h.parts = append(h.parts, life.Part{Name: "reload", Serve: h.serveReload})
	return h.observe()
}

func (h *house) openBus(*http.ServeMux) (err error) {
	b := h.file.Bus
	if b.URL == "" {
		h.bus, err = store.Embed(filepath.Join(h.data, "nats"), h.log)
	} else {
		h.bus, err = store.Connect(b.URL, b.NKey, b.Replicas)
	}
	if err == nil {
		h.closers = append(h.closers, h.bus.Close)
	}
	return err
}

// path is a configured file, or its place in the data folder.
func (h *house) path(configured, name string) string {
	if configured != "" {
		return configured
	}
	return filepath.Join(h.data, name)
}

// openTrust opens the certificate, makes the development CA where none is configured, and the client
// by which roles call each other.
func (h *house) openTrust(*http.ServeMux) (err error) {
	var pool *x509.CertPool // nil: the system's
	c := h.file.HTTPS
	switch {
	case h.usesACME():
		if err := h.openACME(); err != nil {
			return err
		}
	case c.Certificate == "":
		hosts := append([]string{c.URL.Host()}, h.file.TURN.SecureHosts()...)
		if a := c.Listen.Addr(); a.IsLoopback() {
			hosts = append(hosts, "localhost", a.String())
		} else if !a.IsUnspecified() {
			hosts = append(hosts, a.String())
		}
		if h.ca, err = listen.DevelopmentCA(filepath.Join(h.data, "ca"), hosts); err != nil {
			return err
		}
		pool, h.cert = h.ca.Pool(), h.ca.GetCertificate
	default:
		files, err := listen.CertificateFiles(c.Certificate, c.Key, func(err error) { h.log.Error("certificate not reloaded; the old one stays", "error", err) })
		if err != nil {
			return err
		}
		h.files, h.cert = files, files.GetCertificate
	}
	if c.CA != "" {
		if pool, err = listen.PoolFile(c.CA); err != nil {
			return err
		}
	}
	h.client = &http.Client{
		Timeout:   5 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, IdleConnTimeout: 30 * time.Second, ForceAttemptHTTP2: true},
	}
	h.closers = append(h.closers, h.client.CloseIdleConnections)
	return nil
}

func (h *house) front(mux *http.ServeMux) error {
	if h.shared != nil {
		h.parts = append(h.parts, life.Part{Name: "https", Serve: listen.NewSharedFront(h.shared, mux, h.log).Serve})
		return nil
	}
	f, err := listen.NewFront("https.listen", h.file.HTTPS.Listen.AddrPort, h.cert, mux, h.log)
	if err != nil {
		return err
	}
	h.parts = append(h.parts, life.Part{Name: "https", Serve: f.Serve})
	return nil
}

func (h *house) add(role string, serve func(context.Context) error, stats func() any) {
	h.parts = append(h.parts, life.Part{Name: role, Serve: serve})
	h.stats[role] = stats
}

func addrPorts(list []config.AddrPort) (out []netip.AddrPort) {
	for _, a := range list {
		out = append(out, a.AddrPort)
	}
	return out
}

func prefixes(list []config.Prefix) (out []netip.Prefix) {
	for _, p := range list {
		out = append(out, p.Prefix)
	}
	return out
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func (h *house) imsagw(*http.ServeMux) error {
	c := h.file.IMSAGW
	side := func(s config.Side) imsagw.Side {
		return imsagw.Side{Bind: s.Bind.Addr, Advertise: s.Public(), MinPort: s.Ports.First, MaxPort: s.Ports.Last}
	}
	g, err := imsagw.New(imsagw.Config{Log: h.log.With("role", "imsagw"), Name: c.Name, Access: side(c.Access), Core: side(c.Core), Bus: h.bus, MaxSessions: c.MaxSessions})
	if err != nil {
		return err
	}
	h.add("imsagw", g.Serve, func() any { return g.Stats() })
	return nil
}

func (h *house) democore(*http.ServeMux) error {
	users, private := h.coreUsers()
	c, err := democore.New(democore.Config{
		Log: h.log.With("role", "democore"), Listen: h.file.DemoCore.Listen.AddrPort, Domain: h.file.Domain,
		Edges: []netip.Prefix{host(h.file.EPCSCF.Listen.Addr())}, VisitedNetwork: h.file.EPCSCF.VisitedNetwork,
		Users: users, Private: private,
	})
	if err != nil {
		return err
	}
	h.add("democore", c.Serve, func() any { return c.Stats() })
	return nil
}

// coreUsers are the public identities that democore knows, and the private one of each: those that
// the WAF of this process gives out. Where the WAF is elsewhere, democore knows every user of the domain.
func (h *house) coreUsers() (users []string, private map[string]string) {
	if !h.has("waf") {
		return nil, nil
	}
	names := slices.Clone(h.file.DemoCore.Users)
	for n := 1; n <= h.file.WAF.Guests; n++ {
		names = append(names, waf.GuestName(n))
	}
	private = map[string]string{}
	for _, name := range names {
		impi := name + "@" + h.file.Domain
		users = append(users, "sip:"+impi)
		private["sip:"+impi] = impi
	}
	return users, private
}

// demoUsers makes the users of democore, with passwords that exist in this process alone.
func (h *house) demoUsers() {
	for _, name := range h.file.DemoCore.Users {
		h.users = append(h.users, waf.User{
			Name: name, Display: strings.ToUpper(name[:1]) + name[1:], Password: freshPassword(),
			IMPI: name + "@" + h.file.Domain, IMPU: []string{"sip:" + name + "@" + h.file.Domain},
		})
	}
}

// freshPassword is 60 random bits in three groups that a person can type.
func freshPassword() secret.Bytes {
	const letters = "abcdefghijkmnpqrstuvwxyz23456789" // 32, none easily taken for another
	b := make([]byte, 12)
	rand.Read(b)
	var out []byte
	for i, c := range b {
		if i > 0 && i%4 == 0 {
			out = append(out, '-')
		}
		out = append(out, letters[c%32])
	}
	return secret.New(out)
}

func (h *house) waf(mux *http.ServeMux) error {
	if h.has("democore") {
		h.demoUsers()
	}
	f := h.file
	origin := string(f.HTTPS.URL)
	clients := []waf.Client{{ID: "wic", Name: "wicgate portal", RedirectURIs: []string{origin + "/"}, Origins: []string{origin}}}
	if secret, err := h.portalSecret(); err != nil {
		return err
	} else if !secret.IsZero() {
		clients = append(clients, waf.Client{ID: "portal", Name: "wicgate portal, for guests", Secret: secret, Page: "wic"})
	}
	w, err := waf.New(waf.Config{
		Log: h.log.With("role", "waf"), Issuer: origin, Domain: f.Domain, Audience: f.EPCSCF.Audience, Store: h.bus, News: h.news.issuer, EdgeCredentialLife: time.Duration(f.EPCSCF.TURNCredentialLife),
		Rings: append([]*keyring.Ring{h.rings}, h.foreign...), TURNURLs: map[string][]string{f.TURN.Name: f.TURN.URLs},
		SigningKeyFile: h.path(f.WAF.SigningKey, "waf-key.pem"),
		Clients:        clients,
		Guests:         f.WAF.Guests, GuestLife: time.Duration(f.WAF.GuestLife),
		Users: h.users, SIPTokenLife: time.Duration(f.WAF.SIPTokenLife), TURNTokenLife: time.Duration(f.WAF.TURNTokenLife),
	})
	if err != nil {
		return err
	}
	mux.Handle("/oauth/", w.Handler())
	mux.Handle("/.well-known/oauth-authorization-server", w.Handler())
	h.operator.waf = w
	h.add("waf", w.Serve, func() any { return w.Stats() })
	return h.stunKey()
}

func (h *house) epcscf(mux *http.ServeMux) error {
	f, c := h.file, h.file.EPCSCF
	log := h.log.With("role", "epcscf")
	gateway, err := iq.NewClient(h.bus, f.IMSAGW.Name, c.Name, log)
	if err != nil {
		return err
	}
	var peers []netip.Prefix
	for _, p := range c.CorePeers {
		peers = append(peers, p.Prefix)
	}
	turnCredentials, err := h.turnCredentials()
	if err != nil {
		return err
	}
	destinations, err := policy.ParseDestinations(f.Domain, c.Guests.Destinations)
	if err != nil {
		return fmt.Errorf("epcscf.guests.destinations: %w", err)
	}
	origin := string(f.HTTPS.URL)
	e, err := epcscf.New(epcscf.Config{
		Log: log, Name: c.Name, Domain: f.Domain, Audience: c.Audience, Issuers: []string{origin},
		Keys: epcscf.JWKS(origin+"/oauth/jwks", h.client), AuthzServer: origin, Origins: []string{origin},
		Core:    epcscf.CoreConfig{Listen: c.Listen.AddrPort, NextHop: c.Core.AddrPort, Peers: peers, VisitedNetwork: c.VisitedNetwork, Trusted: c.CoreTrusted},
		Guests:  epcscf.GuestConfig{Destinations: destinations, Calls: c.Guests.Calls, Rate: c.Guests.Rate, Duration: time.Duration(c.Guests.Duration)},
		TURN:    turnCredentials,
		Gateway: gateway, Revoked: h.news.follower.Revoked, Extend: h.news.issuer.Extend,
	})
	if err != nil {
		return err
	}
	h.news.follower.Hear(session.Handler{Revoked: func(r session.Revocation) { e.Revoke(r.Pseudonym, r.Reason) }})
	mux.Handle(sipPath, e.Handler())
	h.add("epcscf", e.Serve, func() any { return e.Stats() })
	return nil
}

func (h *house) wwsf(mux *http.ServeMux) error {
	f := h.file
	secret, err := h.portalSecret()
	if err != nil {
		return err
	}
	w, err := wwsf.New(wwsf.Config{
		Log: h.log.With("role", "wwsf"), WAF: string(f.HTTPS.URL), ClientID: "wic", SIPURL: f.HTTPS.URL.WebSocket(sipPath), Domain: f.Domain, HTTP: h.client,
		ClientSecret: secret, TURNCredential: f.WWSF.TURNCredential,
	})
	if err != nil {
		return err
	}
	mux.Handle("/", w.Handler())
	h.add("wwsf", w.Serve, func() any { return w.Stats() })
	return nil
}

// greet tells the person who started it what to do next.
func (h *house) greet(out io.Writer, took time.Duration) {
	fmt.Fprintf(out, "wicgate is ready after %d ms: %s\n", took.Milliseconds(), strings.Join(h.roles, ", "))
	if h.has("wwsf") {
		h.greetPortal(out)
	}
	fmt.Fprintf(out, "\n  Ctrl-C drains and ends it.\n")
	if err := notify(); err != nil {
		h.log.Warn("service manager not told", "error", err)
	}
}

func (h *house) greetPortal(out io.Writer) {
	fmt.Fprintf(out, "\n  Open   %s/\n", h.file.HTTPS.URL)
	if h.ca != nil {
		fmt.Fprintf(out, "         The browser asks once about the certificate, which this machine made for\n"+
			"         itself: choose to proceed. Or trust its CA first: %s\n"+
			"         (it can speak for this address only).\n", h.ca.File)
	}
	if len(h.users) > 0 {
		fmt.Fprintf(out, "\n  Log in in two windows, one of them private, as\n")
		for _, u := range h.users {
			fmt.Fprintf(out, "         %-8s password  %s\n", u.Name, u.Password.Expose())
		}
		fmt.Fprintf(out, "         and call one from the other. A guest needs no password.\n")
	}
}
