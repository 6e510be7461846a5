package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"time"

	"wicgate/epcscf"
	"wicgate/internal/config"
	"wicgate/internal/keyring"
	"wicgate/internal/life"
	"wicgate/internal/pushed"
	"wicgate/internal/secret"
	"wicgate/internal/session"
	"wicgate/internal/store"
	"wicgate/turn"
)

// news joins who issues credentials, waf and epcscf, and who enforces their end, turn and epcscf.
type news struct {
	issuer   *session.Issuer
	follower *session.Follower // tells the roles of this process
}

// pushes says whether the edge's TURN credentials are told over the bus.
func (h *house) pushes() bool { return h.file.EPCSCF.TURNCredential == "pushed" }

// pushedTo makes the TURN server t know the credentials that edges push.
func (h *house) pushedTo(t *turn.Tenant) error {
	if !h.pushes() {
		return nil
	}
	if h.bus == nil {
		return errors.New("turn: epcscf.turn_credential is pushed, and there is no bus to hear of credentials on\n  hint: set bus.url to the edge's, or turn_credential: ephemeral")
	}
	secrets, err := h.secrets()
	if err != nil {
		return err
	}
	if secrets == nil {
		return errors.New("turn: epcscf.turn_credential is pushed, and turn.secrets names no file to open credentials with\n  hint: copy the edge's; by default it is turn-secrets.txt in its data folder")
	}
	b := pushed.NewBook(h.bus, h.bus, func() []secret.Bytes { return *h.reloader.secrets.Load() }, h.log.With("role", "turn"))
	stop, err := b.Start(context.Background())
	if err != nil {
		return err
	}
	h.closers = append(h.closers, stop)
	h.add("pushed", b.Serve, func() any { return b.Stats() })
	t.Pushed = func(username string) (turn.Pushed, bool) {
		c, state := b.Get(username)
		return turn.Pushed{Password: c.Password, Pseudonym: c.Pseudonym, Ends: c.Ends, Pending: state == pushed.Asking}, state != pushed.Unknown
	}
	h.reloader.pushed = t.Pushed
	return nil
}

// turnCredentials are those that the edge gives to WICs.
func (h *house) turnCredentials() (epcscf.TURNConfig, error) {
	c := h.file.EPCSCF
	if _, err := h.secrets(); err != nil {
		return epcscf.TURNConfig{}, err
	}
	t := epcscf.TURNConfig{Secret: h.newestSecret, URLs: h.file.TURN.URLs, Life: time.Duration(c.TURNCredentialLife), SHA256: c.TURNCredentialMAC == "sha256"}
	if h.pushes() {
		i := pushed.NewIssuer(h.bus, h.bus, func() []secret.Bytes { return *h.reloader.secrets.Load() }, h.log.With("role", "epcscf"))
		h.parts = append(h.parts, life.Part{Name: "pushed credentials", Serve: i.Serve})
		t.Push = func(ctx context.Context, pseudonym string, ends time.Time) (string, secret.Bytes, error) {
			c, err := i.Push(ctx, pseudonym, ends)
			return c.Username, c.Password, err
		}
	}
	return t, nil
}

// openNews needs the bus where there is one. turn alone without bus.url has a store in memory: its
// revocations, by the admin socket, hold until it ends.
func (h *house) openNews(*http.ServeMux) error {
	var st interface {
		store.Store
		store.Bus
	} = store.NewMemory()
	if h.bus != nil {
		st = h.bus
	}
	n := &h.news
	n.issuer = session.NewIssuer(st, st, h.log)
	n.follower = session.NewFollower(st, st, h.log)
	return nil
}

// followNews comes when all roles are built: from here on nothing is missed.
func (h *house) followNews() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	stop, err := h.news.follower.Start(ctx)
	if err != nil {
		return err
	}
	h.closers = append(h.closers, stop)
	h.parts = append(h.parts, life.Part{Name: "news", Serve: h.news.follower.Serve}, life.Part{Name: "news issuer", Serve: h.news.issuer.Serve})
	return nil
}

// secrets are those of ephemeral TURN credentials, read once for all roles of this process.
func (h *house) secrets() (list *[]secret.Bytes, err error) {
	if list = h.reloader.secrets.Load(); list == nil {
		list, err = h.readSecrets(h.file, true)
		h.reloader.secrets.Store(list)
	}
	return list, err
}

// newestSecret is that by which credentials are made.
func (h *house) newestSecret() secret.Bytes { return (*h.reloader.secrets.Load())[0] }

// readSecrets reads those of f; nil where no file is configured and no edge of this process issues such
// credentials. With make, a file that is not there is made.
func (h *house) readSecrets(f *config.File, make bool) (*[]secret.Bytes, error) {
	if f.TURN.Secrets == "" && !h.has("epcscf") {
		return nil, nil
	}
	list, err := keyring.OpenSecrets(h.path(f.TURN.Secrets, "turn-secrets.txt"), make)
	if err != nil {
		return nil, fmt.Errorf("%w\n  hint: turn.secrets names the file; by default it is %s", err, filepath.Join(h.data, "turn-secrets.txt"))
	}
	return &list, nil
}
