package coturn

import (
	"cmp"
	"crypto/md5" // RFC 8489 §9.2.2: the key of MESSAGE-INTEGRITY
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"wicgate/internal/secret"
)

// user is a line of the users file: keys in hexadecimal, "-" where there is none.
type user struct {
	name string
	md5  secret.Bytes
	sha  secret.Bytes
}

// Bounds of what the files of users and secrets hold.
const (
	maxName    = 508 // bytes of a USERNAME (RFC 8489 §14.3)
	minSecret  = 16  // bytes
	maxSecret  = 256
	maxSecrets = 8
)

var none = secret.New([]byte("-"))

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

// credentials reads users and secrets.
func (c *converter) credentials() {
	static := c.o.all("static-auth-secret")
	ephemeral := c.o.is("use-auth-secret") || len(static) > 0
	if s, ok := c.o.last("no-auth"); ok && s.on() {
		c.note(Lost, s.line, s.name, "who has no credential gets no relay; a relay for anybody is for attackers")
	}
	if s, ok := c.o.last("lt-cred-mech"); ok && s.on() {
		c.note(Moot, s.line, s.name, "the only mechanism there is (RFC 8489 §9.2)")
	}
	if ephemeral {
		if s, ok := c.o.last("use-auth-secret"); ok {
			c.took(s, "turn.secrets")
		}
		c.ephemeral(static)
	}
	c.static(ephemeral)
	if s, ok := c.o.last("oauth"); ok && s.on() {
		c.took(s, "tokens (RFC 7635) are opened with the keys of turn.keys, always")
	}
	if n := len(c.db.Keys); n > 0 {
		c.note(Decide, 0, "oauth_key", "%s (%s): kids and keys of turn.keys are made by wicgate, and its issuer has them; another issuer must get keys from there", count(n, "key", "keys"), someNames(c.db.Keys))
	}
	others := map[string]int{}
	for _, u := range slices.Concat(c.db.Users, c.db.Secrets) {
		if u.Realm != c.realm {
			others[u.Realm]++
		}
	}
	for _, realm := range sortedKeys(others) {
		c.note(Decide, 0, "realm", "the database has %s of another realm, %q, left out: a server has one name. Import it with --realm for a server of its own", count(others[realm], "user or secret", "users and secrets"), printableRealm(realm))
	}
	if !ephemeral && len(c.users) == 0 {
		c.note(Decide, 0, "credentials", "the file names no users and no secret: until it has some, clients of wicgate's own issuer alone get a relay")
	}
}

// ephemeral reads the secrets of time-limited credentials.
func (c *converter) ephemeral(static []setting) {
	if s, ok := c.o.last("rest-api-separator"); ok && s.value != ":" && s.value != "" {
		c.note(Lost, s.line, s.name, "names are \"expiry:user\" with a colon; what makes credentials must write it so")
	} else if ok {
		c.note(Moot, s.line, s.name, "a colon always")
	}
	add := func(line int, what string, s secret.Bytes) {
		b := s.Expose()
		switch {
		case slices.ContainsFunc(c.secrets, s.Equal):
		case len(b) < minSecret || len(b) > maxSecret:
			c.note(Decide, line, what, "a secret of %d bytes is left out, %d to %d are wanted: give this server and what makes credentials a new one (openssl rand -base64 32)", len(b), minSecret, maxSecret)
		case b[0] == '#' || strings.ContainsFunc(string(b), func(r rune) bool { return r < ' ' || r == 0x7f }) || strings.TrimSpace(string(b)) != string(b):
			c.note(Decide, line, what, "a secret that begins with #, or holds control characters or blanks at an end, cannot be a line of turn-secrets.txt; it is left out")
		case len(c.secrets) == maxSecrets:
			c.note(Decide, line, what, "more than %d secrets; this one is left out", maxSecrets)
		default:
			c.secrets = append(c.secrets, s)
			c.note(Took, line, what, "turn.secrets")
		}
	}
	for _, s := range static {
		add(s.line, s.name, s.hidden)
	}
	for _, s := range c.db.Secrets {
		if s.Realm == c.realm {
			add(0, "turn_secret", s.Value)
		}
	}
	if len(c.secrets) == 0 {
		c.note(Decide, 0, "use-auth-secret", "no secret was found that can be taken; write one into a file, mode 0600, and name it in turn.secrets")
	}
	c.note(Differs, 0, "turn.secrets", "a credential may expire 48 h ahead at most; turnserver takes any. Synapse: turn_user_lifetime, Prosody: turncredentials_ttl")
}

// static reads users with keys of their own.
func (c *converter) static(ephemeral bool) {
	lines := c.o.all("user")
	line := 0
	if len(lines) > 0 {
		line = lines[0].line
	}
	rows := 0
	for _, u := range c.db.Users {
		if u.Realm == c.realm {
			rows++
		}
	}
	if ephemeral {
		if n := len(lines) + rows; n > 0 {
			c.note(Moot, line, "user", "%s: turnserver does not look at users while it has use-auth-secret, and they are not taken", count(n, "user", "users"))
		}
		return
	}
	byName := map[string]user{}
	var order []string
	put := func(u user) {
		if _, known := byName[u.name]; !known {
			order = append(order, u.name)
		}
		byName[u.name] = u
	}
	hashed := 0
	// A key is MD5 or SHA-256 of user, realm and password, so it opens nothing under another realm.
	read := func(line int, what, name string, key []byte, realm string, password bool) {
		keyBytes := 0
		if b, err := hex.DecodeString(string(key)); err == nil && !password {
			keyBytes = len(b)
		}
		switch {
		case name == "" || len(name) > maxName || !utf8.ValidString(name) || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f }) || strings.TrimSpace(name) != name:
			c.note(Decide, line, what, "a name of %d bytes is left out: want 1 to %d of UTF-8, without control characters, and no blanks at its ends", len(name), maxName)
		case password:
			of := name + ":" + c.realmOfKeys() + ":" + string(key)
			m, s := md5.Sum([]byte(of)), sha256.Sum256([]byte(of))
			put(user{name, secret.New(hex.AppendEncode(nil, m[:])), secret.New(hex.AppendEncode(nil, s[:]))})
			if !ascii(name) || !ascii(string(key)) {
				c.note(Decide, line, what, "%q: name or password is not ASCII; clients that prepare them by RFC 8265 may come to another key", name)
			}
		case keyBytes != md5.Size && keyBytes != sha256.Size:
			c.note(Decide, line, what, "%q: a key is 32 hexadecimal digits; the user is left out", name)
		case realm != c.realmOfKeys():
			c.note(Decide, line, what, "%q: the key is of the realm %q, and turn.name is another; the user is left out, and needs a new password", name, printableRealm(realm))
		default:
			hashed++
			lower := secret.New([]byte(strings.ToLower(string(key))))
			if keyBytes == sha256.Size {
				put(user{name, none, lower})
			} else {
				put(user{name, lower, none})
			}
		}
	}
	for _, u := range c.db.Users {
		if u.Realm == c.realm {
			read(0, "turnusers_lt", u.Name, u.Value.Expose(), u.Realm, false)
		}
	}
	ofFile := c.realm
	if s, ok := c.o.last("realm"); ok && s.value != "" {
		ofFile = s.value
	}
	for _, s := range lines { // over those of the database, as turnserver does
		name, key, ok := strings.Cut(string(s.hidden.Expose()), ":")
		key = strings.TrimLeft(key, " \t")
		if !ok || key == "" {
			c.note(Decide, s.line, s.name, "want name:password or name:0xKEY; the line is left out")
			continue
		}
		if hashed, isKey := strings.CutPrefix(key, "0x"); isKey {
			read(s.line, s.name, name, []byte(hashed), ofFile, false)
		} else {
			read(s.line, s.name, name, []byte(key), ofFile, true)
		}
	}
	for _, name := range order {
		c.users = append(c.users, byName[name])
	}
	if len(c.users) == 0 {
		return
	}
	c.note(Took, line, "user", "turn.users: %s; keys, no passwords (%s of the file, %s of the database)", count(len(c.users), "user", "users"), count(len(lines), "line", "lines"), count(rows, "row", "rows"))
	if hashed > 0 {
		c.note(Differs, 0, "turn.users", "%s without a password that is known: the MD5 key alone, so no SHA-256 (RFC 8489 §9.2.5) until it is set anew. Browsers use MD5", count(hashed, "user", "users"))
	}
}

// realmOfKeys is the realm that clients will be told.
func (c *converter) realmOfKeys() string {
	if c.name == "" {
		return "turn.ims.test" // the default of turn.name
	}
	return c.name
}

func ascii(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r >= utf8.RuneSelf })
}

// someNames names a few.
func someNames(of []Credential) string {
	const most = 5
	var names []string
	for _, k := range of[:min(len(of), most)] {
		names = append(names, printableRealm(k.Name))
	}
	if len(of) > most {
		names = append(names, "…")
	}
	return strings.Join(names, ", ")
}

// usersFile is the file of turn.users.
func usersFile(realm string, users []user) secret.Bytes {
	b := fmt.Appendf(nil, "# Static users of the realm %s (turn.users), from coturn.\n# MD5(user:realm:password) SHA-256(user:realm:password) user; - where a key is not known.\n", realm)
	for _, u := range users {
		b = append(append(b, u.md5.Expose()...), ' ')
		b = append(append(b, u.sha.Expose()...), ' ')
		b = append(append(b, u.name...), '\n')
	}
	return secret.New(b)
}

// secretsFile is the file of turn.secrets.
func secretsFile(secrets []secret.Bytes) secret.Bytes {
	b := []byte("# Secrets of ephemeral TURN credentials (turn.secrets), from coturn.\n")
	for _, s := range secrets {
		b = append(append(b, s.Expose()...), '\n')
	}
	return secret.New(b)
}
