package main

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"time"

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

// secrets are those of ephemeral TURN credentials, read once for all roles of this process; nil
// where no file is configured and no edge of this process issues such credentials.
func (h *house) secrets() ([]secret.Bytes, error) {
	if h.file.TURN.Secrets == "" && !h.has("epcscf") {
		return nil, nil
	}
	if h.turnSecrets == nil {
		list, err := keyring.OpenSecrets(h.path(h.file.TURN.Secrets, "turn-secrets.txt"), true)
		if err != nil {
			return nil, fmt.Errorf("%w\n  hint: turn.secrets names the file; by default it is %s", err, filepath.Join(h.data, "turn-secrets.txt"))
		}
		h.turnSecrets = list
	}
	return h.turnSecrets, nil
}
