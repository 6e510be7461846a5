package admin

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
)

// door knows who may come in: uid and root.
type door struct {
	uid int
	log *slog.Logger
}

type callerKey struct{}

// caller is the process at the other end of a connection.
type caller struct {
	uid, pid int
	known    bool // false where the system does not tell; then the socket's mode is all there is
	err      error
}

// note is for http.Server.ConnContext.
func (d door) note(ctx context.Context, c net.Conn) context.Context {
	c = unlimited(c)
	who := caller{err: fmt.Errorf("%T is no Unix socket", c)}
	if u, ok := c.(*net.UnixConn); ok {
		who = peer(u)
	}
	return context.WithValue(ctx, callerKey{}, who)
}

func (d door) allowed(c caller) bool {
	return c.err == nil && (!c.known || c.uid == 0 || c.uid == d.uid)
}

// guard refuses strangers, and logs what the others change.
func (d door) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, _ := r.Context().Value(callerKey{}).(caller)
		if !d.allowed(c) {
			d.log.Warn("admin: refused", "uid", c.uid, "pid", c.pid, "owner", d.uid, "error", c.err)
			refuse(w, http.StatusForbidden, "this door is for the user that wicgate runs as, and for root", "run the command as that user, or with sudo")
			return
		}
		if r.Method != http.MethodGet {
			d.log.Info("admin: asked", "method", r.Method, "path", r.URL.Path, "uid", c.uid, "pid", c.pid)
		}
		next.ServeHTTP(w, r)
	})
}
