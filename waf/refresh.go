package waf

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"wicgate/internal/store"
)

const (
	grantRefresh = "refresh_token"

	// overlap is how long a spent refresh token is taken for the retry of a page whose answer was
	// lost: a page waits some 10 s for one, and may try a few times.
	overlap = time.Minute
	// maxAnswers is how many answers to one refresh token are remembered, the last ones.
	maxAnswers = 4
	// maxChains bounds the pages of one session that can refresh: the one that was silent longest
	// gives way. A page that is loaded again begins a new chain.
	maxChains = 8
)

// chain is the refresh tokens of one page, each good for the next (rotation, RFC 9700 §4.14.2). All
// chains of a session are one family: who brings a spent token ends the session, as either that one
// or the page before has stolen it. The store has hashes alone.
//
// A page whose answer was lost brings the token that it spent again. For overlap, and while no
// answer to it has been used, it is given another. The first answer that is used makes the rest
// spent tokens.
type chain struct {
	ID     string   `json:"id"`
	Client string   `json:"client"`
	Scope  string   `json:"scope"`
	Spent  string   `json:"spent,omitempty"` // hash of the token that Next answers; empty at first
	At     int64    `json:"at"`              // when that first came, Unix seconds
	Next   []string `json:"next"`            // hashes of the tokens given for it
}

// errReused: a refresh token came that has been spent.
var errReused = errors.New("waf: refresh token used twice")

// take spends a token for the next one, both given as hashes.
func (c *chain) take(tok, next string, now time.Time) error {
	switch {
	case slices.Contains(c.Next, tok):
		c.Spent, c.At, c.Next = tok, now.Unix(), []string{next}
		return nil
	case tok == c.Spent && now.Unix() < c.At+int64(overlap/time.Second):
		c.Next = append(c.Next[max(0, len(c.Next)-maxAnswers+1):], next)
		return nil
	}
	return errReused
}

// chain returns a chain by its ID, nil where there is none.
func (s *session) chain(id string) *chain {
	i := slices.IndexFunc(s.Chains, func(c chain) bool { return c.ID == id })
	if i < 0 {
		return nil
	}
	return &s.Chains[i]
}

// begin adds a chain and returns its first refresh token.
func (s *session) begin(client, scope string, now time.Time) string {
	if len(s.Chains) >= maxChains {
		oldest := slices.MinFunc(s.Chains, func(a, b chain) int { return int(a.At - b.At) })
		s.Chains = slices.DeleteFunc(s.Chains, func(c chain) bool { return c.ID == oldest.ID })
	}
	ticket := randomTicket()
	c := chain{ID: randomName(), Client: client, Scope: scope, At: now.Unix(), Next: []string{hashTicket(ticket)}}
	s.Chains = append(s.Chains, c)
	return refreshToken(s.key, c.ID, ticket)
}

// refreshToken is session, chain and a secret of 256 bits, with dots between.
func refreshToken(key, id, ticket string) string { return key + "." + id + "." + ticket }

func parseRefresh(tok string) (key, id, ticket string, ok bool) {
	if len(tok) > 256 {
		return "", "", "", false
	}
	key, rest, _ := strings.Cut(tok, ".")
	id, ticket, _ = strings.Cut(rest, ".")
	if _, isGuest := guestNumber(key); !isGuest && !isTicket(key) || len(id) != 22 || !isTicket(ticket) {
		return "", "", "", false
	}
	return key, id, ticket, true
}

// refresh is the grant refresh_token (RFC 6749 §6).
func (s *Server) refresh(r *http.Request, p values, _ Client) (any, *tokenError) {
	client, no := s.public(p)
	if no != nil {
		return nil, no
	}
	if p["refresh_token"] == "" {
		return nil, bad(BadParameter, "invalid_request", "refresh_token is missing", "client", client.ID)
	}
	key, id, ticket, ok := parseRefresh(p["refresh_token"])
	if !ok {
		return nil, bad(UnknownRefresh, "invalid_grant", "the refresh token is unknown", "client", client.ID)
	}
	ctx, cancel := inStore(r.Context())
	defer cancel()
	sess, err := s.readSession(ctx, key)
	if errors.Is(err, errNoSession) {
		e := bad(SessionEnded, "invalid_grant", "the session has ended: log in again", "client", client.ID)
		if c := sess.chain(id); c != nil && c.Client == client.ID { // a reuse, of which the enforcers may not have heard
			e.attrs = append(e.attrs, s.endReused(ctx, sess)...)
		}
		return nil, e
	} else if err != nil {
		return nil, noStore(err)
	}
	c := sess.chain(id)
	if c == nil { // that of a session before, or pushed out by pages that came later
		return nil, bad(UnknownRefresh, "invalid_grant", "the refresh token is unknown", "client", client.ID)
	}
	who := []any{"client", client.ID, "user", sess.User, "pseudonym", sess.Pseudonym}
	if c.Client != client.ID {
		return nil, bad(ForeignCode, "invalid_grant", "the refresh token was issued to another client", who...)
	}
	if _, ok := grantedScope(p["scope"]); !ok { // there is one scope, so none can be over that of the chain
		return nil, bad(BadScope, "invalid_scope", "the scope must be that of the log-in", who...)
	}
	if wait, ok := s.byPseudonym.Take("refresh "+sess.Pseudonym, time.Now()); !ok {
		e := bad(TooManyTokens, "temporarily_unavailable", "too many tokens for this log-in", who...)
		e.status, e.wait = http.StatusTooManyRequests, wait
		return nil, e
	}
	identity, no := s.identityOf(ctx, sess)
	if no != nil {
		no.attrs = append(no.attrs, who...)
		return nil, no
	}
	var scope string
	next := randomTicket()
	sess, err = s.changeSession(ctx, key, func(sess *session) error {
		c := sess.chain(id)
		if c == nil {
			return errNoSession
		}
		scope = c.Scope
		now := time.Now()
		if err := c.take(hashTicket(ticket), hashTicket(next), now); err != nil {
			sess.Over = true
			return err
		}
		s.renew(sess, now)
		return nil
	})
	switch {
	case err == nil:
	case errors.Is(err, errReused):
		e := bad(RefreshReused, "invalid_grant", "the refresh token has been used: log in again", append(who, "effect", "session ended")...)
		e.attrs = append(e.attrs, s.endReused(ctx, sess)...)
		return nil, e
	case errors.Is(err, errNoSession):
		return nil, bad(SessionEnded, "invalid_grant", "the session has ended: log in again", who...)
	default:
		return nil, noStore(err)
	}
	s.stats.refreshes.Add(1)
	return s.issue(r, sess, identity, client.ID, scope, refreshToken(key, id, next))
}

// endReused ends a session that a reuse has marked as over, and returns what to log where that failed. Then
// the next one who comes with a token of it tries again.
func (s *Server) endReused(ctx context.Context, sess session) []any {
	if err := s.logOut(ctx, sess, ReasonRevoked); err != nil {
		return []any{"error", err}
	}
	return nil
}

// identityOf reads whom the tokens of a session are for.
func (s *Server) identityOf(ctx context.Context, sess session) (user, *tokenError) {
	if over, err := s.ended(ctx, sess.Pseudonym); err != nil {
		return user{}, noStore(err)
	} else if over {
		return user{}, bad(SessionEnded, "invalid_grant", "the session has ended: log in again")
	}
	if n, ok := guestNumber(sess.key); ok {
		if n > s.cfg.Guests {
			return user{}, bad(SessionEnded, "invalid_grant", "guests are no longer let in, or not so many")
		}
		return s.guest(n), nil
	}
	u, err := s.readUser(ctx, sess.User)
	if errors.Is(err, store.ErrNotFound) {
		return user{}, bad(UnknownUser, "invalid_grant", "the session has ended: log in again")
	} else if err != nil {
		return user{}, noStore(err)
	}
	return u, nil
}
