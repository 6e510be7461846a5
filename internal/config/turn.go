package config

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// Rates bound relayed payload, both directions together, in bits a second; 0 = no bound.
type Rates struct {
	Allocation int64 `yaml:"allocation"`
	Pseudonym  int64 `yaml:"pseudonym"`
	Total      int64 `yaml:"total"`
}

// Tenant is an entry of turn.tenants.
type Tenant struct {
	Name        string     `yaml:"name"`
	Listen      []AddrPort `yaml:"listen"`
	ServerNames []string   `yaml:"server_names"`
	Keys        string     `yaml:"keys"`
	KIDMode     string     `yaml:"kid_mode"`
	KeyPull     KeyPull    `yaml:"key_pull"`
	Secrets     string     `yaml:"secrets"`
	Users       string     `yaml:"users"`
	Profile     string     `yaml:"profile"`
	Open        []Range    `yaml:"open"`
	Closed      []Prefix   `yaml:"closed"`
	Credentials string     `yaml:"credentials"`
	GraceMax    Duration   `yaml:"grace_max"`
	Quota       int        `yaml:"quota"`
	QuotaTotal  int        `yaml:"quota_total"`
	Rates       Rates      `yaml:"rates"`
}

// Sibling is an entry of turn.siblings.
type Sibling struct {
	Address   AddrPort `yaml:"address"`
	Transport string   `yaml:"transport"`
	Domain    string   `yaml:"domain"`
}

func (t TURN) checkSiblings() error {
	errs := []error{when(len(t.Siblings) > 64, "turn.siblings: %d addresses, at most 64", len(t.Siblings))}
	for i, s := range t.Siblings {
		key := fmt.Sprintf("turn.siblings[%d]", i)
		errs = append(errs,
			when(!s.Address.IsValid() || s.Address.Addr().IsUnspecified() || s.Address.Port() == 0, "%s.address: want an address and port that clients reach, not %v", key, s.Address),
			when(s.Transport != "" && s.Transport != "udp" && s.Transport != "tcp", "%s.transport: want udp, tcp or nothing for both, not %q", key, s.Transport),
			when(s.Domain != "" && !isName(s.Domain, 253, ".-"), "%s.domain: %q is not a domain name in lower case", key, s.Domain))
	}
	return errors.Join(errs...)
}

// First is the section turn as a tenant: the one that clients get who choose none.
func (t TURN) First() Tenant {
	return Tenant{
		Name: t.Name, Keys: t.Keys, KIDMode: t.OAuth.KIDMode, KeyPull: t.KeyPull, Secrets: t.Secrets, Users: t.Users, Profile: t.Profile, Open: t.Open, Closed: t.Closed, Credentials: t.Credentials, GraceMax: t.GraceMax,
		Quota: t.Quota, QuotaTotal: t.QuotaTotal, Rates: t.Rates,
	}
}

// Others are the entries of tenants. What one leaves out is as in the section turn, but for what is
// its own: names, files, open, quota_total and rates. What the section closes is closed for all.
func (t TURN) Others() (out []Tenant) {
	for _, o := range t.Tenants {
		if o.Profile == "" {
			o.Profile = t.Profile
		}
		if o.KIDMode == "" {
			o.KIDMode = t.OAuth.KIDMode
		}
		if o.Credentials == "" {
			o.Credentials = t.Credentials
		}
		if o.GraceMax == 0 {
			o.GraceMax = t.GraceMax
		}
		if o.Quota == 0 {
			o.Quota = t.Quota
		}
		o.Closed = slices.Concat(t.Closed, o.Closed)
		out = append(out, o)
	}
	return out
}

// Plain says whether a kid names a key, and nobody.
func (t Tenant) Plain() bool { return t.KIDMode == "plain" }

// checkKeys says what is wrong with the keys of a tenant, whose kid_mode is at mode.
func (t Tenant) checkKeys(prefix, mode string) error {
	p := t.KeyPull
	wrong := when(t.KIDMode != "derived" && t.KIDMode != "plain", "%s: want derived or plain, not %q", mode, t.KIDMode)
	if p.URL == "" {
		return errors.Join(wrong, when(p.Certificate != "" || p.Key != "" || p.CA != "", "%s.key_pull: certificate, key and ca need url", prefix))
	}
	u, err := url.Parse(p.URL)
	return errors.Join(wrong,
		when(err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "", "%s.key_pull.url: want an https URL such as https://waf.example.org:8444, not %q", prefix, p.URL),
		when(p.Certificate == "" || p.Key == "", "%s.key_pull: certificate and key are needed: the WAF gives keys to a client certificate alone (RFC 7635 §4.1.1)", prefix),
		when(!t.Plain(), "%s.key_pull.url: needs %s plain; masters of derived keys leave no machine", prefix, mode),
	)
}

// check says what is wrong with a tenant whose keys begin with prefix.
func (t Tenant) check(prefix string) error {
	return errors.Join(
		when(!isName(t.Name, 127, ".-"), "%s.name: %q is not a name in lower case of at most 127 characters", prefix, t.Name),
		when(t.Profile != "ims" && t.Profile != "general", "%s.profile: want ims or general, not %q", prefix, t.Profile),
		when(!slices.Contains([]string{"session", "call-grace", "strict"}, t.Credentials), "%s.credentials: want session, call-grace or strict, not %q", prefix, t.Credentials),
		when(t.Quota < 1 || t.Quota > 10000, "%s.quota: want 1 to 10000, not %d", prefix, t.Quota),
		when(t.QuotaTotal < 0, "%s.quota_total: want 0 or more, not %d", prefix, t.QuotaTotal),
		when(t.Rates.Allocation < 0 || t.Rates.Pseudonym < 0 || t.Rates.Total < 0, "%s.rates: want bits a second, 0 = no bound, not less", prefix),
	)
}

func (t TURN) checkTenants() error {
	errs := []error{t.First().check("turn"), t.First().checkKeys("turn", "turn.oauth.kid_mode"), when(len(t.Tenants) > 1024, "turn.tenants: %d tenants, at most 1024", len(t.Tenants))}
	names, listeners, servers := map[string]bool{t.Name: true}, map[AddrPort]bool{}, map[string]bool{}
	plain := t.First().Plain()
	for i, o := range t.Others() {
		plain = plain || o.Plain()
		key := tenantKey(i)
		errs = append(errs, o.check(key), o.checkKeys(key, key+".kid_mode"), when(names[o.Name], "%s.name: %q is another tenant's", key, o.Name))
		names[o.Name] = true
		for j, a := range o.Listen {
			errs = append(errs,
				when(!slices.Contains(t.Listen, a) && !slices.Contains(t.ListenTCP, a), "%s.listen[%d]: %v is neither in turn.listen nor in turn.listen_tcp", key, j, a),
				when(listeners[a], "%s.listen[%d]: %v is another tenant's", key, j, a))
			listeners[a] = true
		}
		for j, n := range o.ServerNames {
			errs = append(errs,
				when(!isName(n, 253, ".-"), "%s.server_names[%d]: %q is not a name in lower case", key, j, n),
				when(servers[n], "%s.server_names[%d]: %q is another tenant's", key, j, n))
			servers[n] = true
		}
	}
	errs = append(errs, when(t.OAuth.Loose && !plain, "turn.oauth.loose: needs kid_mode plain; a derived kid says whose a token is"))
	return errors.Join(errs...)
}

func tenantKey(i int) string { return fmt.Sprintf("turn.tenants[%d]", i) }

// File is the name, in the data folder, of a tenant's own file that is not configured.
func (t Tenant) File(base string) string {
	before, after, _ := strings.Cut(base, ".")
	return before + "-" + t.Name + "." + after
}
