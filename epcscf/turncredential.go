package epcscf

import (
	"context"
	"fmt"
	"strings"
	"time"

	"wicgate/internal/secret"
	"wicgate/internal/siptx"
	turntoken "wicgate/internal/token" // "token" is what tests call a SIP token
)

// turnCredential is the header field by which a WIC asks for a credential of the TURN server, and gets
// it (TR 33.872 §6.3.3, TS 33.203 X.5: "a 3GPP extension header"; none is registered).
const turnCredential = "TURN-Credential"

// TURNConfig is for the credentials that the edge issues. The zero value: none.
type TURNConfig struct {
	// Secret is what is shared with the TURN server, asked for each credential; nil = none. It is not used
	// where Push is.
	Secret func() secret.Bytes
	// URLs of the TURN server (RFC 7065).
	URLs []string
	// Life of a credential; 0 = 1 h, at most 24 h.
	Life time.Duration
	// Push makes a credential at random and tells the TURN servers (approach 2); nil: it is derived from
	// Secret (approach 1). It may wait, for less than a second.
	Push func(ctx context.Context, pseudonym string, ends time.Time) (username string, password secret.Bytes, err error)
	// SHA256 makes credentials by HMAC-SHA256, which TURN servers other than wicgate do not know.
	SHA256 bool
}

func (t *TURNConfig) complete() error {
	if t.Life == 0 {
		t.Life = time.Hour
	}
	if t.Life < time.Second || t.Life > 24*time.Hour {
		return fmt.Errorf("epcscf: life of TURN credentials %v: want 1s to 24h; set epcscf.turn_credential_life", t.Life)
	}
	for _, u := range t.URLs {
		if !strings.HasPrefix(u, "turn:") && !strings.HasPrefix(u, "turns:") || strings.ContainsAny(u, "\"\\\r\n") {
			return fmt.Errorf("epcscf: TURN server URL %q: want turn:host:port or turns:host:port (RFC 7065)", u)
		}
	}
	return nil
}

// withCredential calls then with the answer to a request of b that asks for a TURN credential, a fresh one
// each time, or with nothing. It goes over WSS alone, as the password stands in it. Where TURN servers
// have to be told first, then comes later, under the lock too.
func (e *Edge) withCredential(m *siptx.Message, b *binding, then func(...siptx.Header)) {
	t := e.cfg.TURN
	if b.flow.transport != "WSS" || t.Secret == nil && t.Push == nil || !strings.EqualFold(strings.TrimSpace(m.Get(turnCredential)), "request") {
		then()
		return
	}
	expires := time.Now().Add(t.Life).Truncate(time.Second)
	if t.Push == nil {
		username := turntoken.EphemeralUsername(expires, b.alias)
		if t.SHA256 {
			username = turntoken.EphemeralUsernameSHA256(expires, b.alias)
		}
		then(e.credentialField(username, turntoken.EphemeralPassword(t.Secret(), username), expires))
		return
	}
	if e.stopped {
		return
	}
	alias := b.alias
	e.work.Go(func() {
		e.fault("TURN credential", func() {
			username, password, err := t.Push(context.Background(), alias, expires)
			e.locked(func() {
				if err != nil { // the registration is good without
					e.stats.TURNUntold++
					e.log.Error("no TURN credential for a browser that asked: the TURN servers cannot be told", "pseudonym", alias, "error", err)
					then()
					return
				}
				then(e.credentialField(username, password, expires))
			})
		})
	})
}

func (e *Edge) credentialField(username string, password secret.Bytes, expires time.Time) siptx.Header {
	var v strings.Builder
	for _, u := range e.cfg.TURN.URLs {
		fmt.Fprintf(&v, `uri="%s",`, u)
	}
	fmt.Fprintf(&v, `username="%s",password="%s",expires=%d`, username, password.Expose(), expires.Unix())
	e.stats.TURNCredentials++
	return siptx.Header{Name: turnCredential, Value: v.String()}
}
