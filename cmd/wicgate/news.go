package main

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"time"

	"wicgate/internal/config"
	"wicgate/internal/keyring"
	"wicgate/internal/life"
	"wicgate/internal/secret"
	"wicgate/internal/session"
	"wicgate/internal/store"
)

// news joins who issues credentials, waf and epcscf, and who enforces their end, turn and epcscf.
type news struct {
	issuer   *session.Issuer
	follower *session.Follower // tells the roles of this process
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
