package userdb

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"wicgate/internal/coturn"
	"wicgate/internal/secret"
)

const (
	// atOnce is how many keys one command asks for.
	atOnce = 500
	// maxSets bounds what is asked for one by one: secrets and lists by realm, keys by kid.
	maxSets = 1000
)

// redis reads by coturn's own kind of connection string: "ip=… dbname=… password=… port=…".
func redis(ctx context.Context, conn string) (db coturn.Database, err error) {
	p, err := redisProgram(conn)
	if err != nil {
		return db, err
	}
	r := redisReader{ctx, p}
	// keys are those of a pattern, without its two ends.
	keys := func(head, tail string, each func(key, middle string) error) error {
		found, err := r.ask("KEYS", head+"*"+tail)
		if err != nil {
			return err
		}
		for _, k := range found {
			middle, ok := strings.CutPrefix(k, head)
			if middle, ok = trimEnd(middle, tail, ok); ok {
				if err := each(k, middle); err != nil {
					return err
				}
			}
		}
		return nil
	}
	sets := 0
	members := func(head, tail string, each func(realm, value string)) error {
		return keys(head, tail, func(key, realm string) error {
			if sets++; sets > maxSets {
				return fmt.Errorf("more than %d sets and hashes", maxSets)
			}
			values, err := r.ask("SMEMBERS", key)
			for _, v := range values {
				each(realm, v)
			}
			return err
		})
	}
	const realms = "turn/realm/"
	var users, limits []coturn.Record // Value: the key to ask for
	errs := []error{
		keys(realms, "/key", func(key, middle string) error {
			if realm, name, ok := strings.Cut(middle, "/user/"); ok {
				users = append(users, coturn.Record{Realm: realm, Name: name, Value: key})
			}
			return nil
		}),
		members(realms, "/secret", func(realm, v string) { db.Secrets = append(db.Secrets, credential(realm, "", v)) }),
		members(realms, "/allowed-peer-ip", func(realm, v string) { db.Allowed = append(db.Allowed, coturn.Record{Realm: realm, Value: v}) }),
		members(realms, "/denied-peer-ip", func(realm, v string) { db.Denied = append(db.Denied, coturn.Record{Realm: realm, Value: v}) }),
		keys("turn/origin/", "", func(string, string) error { db.Origins++; return nil }),
		keys("turn/admin_user/", "", func(string, string) error { db.Admins++; return nil }),
		keys("turn/oauth/kid/", "", func(key, kid string) error {
			if sets++; sets > maxSets {
				return fmt.Errorf("more than %d sets and hashes", maxSets)
			}
			fields, err := r.ask("HGETALL", key)
			if err != nil || len(fields)%2 != 0 {
				return errors.Join(err, errOdd(len(fields)))
			}
			of := map[string]string{}
			for i := 0; i < len(fields); i += 2 {
				of[fields[i]] = fields[i+1]
			}
			db.Keys = append(db.Keys, coturn.OAuthKey{Realm: of["realm"], KID: kid, Algorithm: of["as_rs_alg"], Begin: of["timestamp"], Life: of["lifetime"], Value: secret.New([]byte(of["ikm_key"]))})
			return nil
		}),
	}
	for _, name := range []string{"user-quota", "total-quota", "max-bps"} {
		errs = append(errs, keys(realms, "/"+name, func(key, realm string) error {
			if !strings.Contains(realm, "/user/") {
				limits = append(limits, coturn.Record{Realm: realm, Name: name, Value: key})
			}
			return nil
		}))
	}
	errs = append(errs,
		r.values(users, func(of coturn.Record, v string) { db.Users = append(db.Users, credential(of.Realm, of.Name, v)) }),
		r.values(limits, func(of coturn.Record, v string) {
			db.Limits = append(db.Limits, coturn.Record{Realm: of.Realm, Name: of.Name, Value: v})
		}))
	for _, err := range errs {
		if err != nil {
			return db, err // the others say the same
		}
	}
	return db, nil
}

func trimEnd(s, tail string, ok bool) (string, bool) {
	if !ok {
		return "", false
	}
	return strings.CutSuffix(s, tail)
}

func errOdd(n int) error {
	if n%2 == 0 {
		return nil
	}
	return fmt.Errorf("redis-cli: a hash of %d fields and values", n)
}

// redisProgram reads a connection string.
func redisProgram(conn string) (program, error) {
	p := program{name: "redis-cli", pkg: "redis-tools"}
	host, port, number, user, password := "127.0.0.1", "6379", "0", "", ""
	var tls []string
	secure, verify := false, true
	for _, word := range strings.Fields(conn) {
		key, value, ok := strings.Cut(word, "=")
		if !ok {
			return p, errors.New("the Redis connection string has a word without =; want ip=… dbname=… password=… port=…")
		}
		yes := value == "1" || value == "true" || value == "on" || value == "yes"
		switch key {
		case "host", "ip", "addr", "ipaddr", "hostaddr":
			host = value
		case "dbname", "db", "database":
			number = value
		case "user", "uname", "name", "username":
			user = value
		case "password", "pwd", "passwd", "secret":
			password = value
		case "port", "p":
			port = value
		case "connect_timeout", "timeout":
		case "tls", "ssl":
			secure = yes
		case "tls-verify", "verify":
			verify = value != "none" && value != "0" && value != "false"
		case "tls-ca", "ca", "cacert":
			tls = append(tls, "--cacert", value)
		case "tls-capath", "capath":
			tls = append(tls, "--cacertdir", value)
		case "tls-cert", "cert":
			tls = append(tls, "--cert", value)
		case "tls-key", "clientkey":
			tls = append(tls, "--key", value)
		case "tls-sni", "sni", "servername":
			tls = append(tls, "--sni", value)
		default:
			return p, fmt.Errorf("the Redis connection string has a key %q that coturn does not know", key)
		}
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return p, errors.New("the Redis connection string: port is no port")
	}
	if _, err := strconv.ParseUint(number, 10, 16); err != nil {
		return p, errors.New("the Redis connection string: dbname is no number")
	}
	p.args = []string{"--csv", "-h", host, "-p", port, "-n", number}
	if secure {
		p.args = append(append(p.args, "--tls"), tls...)
		if !verify {
			p.args = append(p.args, "--insecure")
		}
	}
	if password != "" {
		p.env = []string{"REDISCLI_AUTH=" + password}
		if user != "" {
			p.args = append(p.args, "--user", user)
		}
	}
	return p, nil
}

// redisReader asks for strings.
type redisReader struct {
	ctx context.Context
	p   program
}

// ask runs a command whose answer is a list of strings.
func (r redisReader) ask(command ...string) ([]string, error) {
	b, err := r.p.run(r.ctx, command...)
	if err != nil {
		return nil, err
	}
	values, err := parseCSV(string(b))
	if err != nil {
		return nil, fmt.Errorf("redis-cli, %s: %w", command[0], err)
	}
	out := make([]string, 0, len(values))
	for _, v := range values {
		if v != nil {
			out = append(out, *v)
		}
	}
	return out, nil
}

// values asks for the values of the keys in Value.
func (r redisReader) values(of []coturn.Record, each func(coturn.Record, string)) error {
	for len(of) > 0 {
		some := of[:min(len(of), atOnce)]
		of = of[len(some):]
		command := []string{"MGET"}
		for _, o := range some {
			command = append(command, o.Value)
		}
		b, err := r.p.run(r.ctx, command...)
		if err != nil {
			return err
		}
		values, err := parseCSV(string(b))
		if err == nil && len(values) != len(some) {
			err = fmt.Errorf("%d values for %d keys", len(values), len(some))
		}
		if err != nil {
			return fmt.Errorf("redis-cli, MGET: %w", err)
		}
		for i, v := range values {
			if v != nil { // gone since, or no string
				each(some[i], *v)
			}
		}
	}
	return nil
}

// parseCSV reads an answer of redis-cli --csv: strings in quotes with C's escapes, NULL, numbers; and an
// error as ERROR,"text". A null is nil.
func parseCSV(s string) (values []*string, err error) {
	s = strings.TrimRight(s, "\r\n")
	if text, failed := strings.CutPrefix(s, "ERROR,"); failed {
		if q, err := strconv.Unquote(text); err == nil {
			text = q
		}
		b := bounded{left: 64 << 10}
		_, _ = b.Write([]byte(text)) // too long is empty
		return nil, errors.New(b.text())
	}
	for s != "" {
		var field string
		if s[0] == '"' {
			if field, err = strconv.QuotedPrefix(s); err != nil {
				return nil, errors.New("an answer that is not CSV")
			}
			v, err := strconv.Unquote(field)
			if err != nil {
				return nil, errors.New("an answer that is not CSV")
			}
			values = append(values, &v)
		} else {
			field, _, _ = strings.Cut(s, ",")
			if field == "NULL" || field == "NIL" {
				values = append(values, nil)
			} else if field != "" {
				values = append(values, &field)
			}
		}
		s = s[len(field):]
		if s == "" {
			break
		}
		if s[0] != ',' || len(s) == 1 {
			return nil, errors.New("an answer that is not CSV")
		}
		s = s[1:]
	}
	return values, nil
}
