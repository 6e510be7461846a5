package coturn

import (
	"cmp"
	"crypto/md5" // RFC 8489 §9.2.2: the key of MESSAGE-INTEGRITY
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
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
	c.oauth()
	others := map[string]int{}
	for _, u := range slices.Concat(c.db.Users, c.db.Secrets) {
		if u.Realm != c.realm {
			others[u.Realm]++
		}
	}
	for _, realm := range sortedKeys(others) {
		c.note(Decide, 0, "realm", "the database has %s of another realm, %q, left out: a server has one name. Import it with --realm for a server of its own", count(others[realm], "user or secret", "users and secrets"), printableRealm(realm))
	}
	if !ephemeral && len(c.users)+len(c.keys) == 0 {
		c.note(Decide, 0, "credentials", "the file names no users and no secret: until it has some, clients of wicgate's own issuer alone get a relay")
	}
}

// Key is a key of tokens (RFC 7635), named by its kid.
type Key struct {
	KID, Format string // A128GCM or A256GCM
	K           secret.Bytes
	From, Exp   time.Time // zero Exp: for ever
}

// oauth reads the keys of tokens.
func (c *converter) oauth() {
	s, ok := c.o.last("oauth")
	if on := ok && s.on(); !on {
		if n := len(c.db.Keys); n > 0 {
			c.note(Moot, 0, "oauth_key", "%s: turnserver does not look at them without oauth", count(n, "key", "keys"))
		}
		return
	}
	for _, k := range c.db.Keys {
		if k.Realm != "" && k.Realm != c.realm {
			c.note(Decide, 0, "oauth_key", "%q moves its clients into another realm, %q; the key is left out", printableRealm(k.KID), printableRealm(k.Realm))
			continue
		}
		if key, ok := c.oauthKey(k); ok {
			c.keys = append(c.keys, key)
		}
	}
	if len(c.keys) == 0 {
		c.note(Decide, s.line, s.name, "no key was found that can be taken; tokens (RFC 7635) are opened with the keys of turn.keys, which wicgate makes and its issuer has")
		return
	}
	c.took(s, "turn.oauth.kid_mode: plain, with %s in turn.keys; mac16, because turnserver makes do with 16 bytes of a token's mac_key, and so do clients that work with it", count(len(c.keys), "key", "keys"))
	c.note(Differs, 0, "turn.oauth.loose", "false: a Refresh brings a token of the kid that allocated; turnserver takes one of any kid")
}

// oauthKey reads one, as turnserver does: what is too long is cut, and what is too short is not taken.
func (c *converter) oauthKey(k OAuthKey) (Key, bool) {
	const most = 64 // keys
	leave := func(why string, args ...any) (Key, bool) {
		c.note(Decide, 0, "oauth_key", "%q is left out: %s", printableRealm(k.KID), fmt.Sprintf(why, args...))
		return Key{}, false
	}
	if k.KID == "" || len(k.KID) > 128 || strings.ContainsFunc(k.KID, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return leave("a kid is 1 to 128 characters of printable ASCII")
	}
	out := Key{KID: k.KID, Format: "A256GCM"}
	size := 32
	switch k.Algorithm {
	case "", "A256GCM":
	case "A128GCM":
		out.Format, size = "A128GCM", 16
	default:
		return leave("turnserver has A256GCM and A128GCM, not %q", printableRealm(k.Algorithm))
	}
	b, err := base64.StdEncoding.DecodeString(string(k.Value.Expose()))
	if err != nil {
		return leave("its key is not base64")
	}
	if len(b) < size {
		return leave("its key has %d bytes, %s wants %d; turnserver fills up with zeros, so that it can be guessed the easier", len(b), out.Format, size)
	}
	out.K = secret.New(b[:size])
	begin, err1 := strconv.ParseInt(cmp.Or(k.Begin, "0"), 10, 40)
	life, err2 := strconv.ParseInt(cmp.Or(k.Life, "0"), 10, 33)
	if err1 != nil || err2 != nil || begin < 0 || life < 0 {
		return leave("timestamp and lifetime are no numbers of seconds")
	}
	if life > 0 {
		out.From, out.Exp = time.Unix(begin, 0).UTC(), time.Unix(begin+life, 0).UTC()
	}
	if len(c.keys) == most {
		return leave("more than %d keys", most)
	}
	return out, true
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
