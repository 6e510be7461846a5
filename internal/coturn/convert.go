package coturn

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"wicgate/internal/peerpolicy"
	"wicgate/internal/secret"
)

// Place is what a configuration does not say, and turnserver takes from its machine.
type Place struct {
	// Addresses of the machine, on which turnserver listens where the file names none.
	Addresses []netip.Addr
	// Realm of the users that are taken, over that of the file. Empty: the file's.
	Realm string
	// Dir is where the files will be; their names in the YAML begin with it.
	Dir string
}

// The names of the files.
const (
	FileYAML    = "wicgate.yaml"
	FileUsers   = "turn-users"
	FileSecrets = "turn-secrets.txt"
	FileKeys    = "turn-plain-keys.json"
)

// Result is what a configuration became.
type Result struct {
	YAML string
	// Users (turn.users) and Secrets (turn.secrets) are files for their owner alone; absent where there
	// is nothing to hold.
	Users, Secrets secret.Bytes
	// Keys are what the file FileKeys (turn.keys) is to hold, of the server Name.
	Keys  []Key
	Name  string
	Notes []Note // in the order of Kinds
}

// relay is an entry of turn.relay.
type relay struct{ bind, advertise netip.Addr }

// converter collects what the files will hold.
type converter struct {
	o     Options
	db    Database
	place Place
	notes []Note

	realm  string // coturn's, as it is in keys and in the database
	name   string // turn.name; "" where there is none
	tls    bool   // a certificate is named, and TLS wanted
	dtls   bool
	cert   string
	key    string
	listen []netip.AddrPort
	tcp    []netip.AddrPort
	urls   []string
	relays []relay
	ports  [2]int

	natDiscovery, classic bool

	open, closed []netip.Prefix
	shut         bool // too much is closed to say it: nothing public is open
	quota        int  // 0: the default
	total        int  // turn.quota_total; 0: none
	rate, rates  int  // turn.rates, allocation and total, in bits a second; 0: none
	users        []user
	secrets      []secret.Bytes
	keys         []Key
	proxied      int // tcp-proxy-port; 0: none
	level        string
	admin        netip.AddrPort
}

// Convert says what a configuration is in wicgate's words.
func Convert(o Options, db Database, place Place) Result {
	c := &converter{o: o, db: db, place: place, notes: slices.Clone(o.bad)}
	c.certificate()
	c.listeners()
	c.relaying()
	c.naming()
	c.told()
	c.credentials()
	c.peers()
	c.quotas()
	c.operation()
	c.others()
	c.defaults()
	r := Result{YAML: c.yaml(), Keys: c.keys, Name: c.realmOfKeys(), Notes: c.notes}
	if len(c.users) > 0 {
		r.Users = usersFile(c.realmOfKeys(), c.users)
	}
	if len(c.secrets) > 0 {
		r.Secrets = secretsFile(c.secrets)
	}
	slices.SortStableFunc(r.Notes, func(a, b Note) int {
		after := func(n Note) int { return (n.Line - 1) & (1<<31 - 1) } // line 0 behind the others
		return cmp.Or(cmp.Compare(slices.Index(Kinds, a.Kind), slices.Index(Kinds, b.Kind)), cmp.Compare(after(a), after(b)))
	})
	return r
}

func (c *converter) note(k Kind, line int, option, format string, args ...any) {
	c.notes = append(c.notes, Note{k, line, option, fmt.Sprintf(format, args...)})
}

// took tells of a line that is taken over.
func (c *converter) took(s setting, format string, args ...any) {
	c.note(Took, s.line, s.name, format, args...)
}

// address reads an address without a zone. turnserver takes host names too, which here would be true of
// one moment alone.
func (c *converter) address(s setting, text string) (a netip.Addr, ok bool) {
	a, err := netip.ParseAddr(strings.Trim(text, "[]"))
	if err != nil || a.Zone() != "" {
		c.note(Decide, s.line, s.name, "%q is no IP address; names are not looked up: write the address", text)
		return a, false
	}
	return a.Unmap(), true
}

// number reads a number within bounds, or returns other.
func (c *converter) number(name string, other, least, most int) (n, line int) {
	s, ok := c.o.last(name)
	if !ok {
		return other, 0
	}
	n, err := strconv.Atoi(s.value)
	if err != nil || n < least || n > most {
		c.note(Decide, s.line, name, "%q is no number from %d to %d; %d is taken", s.value, least, most, other)
		return other, 0
	}
	return n, s.line
}

// certificate reads cert and pkey.
func (c *converter) certificate() {
	cert, named := c.o.last("cert")
	key, keyed := c.o.last("pkey")
	both := named && keyed && cert.value != "" && key.value != ""
	wanted := !c.o.is("no-tls")
	noDTLS := c.o.is("no-dtls") || c.o.is("no_dtls")
	switch {
	case both && (wanted || !noDTLS):
		c.cert, c.key = c.path(cert), c.path(key)
		c.tls = wanted
		c.took(cert, "https.certificate, read again when it changes")
		c.took(key, "https.key")
	case both:
		c.note(Moot, cert.line, "cert", "neither TLS nor DTLS is served")
	case named != keyed:
		c.note(Decide, max(cert.line, key.line), "cert", "cert and pkey go together; without both there is no TLS")
	case wanted:
		c.note(Decide, 0, "cert", "not named; turnserver looks for turn_server_cert.pem and turn_server_pkey.pem. For TLS set https.certificate, https.key, an address in turn.listen_tcp and a turns: entry in turn.urls")
	}
	if s, ok := c.o.last("pkey-pwd"); ok {
		c.note(Decide, s.line, s.name, "a key under a password is not read: write it without one, with mode 0600 (openssl pkey -in OLD -out NEW)")
	}
	c.dtls = c.cert != "" && c.o.is("dtls") && !noDTLS
	switch s, ok := c.o.last("dtls"); {
	case ok && c.dtls:
		c.took(s, "turn.dtls: true")
	case !noDTLS && c.cert != "":
		c.note(Differs, 0, "turn.dtls", "false. turnserver 4.6 serves DTLS wherever it has a certificate; browsers do not use it (they take turns: over TCP). Set it to true for clients that do")
	}
}

// path is a file's name as turnserver finds it: absolute, or in places that depend on where it starts.
func (c *converter) path(s setting) string {
	if !filepath.IsAbs(s.value) {
		c.note(Decide, s.line, s.name, "%q is not absolute; turnserver looks for it in its working folder, /etc and /usr/local/etc, wicgate in its working folder", s.value)
	}
	return s.value
}

// listeners reads where turnserver listens.
func (c *converter) listeners() {
	port, portLine := c.number("listening-port", 3478, 1, 65535)
	tlsPort, tlsLine := c.number("tls-listening-port", 5349, 1, 65535)
	var ips []netip.Addr
	named := c.addresses("listening-ip")
	for _, s := range named {
		if a, ok := c.address(s, s.value); ok && !slices.Contains(ips, a) {
			ips = append(ips, a)
			c.took(s, "turn.listen, turn.listen_tcp")
		}
	}
	if len(named) == 0 {
		ips = c.place.Addresses
		c.note(Differs, 0, "turn.listen", "%s: the file names no listening-ip, for which turnserver takes every address of its machine; here they are named. Take out those that clients do not use", list(ips))
	}
	udp, tcp := !c.o.is("no-udp"), !c.o.is("no-tcp")
	wild := false
	// turnserver listens on a wildcard and beside it; here one socket takes all of a port.
	add := func(to *[]netip.AddrPort, a netip.Addr, port int) {
		p := netip.AddrPortFrom(a, uint16(port))
		wild = wild || a.IsUnspecified()
		if slices.ContainsFunc(*to, func(o netip.AddrPort) bool { return o == p || o.Port() == p.Port() && o.Addr().IsUnspecified() }) {
			return
		}
		if a.IsUnspecified() {
			*to = slices.DeleteFunc(*to, func(o netip.AddrPort) bool { return o.Port() == p.Port() })
		}
		*to = append(*to, p)
	}
	serve := func(a netip.Addr, port, tlsPort int) {
		if udp {
			add(&c.listen, a, port)
		}
		if c.dtls {
			add(&c.listen, a, tlsPort)
		}
		if tcp {
			add(&c.tcp, a, port)
		}
		if c.tls {
			add(&c.tcp, a, tlsPort)
		}
	}
	for _, a := range ips {
		serve(a, port, tlsPort)
	}
	for _, s := range c.addresses("aux-server") {
		a, err := netip.ParseAddrPort(s.value)
		if err != nil || a.Port() == 0 || a.Addr().Zone() != "" {
			c.note(Decide, s.line, s.name, "%q is not ip:port", s.value)
			continue
		}
		serve(a.Addr().Unmap(), int(a.Port()), int(a.Port()))
		c.took(s, "one more address in turn.listen and turn.listen_tcp")
	}
	if wild {
		c.note(Differs, 0, "turn.listen", "a wildcard, 0.0.0.0 or [::], is every address of IPv4 and IPv6, and stands alone on its port; answers may leave from another address than was asked, so name those that clients use")
	}
	c.discovery(ips, port)
	if portLine > 0 {
		c.note(Took, portLine, "listening-port", "turn.listen, turn.listen_tcp, turn.urls")
	}
	if tlsLine > 0 && (c.tls || c.dtls) {
		c.note(Took, tlsLine, "tls-listening-port", "turn.listen_tcp, turn.urls")
	} else if tlsLine > 0 {
		c.note(Moot, tlsLine, "tls-listening-port", "neither TLS nor DTLS is served")
	}
	for _, name := range []string{"no-udp", "no-tcp", "no-tls"} {
		if s, ok := c.o.last(name); ok && s.on() {
			c.took(s, "no address for it in turn.listen and turn.listen_tcp")
		}
	}
	for _, name := range []string{"no-dtls", "no_dtls"} {
		if s, ok := c.o.last(name); ok && s.on() {
			c.note(Moot, s.line, name, "off unless turn.dtls says true")
		}
	}
	if !tcp && c.tls {
		c.note(Differs, 0, "turn.listen_tcp", "port %d takes plain TCP too, told from TLS by its first byte", tlsPort)
	}
	if !udp && c.dtls {
		c.note(Differs, 0, "turn.listen", "port %d takes plain UDP too, told from DTLS by its first byte", tlsPort)
	}
	if s, ok := c.o.last("tcp-proxy-port"); ok {
		n, _ := c.number("tcp-proxy-port", 0, 1, 65535)
		c.proxied = n
		c.note(Decide, s.line, s.name, "the PROXY protocol is taken from the proxies in turn.trusted_proxies alone, where turnserver takes it from anybody: name them, and add an address with this port to turn.listen_tcp")
	}
	if len(c.listen)+len(c.tcp) == 0 {
		c.note(Decide, 0, "turn.listen", "the file leaves no transport or no address; the default stays, which is this machine's loopback. Name addresses in turn.listen and turn.listen_tcp")
	}
}

// discovery reads RFC 5780, for which turnserver takes two addresses of one family, and two ports.
func (c *converter) discovery(ips []netip.Addr, port int) {
	alt, altLine := c.number("alt-listening-port", 0, 0, 65535)
	if alt == 0 {
		alt = port + 1
	}
	s, ok := c.o.last("rfc5780")
	switch two := len(ips) == 2 && ips[0].BitLen() == ips[1].BitLen() && !ips[0].IsUnspecified() && !ips[1].IsUnspecified(); {
	case !ok || !s.on():
		c.note(Differs, altLine, "turn.nat_discovery", "off; turnserver 4.6 answers NAT discovery (RFC 5780) where it has two addresses. Set it to on for clients that ask, with the ports %d and %d of both in turn.listen", port, alt)
	case c.o.is("no-udp") || !two || alt == port || alt > 65535:
		c.note(Decide, s.line, s.name, "NAT discovery wants two addresses of one family in turn.listen, each with the same two ports; then set turn.nat_discovery: on")
	default:
		c.natDiscovery = true
		for _, a := range ips {
			if p := netip.AddrPortFrom(a, uint16(alt)); !slices.Contains(c.listen, p) {
				c.listen = append(c.listen, p)
			}
		}
		c.took(s, "turn.nat_discovery: on, with the ports %d and %d of both addresses", port, alt)
	}
	if s, ok := c.o.last("rfc3489-compatibility"); ok && s.on() {
		if c.classic = c.natDiscovery; c.classic {
			c.took(s, "turn.nat_discovery: rfc3489")
		} else {
			c.note(Decide, s.line, s.name, "clients of RFC 3489 are answered where NAT discovery is, with two addresses of one family in turn.listen, each with the same two ports; then set turn.nat_discovery: rfc3489")
		}
	}
	if altLine > 0 && c.natDiscovery {
		c.note(Took, altLine, "alt-listening-port", "turn.listen")
	} else if altLine > 0 {
		c.note(Moot, altLine, "alt-listening-port", "it is for NAT discovery, see there")
	}
}

// relaying reads relayed addresses and their ports.
func (c *converter) relaying() {
	first, firstLine := c.number("min-port", 49152, 1, 65535)
	last, lastLine := c.number("max-port", 65535, 1, 65535)
	if first < 1024 {
		c.note(Decide, firstLine, "min-port", "%d: relays begin at port 1024, below which systems keep services", first)
		first = 1024
	}
	if first > last {
		c.note(Decide, max(firstLine, lastLine), "min-port", "%d is above max-port %d; 49152-65535 is taken", first, last)
		first, last = 49152, 65535
	}
	c.ports = [2]int{first, last}
	if line := max(firstLine, lastLine); line > 0 {
		c.note(Took, line, "min-port, max-port", "turn.relay: ports %d-%d", first, last)
	}
	public := map[netip.Addr]netip.Addr{} // by private address
	var bare []setting
	for _, s := range c.addresses("external-ip") {
		pub, priv, two := strings.Cut(s.value, "/")
		a, ok := c.address(s, strings.TrimSpace(pub))
		if !ok {
			continue
		}
		if !two {
			bare = append(bare, s)
			continue
		}
		if b, ok := c.address(s, strings.TrimSpace(priv)); ok && a.BitLen() == b.BitLen() {
			public[b] = a
			c.took(s, "turn.relay: advertise %v for %v", a, b)
		} else if ok {
			c.note(Decide, s.line, s.name, "%v and %v are of different families", a, b)
		}
	}

	var from []netip.Addr
	named := true
	for _, s := range c.addresses("relay-ip") {
		if a, ok := c.address(s, s.value); ok && !slices.Contains(from, a) {
			from = append(from, a)
			c.took(s, "turn.relay: bind %v", a)
		}
	}
	if len(from) == 0 {
		for _, l := range slices.Concat(c.listen, c.tcp) {
			if a := l.Addr(); !slices.Contains(from, a) {
				from = append(from, a)
			}
		}
		named = len(c.o.all("listening-ip")) > 0
	}
	// A wildcard is no address to tell anybody.
	for i, a := range slices.Clone(from) {
		if a.IsUnspecified() {
			after := slices.Concat(c.place.Addresses, from[i+1:])
			from = slices.Clone(from[:i])
			for _, a := range after { // each is there once
				if !slices.Contains(from, a) {
					from = append(from, a)
				}
			}
			named = false
			break
		}
	}
	from = slices.DeleteFunc(from, netip.Addr.IsUnspecified)
	if slices.ContainsFunc(from, func(a netip.Addr) bool { return !a.IsLoopback() }) {
		from = slices.DeleteFunc(from, netip.Addr.IsLoopback)
	}
	for _, s := range bare {
		pub, _ := netip.ParseAddr(strings.Trim(strings.TrimSpace(s.value), "[]")) // read above
		pub = pub.Unmap()
		i := slices.IndexFunc(from, func(a netip.Addr) bool { return a.BitLen() == pub.BitLen() })
		if i < 0 {
			c.note(Decide, s.line, s.name, "no address of its family to relay on; name one in turn.relay with advertise %v", pub)
			continue
		}
		keep, n := from[i], len(from)
		from = slices.DeleteFunc(from, func(a netip.Addr) bool { return a.BitLen() == pub.BitLen() && a != keep })
		if len(from) < n {
			c.note(Decide, s.line, s.name, "one public address for %d of this machine: %v is taken to be behind it; correct bind in turn.relay if it is another", n-len(from)+1, keep)
		}
		public[keep] = pub
		c.took(s, "turn.relay: advertise %v for %v", pub, keep)
	}
	mapped := slices.SortedFunc(maps.Keys(public), netip.Addr.Compare)
	if len(public) > 0 && !named {
		// Of a machine's addresses those count that have a public one; bridges of containers do not.
		from = slices.DeleteFunc(from, func(a netip.Addr) bool {
			return !public[a].IsValid() && peerpolicy.General().AllowAddr(a) != nil
		})
		for _, priv := range mapped {
			if !slices.Contains(from, priv) {
				from = append(from, priv)
			}
		}
	}
	for _, priv := range mapped {
		if !slices.Contains(from, priv) {
			c.note(Decide, 0, "external-ip", "%v is mapped to %v, and is no address that is listened or relayed on; it is left out", priv, public[priv])
		}
	}
	for _, a := range from {
		c.relays = append(c.relays, relay{a, public[a]})
	}
	if len(c.relays) == 0 {
		c.note(Decide, 0, "turn.relay", "no address to relay on is known; the default stays, which is this machine's loopback")
	}
	if !named && len(c.relays) > 0 && len(c.o.all("relay-ip")) == 0 {
		c.note(Differs, 0, "turn.relay", "%s: turnserver relays on the address that a client came to; here addresses are named, and each family's are used in turn", list(from))
	}
}

// naming reads the realm.
func (c *converter) naming() {
	s, ok := c.o.last("realm")
	c.realm = s.value
	from := "realm"
	switch {
	case c.place.Realm != "":
		c.realm, from = c.place.Realm, "--realm"
	case ok && c.realm != "":
		defer func() { c.took(s, "turn.name") }()
	default:
		realms := map[string]bool{}
		for _, u := range slices.Concat(c.db.Users, c.db.Secrets) {
			realms[u.Realm] = true
		}
		if names := sortedKeys(realms); len(names) == 1 && names[0] != "" {
			c.realm = names[0]
			c.note(Decide, 0, "realm", "not set; %q is taken, the only one of the database. turnserver takes the domain name of its machine", c.realm)
			break
		}
		c.note(Decide, 0, "realm", "not set; turnserver takes the domain name of its machine. Say --realm NAME, for keys of users are made with it; until then turn.name is the default, turn.ims.test")
	}
	switch c.name = strings.ToLower(c.realm); {
	case c.name == "":
	case !isName(c.name):
		c.note(Decide, s.line, from, "%q is no name of a-z 0-9 . and -, at most 127 characters, as turn.name must be; the default stays. Keys made for that realm open nothing under another", printableRealm(c.realm))
		c.name = ""
	case c.name != c.realm:
		c.note(Differs, s.line, "turn.name", "%s, in lower case; keys made for the realm %q open nothing under it, and are made anew where the password is known", c.name, printableRealm(c.realm))
	}
	if s, ok := c.o.last("server-name"); ok && s.value != "" {
		if strings.EqualFold(s.value, c.realm) {
			c.took(s, "turn.name")
		} else {
			c.note(Decide, s.line, s.name, "turn.name is realm and server name of tokens (RFC 7635 §4) in one; issuers that seal tokens for %q must seal them for turn.name", printableRealm(s.value))
		}
	}
}

// told makes the URLs for browsers.
func (c *converter) told() {
	host := c.name
	if !strings.Contains(host, ".") {
		host = ""
	}
	if host == "" && len(c.relays) > 0 {
		a := c.relays[0].bind
		if c.relays[0].advertise.IsValid() {
			a = c.relays[0].advertise
		}
		if host = a.String(); a.Is6() {
			host = "[" + host + "]"
		}
	}
	if host == "" || len(c.listen)+len(c.tcp) == 0 {
		return
	}
	port, _ := c.number("listening-port", 3478, 1, 65535)
	tlsPort, _ := c.number("tls-listening-port", 5349, 1, 65535)
	if !c.o.is("no-udp") && len(c.listen) > 0 {
		c.urls = append(c.urls, fmt.Sprintf("turn:%s:%d?transport=udp", host, port))
	}
	if !c.o.is("no-tcp") && len(c.tcp) > 0 {
		c.urls = append(c.urls, fmt.Sprintf("turn:%s:%d?transport=tcp", host, port))
	}
	if c.tls && len(c.tcp) > 0 {
		c.urls = append(c.urls, fmt.Sprintf("turns:%s:%d?transport=tcp", host, tlsPort))
	}
	if len(c.urls) == 0 { // DTLS alone
		c.urls = append(c.urls, fmt.Sprintf("turn:%s:%d?transport=udp", host, tlsPort))
	}
	c.note(Differs, 0, "turn.urls", "turnserver has no such list. It is what wicgate's own portal tells browsers, by the name %s, which need not be the host's; where clients are told by something else (Synapse, Prosody, Nextcloud), that stays as it is", host)
}

// maxRanges bounds the lists of peers, which each permission is looked up in. A range is some 5 prefixes, 254 at most.
const maxRanges = 1000

// peers reads what clients may reach.
func (c *converter) peers() {
	var denied, allowed []span
	read := func(s setting, value string) {
		r, prefix, err := parseSpan(value)
		switch allow := s.name == "allowed-peer-ip"; {
		case errors.Is(err, errBackwards):
			c.note(Decide, s.line, s.name, "%s: %v; it is left out", value, err)
		case err != nil:
			c.note(Decide, s.line, s.name, "%q is no address or range: %v", value, err)
		case prefix && allow:
			c.note(Decide, s.line, s.name, "%s is a prefix, which turnserver does not read (it wants first-last), so it allowed nothing; it is left out", value)
		case allow:
			allowed = append(allowed, r)
		default:
			if prefix {
				c.note(Differs, s.line, s.name, "%s is a prefix, which turnserver does not read (it wants first-last), so it may have denied nothing; it is taken as meant", value)
			}
			denied = append(denied, r)
		}
	}
	for _, s := range c.o.all("denied-peer-ip", "allowed-peer-ip") {
		read(s, s.value)
	}
	if !c.o.is("no-dynamic-ip-list") {
		for _, r := range slices.Concat(named("denied-peer-ip", c.db.Denied), named("allowed-peer-ip", c.db.Allowed)) {
			if r.Realm == "" || r.Realm == c.realm {
				read(setting{name: r.Name}, r.Value)
			}
		}
	}
	denied, allowed = union(denied), union(allowed)
	if len(denied)+len(allowed) > maxRanges {
		c.shut = true
		c.note(Decide, 0, "denied-peer-ip", "%d ranges, more than the %d that are taken. turn.profile is ims, so that nothing public is open, until you choose general and name in turn.closed what stays closed", len(denied)+len(allowed), maxRanges)
		return
	}

	// turnserver: what is allowed is allowed, whatever is denied. Here what is closed is closed, so that
	// what is allowed is left out of it.
	anyway := 0
	for _, p := range prefixesOf(without(denied, allowed)) {
		if all, _ := peerpolicy.Special(p); all {
			anyway++
			continue
		}
		c.closed = append(c.closed, p)
	}
	if anyway > 0 {
		c.note(Moot, 0, "denied-peer-ip", "%s of it: private, link-local, reserved or translated, refused unless turn.open names them", count(anyway, "prefix", "prefixes"))
	}
	if len(c.closed) > 0 {
		c.note(Took, 0, "denied-peer-ip", "turn.closed, %s: what is denied and not allowed, and not refused anyway", count(len(c.closed), "prefix", "prefixes"))
	}
	for _, p := range prefixesOf(allowed) {
		_, special := peerpolicy.Special(p)
		switch why := unopened(p); {
		case p.IsSingleIP() && c.own(p.Addr()):
			c.note(Moot, 0, "allowed-peer-ip", "%v is this server's own; the relays on it are reached anyway, and its other ports stay closed", p.Addr())
		case !special:
			c.note(Moot, 0, "allowed-peer-ip", "%v is public, and open in turn.profile general", p)
		case why != "":
			c.note(Decide, 0, "allowed-peer-ip", "%v is not opened: %s", p, why)
		default:
			c.open = append(c.open, p)
			c.note(Took, 0, "allowed-peer-ip", "turn.open, %v, with ports from 1024 up, where turnserver allows all", p)
		}
	}
}

// own says whether an address is of this server.
func (c *converter) own(a netip.Addr) bool {
	return slices.ContainsFunc(c.relays, func(r relay) bool { return a == r.bind || a == r.advertise }) ||
		slices.ContainsFunc(slices.Concat(c.listen, c.tcp), func(l netip.AddrPort) bool { return l.Addr() == a })
}

// named gives records a name.
func named(name string, of []Record) []Record {
	of = slices.Clone(of)
	for i := range of {
		of[i].Name = name
	}
	return of
}

// unopened says why a prefix is not opened to clients though coturn's file allows it, "" if it is.
func unopened(p netip.Prefix) string {
	in := func(others ...string) bool {
		return slices.ContainsFunc(others, func(o string) bool { return netip.MustParsePrefix(o).Overlaps(p) })
	}
	switch {
	case in("127.0.0.0/8", "::1/128", "0.0.0.0/8", "::/128"):
		return "it is this machine's loopback, and services there are not for clients"
	case in("169.254.0.0/16", "fe80::/10"):
		return "it is link-local, where cloud metadata services are"
	case in("224.0.0.0/4", "240.0.0.0/4", "ff00::/8"):
		return "it is multicast, broadcast or reserved; a relay sends to single hosts"
	case p.Addr().Is4() && p.Bits() < 24, p.Addr().Is6() && p.Bits() < 64:
		return "it is wide, and holds private addresses; name in turn.open the hosts that clients need, as \"prefix first-last\""
	case p.Addr().Is4In6(), in("64:ff9b::/32", "2002::/16", "2001::/32", "::/96"):
		return "it is a form of IPv4 addresses (RFC 8656 §21.4); name the addresses themselves"
	}
	return ""
}

// quotas reads limits.
func (c *converter) quotas() {
	ports := (c.ports[1] - c.ports[0] + 1) * max(1, len(c.relays))
	const most, ours = 10000, 32
	limit := func(name string) (n, line int, where string) {
		const most = 1<<31 - 1
		n, line = c.number(name, 0, 0, most)
		if !c.o.is("no-dynamic-realms") {
			for _, l := range c.db.Limits {
				if l.Name != name || l.Realm != c.realm {
					continue
				}
				if v, err := strconv.Atoi(strings.TrimSpace(l.Value)); err == nil && v >= 0 && v <= most {
					return v, 0, "of the database, "
				}
				c.note(Decide, 0, name, "%q of the database is no number from 0 to %d; it is left out", printableRealm(l.Value), most)
			}
		}
		return n, line, ""
	}
	n, line, where := limit("user-quota")
	switch bound := min(most, ports); {
	case n == 0 && ports < ours:
		c.quota = ports
		c.note(Differs, line, "turn.quota", "%d allocations at once per user, as many as turn.relay has ports; turnserver has no limit", ports)
	case n == 0:
		c.note(Differs, line, "turn.quota", "%d allocations at once per user; turnserver has no limit. A browser's ICE restart can need 24; 10000 at most", ours)
	case n > bound:
		c.quota = bound
		c.note(Differs, line, "turn.quota", "%d, the most there can be, not %s%d", bound, where, n)
	default:
		if n != ours {
			c.quota = n
		}
		c.note(Took, line, "user-quota", "turn.quota: %s%d", where, n)
	}
	for _, l := range []struct {
		name, key string
		to        *int
		times     int
		text      string
	}{
		{"total-quota", "turn.quota_total", &c.total, 1, ""},
		// turnserver counts bytes, of each direction by itself; ours are the bits of both.
		{"max-bps", "turn.rates.allocation", &c.rate, 16, " bits a second, both directions together, where turnserver counts bytes of each"},
		{"bps-capacity", "turn.rates.total", &c.rates, 16, " bits a second, both directions together; what is beyond is dropped, where turnserver gives each new session a share and refuses the next"},
	} {
		n, line, where := limit(l.name)
		*l.to = n * l.times
		if n > 0 {
			c.note(Took, line, l.name, "%s: %s%d%s", l.key, where, *l.to, l.text)
		} else if line > 0 {
			c.note(Moot, line, l.name, "0 is no limit")
		}
	}
	if n, line := c.number("max-allocate-lifetime", 3600, 0, 1<<31-1); line > 0 && n != 3600 {
		c.note(Differs, line, "max-allocate-lifetime", "%d s: clients are granted 600 s to 3600 s (RFC 8656 §7.2)", n)
	} else if line > 0 {
		c.note(Moot, line, "max-allocate-lifetime", "3600 s is what is granted at most")
	}
}

// operation reads what an operator sees.
func (c *converter) operation() {
	for _, s := range c.o.all("verbose", "Verbose", "log-min-level") {
		switch {
		case s.name == "Verbose" && s.on(), s.name == "log-min-level" && strings.EqualFold(s.value, "debug"):
			c.level = "debug"
		case s.name == "log-min-level" && slices.Contains([]string{"warn", "warning"}, strings.ToLower(s.value)):
			c.level = "warn"
		case s.name == "log-min-level" && strings.EqualFold(s.value, "error"):
			c.level = "error"
		}
		if s.name == "log-min-level" || s.on() {
			level := c.level
			if level == "" {
				level = "info"
			}
			c.took(s, "log.level: %s", level)
		}
	}
	if s, ok := c.o.last("prometheus"); ok && s.on() || c.o.is("prometheus-tls") {
		port, portLine := c.number("prometheus-port", 9641, 1, 65535)
		at := netip.AddrFrom4([4]byte{127, 0, 0, 1})
		if where, named := c.o.last("prometheus-address"); named {
			if a, ok := c.address(where, where.value); ok {
				at = a
				c.took(where, "admin.listen")
			}
		} else {
			c.note(Differs, 0, "admin.listen", "127.0.0.1:%d; turnserver serves metrics on every address, to whoever asks", port)
		}
		c.admin = netip.AddrPortFrom(at, uint16(port))
		if portLine > 0 {
			c.note(Took, portLine, "prometheus-port", "admin.listen")
		}
		c.note(Took, s.line, "prometheus", "admin.listen, at /metrics; the metrics have names of their own")
	}
}

// others tells of each option that Convert has no use for.
func (c *converter) others() {
	told := map[string]bool{}
	for _, s := range c.o.settings {
		of := options[s.name]
		if of.fate == taken || told[s.name] {
			continue
		}
		told[s.name] = true
		kind := Lost
		if of.fate == moot {
			kind = Moot
		}
		c.note(kind, s.line, s.name, "%s", of.why)
	}
	for _, name := range []string{"no-dynamic-ip-list", "no-dynamic-realms"} {
		if s, ok := c.o.last(name); ok && s.on() {
			c.took(s, "peers and limits of the database are left alone")
		}
	}
	switch s, ok := c.o.last("userdb", "db", "psql-userdb", "sql-userdb", "redis-userdb"); {
	case ok && c.db.From == "":
		c.note(Decide, s.line, s.name, "the database was not read: users and secrets in it are not taken over")
	case ok:
		c.took(s, "read: %s", c.db.From)
	}
	if c.db.Origins > 0 {
		c.note(Lost, 0, "turn_origin_to_realm", "%s: browsers send no ORIGIN, and it never became a standard", count(c.db.Origins, "row", "rows"))
	}
	if c.db.Admins > 0 {
		c.note(Moot, 0, "admin_user", "%s: %s", count(c.db.Admins, "row", "rows"), whyCLI)
	}
	if _, ok := c.o.last("userdb", "db", "psql-userdb", "sql-userdb", "redis-userdb", "mysql-userdb", "mongo-userdb"); !ok && c.db.From != "" {
		c.note(Took, 0, "userdb", "read: %s", c.db.From)
	} else if !ok {
		c.note(Moot, 0, "userdb", "no database is named; turnserver opens /var/lib/turn/turndb or /var/db/turndb of itself. If yours holds users or secrets, say --userdb FILE")
	}
}

// defaults tells what differs whatever the file says.
func (c *converter) defaults() {
	if !c.shut {
		c.note(Differs, 0, "turn.profile", "general: public addresses alone. turnserver lets clients reach private ones (10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 100.64.0.0/10) unless denied-peer-ip names them; here turn.open must")
	}
	c.note(Differs, 0, "turn.credentials", "session: an allocation ends with its credential and grace_max, 12h; turnserver refreshes an allocation for ever once it is made")
	switch s, ok := c.o.last("stale-nonce"); {
	case ok:
		c.note(Differs, s.line, "stale-nonce", "nonces live an hour always (RFC 8656 §5), with room for the other nodes of a name")
	default:
		c.note(Differs, 0, "stale-nonce", "nonces live an hour always (RFC 8656 §5); turnserver's default is 600 s")
	}
	switch s, ok := c.o.last("no-tcp-relay"); {
	case ok && s.on():
		c.note(Moot, s.line, s.name, "turn.tcp_relay is false unless set")
	default:
		c.note(Differs, 0, "turn.tcp_relay", "false; turnserver relays TCP (RFC 6062) unless told not to, browsers have no use for it, and it is a way into networks. Set it to true for clients that do")
	}
	if s, ok := c.o.last("mobility"); ok && s.on() {
		c.took(s, "turn.mobility: true")
	}
	if s, ok := c.o.last("rfc5766-channel-numbers"); ok {
		c.took(s, "turn.channel_numbers: %s", c.channels())
	} else {
		c.note(Differs, 0, "turn.channel_numbers", "rfc5766 is kept: clients may choose 0x4000 to 0x7FFF, as turnserver 4.6 lets them. Without the key it is 0x4000 to 0x4FFF (RFC 8656 §12)")
	}
	if c.tls {
		c.note(Differs, 0, "TLS", "1.2 and 1.3 alone, where turnserver 4.6 speaks 1.0 and 1.1 unless told not to; no ALPN, or that of TURN (RFC 7443)")
	}
	if _, ok := c.o.last("min-port", "max-port"); !ok {
		c.note(Differs, 0, "turn.relay", "ports 49152-65535, as turnserver's default; it is written out to be seen")
	}
}

// channels is turn.channel_numbers.
func (c *converter) channels() string {
	if s, ok := c.o.last("rfc5766-channel-numbers"); ok && !s.on() {
		return "rfc8656"
	}
	return "rfc5766"
}

// isName says whether turn.name may be s.
func isName(s string) bool {
	const most = 127
	if s == "" || len(s) > most || strings.ContainsAny(s[:1]+s[len(s)-1:], ".-") {
		return false
	}
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '.' && r != '-' {
			return false
		}
	}
	return true
}

// printableRealm is a realm as a report may show it.
func printableRealm(s string) string {
	const most = 127
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
	return strings.ToValidUTF8(s[:min(len(s), most)], "?")
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}

func list[T fmt.Stringer](of []T) string {
	if len(of) == 0 {
		return "none"
	}
	words := make([]string, len(of))
	for i, a := range of {
		words[i] = a.String()
	}
	return strings.Join(words, ", ")
}
