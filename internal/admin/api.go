package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// failure is an error as the API writes it.
type failure struct {
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

type failureForm struct {
	Error failure `json:"error"`
}

func answer(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(v) //nolint:errcheck // the client has gone
}

func refuse(w http.ResponseWriter, code int, message, hint string) {
	answer(w, code, failureForm{failure{message, hint}})
}

// SessionList is the answer of GET /v1/turn/sessions.
type SessionList struct {
	Sessions []Session `json:"sessions"` // oldest first
	Left     int       `json:"left"`     // how many more there are than one answer holds
}

// api has the routes of the socket.
type api struct {
	cfg   Config
	ctx   context.Context // of the connections that are no HTTP any more; ended by end
	stop  context.CancelFunc
	taken sync.WaitGroup // those connections
}

// end ends the connections that are no HTTP any more.
func (a *api) end() {
	a.stop()
	a.taken.Wait()
}

func newAPI(cfg Config) (*api, http.Handler) {
	a := &api{cfg: cfg}
	a.ctx, a.stop = context.WithCancel(context.Background())
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/stats", a.stats)
	mux.HandleFunc("GET /v1/turn/sessions", a.sessions)
	mux.HandleFunc("GET /v1/turn/sessions/{id}", a.session)
	mux.HandleFunc("DELETE /v1/turn/sessions/{id}", a.kill)
	mux.HandleFunc("POST /v1/revoke", a.revoke)
	mux.HandleFunc("POST /v1/reload", a.reload)
	if d := cfg.Drainer; d != nil {
		mux.HandleFunc("GET /v1/drain", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, d.Drained()) })
		mux.HandleFunc("POST /v1/drain", a.drain)
		mux.HandleFunc("DELETE /v1/drain", func(w http.ResponseWriter, _ *http.Request) {
			d.Undrain()
			answer(w, http.StatusOK, d.Drained())
		})
	}
	if u := cfg.Upgrade; u != nil {
		mux.HandleFunc("GET /v1/process", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, u.Process()) })
		mux.HandleFunc("POST /v1/upgrade", a.upgrade)
		mux.HandleFunc("POST /v1/takeover", a.takeOver)
	}
	observe(mux, cfg.Health, cfg.Metrics)
	return a, mux
}

// observe adds what an observer may see.
func observe(mux *http.ServeMux, health *Health, metrics http.Handler) {
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { text(w, http.StatusOK, "alive\n") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		report := health.Ready(r.Context())
		code := http.StatusOK
		if !report.Ready {
			code = http.StatusServiceUnavailable
		}
		if strings.Contains(r.Header.Get("Accept"), "application/json") {
			answer(w, code, report)
			return
		}
		text(w, code, report.String())
	})
	if metrics != nil {
		mux.Handle("GET /metrics", metrics)
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		refuse(w, http.StatusNotFound, fmt.Sprintf("nothing is here for %s %.100s", r.Method, r.URL.Path), "is this wicgate of another version than the command?")
	})
}

func text(w http.ResponseWriter, code int, s string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	w.Write([]byte(s)) //nolint:errcheck // the client has gone
}

func (a *api) stats(w http.ResponseWriter, _ *http.Request) {
	all := map[string]any{}
	if a.cfg.Stats != nil {
		all = a.cfg.Stats()
	}
	answer(w, http.StatusOK, all)
}

// turn is the TURN server here, nil after an answer that there is none.
func (a *api) turn(w http.ResponseWriter) TURN {
	if a.cfg.TURN != nil {
		if t := a.cfg.TURN(); t != nil {
			return t
		}
	}
	refuse(w, http.StatusNotFound, "no TURN server runs in this process", "name the data folder of the process that runs the role turn, with --data")
	return nil
}

func (a *api) sessions(w http.ResponseWriter, r *http.Request) {
	t := a.turn(w)
	if t == nil {
		return
	}
	list := t.Sessions()
	if p := r.URL.Query().Get("pseudonym"); p != "" {
		list = slices.DeleteFunc(list, func(s Session) bool { return s.Pseudonym != p })
	}
	slices.SortFunc(list, func(x, y Session) int {
		if c := x.Since.Compare(y.Since); c != 0 {
			return c
		}
		return strings.Compare(x.ID, y.ID)
	})
	out := SessionList{Sessions: list[:min(len(list), maxSessions)]}
	out.Left = len(list) - len(out.Sessions)
	if out.Sessions == nil {
		out.Sessions = []Session{}
	}
	answer(w, http.StatusOK, out)
}

func noSession(w http.ResponseWriter, id string) {
	refuse(w, http.StatusNotFound, fmt.Sprintf("no TURN session %.64q", id), "it may have ended; \"wicgate turn sessions\" lists those that live")
}

func (a *api) session(w http.ResponseWriter, r *http.Request) {
	t := a.turn(w)
	if t == nil {
		return
	}
	id := r.PathValue("id")
	for _, s := range t.Sessions() {
		if s.ID == id {
			answer(w, http.StatusOK, s)
			return
		}
	}
	noSession(w, id)
}

func (a *api) kill(w http.ResponseWriter, r *http.Request) {
	t := a.turn(w)
	if t == nil {
		return
	}
	id := r.PathValue("id")
	if !t.Kill(id) {
		noSession(w, id)
		return
	}
	answer(w, http.StatusOK, struct {
		Killed string `json:"killed"`
	}{id})
}

func (a *api) drain(w http.ResponseWriter, r *http.Request) {
	var q struct {
		Within int64 `json:"within_seconds"`
	}
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&q); err != nil || q.Within < 0 || q.Within > int64(maxDrain/time.Second) {
		refuse(w, http.StatusBadRequest, fmt.Sprintf("want {\"within_seconds\": n} with n from 0 to %d", int64(maxDrain/time.Second)), "")
		return
	}
	a.cfg.Drainer.Drain(time.Duration(q.Within) * time.Second)
	answer(w, http.StatusOK, a.cfg.Drainer.Drained())
}

func (a *api) upgrade(w http.ResponseWriter, r *http.Request) {
	var q struct {
		Program string `json:"program"`
		Within  int64  `json:"within_seconds"`
	}
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&q); err != nil || !filepath.IsAbs(q.Program) || q.Within < 0 || q.Within > int64(maxDrain/time.Second) {
		refuse(w, http.StatusBadRequest, fmt.Sprintf("want {\"program\": \"/path\", \"within_seconds\": n} with n from 0 to %d", int64(maxDrain/time.Second)), "")
		return
	}
	p, err := a.cfg.Upgrade.Upgrade(q.Program, time.Duration(q.Within)*time.Second)
	if err != nil {
		refuse(w, http.StatusConflict, err.Error(), "")
		return
	}
	answer(w, http.StatusOK, p)
}

// upgradeProtocol is the name of internal/takeover in HTTP's Upgrade (RFC 9110 §7.8).
const upgradeProtocol = "wicgate-takeover"

// takeOver gives the connection away, if the process at its other end is of the same user: it gets the
// clients' keys.
func (a *api) takeOver(w http.ResponseWriter, r *http.Request) {
	who, _ := r.Context().Value(callerKey{}).(caller)
	if who.err != nil || !who.known || who.uid != os.Geteuid() {
		refuse(w, http.StatusForbidden, "only a process of the same user takes over", fmt.Sprintf("start it as the user with the number %d", os.Geteuid()))
		return
	}
	if r.Header.Get("Upgrade") != upgradeProtocol {
		refuse(w, http.StatusUpgradeRequired, "this is how a process takes over from another; \"wicgate run --takeover\" does it", "")
		return
	}
	a.taken.Add(1) // before HTTP waits for the connection no more
	defer a.taken.Done()
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		refuse(w, http.StatusInternalServerError, "the connection is not free", "")
		return
	}
	defer c.Close() // there is nothing more to say
	u := unlimited(c).(*net.UnixConn)
	if _, err := rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + upgradeProtocol + "\r\n\r\n"); err == nil && rw.Flush() == nil {
		a.cfg.Upgrade.TakeOver(a.ctx, u)
	}
}

func (a *api) revoke(w http.ResponseWriter, r *http.Request) {
	var q struct {
		Name      string `json:"name"`
		User      string `json:"user"`
		Pseudonym string `json:"pseudonym"`
	}
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	var tooLarge *http.MaxBytesError
	if err := dec.Decode(&q); errors.As(err, &tooLarge) {
		refuse(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("the body has more than %d bytes", tooLarge.Limit), "")
		return
	} else if err != nil {
		refuse(w, http.StatusBadRequest, "the body is no JSON of the form {\"name\": \"…\"}", "")
		return
	}
	kind, name, given := KindAny, q.Name, 0
	for k, v := range map[string]string{KindAny: q.Name, KindUser: q.User, KindPseudonym: q.Pseudonym} {
		if v != "" {
			kind, name = k, v
			given++
		}
	}
	if given != 1 || len(name) > 128 {
		refuse(w, http.StatusBadRequest, "want one of name, user and pseudonym, of at most 128 bytes", "")
		return
	}
	var rev Revoker
	if a.cfg.Revoker != nil {
		rev = a.cfg.Revoker()
	}
	if rev == nil {
		refuse(w, http.StatusNotFound, "nothing that runs in this process can revoke", "name the data folder of the process that runs waf, epcscf or turn, with --data")
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), revokeTime)
	defer cancel()
	done, err := rev.Revoke(ctx, kind, name)
	switch {
	case errors.Is(err, ErrNotFound):
		refuse(w, http.StatusNotFound, err.Error(), "\"wicgate turn sessions\" shows the pseudonyms that hold TURN sessions here")
	case err != nil:
		a.cfg.Log.Error("admin: revocation failed", "kind", kind, "name", name, "error", err)
		refuse(w, http.StatusServiceUnavailable, fmt.Sprintf("revoke %q: %v", name, err), "what was reached has ended; run it again until it succeeds")
	default:
		a.cfg.Log.Info("admin: revoked", "kind", kind, "name", name, "log_ins", done.LogIns, "allocations", done.Allocations)
		answer(w, http.StatusOK, done)
	}
}
