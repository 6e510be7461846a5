package userdb

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"wicgate/internal/coturn"
)

// postgres reads by a connection string of libpq, of either form.
func postgres(ctx context.Context, conn string) (coturn.Database, error) {
	conn, password, err := splitPassword(conn)
	if err != nil {
		return coturn.Database{}, err
	}
	p := program{
		name: "psql", pkg: "postgresql-client",
		args: []string{"--no-psqlrc", "--no-password", "--quiet", "--no-align", "--tuples-only", "--field-separator=|", "--set=ON_ERROR_STOP=1", "--dbname=" + conn, "--command"},
		env:  []string{"PGCONNECT_TIMEOUT=10", "PGOPTIONS=-c default_transaction_read_only=on", "PGAPPNAME=wicgate import"},
	}
	if password != "" {
		p.env = append(p.env, "PGPASSWORD="+password)
	}
	column := func(c string) string { return "encode(convert_to(coalesce(" + c + "::text,''),'UTF8'),'hex')" }
	return p.sql(ctx, "select "+column("t")+" from unnest(array["+list()+"]) as t where to_regclass(t) is not null", column)
}

// splitPassword takes the password out of a connection string.
func splitPassword(conn string) (rest, password string, err error) {
	if strings.HasPrefix(conn, "postgresql://") || strings.HasPrefix(conn, "postgres://") {
		u, err := url.Parse(conn)
		if err != nil {
			return "", "", errors.New("the PostgreSQL URL cannot be read; write it as host=… dbname=… user=… password=…") // err would show it
		}
		password, _ = u.User.Password()
		if u.User != nil {
			u.User = url.User(u.User.Username())
		}
		if q := u.Query(); q.Has("password") {
			password = q.Get("password")
			q.Del("password")
			u.RawQuery = q.Encode()
		}
		if u.Host == "" && u.Path == "" {
			u.Path = "/" // without it String leaves the slashes of the host out
		}
		return u.String(), password, nil
	}
	pairs, err := keywords(conn)
	if err != nil {
		return "", "", err
	}
	var out []string
	for _, kv := range pairs {
		if kv[0] == "password" {
			password = kv[1]
			continue
		}
		out = append(out, kv[0]+"='"+strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(kv[1])+"'")
	}
	return strings.Join(out, " "), password, nil
}

// keywords reads "key = value key='va\'lue'" (libpq's connection strings).
func keywords(s string) (pairs [][2]string, err error) {
	const blanks = " \t\n\r\f\v"
	for s = strings.TrimLeft(s, blanks); s != ""; s = strings.TrimLeft(s, blanks) {
		key, rest, ok := strings.Cut(s, "=")
		key = strings.TrimRight(key, blanks)
		if !ok || key == "" || strings.ContainsFunc(key, func(r rune) bool { return (r < 'a' || r > 'z') && r != '_' }) {
			return nil, fmt.Errorf("the PostgreSQL connection string has no key = value after %d of its keys", len(pairs))
		}
		rest = strings.TrimLeft(rest, blanks)
		quoted := strings.HasPrefix(rest, "'")
		if quoted {
			rest = rest[1:]
		}
		var value strings.Builder
		closed := false
		for rest != "" && !closed {
			c := rest[0]
			switch {
			case quoted && c == '\'':
				closed = true
			case !quoted && strings.IndexByte(blanks, c) >= 0:
				closed = true
			case c == '\\' && len(rest) > 1:
				rest = rest[1:]
				value.WriteByte(rest[0])
			default:
				value.WriteByte(c)
			}
			rest = rest[1:]
		}
		if quoted && !closed {
			return nil, fmt.Errorf("the PostgreSQL connection string has an open quote after %s", key)
		}
		pairs = append(pairs, [2]string{key, value.String()})
		s = rest
	}
	return pairs, nil
}
