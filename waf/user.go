package waf

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strings"

	"golang.org/x/sync/errgroup"

	"wicgate/internal/secret"
	"wicgate/internal/store"
)

const (
	userBucket  = "users"
	maxUserName = 64
	maxIMPU     = 16
	maxIdentity = 256 // bytes of an IMPI or IMPU; all together stay below claims.MaxSize
)

// user is a record of the store.
type user struct {
	name, display string
	password      secret.Bytes // PHC string
	impi          string
	impu          []string
}

type userForm struct {
	Version  int      `json:"v"`
	Display  string   `json:"display"`
	Password string   `json:"password"`
	IMPI     string   `json:"impi"`
	IMPU     []string `json:"impu"`
}

// userName is a name as typed, in the form in which it is a key; ok is false when it cannot be one.
func userName(typed string) (name string, ok bool) {
	name = strings.ToLower(strings.TrimSpace(typed))
	for i := range len(name) {
		switch c := name[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', strings.IndexByte("._-@+", c) >= 0:
		default:
			return "", false
		}
	}
	return name, 0 < len(name) && len(name) <= maxUserName
}

// writeUsers puts the configured users into the store, as many hashes at once as there are CPUs.
func (s *Server) writeUsers(ctx context.Context, users []User) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.NumCPU())
	for _, u := range users {
		g.Go(func() error {
			if err := s.writeUser(ctx, u); err != nil {
				return fmt.Errorf("user %q: %w", u.Name, err)
			}
			return nil
		})
	}
	return g.Wait()
}

func (s *Server) writeUser(ctx context.Context, u User) error {
	name, ok := userName(u.Name)
	size := len(u.IMPI)
	for _, i := range u.IMPU {
		size += len(i)
		if !strings.HasPrefix(i, "sip:") || len(i) > maxIdentity || strings.ContainsAny(i, "*! \t\r\n<>\"") {
			return fmt.Errorf("public identity %q: want one SIP URI, no wildcard", i)
		}
	}
	_, reserved := guestNumber(name)
	for _, i := range append([]string{u.IMPI}, u.IMPU...) {
		at, _, _ := strings.Cut(strings.TrimPrefix(strings.ToLower(i), "sip:"), "@")
		if _, is := guestNumber(at); is {
			reserved = true
		}
	}
	switch {
	case reserved:
		return errors.New("guest-01 and the like, as name or identity, are the pool's for guests; take another")
	case !ok || name != u.Name:
		return errors.New("want a name of 1 to 64 of a-z 0-9 . _ - @ +")
	case u.Password.IsZero() || len(u.Password.Expose()) > maxPassword:
		return fmt.Errorf("want a password of 1 to %d bytes", maxPassword)
	case u.IMPI == "" || len(u.IMPI) > maxIdentity || strings.Contains(u.IMPI, ":"):
		return fmt.Errorf("private identity %q: want user@realm", u.IMPI)
	case len(u.IMPU) == 0 || len(u.IMPU) > maxIMPU || size > 2048:
		return fmt.Errorf("%d public identities: want 1 to %d, 2048 bytes together", len(u.IMPU), maxIMPU)
	case len(u.Display) > maxIdentity:
		return fmt.Errorf("display name of %d bytes, at most %d", len(u.Display), maxIdentity)
	}
	phc, err := s.hasher.hash(ctx, u.Password)
	if err != nil {
		return err
	}
	b, err := json.Marshal(userForm{1, u.Display, string(phc.Expose()), u.IMPI, u.IMPU})
	if err != nil {
		return err
	}
	for range 8 { // another node may write the same users
		var old store.Entry
		if old, err = s.store.Get(ctx, userBucket, name); errors.Is(err, store.ErrNotFound) {
			_, err = s.store.Create(ctx, userBucket, name, b, 0)
		} else if err == nil {
			_, err = s.store.CompareAndSet(ctx, userBucket, name, b, old.Revision, 0)
		}
		if !errors.Is(err, store.ErrExists) && !errors.Is(err, store.ErrConflict) && !errors.Is(err, store.ErrNotFound) {
			break
		}
	}
	return err
}

// readUser returns store.ErrNotFound for a name that nobody has.
func (s *Server) readUser(ctx context.Context, name string) (user, error) {
	ctx, cancel := inStore(ctx)
	defer cancel()
	e, err := s.store.Get(ctx, userBucket, name)
	if err != nil {
		return user{}, err
	}
	var f userForm
	if err := json.Unmarshal(e.Value, &f); err != nil || f.Version != 1 {
		return user{}, fmt.Errorf("waf: the record of user %q is of another version or damaged; write it anew", name)
	}
	return user{name: name, display: f.Display, password: secret.New([]byte(f.Password)), impi: f.IMPI, impu: f.IMPU}, nil
}
