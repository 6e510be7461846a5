// Package config reads wicgate.yaml. It is the one room that knows YAML: it checks the file,
// names what is wrong by line and key, and holds each fact once.
package config

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"

	"wicgate/internal/peerpolicy"
	rfc7635 "wicgate/internal/token"
)

// File is wicgate.yaml; what each key means stands there.
type File struct {
	Domain   string   `yaml:"domain"`
	Log      Log      `yaml:"log"`
	HTTPS    HTTPS    `yaml:"https"`
	Bus      Bus      `yaml:"bus"`
	TURN     TURN     `yaml:"turn"`
	WAF      WAF      `yaml:"waf"`
	WWSF     WWSF     `yaml:"wwsf"`
	EPCSCF   EPCSCF   `yaml:"epcscf"`
	IMSAGW   IMSAGW   `yaml:"imsagw"`
	DemoCore DemoCore `yaml:"democore"`
	Admin    Admin    `yaml:"admin"`

	source source // where it was read
}

// Log is the section log.
type Log struct {
	Level  Level  `yaml:"level"`
	Format string `yaml:"format"`
}

// HTTPS is the section https.
type HTTPS struct {
	Listen      AddrPort `yaml:"listen"`
	URL         Origin   `yaml:"url"`
	Certificate string   `yaml:"certificate"`
	Key         string   `yaml:"key"`
	CA          string   `yaml:"ca"`
	ACME        ACME     `yaml:"acme"`
}

// ACME is the section https.acme.
type ACME struct {
	Names     []string `yaml:"names"`
	Directory string   `yaml:"directory"`
	CA        string   `yaml:"ca"`
	Email     string   `yaml:"email"`
	Agree     bool     `yaml:"agree"`
	Secrets   string   `yaml:"secrets"`
	HTTP      AddrPort `yaml:"http"`
}

// On says whether certificates are got by ACME.
func (a ACME) On() bool { return len(a.Names) > 0 }

// Bus is the section bus.
type Bus struct {
	URL      string `yaml:"url"`
	NKey     string `yaml:"nkey"`
	Replicas int    `yaml:"replicas"`
}

// TURN is the section turn.
type TURN struct {
	Name           string     `yaml:"name"`
	Listen         []AddrPort `yaml:"listen"`
	ListenTCP      []AddrPort `yaml:"listen_tcp"`
	TrustedProxies []Prefix   `yaml:"trusted_proxies"`
	DTLS           bool       `yaml:"dtls"`
	URLs           []string   `yaml:"urls"`
	Keys           string     `yaml:"keys"`
	Relay          []Side     `yaml:"relay"`
	Profile        string     `yaml:"profile"`
	Open           []Range    `yaml:"open"`
	Closed         []Prefix   `yaml:"closed"`
	NAT64          []Prefix   `yaml:"nat64"`
	Credentials    string     `yaml:"credentials"`
	GraceMax       Duration   `yaml:"grace_max"`
	Quota          int        `yaml:"quota"`
	QuotaTotal     int        `yaml:"quota_total"`
	Rates          Rates      `yaml:"rates"`
	Secrets        string     `yaml:"secrets"`
	Users          string     `yaml:"users"`
	Blind          string     `yaml:"blind"`
	OAuth          OAuth      `yaml:"oauth"`
	KeyPull        KeyPull    `yaml:"key_pull"`

	ChannelNumbers string    `yaml:"channel_numbers"`
	NATDiscovery   string    `yaml:"nat_discovery"`
	TCPRelay       bool      `yaml:"tcp_relay"`
	Mobility       bool      `yaml:"mobility"`
	Siblings       []Sibling `yaml:"siblings"`
	Tenants        []Tenant  `yaml:"tenants"`
}

// OAuth is how tokens of RFC 7635 are taken.
type OAuth struct {
	KIDMode string   `yaml:"kid_mode"`
	Enc     string   `yaml:"enc"`
	KeyLife Duration `yaml:"key_life"`
	Loose   bool     `yaml:"loose"`
	MAC16   bool     `yaml:"mac16"`
}

// Format is Enc.
func (o OAuth) Format() (rfc7635.Format, bool) { return rfc7635.ParseFormat(o.Enc) }

// KeyPull is where a TURN server gets its plain keys.
type KeyPull struct {
	URL         string `yaml:"url"`
	Certificate string `yaml:"certificate"`
	Key         string `yaml:"key"`
	CA          string `yaml:"ca"`
}

// Side is an address with its range of ports.
type Side struct {
	Bind      Addr  `yaml:"bind"`
	Advertise Addr  `yaml:"advertise"`
	Ports     Ports `yaml:"ports"`
}

// Public is the address that others are told.
func (s Side) Public() netip.Addr {
	if s.Advertise.IsValid() {
		return s.Advertise.Addr
	}
	return s.Bind.Addr
}

// WAF is the section waf.
type WAF struct {
	SIPTokenLife  Duration `yaml:"sip_token_life"`
	TURNTokenLife Duration `yaml:"turn_token_life"`
	SigningKey    string   `yaml:"signing_key"`
	Guests        int      `yaml:"guests"`
	GuestLife     Duration `yaml:"guest_life"`
	STUNKey       STUNKey  `yaml:"stun_key"`
}

// STUNKey is how TURN servers get their plain keys.
type STUNKey struct {
	Listen   AddrPort `yaml:"listen"`
	ClientCA string   `yaml:"client_ca"`
	Servers  []string `yaml:"servers"`
}

// WWSF is the section wwsf.
type WWSF struct {
	ClientSecret   string `yaml:"client_secret"`
	TURNCredential string `yaml:"turn_credential"`
}

// EPCSCF is the section epcscf.
type EPCSCF struct {
	Name           string   `yaml:"name"`
	Audience       string   `yaml:"audience"`
	Listen         AddrPort `yaml:"listen"`
	Core           AddrPort `yaml:"core"`
	CorePeers      []Prefix `yaml:"core_peers"`
	CoreTrusted    bool     `yaml:"core_trusted"`
	VisitedNetwork string   `yaml:"visited_network"`

	Guests             Guests   `yaml:"guests"`
	TURNCredential     string   `yaml:"turn_credential"`
	TURNCredentialLife Duration `yaml:"turn_credential_life"`
	TURNCredentialMAC  string   `yaml:"turn_credential_mac"`
}

// Guests is what guests may do.
type Guests struct {
	Destinations []string `yaml:"destinations"`
	Calls        int      `yaml:"calls"`
	Rate         int      `yaml:"rate"`
	Duration     Duration `yaml:"duration"`
}

// IMSAGW is the section imsagw.
type IMSAGW struct {
	Name        string `yaml:"name"`
	Access      Side   `yaml:"access"`
	Core        Side   `yaml:"core"`
	MaxSessions int    `yaml:"max_sessions"`
}

// DemoCore is the section democore.
type DemoCore struct {
	Listen AddrPort `yaml:"listen"`
	Users  []string `yaml:"users"`
}

// Admin is the section admin.
type Admin struct {
	Listen AddrPort `yaml:"listen"`
}

// Default is what holds where the file says nothing; wicgate.yaml says the same, by test.
func Default() *File {
	lo := netip.MustParseAddr("127.0.0.1")
	on := func(port uint16) AddrPort { return AddrPort{netip.AddrPortFrom(lo, port)} }
	side := func(first, last uint16) Side { return Side{Bind: Addr{lo}, Ports: Ports{first, last}} }
	return &File{
		Domain: "ims.test",
		Log:    Log{Level: Level(slog.LevelInfo), Format: "text"},
		HTTPS: HTTPS{Listen: on(8443), URL: Origin("https://localhost:8443"),
			ACME: ACME{Names: []string{}, Directory: "https://acme-v02.api.letsencrypt.org/directory"}},
		Bus: Bus{Replicas: 1},
		TURN: TURN{Name: "turn.ims.test", TrustedProxies: []Prefix{}, Listen: []AddrPort{on(3478)}, ListenTCP: []AddrPort{on(3478)},
			URLs:  []string{"turn:127.0.0.1:3478?transport=udp", "turn:127.0.0.1:3478?transport=tcp", "turns:localhost:3478?transport=tcp"},
			Relay: []Side{side(49152, 65535)}, Profile: "ims", Open: []Range{}, Closed: []Prefix{}, NAT64: []Prefix{}, Credentials: "session", GraceMax: Duration(12 * time.Hour), Quota: 32, Blind: "open",
			OAuth:          OAuth{KIDMode: "derived", Enc: "A256GCM", KeyLife: Duration(7 * 24 * time.Hour)},
			ChannelNumbers: "rfc8656", NATDiscovery: "off", Siblings: []Sibling{}, Tenants: []Tenant{}},
		WAF:  WAF{SIPTokenLife: Duration(time.Hour), TURNTokenLife: Duration(time.Hour), Guests: 16, GuestLife: Duration(30 * time.Minute), STUNKey: STUNKey{Servers: []string{}}},
		WWSF: WWSF{TURNCredential: "token"},
		EPCSCF: EPCSCF{Name: "edge1", Audience: "epcscf.ims.test", Listen: on(5060), Core: on(5080),
			CorePeers: []Prefix{{netip.PrefixFrom(lo, 32)}}, CoreTrusted: true, VisitedNetwork: "webrtc.ims.test",
			Guests:         Guests{Destinations: []string{"alice", "bob"}, Calls: 1, Rate: 6, Duration: Duration(30 * time.Minute)},
			TURNCredential: "ephemeral", TURNCredentialLife: Duration(time.Hour), TURNCredentialMAC: "sha1"},
		IMSAGW:   IMSAGW{Name: "agw1", Access: side(40000, 40999), Core: side(41000, 41999), MaxSessions: 1000},
		DemoCore: DemoCore{Listen: on(5080), Users: []string{"alice", "bob"}},
	}
}

// maxSize bounds the file, in bytes.
const maxSize = 1 << 20

// Load reads a file over the defaults and checks it. name "" is the defaults alone. What one value, or
// two that contradict each other, make impossible is refused here; [File.Review] knows more.
func Load(name string) (*File, error) {
	f := Default()
	if name == "" {
		return f, f.check()
	}
	st, err := os.Stat(name)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if st.Size() > maxSize {
		return nil, fmt.Errorf("configuration: %s has %d bytes, at most %d are read", name, st.Size(), maxSize)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if err := f.parse(b); err != nil {
		return nil, fmt.Errorf("configuration: %s:%s", filepath.Base(name), hideWithin(err.Error()))
	}
	f.source = newSource(filepath.Base(name), b)
	if err := f.check(); err != nil {
		return nil, fmt.Errorf("configuration: %s", hideWithin(f.placed(err).Error()))
	}
	return f, nil
}

func (f *File) parse(b []byte) error {
	if blank(b) { // the library would reset f for a document without a node
		return nil
	}
	err := yaml.UnmarshalWithOptions(b, f, yaml.Strict())
	if err == nil {
		for i, r := range f.TURN.Relay { // what an entry leaves out: a list has no defaults of its own
			if r.Ports == (Ports{}) {
				f.TURN.Relay[i].Ports = Ports{49152, 65535}
			}
		}
		return nil
	}
	var placed interface {
		error
		GetToken() *token.Token
		GetMessage() string
	}
	if !errors.As(err, &placed) || placed.GetToken() == nil {
		return fmt.Errorf("1: %w", err)
	}
	line := placed.GetToken().Position.Line
	text := placed.GetMessage()
	if strings.HasPrefix(text, "unknown field") {
		text += "; wicgate.yaml in the source has every key"
	}
	if lines := strings.Split(string(b), "\n"); line >= 1 && line <= len(lines) {
		text += "\n  " + strings.TrimRight(lines[line-1], " \r")
	}
	return fmt.Errorf("%d: %s", line, text)
}

// blank says whether a file holds nothing but comments.
func blank(b []byte) bool {
	for line := range strings.Lines(string(b)) {
		if l := strings.TrimSpace(line); l != "" && l[0] != '#' {
			return false
		}
	}
	return true
}

// invalid is a scalar that its type refused, with its place in the file.
type invalid struct {
	message string
	token   *token.Token
}

func (e *invalid) Error() string          { return e.message }
func (e *invalid) GetToken() *token.Token { return e.token }
func (e *invalid) GetMessage() string     { return e.message }

// scalar parses the text of a node, and on failure names key, place and wish.
func scalar[T any](n ast.Node, into *T, wish string, parse func(string) (T, error)) error {
	key := strings.TrimPrefix(n.GetPath(), "$.")
	s, ok := n.(ast.ScalarNode)
	if ok {
		text := fmt.Sprint(s.GetValue())
		if n.Type() != ast.StringType {
			text = n.GetToken().Value // as written: 1h is not a number, but 12 is
		}
		v, err := parse(text)
		if err == nil {
			*into = v
			return nil
		}
	}
	return &invalid{fmt.Sprintf("%s: want %s, not %q", key, wish, n.String()), n.GetToken()}
}

// AddrPort is ip:port.
type AddrPort struct{ netip.AddrPort }

// UnmarshalYAML implements yaml.NodeUnmarshaler, as do the others below. "" is none, which check
// refuses where an address is needed.
func (a *AddrPort) UnmarshalYAML(n ast.Node) error {
	return scalar(n, &a.AddrPort, "ip:port such as 127.0.0.1:3478 or [::1]:3478", func(s string) (netip.AddrPort, error) {
		if s == "" && n.Type() == ast.StringType {
			return netip.AddrPort{}, nil
		}
		return netip.ParseAddrPort(s)
	})
}

// Addr is an IP address, or none.
type Addr struct{ netip.Addr }

// UnmarshalYAML reads an address; "" is none.
func (a *Addr) UnmarshalYAML(n ast.Node) error {
	return scalar(n, &a.Addr, "an IP address", func(s string) (netip.Addr, error) {
		if s == "" {
			return netip.Addr{}, nil
		}
		return netip.ParseAddr(s)
	})
}

// Prefix is an IP prefix.
type Prefix struct{ netip.Prefix }

// UnmarshalYAML reads a prefix; a bare address is itself alone.
func (p *Prefix) UnmarshalYAML(n ast.Node) error {
	return scalar(n, &p.Prefix, "a prefix such as 192.0.2.0/24", parsePrefix)
}

func parsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	return netip.ParsePrefix(s)
}

// Ports is a range of ports, both included.
type Ports struct{ First, Last uint16 }

// UnmarshalYAML reads first-last.
func (p *Ports) UnmarshalYAML(n ast.Node) error {
	return scalar(n, p, "ports first-last such as 40000-40999", parsePorts)
}

func parsePorts(s string) (p Ports, err error) {
	a, b, ok := strings.Cut(s, "-")
	if !ok {
		return p, errors.New("no -")
	}
	first, err1 := strconv.ParseUint(strings.TrimSpace(a), 10, 16)
	last, err2 := strconv.ParseUint(strings.TrimSpace(b), 10, 16)
	if err1 != nil || err2 != nil || first == 0 || first > last {
		return p, errors.New("no range")
	}
	return Ports{uint16(first), uint16(last)}, nil
}

// Range is a prefix with a range of ports.
type Range struct {
	Prefix netip.Prefix
	Ports  Ports
}

// UnmarshalYAML reads "prefix first-last".
func (r *Range) UnmarshalYAML(n ast.Node) error {
	return scalar(n, r, `"prefix first-last" such as "192.0.2.0/24 40000-40999"`, func(s string) (Range, error) {
		a, b, _ := strings.Cut(s, " ")
		prefix, err := parsePrefix(a)
		if err != nil {
			return Range{}, err
		}
		ports, err := parsePorts(b)
		return Range{prefix, ports}, err
	})
}

// Duration is a time span of at least zero.
type Duration time.Duration

// UnmarshalYAML reads a number with its unit.
func (d *Duration) UnmarshalYAML(n ast.Node) error {
	return scalar(n, d, "a duration with its unit such as 90s or 12h", func(s string) (Duration, error) {
		v, err := time.ParseDuration(s)
		if err == nil && v < 0 {
			err = errors.New("negative")
		}
		return Duration(v), err
	})
}

// Level is a level of log/slog.
type Level slog.Level

// UnmarshalYAML reads the level's name.
func (l *Level) UnmarshalYAML(n ast.Node) error {
	return scalar(n, l, "debug, info, warn or error", func(s string) (Level, error) {
		i := slices.Index([]string{"debug", "info", "warn", "error"}, s)
		if i < 0 {
			return 0, errors.New("no level")
		}
		return Level([]slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError}[i]), nil
	})
}

// Origin is an https origin, scheme://host[:port] and nothing after.
type Origin string

// UnmarshalYAML reads the origin.
func (o *Origin) UnmarshalYAML(n ast.Node) error {
	return scalar(n, o, "an https origin such as https://localhost:8443", func(s string) (Origin, error) {
		u, err := url.Parse(s)
		if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || s != "https://"+u.Host || u.Hostname() == "" || s != strings.ToLower(s) {
			return "", errors.New("no origin")
		}
		return Origin(s), nil
	})
}

// Host is the origin's name or address, without brackets or port.
func (o Origin) Host() string {
	u, err := url.Parse(string(o))
	if err != nil {
		return ""
	}
	return u.Hostname()
}

// WebSocket is the same origin for WebSockets, with a path.
func (o Origin) WebSocket(path string) string {
	return "wss" + strings.TrimPrefix(string(o), "https") + path
}

// check refuses what contradicts itself or is dangerous.
func (f *File) check() error {
	life := func(key string, d Duration) error {
		return when(d < Duration(10*time.Second) || d > Duration(24*time.Hour) || d%Duration(time.Second) != 0,
			"%s: want whole seconds, 10s to 24h, not %v", key, time.Duration(d))
	}
	return errors.Join(
		f.needed(),
		when(!isName(f.Domain, 253, ".-"), "domain: %q is not a domain name in lower case", f.Domain),
		when(f.Log.Format != "text" && f.Log.Format != "json", "log.format: want text or json, not %q", f.Log.Format),
		when((f.HTTPS.Certificate == "") != (f.HTTPS.Key == ""), "https: certificate and key go together"),
		f.acme(),
		when(f.Bus.Replicas != 1 && f.Bus.Replicas != 3 && f.Bus.Replicas != 5, "bus.replicas: want 1, 3 or 5, not %d", f.Bus.Replicas),
		when(f.Bus.URL == "" && f.Bus.Replicas != 1, "bus.replicas: %d servers need bus.url; embedded there is one", f.Bus.Replicas),
		when(f.Bus.URL == "" && f.Bus.NKey != "", "bus.nkey: needs bus.url; embedded there is nobody to show it to"),
		f.TURN.checkTenants(),
		f.TURN.checkSiblings(),
		when(f.TURN.ChannelNumbers != "rfc8656" && f.TURN.ChannelNumbers != "rfc5766", "turn.channel_numbers: want rfc8656 or rfc5766, not %q", f.TURN.ChannelNumbers),
		when(len(f.TURN.Listen)+len(f.TURN.ListenTCP) == 0, "turn.listen: names no address, and turn.listen_tcp neither"),
		when(len(f.TURN.URLs) == 0, "turn.urls: browsers need at least one"),
		f.TURN.checkURLs(),
		when(f.TURN.DTLS && len(f.TURN.Listen) == 0, "turn.dtls: needs an address in turn.listen"),
		when(f.EPCSCF.Guests.Calls < 1 || f.EPCSCF.Guests.Calls > 8, "epcscf.guests.calls: want 1 to 8, not %d", f.EPCSCF.Guests.Calls),
		when(f.EPCSCF.Guests.Rate < 1 || f.EPCSCF.Guests.Rate > 600, "epcscf.guests.rate: want 1 to 600 calls a minute, not %d", f.EPCSCF.Guests.Rate),
		when(f.EPCSCF.Guests.Duration < Duration(time.Second) || f.EPCSCF.Guests.Duration > Duration(24*time.Hour), "epcscf.guests.duration: want 1s to 24h, not %v", time.Duration(f.EPCSCF.Guests.Duration)),
		when(f.EPCSCF.TURNCredentialLife < Duration(10*time.Second) || f.EPCSCF.TURNCredentialLife > Duration(24*time.Hour), "epcscf.turn_credential_life: want 10s to 24h, not %v", time.Duration(f.EPCSCF.TURNCredentialLife)),
		when(f.EPCSCF.TURNCredential != "ephemeral" && f.EPCSCF.TURNCredential != "pushed", "epcscf.turn_credential: want ephemeral or pushed, not %q", f.EPCSCF.TURNCredential),
		when(f.EPCSCF.TURNCredentialMAC != "sha1" && f.EPCSCF.TURNCredentialMAC != "sha256", "epcscf.turn_credential_mac: want sha1 or sha256, not %q", f.EPCSCF.TURNCredentialMAC),
		when(f.TURN.Blind != "open" && f.TURN.Blind != "closed", "turn.blind: want open or closed, not %q", f.TURN.Blind),
		f.TURN.OAuth.check(), f.checkSTUNKey(),
		when(!slices.Contains([]string{"off", "on", "reflect", "rfc3489"}, f.TURN.NATDiscovery), "turn.nat_discovery: want off, on, reflect or rfc3489, not %q", f.TURN.NATDiscovery),
		f.TURN.checkRelay(), f.TURN.checkNAT64(), f.IMSAGW.Access.check("imsagw.access"), f.IMSAGW.Core.check("imsagw.core"),
		life("waf.sip_token_life", f.WAF.SIPTokenLife), life("waf.turn_token_life", f.WAF.TURNTokenLife), life("waf.guest_life", f.WAF.GuestLife),
		when(f.WAF.Guests < 0 || f.WAF.Guests > 1000, "waf.guests: want 0 to 1000, not %d", f.WAF.Guests),
		when(f.WWSF.TURNCredential != "token" && f.WWSF.TURNCredential != "edge", "wwsf.turn_credential: want token or edge, not %q", f.WWSF.TURNCredential),
		when(!isName(f.EPCSCF.Name, 32, "-"), "epcscf.name: want a-z 0-9 -, at most 32, not %q", f.EPCSCF.Name),
		when(!isName(f.IMSAGW.Name, 32, "-"), "imsagw.name: want a-z 0-9 -, at most 32, not %q", f.IMSAGW.Name),
		when(f.EPCSCF.Audience == "", "epcscf.audience: must not be empty"),
		when(!isName(f.EPCSCF.VisitedNetwork, 253, ".-"), "epcscf.visited_network: %q is not a name in lower case", f.EPCSCF.VisitedNetwork),
		when(len(f.EPCSCF.CorePeers) == 0, "epcscf.core_peers: nobody may send requests; name the core's addresses"),
		when(f.IMSAGW.MaxSessions < 1 || f.IMSAGW.MaxSessions > 100000, "imsagw.max_sessions: want 1 to 100000, not %d", f.IMSAGW.MaxSessions),
		when(!f.DemoCore.Listen.Addr().IsLoopback(), "democore.listen: %v is not loopback; democore authenticates nobody, so it serves this machine alone", f.DemoCore.Listen),
		demoUsers(f.DemoCore.Users),
	)
}

func (o OAuth) check() error {
	_, known := o.Format()
	return errors.Join(
		when(!known, "turn.oauth.enc: want %s, not %q", rfc7635.Formats, o.Enc),
		when(o.KeyLife < Duration(time.Hour) || o.KeyLife > Duration(365*24*time.Hour), "turn.oauth.key_life: want 1h to 8760h, not %v", time.Duration(o.KeyLife)),
	)
}

func (f *File) checkSTUNKey() error {
	k := f.WAF.STUNKey
	errs := []error{
		when(k.Listen.IsValid() && k.ClientCA == "", "waf.stun_key.client_ca: must not be empty: keys are given to client certificates alone (RFC 7635 §4.1.1)"),
		when(k.Listen.IsValid() && len(k.Servers) == 0, "waf.stun_key.servers: names nobody who may pull keys"),
		when(len(k.Servers) > 64, "waf.stun_key.servers: %d servers, at most 64", len(k.Servers)),
	}
	for i, name := range k.Servers {
		errs = append(errs, when(!isName(name, 127, ".-") || slices.Contains(k.Servers[:i], name), "waf.stun_key.servers: %q: want different names in lower case of at most 127 characters", name),
			when(name == f.TURN.Name && !f.TURN.First().Plain(), "waf.stun_key.servers: %q has derived keys, whose masters leave no machine; set turn.oauth.kid_mode: plain", name))
	}
	return errors.Join(errs...)
}

// needed refuses empty addresses where there must be one.
func (f *File) needed() error {
	var errs []error
	need := func(key string, a AddrPort) {
		errs = append(errs, when(!a.IsValid(), "%s: must not be empty", key))
	}
	need("https.listen", f.HTTPS.Listen)
	for i, a := range f.TURN.Listen {
		need(fmt.Sprintf("turn.listen[%d]", i), a)
	}
	for i, a := range f.TURN.ListenTCP {
		need(fmt.Sprintf("turn.listen_tcp[%d]", i), a)
	}
	need("epcscf.listen", f.EPCSCF.Listen)
	need("epcscf.core", f.EPCSCF.Core)
	need("democore.listen", f.DemoCore.Listen)
	return errors.Join(errs...)
}

// maxNames bounds the certificates that one process keeps.
const maxNames = 100

// acme refuses what no CA would take, and what nodes could not share.
func (f *File) acme() error {
	a := f.HTTPS.ACME
	if !a.On() {
		return nil
	}
	var errs []error
	for i, n := range a.Names {
		key := fmt.Sprintf("https.acme.names[%d]", i)
		_, ip := netip.ParseAddr(n)
		errs = append(errs,
			when(strings.HasPrefix(n, "*"), "%s: %q is a wildcard, which only dns-01 proves; name each host", key, n),
			when(!strings.HasPrefix(n, "*") && (!isName(n, 253, ".-") || !strings.Contains(n, ".") || ip == nil), "%s: %q is not the full name of a host in lower case", key, n),
			when(slices.Contains(a.Names[:i], n), "%s: %q is there twice", key, n))
	}
	u, err := url.Parse(a.Directory)
	at := strings.Count(a.Email, "@")
	return errors.Join(append(errs,
		when(len(a.Names) > maxNames, "https.acme.names: %d, at most %d", len(a.Names), maxNames),
		when(f.HTTPS.Certificate != "", "https.acme.names: certificates come from https.certificate already; leave one of the two empty"),
		when(err != nil || u.Scheme != "https" || u.Host == "", "https.acme.directory: want the https URL of a CA's directory, not %q", a.Directory),
		when(a.Email != "" && (at != 1 || strings.ContainsAny(a.Email, " ,:?")), "https.acme.email: %q is not one address", a.Email),
		when(!a.Agree, "https.acme.agree: read the CA's terms of service (meta.termsOfService in %s), and set it to true if you agree", a.Directory),
		when(f.Bus.URL != "" && a.Secrets == "", "https.acme.secrets: must name a file where bus.url is set: all nodes open with it what one has sealed. To make it: openssl rand -base64 32 > FILE; chmod 600 FILE"),
	)...)
}

// RelayPorts is how many relay ports there are on all addresses.
func (t TURN) RelayPorts() (n int) {
	for _, r := range t.Relay {
		n += r.Ports.Count()
	}
	return n
}

func (t TURN) checkRelay() error {
	errs := []error{when(len(t.Relay) == 0 || len(t.Relay) > 64, "turn.relay: want 1 to 64 addresses, not %d", len(t.Relay))}
	for i, r := range t.Relay {
		errs = append(errs, r.check(fmt.Sprintf("turn.relay[%d]", i)))
	}
	return errors.Join(errs...)
}

func (t TURN) checkNAT64() error {
	var errs []error
	for i, n := range t.NAT64 {
		errs = append(errs, when(!peerpolicy.NAT64(n.Prefix), "turn.nat64[%d]: want a prefix of IPv6 of 32, 40, 48, 56, 64 or 96 bits (RFC 6052 §2.2), not %v", i, n.Prefix))
	}
	return errors.Join(errs...)
}

func (s Side) check(key string) error {
	return errors.Join(
		when(!s.Bind.IsValid(), "%s.bind: must not be empty", key),
		when(s.Advertise.IsValid() && s.Advertise.Is4() != s.Bind.Is4(), "%s.advertise: %v and bind %v are of different families", key, s.Advertise, s.Bind),
		when(s.Bind.IsUnspecified() && !s.Advertise.IsValid(), "%s.bind: %v needs advertise, the address that others are told", key, s.Bind),
		when(s.Ports.First < 1024, "%s.ports: want ports from 1024 up, not %d", key, s.Ports.First),
	)
}

// turnURI is a TURN URI (RFC 7065), taken apart.
type turnURI struct {
	secure    bool   // turns:
	host      string // without brackets
	port      uint16 // 3478 or 5349 where it is left out (RFC 7065 §3.2)
	transport string // udp or tcp, also where it is left out
}

func parseTURN(s string) (u turnURI, ok bool) {
	scheme, rest, _ := strings.Cut(s, ":")
	at, query, asked := strings.Cut(rest, "?")
	if scheme != "turn" && scheme != "turns" || len(s) > 255 {
		return u, false
	}
	// A TURN URI has no //, so that of a URL lends its parser for host and port.
	p, err := url.Parse("turn://" + at)
	if err != nil || p.Host != at || p.Hostname() == "" || strings.ContainsAny(at, " \t\"\\@") {
		return u, false
	}
	u = turnURI{secure: scheme == "turns", host: p.Hostname(), port: 3478, transport: "udp"}
	if u.secure {
		u.port, u.transport = 5349, "tcp" // RFC 7065 §3.2, RFC 5928 §3: TLS over TCP
	}
	if port := p.Port(); port != "" {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return u, false
		}
		u.port = uint16(n)
	}
	if asked {
		transport, found := strings.CutPrefix(query, "transport=")
		if !found || transport != "udp" && transport != "tcp" {
			return u, false
		}
		u.transport = transport
	}
	return u, true
}

func (t TURN) checkURLs() error {
	for _, s := range t.URLs {
		u, ok := parseTURN(s)
		switch {
		case !ok:
			return fmt.Errorf("turn.urls: %q is not a TURN URI (RFC 7065) such as turn:turn.example.org:3478?transport=udp", s)
		case u.secure && u.transport == "udp" && !t.DTLS:
			return fmt.Errorf("turn.urls: %q asks for DTLS; set turn.dtls: true, or let turns: go with transport=tcp", s)
		case u.transport == "tcp" && len(t.ListenTCP) == 0:
			return fmt.Errorf("turn.urls: %q needs an address in turn.listen_tcp", s)
		case u.transport == "udp" && len(t.Listen) == 0:
			return fmt.Errorf("turn.urls: %q needs an address in turn.listen", s)
		}
	}
	return nil
}

// Secure says whether the server shows a certificate.
func (t TURN) Secure() bool { return len(t.ListenTCP) > 0 || t.DTLS }

// SecureURLs are the hosts of the turns: entries of urls, by their place there.
func (t TURN) SecureURLs() map[int]string {
	hosts := map[int]string{}
	for i, s := range t.URLs {
		if u, ok := parseTURN(s); ok && u.secure {
			hosts[i] = u.host
		}
	}
	return hosts
}

// SecureHosts are the names and addresses by which browsers reach the server over TLS, which its
// certificate must hold.
func (t TURN) SecureHosts() (hosts []string) {
	for _, s := range t.URLs {
		if u, ok := parseTURN(s); ok && u.secure {
			hosts = append(hosts, u.host)
		}
	}
	return hosts
}

func demoUsers(users []string) error {
	for i, u := range users {
		if !isName(u, 32, ".-_") || slices.Contains(users[:i], u) {
			return fmt.Errorf("democore.users: %q: want different names of a-z 0-9 . - _, at most 32 characters each", u)
		}
	}
	return nil
}

// isName says whether s is made of a-z 0-9 and the characters in also, begins and ends with the former.
func isName(s string, most int, also string) bool {
	if s == "" || len(s) > most || strings.Contains(also, s[:1]) || strings.Contains(also, s[len(s)-1:]) {
		return false
	}
	for _, c := range s {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && !strings.ContainsRune(also, c) {
			return false
		}
	}
	return true
}

func when(bad bool, format string, args ...any) error {
	if bad {
		return fmt.Errorf(format, args...)
	}
	return nil
}
