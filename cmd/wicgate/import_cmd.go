package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"wicgate/internal/coturn"
	"wicgate/internal/coturn/userdb"
	"wicgate/internal/keyring"
	"wicgate/internal/secret"
	"wicgate/internal/token"
)

type importCmd struct {
	Coturn importCoturnCmd `cmd:"" help:"Write a wicgate.yaml that does what a turnserver.conf of coturn's does, and say what differs."`
}

type importCoturnCmd struct {
	File        string       `arg:"" help:"The configuration, such as /etc/turnserver.conf." type:"existingfile" placeholder:"FILE"`
	Out         string       `help:"Folder for wicgate.yaml and the files of users, secrets and keys. Files that are there are left alone." default:"." type:"path" placeholder:"DIR"`
	Realm       string       `help:"The realm whose users are taken. Default: that of the file." placeholder:"NAME"`
	Address     []netip.Addr `help:"Address to listen and relay on where the file names none; several: with commas. Default: those of this machine." placeholder:"IP"`
	Userdb      string       `help:"SQLite database, in place of the one that the file names." type:"existingfile" placeholder:"FILE" xor:"database"`
	PsqlUserdb  string       `help:"The same, of PostgreSQL." placeholder:"CONNECTION" xor:"database"`
	RedisUserdb string       `help:"The same, of Redis." placeholder:"CONNECTION" xor:"database"`
	NoDatabase  bool         `help:"Read none." xor:"database"`
}

// Help implements [kong.HelpProvider].
func (importCoturnCmd) Help() string {
	return `Users, secrets, and lists of peers come from the file and from the database that it names, which is read by sqlite3, psql or redis-cli. Passwords are not kept: turn-users holds keys. Nothing is asked of coturn, and nothing of its changed.

The report says what was taken over, what differs, what has no equivalent and why, and what is to decide. Private addresses, which coturn lets clients reach unless denied, stay closed unless the file allows them by name.

Examples:

	wicgate import coturn /etc/turnserver.conf --out /etc/wicgate
	wicgate import coturn turnserver.conf --userdb /var/lib/turn/turndb
	wicgate import coturn turnserver.conf --address 192.0.2.1,2001:db8::1 --no-database
`
}

// Run implements the command import coturn.
func (c *importCoturnCmd) Run(out io.Writer) error {
	f, err := os.Open(c.File)
	if err != nil {
		return err
	}
	conf, err := io.ReadAll(io.LimitReader(f, coturn.MaxSize+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	options, err := coturn.Parse(conf)
	if err != nil {
		return err
	}
	ctx, stop := untilSignal()
	defer stop()
	db, err := c.database(ctx, options)
	if err != nil {
		return fmt.Errorf("%w\n  hint: --no-database imports without it", err)
	}
	place := coturn.Place{Addresses: c.Address, Realm: c.Realm, Dir: c.Out}
	if len(place.Addresses) == 0 {
		if place.Addresses, err = machineAddresses(); err != nil {
			return fmt.Errorf("list this machine's addresses: %w\n  hint: name them with --address", err)
		}
	}
	r := coturn.Convert(options, db, place)
	written, err := writeImport(c.Out, r)
	if err != nil {
		return err
	}
	printImport(out, r)
	fmt.Fprintf(out, "\nWritten\n")
	for _, name := range written {
		fmt.Fprintf(out, "  %s\n", name)
	}
	_, err = fmt.Fprintf(out, "\n%s to decide. Then:  wicgate check turn --config %s\n",
		count(countNotes(r.Notes, coturn.Decide), "thing"), filepath.Join(c.Out, coturn.FileYAML))
	return err
}

// database reads the one that is asked for, or the file's.
func (c *importCoturnCmd) database(ctx context.Context, options coturn.Options) (coturn.Database, error) {
	source, ok := options.Source()
	for kind, where := range map[string]string{"sqlite": c.Userdb, "postgresql": c.PsqlUserdb, "redis": c.RedisUserdb} {
		if where != "" {
			source, ok = coturn.Source{Kind: kind, Where: secret.New([]byte(where))}, true
		}
	}
	if !ok || c.NoDatabase {
		return coturn.Database{}, nil
	}
	return userdb.Read(ctx, source)
}

// machineAddresses are those that turnserver would listen on, without loopback and link-local ones.
func machineAddresses() (list []netip.Addr, err error) {
	all, err := net.InterfaceAddrs()
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().IsGlobalUnicast() && !slices.Contains(list, p.Addr()) {
			list = append(list, p.Addr())
		}
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return list, err
}

// writeImport writes the files, none of which may be there.
func writeImport(dir string, r coturn.Result) (written []string, err error) {
	files := []struct {
		name string
		body []byte
	}{{coturn.FileYAML, []byte(r.YAML)}, {coturn.FileUsers, r.Users.Expose()}, {coturn.FileSecrets, r.Secrets.Expose()}, {coturn.FileKeys, nil}}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	for _, f := range files {
		if _, err := os.Lstat(filepath.Join(dir, f.name)); !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s is there already, and is not overwritten\n  hint: name another folder with --out", filepath.Join(dir, f.name))
		}
	}
	for _, f := range files {
		if f.body == nil {
			continue
		}
		name := filepath.Join(dir, f.name)
		w, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return written, err
		}
		_, err = w.Write(f.body)
		if err = errors.Join(err, w.Close()); err != nil {
			return written, err
		}
		written = append(written, name)
	}
	if len(r.Keys) > 0 {
		name := filepath.Join(dir, coturn.FileKeys)
		if err := writeKeys(name, r); err != nil {
			return written, err
		}
		written = append(written, name)
	}
	return written, nil
}

// writeKeys makes the file of plain keys.
func writeKeys(name string, r coturn.Result) error {
	var keys []keyring.PlainKey
	for _, k := range r.Keys {
		format, ok := token.ParseFormat(k.Format)
		if !ok {
			return fmt.Errorf("key %q: no format %s", k.KID, k.Format)
		}
		keys = append(keys, keyring.PlainKey{KID: k.KID, Enc: format, K: k.K, From: k.From, Exp: k.Exp})
	}
	ring, err := keyring.OpenPlain(name, r.Name)
	if err == nil {
		_, err = ring.Learn(time.Now(), keys...)
	}
	return err
}

func countNotes(notes []coturn.Note, kind coturn.Kind) (n int) {
	for _, note := range notes {
		if note.Kind == kind {
			n++
		}
	}
	return n
}

func printImport(out io.Writer, r coturn.Result) {
	title := map[coturn.Kind]string{coturn.Took: "Taken over", coturn.Differs: "Differs from coturn", coturn.Lost: "No equivalent",
		coturn.Moot: "Not needed", coturn.Decide: "To decide"}
	for i, kind := range coturn.Kinds {
		if countNotes(r.Notes, kind) == 0 {
			continue
		}
		if i > 0 {
			fmt.Fprintln(out)
		}
		fmt.Fprintln(out, title[kind])
		for _, n := range r.Notes {
			if n.Kind != kind {
				continue
			}
			at := ""
			if n.Line > 0 {
				at = fmt.Sprintf("line %d", n.Line)
			}
			fmt.Fprintf(out, "  %-9s %s: %s\n", at, n.Option, n.Text)
		}
	}
}
