package config

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"wicgate/internal/peerpolicy"
	"wicgate/internal/policy"
)

// Severity of a [Finding].
type Severity string

// An Error is refused by run and by check. A Warning is told.
const (
	Error   Severity = "error"
	Warning Severity = "warning"
)

// Finding is something about the configuration that should be otherwise.
type Finding struct {
	Severity Severity `json:"severity"`
	File     string   `json:"file,omitempty"`
	Line     int      `json:"line,omitempty"` // 0: the default, or not about one key
	Key      string   `json:"key,omitempty"`
	Reason   string   `json:"reason"`
	Hint     string   `json:"hint,omitempty"` // what to do next
}

// String is file:line: key: reason, and the hint in a line of its own.
func (f Finding) String() string {
	var b strings.Builder
	if f.File != "" && f.Line > 0 {
		fmt.Fprintf(&b, "%s:%d: ", f.File, f.Line)
	}
	if f.Key != "" {
		b.WriteString(f.Key + ": ")
	}
	b.WriteString(f.Reason)
	if f.Hint != "" {
		b.WriteString("\n  hint: " + f.Hint)
	}
	return b.String()
}

// Find makes a finding about a key of the file.
func (f *File) Find(s Severity, key, reason, hint string) Finding {
	line := f.Line(key)
	name := f.source.name
	if line == 0 {
		name = ""
	}
	return Finding{s, name, line, key, reason, hint}
}

// review collects findings.
type review struct {
	*File
	roles []string
	found []Finding
}

func (r *review) has(role string) bool { return slices.Contains(r.roles, role) }

func (r *review) error(key, hint, format string, args ...any) {
	r.found = append(r.found, r.Find(Error, key, fmt.Sprintf(format, args...), hint))
}

func (r *review) warn(key, hint, format string, args ...any) {
	r.found = append(r.found, r.Find(Warning, key, fmt.Sprintf(format, args...), hint))
}

// Review looks for what is dangerous or contradicts itself when the given roles run with the file. It
// looks at the file alone, never at the machine.
func (f *File) Review(roles []string) []Finding {
	r := &review{File: f, roles: roles}
	if r.has("turn") {
		r.peers()
		r.turn()
	}
	r.told()
	r.acme()
	r.ports()
	r.lives()
	if r.has("epcscf") {
		r.core()
		r.guests()
	}
	if r.has("imsagw") {
		r.gateway()
	}
	r.bus()
	r.admin()
	return r.found
}

// public says whether an address belongs to the Internet at large.
func public(a netip.Addr) bool { return a.IsValid() && peerpolicy.General().AllowAddr(a) == nil }

// local says whether nobody but this machine can come by an address.
func local(a netip.Addr) bool { return a.IsLoopback() }

// touches says whether two prefixes have an address in common.
func touches(p netip.Prefix, others ...string) bool {
	for _, o := range others {
		if q := netip.MustParsePrefix(o); p.Overlaps(q) {
			return true
		}
	}
	return false
}

// allLocal says whether the TURN server is for this machine alone.
func (t TURN) allLocal() bool {
	for _, l := range slices.Concat(t.Listen, t.ListenTCP) {
		if !local(l.Addr()) {
			return false
		}
	}
	return true
}

// peers looks at what clients may reach by the relay. A relay into private networks is how TURN servers
// are abused (DESIGN, Not negotiable; RFC 8656 §21.4).
func (r *review) peers() {
	if r.TURN.allLocal() {
		return // a try on one machine
	}
	for i, o := range r.TURN.Open {
		key, p := fmt.Sprintf("turn.open[%d]", i), o.Prefix.Masked()
		for _, c := range r.TURN.Closed {
			if c.Bits() <= p.Bits() && c.Contains(p.Addr()) {
				r.warn(key, "take one of the two out", "has no effect: turn.closed holds %v, and wins", c)
			}
		}
		if p.Addr().Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		wide := p.Addr().Is4() && p.Bits() < 24 || p.Addr().Is6() && p.Bits() < 64
		switch {
		case p.Bits() == 0:
			r.error(key, "name the networks that clients need; for all public addresses use turn.profile: general", "%v opens every address to every client, private and loopback ones too", p)
		case touches(p, "127.0.0.0/8", "::1/128", "0.0.0.0/8", "::/128"):
			r.error(key, "give the service an address of its own", "%v lets clients reach services on this machine's loopback", p)
		case touches(p, "169.254.0.0/16", "fe80::/10"):
			r.error(key, "leave it out; cloud metadata services, with their credentials, are there", "%v lets clients reach link-local addresses", p)
		case touches(p, "224.0.0.0/4", "ff00::/8", "255.255.255.255/32"):
			r.error(key, "leave it out; a relay sends to single hosts", "%v is multicast or broadcast", p)
		case !touches(p, "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"):
		case r.TURN.Profile == "general" && (wide || o.Ports.First < 1024):
			r.error(key, "name the hosts that clients need, at most a /24 (IPv6: /64), and ports from 1024 up", "%v %v opens a private network to every client, with a relay that is open to the world", p, o.Ports)
		case wide || o.Ports.First < 1024:
			r.warn(key, "name the hosts and ports that clients need", "%v %v is a wide door into a private network", p, o.Ports)
		case r.TURN.Profile == "general":
			r.warn(key, "leave it out unless those hosts expect strangers", "every client reaches the private addresses %v on ports %v", p, o.Ports)
		}
	}
	if r.TURN.Profile == "ims" && !r.has("imsagw") && local(r.IMSAGW.Access.Public()) && len(r.TURN.Open) == 0 {
		r.warn("turn.profile", "set imsagw.access to that of the gateway, or name its media range in turn.open, or set turn.profile: general",
			"clients may reach the gateway's media range alone, which by imsagw.access is on this machine's loopback (%v)", r.IMSAGW.Access.Public())
	}
}

// turn looks at the TURN server's other settings.
func (r *review) turn() {
	c := r.TURN
	if n := c.RelayPorts(); c.Quota > n {
		r.error("turn.quota", "lower it, or widen the ports in turn.relay", "one pseudonym may have %d allocations, and turn.relay holds %d in all", c.Quota, n)
	}
	for i, a := range c.Relay {
		for j, b := range c.Relay[:i] {
			// On one address to bind, ports() says so.
			if a.Bind != b.Bind && a.Public() == b.Public() && a.Ports.overlap(b.Ports) {
				r.error(fmt.Sprintf("turn.relay[%d].ports", i), "give each a range of its own", "%v overlap with turn.relay[%d].ports %v, and both are %v to clients: two allocations would have one address", a.Ports, j, b.Ports, a.Public())
			}
		}
	}
	for i, l := range c.Listen {
		if l.Addr().IsUnspecified() {
			r.warn(fmt.Sprintf("turn.listen[%d]", i), "name the address that clients use", "%v: on a machine with several addresses, answers may leave from another than was asked", l)
		}
	}
	if c.First().Plain() && c.Quota < 1000 {
		r.warn("turn.quota", "set it to what all clients together may have", "with turn.oauth.kid_mode plain it counts all tokens of one kid together, and %d are soon used up", c.Quota)
	}
	if c.OAuth.Loose {
		r.warn("turn.oauth.loose", "set it to false unless clients are coturn's", "who sends from a client's address, as behind one NAT, and has any token takes its allocation over")
	}
	for i, p := range c.TrustedProxies {
		if p.Bits() == 0 {
			r.error(fmt.Sprintf("turn.trusted_proxies[%d]", i), "name the load balancers' addresses", "%v: anybody may say whose a connection is", p)
		}
	}
	if c.Credentials == "strict" && r.Line("turn.grace_max") != 0 {
		r.warn("turn.grace_max", "take it out, or choose turn.credentials: call-grace", "has no effect with turn.credentials: strict")
	}
	if c.Credentials == "strict" {
		r.warn("turn.credentials", "choose session, or a longer waf.turn_token_life", "strict cuts each call at the end of its token, at most %s after it began: browsers cannot renew a live allocation", duration(time.Duration(r.WAF.TURNTokenLife)))
	}
	if c.allLocal() {
		return
	}
	for i, s := range c.Relay {
		if a := s.Public(); local(a) {
			r.error(fmt.Sprintf("turn.relay[%d].bind", i), "name an address that gateway and peers can reach", "clients elsewhere are given relayed addresses on %v, this machine's loopback", a)
		}
	}
	if len(c.ListenTCP) == 0 {
		r.warn("turn.listen_tcp", "add an address, best with port 443, and its turns: entry in turn.urls", "is empty: browsers behind firewalls that drop UDP have no way in")
	}
}

// told looks at what browsers are told.
func (r *review) told() {
	c, portal := r.HTTPS, r.has("wwsf") || r.has("waf") || r.has("epcscf")
	if portal && !local(c.Listen.Addr()) {
		if a, err := netip.ParseAddr(c.URL.Host()); c.URL.Host() == "localhost" || err == nil && local(a) {
			r.warn("https.url", "set it to the name by which browsers reach https.listen", "%s is what browsers are told, and it means their own machine", c.URL)
		}
	}
	if u, err := url.Parse(string(c.URL)); portal && err == nil {
		port := u.Port()
		if port == "" {
			port = "443"
		}
		if port != strconv.Itoa(int(c.Listen.Port())) && c.Listen.Port() != 0 {
			r.warn("https.url", "change one of the two, unless something forwards the port", "browsers are sent to port %s, https.listen is on port %d", port, c.Listen.Port())
		}
	}
	if !r.has("turn") && !r.has("waf") {
		return
	}
	for i, s := range r.TURN.URLs {
		key := fmt.Sprintf("turn.urls[%d]", i)
		u, ok := parseTURN(s)
		if !ok {
			continue
		}
		if a, err := netip.ParseAddr(u.host); (u.host == "localhost" || err == nil && local(a)) && !(local(c.Listen.Addr()) && r.TURN.allLocal()) {
			r.warn(key, "name the address or host by which browsers reach this server", "%q is what browsers are told, and it means their own machine", s)
		}
		if u.port < 1024 && u.port != 80 && u.port != 443 {
			r.warn(key, "use 80, 443 or a port from 1024 up", "Chromium does not connect to TURN servers on port %d", u.port)
		}
		if on := r.TURN.Listen; r.has("turn") {
			if u.transport == "tcp" {
				on = r.TURN.ListenTCP
			}
			if !slices.ContainsFunc(on, func(a AddrPort) bool { return a.Port() == u.port || a.Port() == 0 }) {
				r.warn(key, "change one of the two, unless something forwards the port", "%q: no listener has port %d with that transport", s, u.port)
			}
		}
	}
}

// acme looks whether the names are those that browsers go to, and whether the CA can find their proof.
func (r *review) acme() {
	a := r.HTTPS.ACME
	portal := r.has("waf") || r.has("wwsf") || r.has("epcscf")
	turn := r.has("turn") && len(r.TURN.ListenTCP) > 0
	if !a.On() || !portal && !turn {
		return
	}
	covers := func(key, host string) {
		if !slices.Contains(a.Names, host) {
			r.error(key, "add it to https.acme.names, or tell browsers another name", "browsers go to %s, and https.acme.names has %s", host, strings.Join(a.Names, ", "))
		}
	}
	on443 := portal && r.HTTPS.Listen.Port() == 443
	if portal {
		covers("https.url", r.HTTPS.URL.Host())
	}
	if turn {
		for i, host := range r.TURN.SecureURLs() {
			covers(fmt.Sprintf("turn.urls[%d]", i), host)
		}
		for i, t := range r.TURN.Tenants {
			for j, name := range t.ServerNames {
				if !slices.Contains(a.Names, name) {
					r.warn(fmt.Sprintf("%s.server_names[%d]", tenantKey(i), j), "add it to https.acme.names: clients that verify the certificate end in the handshake", "clients ask for %s, and https.acme.names has %s", name, strings.Join(a.Names, ", "))
				}
			}
		}
		on443 = on443 || slices.ContainsFunc(r.TURN.ListenTCP, func(l AddrPort) bool { return l.Port() == 443 })
	}
	if !on443 && a.HTTP.Port() != 80 {
		r.warn("https.acme.names", "listen there, or forward the port", "the CA looks for proof on port 443 of each name, and nothing here listens on it")
	}
}

// ports looks for ranges of ports that get into each other's way on this machine.
func (r *review) ports() {
	type use struct {
		key   string
		addr  netip.Addr
		ports Ports
	}
	var ranges, single []use
	if r.has("turn") {
		for i, s := range r.TURN.Relay {
			ranges = append(ranges, use{fmt.Sprintf("turn.relay[%d].ports", i), s.Bind.Addr, s.Ports})
		}
		for i, l := range r.TURN.Listen {
			single = append(single, use{fmt.Sprintf("turn.listen[%d]", i), l.Addr(), Ports{l.Port(), l.Port()}})
		}
	}
	if r.has("imsagw") {
		ranges = append(ranges, use{"imsagw.access.ports", r.IMSAGW.Access.Bind.Addr, r.IMSAGW.Access.Ports}, use{"imsagw.core.ports", r.IMSAGW.Core.Bind.Addr, r.IMSAGW.Core.Ports})
	}
	same := func(a, b use) bool {
		return (a.addr == b.addr || a.addr.Is4() == b.addr.Is4() && (a.addr.IsUnspecified() || b.addr.IsUnspecified())) && a.ports.overlap(b.ports)
	}
	for i, a := range ranges {
		for _, b := range ranges[i+1:] {
			if same(a, b) {
				r.error(b.key, "give each a range of its own", "%v overlap with %s %v on the same address: each would take the other's ports", b.ports, a.key, a.ports)
			}
		}
		for _, b := range single {
			if b.ports.First != 0 && same(a, b) {
				r.warn(b.key, "choose a port outside that range", "port %d lies in %s %v on the same address", b.ports.First, a.key, a.ports)
			}
		}
	}
	r.listeners()
}

// listeners looks for addresses that cannot be listened on together: of two sockets the second is refused,
// also where one of them is on every address, which is of IPv4 and IPv6 both, however it is written.
func (r *review) listeners() {
	type listener struct {
		key  string
		addr AddrPort
	}
	front := r.has("waf") || r.has("wwsf") || r.has("epcscf")
	var udp, tcp []listener
	add := func(to *[]listener, runs bool, key string, addr AddrPort) {
		if runs && addr.IsValid() && addr.Port() != 0 {
			*to = append(*to, listener{key, addr})
		}
	}
	add(&tcp, front, "https.listen", r.HTTPS.Listen)
	add(&tcp, front, "https.acme.http", r.HTTPS.ACME.HTTP)
	for i, a := range r.TURN.Listen {
		add(&udp, r.has("turn"), fmt.Sprintf("turn.listen[%d]", i), a)
	}
	for i, a := range r.TURN.ListenTCP {
		add(&tcp, r.has("turn"), fmt.Sprintf("turn.listen_tcp[%d]", i), a)
	}
	add(&tcp, r.has("epcscf"), "epcscf.listen", r.EPCSCF.Listen)
	add(&tcp, r.has("democore"), "democore.listen", r.DemoCore.Listen)
	add(&tcp, r.has("waf"), "waf.stun_key.listen", r.WAF.STUNKey.Listen)
	add(&tcp, true, "admin.listen", r.Admin.Listen)
	for _, list := range [][]listener{udp, tcp} {
		for i, a := range list {
			for _, b := range list[:i] {
				switch {
				case a.addr.Port() != b.addr.Port():
				case a.addr == b.addr && b.key == "https.listen" && strings.HasPrefix(a.key, "turn.listen_tcp"): // they share it
				case a.addr == b.addr:
					r.error(a.key, "choose another port, or leave one out", "%v is %s already", a.addr, b.key)
				case a.addr.Addr().IsUnspecified() || b.addr.Addr().IsUnspecified():
					r.error(a.key, "leave one out, or name each address in place of the wildcard", "%v cannot be listened on beside %s %v: a wildcard is every address, of IPv4 and IPv6", a.addr, b.key, b.addr)
				}
			}
		}
	}
}

// lives looks at how long things live.
func (r *review) lives() {
	short := func(key string, d Duration) {
		if d < Duration(3*time.Minute) {
			r.warn(key, "set 3m or more; 1h is the default", "%s is for tests: pages in the background, whose timers browsers slow down, lose their registration", duration(time.Duration(d)))
		}
	}
	if r.has("waf") {
		short("waf.sip_token_life", r.WAF.SIPTokenLife)
		short("waf.turn_token_life", r.WAF.TURNTokenLife)
	}
	if r.has("turn") && r.TURN.Credentials != "strict" && r.TURN.GraceMax < r.WAF.TURNTokenLife {
		r.warn("turn.grace_max", "set it to the longest call that should outlive its token", "%s after its token's end a call is cut when the issuer is silent, sooner than a token's life (waf.turn_token_life %s)",
			duration(time.Duration(r.TURN.GraceMax)), duration(time.Duration(r.WAF.TURNTokenLife)))
	}
}

// core looks at the side towards the IMS core.
func (r *review) core() {
	c := r.EPCSCF
	tunnel := "carry SIP to the core in a tunnel (IPsec, WireGuard), and name the tunnel's addresses"
	if public(c.Core.Addr()) {
		r.error("epcscf.core", tunnel, "%v is a public address, and SIP to it is plain TCP: identities and trusted assertions in clear text", c.Core)
	}
	if public(c.Listen.Addr()) {
		r.error("epcscf.listen", tunnel, "%v is a public address, and SIP on it is plain TCP", c.Listen)
	}
	listed := false
	for i, p := range c.CorePeers {
		listed = listed || p.Contains(c.Core.Addr())
		key := fmt.Sprintf("epcscf.core_peers[%d]", i)
		switch {
		case p.Bits() == 0:
			r.error(key, "name the core's addresses", "%v: anybody may send requests as the core", p)
		case p.Addr().Is4() && p.Bits() < 16 || p.Addr().Is6() && p.Bits() < 48:
			r.warn(key, "name the core's addresses", "%v is a wide range of machines that may send requests as the core", p)
		}
	}
	if c.CoreTrusted && !listed {
		r.error("epcscf.core_trusted", "add the next hop to epcscf.core_peers, or correct epcscf.core", "the next hop %v is trusted with identities, and is none of epcscf.core_peers", c.Core.Addr())
	}
	if !c.CoreTrusted {
		r.warn("epcscf.core_trusted", "set it to true once the core knows this edge as a trusted node (TS 33.203 Annex U)", "is false: nobody can register")
	}
	if c.Listen.Addr().IsUnspecified() {
		r.warn("epcscf.listen", "name the address that the core uses", "%v: the core is told in Via and Path where to answer, and that is no address", c.Listen)
	}
	if r.has("democore") && r.has("wwsf") && !local(r.HTTPS.Listen.Addr()) {
		r.warn("democore.listen", "run the roles but democore, and set epcscf.core to the operator's core", "the stand-in for a core serves a portal that others can reach (https.listen %v)", r.HTTPS.Listen)
	}
}

// guests looks at whom people without a log-in may call.
func (r *review) guests() {
	const key = "epcscf.guests.destinations"
	if _, err := policy.ParseDestinations(r.Domain, r.EPCSCF.Guests.Destinations); err != nil {
		r.error(key, "correct the entry", "%v", err)
	}
	if r.WAF.Guests == 0 {
		return
	}
	if len(r.EPCSCF.Guests.Destinations) == 0 {
		r.warn(key, "name whom guests may call, or set waf.guests: 0", "is empty: guests may join and call nobody but themselves")
	}
	for i, d := range r.EPCSCF.Guests.Destinations {
		key := fmt.Sprintf("%s[%d]", key, i)
		switch host, any := strings.CutPrefix(strings.TrimPrefix(d, "sip:"), "*@"); {
		case any && strings.EqualFold(host, r.Domain):
			r.warn(key, "name the users that expect guests", "%q: whoever opens the portal may call every user", d)
		case any:
			r.error(key, "name single destinations there, sip:user@host", "%q: whoever opens the portal may call everybody in another network, at your charge", d)
		}
	}
}

// gateway looks at the media gateway.
func (r *review) gateway() {
	if a := r.IMSAGW.Core.Public(); public(a) {
		r.warn("imsagw.core.bind", "use an address of the network that the core's media run in", "%v is a public address, and media to the core are plain RTP", a)
	}
	if a := r.IMSAGW.Access.Public(); r.has("turn") && !r.TURN.allLocal() && local(a) {
		for _, s := range r.TURN.Relay {
			if !local(s.Bind.Addr) {
				r.error("imsagw.access.bind", "name an address that the relay can reach", "the gateway's media are on loopback (%v) and relayed addresses are on %v: no packet gets from one to the other", a, s.Bind)
			}
		}
	}
}

func (r *review) bus() {
	if pushed := r.EPCSCF.TURNCredential == "pushed"; pushed && r.has("turn") && !r.has("epcscf") && r.TURN.Secrets == "" {
		r.error("turn.secrets", "name a copy of the edge's; by default that is turn-secrets.txt in its data folder", "is empty, and epcscf.turn_credential is pushed: this TURN server could not open what the edge tells")
	} else if pushed && r.Bus.URL == "" && r.has("turn") != r.has("epcscf") {
		r.error("bus.url", "set it to the cluster that both use, run both in one process, or set epcscf.turn_credential to ephemeral", "is empty, and epcscf.turn_credential is pushed: of edge and TURN server only one runs here, and they cannot hear each other")
		return
	}
	if r.Bus.URL == "" {
		if r.has("epcscf") != r.has("imsagw") {
			r.warn("bus.url", "set it to the cluster that both use, or run both in one process", "is empty, so the bus is inside this process; of edge and gateway only one runs here, and they cannot hear each other")
		}
		return
	}
	open := false // to whoever reaches it
	for s := range strings.SplitSeq(r.Bus.URL, ",") {
		if s = strings.TrimSpace(s); !strings.Contains(s, "://") {
			s = "nats://" + s // as NATS takes it
		}
		u, err := url.Parse(s)
		if err != nil || u.Hostname() == "" {
			r.error("bus.url", "write nats://host:port or tls://host:port, of several with commas between", "%q is no URL", hide(s))
			continue
		}
		if u.Scheme == "tls" || u.Scheme == "wss" {
			continue
		}
		if a, err := netip.ParseAddr(u.Hostname()); err == nil && public(a) {
			r.error("bus.url", "use tls://, or a private address", "%s is plain NATS across a public address: revocations and media keys in clear text", hide(s))
		}
		open = open || u.User == nil
	}
	if open && r.Bus.NKey == "" {
		r.warn("bus.nkey", "give each node an nkey of its own", "is empty: whoever reaches the bus can act as any node")
	}
}

func (r *review) admin() {
	if a := r.Admin.Listen; a.IsValid() && public(a.Addr()) {
		r.warn("admin.listen", "use a private address, or let only the monitoring through", "%v is a public address: whoever asks sees the counters", a)
	}
}
