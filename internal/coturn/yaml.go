package coturn

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// plain is what YAML reads as the text it is, without quotes.
var plain = regexp.MustCompile(`^(/?[a-zA-Z]|[0-9]+[.:])[-a-zA-Z0-9_./:=?]*$`)

// scalar writes a text for YAML.
func scalar(s string) string {
	switch strings.ToLower(s) {
	case "true", "false", "yes", "no", "on", "off", "null", "y", "n":
	default:
		_, err := strconv.ParseFloat(s, 64)
		if number := err == nil; !number && plain.MatchString(s) && !strings.HasSuffix(s, ":") {
			return s
		}
	}
	return strconv.Quote(strings.ToValidUTF8(s, "\uFFFD"))
}

// yaml writes the keys that differ from the defaults.
func (c *converter) yaml() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("# From coturn's configuration. Keys that are not here have their default; wicgate.yaml in the source")
	line("# explains each. Run it with:  wicgate run turn --config %s", scalar(filepath.Join(c.place.Dir, FileYAML)))
	if c.level != "" && c.level != "info" {
		line("\nlog:\n  level: %s", c.level)
	}
	if c.cert != "" {
		line("\n# cert and pkey: the certificate of TLS%s.", map[bool]string{true: " and DTLS"}[c.dtls])
		line("https:\n  certificate: %s\n  key: %s", scalar(c.cert), scalar(c.key))
	}
	line("\nturn:")
	if c.name != "" {
		line("  # realm: keys of users are made with it.")
		line("  name: %s", scalar(c.name))
	}
	if len(c.listen)+len(c.tcp) > 0 {
		sequence := func(key string, of []string) {
			if len(of) == 0 {
				line("  %s: []", key)
				return
			}
			line("  %s:", key)
			for _, s := range of {
				line("    - %s", s)
			}
		}
		strs := func(list []fmt.Stringer) (out []string) {
			for _, a := range list {
				out = append(out, strconv.Quote(a.String()))
			}
			return out
		}
		var udp, tcp []fmt.Stringer
		for _, a := range c.listen {
			udp = append(udp, a)
		}
		for _, a := range c.tcp {
			tcp = append(tcp, a)
		}
		line("  # listening-ip, listening-port, tls-listening-port, aux-server. TLS and plain TCP share a port.")
		sequence("listen", strs(udp))
		sequence("listen_tcp", strs(tcp))
		if len(c.urls) > 0 {
			line("  # What the portal tells browsers; no business of coturn's.")
			sequence("urls", c.urls)
		}
	}
	if c.dtls {
		line("  dtls: true")
	}
	if c.proxied > 0 {
		line("  # tcp-proxy-port %d: name the proxies, and add the port to listen_tcp.", c.proxied)
		line("  # trusted_proxies: [192.0.2.0/24]")
	}
	if len(c.relays) > 0 {
		line("  # relay-ip, external-ip, min-port, max-port.")
		line("  relay:")
		for _, r := range c.relays {
			line("    - bind: %s", strconv.Quote(r.bind.String()))
			if r.advertise.IsValid() {
				line("      advertise: %s", strconv.Quote(r.advertise.String()))
			}
			line("      ports: %d-%d", c.ports[0], c.ports[1])
		}
	}
	if !c.shut { // else ims, the default
		line("  # Public addresses may be reached; private ones only where open says so.")
		line("  profile: general")
	}
	if len(c.open) > 0 {
		line("  # allowed-peer-ip.\n  open:")
		for _, p := range c.open {
			line("    - %s", strconv.Quote(p.String()+" 1024-65535"))
		}
	}
	if len(c.closed) > 0 {
		line("  # denied-peer-ip, without what is refused anyway and what allowed-peer-ip allows.\n  closed:")
		for _, p := range c.closed {
			line("    - %s", strconv.Quote(p.String()))
		}
	}
	if c.quota > 0 {
		line("  # user-quota.\n  quota: %d", c.quota)
	}
	if c.total > 0 {
		line("  # total-quota.\n  quota_total: %d", c.total)
	}
	if c.rate+c.rates > 0 {
		line("  # max-bps, bps-capacity: 16 times, for bits of both directions.\n  rates:")
		if c.rate > 0 {
			line("    allocation: %d", c.rate)
		}
		if c.rates > 0 {
			line("    total: %d", c.rates)
		}
	}
	if len(c.secrets) > 0 {
		line("  # static-auth-secret, turn_secret.\n  secrets: %s", scalar(filepath.Join(c.place.Dir, FileSecrets)))
	}
	if len(c.users) > 0 {
		line("  # user, turnusers_lt.\n  users: %s", scalar(filepath.Join(c.place.Dir, FileUsers)))
	}
	if len(c.keys) > 0 {
		line("  # oauth_key.\n  keys: %s", scalar(filepath.Join(c.place.Dir, FileKeys)))
		line("  oauth:\n    kid_mode: plain\n    # turnserver takes 16 bytes of a mac_key, and clients that work with it too.\n    mac16: true")
	}
	if c.channels() == "rfc5766" {
		line("  # As turnserver lets clients choose; take it out once they keep to RFC 8656.\n  channel_numbers: rfc5766")
	}
	switch {
	case c.classic:
		line("  # rfc5780, rfc3489-compatibility, alt-listening-port.\n  nat_discovery: rfc3489")
	case c.natDiscovery:
		line("  # rfc5780, alt-listening-port.\n  nat_discovery: on")
	}
	if c.o.is("mobility") {
		line("  mobility: true")
	}
	if c.admin.IsValid() {
		line("\n# prometheus.\nadmin:\n  listen: %s", strconv.Quote(c.admin.String()))
	}
	return b.String()
}
