// Package admin is the one door for the operator of this machine: a small HTTP API on a Unix
// socket in the data folder. The command line is its client. The socket's mode is 0600, and on Linux
// each connection's peer credentials are looked at too: its owner and root get an answer, everybody
// else gets 403 and a line in the log.
//
//	GET    /v1/stats                the counters of each role that runs here: {"turn": {…}, …}
//	GET    /v1/turn/sessions        allocations; ?pseudonym= names whose
//	GET    /v1/turn/sessions/{id}   one of them
//	DELETE /v1/turn/sessions/{id}   ends it
//	POST   /v1/revoke               {"name": "…"}: ends a log-in and all that it holds; name is a
//	                                pseudonym or a user. {"user": …} or {"pseudonym": …} say which
//	POST   /v1/reload               {"dry_run": false}: reads the configuration again
//	GET    /v1/drain                how far a drain is
//	POST   /v1/drain                {"within_seconds": n}: sends new users elsewhere, and ends what
//	                                is left of TURN sessions after that time
//	DELETE /v1/drain                takes it back
//	GET    /v1/process              who answers: {"pid": …, "version": …}
//	POST   /v1/upgrade              {"program": path, "within_seconds": n}: starts it, to take over
//	                                from this process
//	POST   /v1/takeover             how that one begins; the connection is internal/takeover's then
//	GET    /healthz /readyz         alive; ready, with the reason why not
//	GET    /metrics                 Prometheus
//
// The last three are also what [NewObserver] serves on a TCP address, and nothing else is.
//
// An error is JSON: {"error": {"message": what was tried and why it failed, "hint": what to do}}.
// What roles can do is declared here by small interfaces; cmd/wicgate joins them.
package admin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// SocketName is the socket's file in the data folder.
const SocketName = "admin.sock"

const (
	readTime    = 5 * time.Second // a request, its body included
	answerTime  = 15 * time.Second
	revokeTime  = 12 * time.Second // a revocation waits for the store, and what it has reached is told in time
	idleTime    = time.Minute
	headerSize  = 4 << 10
	maxBody     = 4 << 10 // of a request
	maxSessions = 10_000  // in one answer
	maxConns    = 64      // at once; more wait in the kernel
)

// Session is a TURN allocation as an operator sees it. It holds no secret.
type Session struct {
	ID         string    `json:"id"`
	Pseudonym  string    `json:"pseudonym"`
	Tenant     string    `json:"tenant"`    // its name
	Client     string    `json:"client"`    // transport address
	Transport  string    `json:"transport"` // udp, dtls, tcp, tls
	Relayed    []string  `json:"relayed"`   // transport addresses that peers see, IPv4 first
	Since      time.Time `json:"since"`
	Expires    time.Time `json:"expires"`    // unless refreshed
	Credential string    `json:"credential"` // its kind, never the secret
	// CredentialEnds is when it ends; the policy says what that means for the session. A static user's does not.
	CredentialEnds time.Time `json:"credential_ends,omitzero"`
	Permissions    []string  `json:"permissions"`
	Channels       []string  `json:"channels"` // peers
	// Relayed payload, to peers and to the client.
	ToPeerPackets   uint64 `json:"to_peer_packets"`
	ToPeerBytes     uint64 `json:"to_peer_bytes"`
	ToClientPackets uint64 `json:"to_client_packets"`
	ToClientBytes   uint64 `json:"to_client_bytes"`
}

// TURN is what a TURN server offers.
type TURN interface {
	// Sessions are the allocations now.
	Sessions() []Session
	// Kill ends one, and reports whether it was there.
	Kill(id string) bool
}

// Revoked is what a revocation has reached in this process. Other nodes hear of it by the bus.
type Revoked struct {
	As          string `json:"as"`          // what the name was taken for: user or pseudonym
	LogIns      int    `json:"log_ins"`     // log-in sessions ended
	Allocations int    `json:"allocations"` // of this process's TURN server, ended
}

// Kinds of names that a [Revoker] may be given.
const (
	KindAny       = ""          // a user where there is one of that name, else a pseudonym
	KindUser      = "user"      // a user's or guest's name
	KindPseudonym = "pseudonym" // of a log-in session
)

// Drain is how far a drain is.
type Drain struct {
	Draining bool `json:"draining"`
	Sessions int  `json:"sessions"` // TURN sessions left
	// Oldest is the age of the oldest of them, and Left is how long until they are ended, in seconds.
	Oldest int64 `json:"oldest_seconds"`
	Left   int64 `json:"left_seconds"`
}

// maxDrain bounds how long TURN sessions may be waited for.
const maxDrain = 24 * time.Hour

// Drainer sends new users elsewhere.
type Drainer interface {
	// Drain does so from now on, and ends what is left after within.
	Drain(within time.Duration)
	// Undrain takes it back.
	Undrain()
	// Drained says how far it is.
	Drained() Drain
}

// Process is who answers.
type Process struct {
	PID     int    `json:"pid"`
	Version string `json:"version"`
	// Next is the process that was started to take over from this one, 0 = none, and Failed why nothing
	// came of it.
	Next   int    `json:"next,omitempty"`
	Failed string `json:"failed,omitempty"`
}

// Upgrader starts the process that comes after this one, and is taken over from.
type Upgrader interface {
	Process() Process
	// Upgrade starts program with the arguments of this process, and returns at once.
	Upgrade(program string, within time.Duration) (Process, error)
	// TakeOver serves c, of a process of the same user that is to take over from this one, until ctx
	// ends or all is said.
	TakeOver(ctx context.Context, c *net.UnixConn)
}

// ErrNotFound says that a revocation names nobody. Wrap it to say where was looked.
var ErrNotFound = errors.New("not found")

// Revoker ends log-in sessions, and returns once that cannot be lost.
type Revoker interface {
	Revoke(ctx context.Context, kind, name string) (Revoked, error)
}

// Config is what the door leads to. Dir and Health are required; what is nil is answered with 404
// and words.
type Config struct {
	Dir     string       // data folder
	Log     *slog.Logger // nil = discard
	Health  *Health
	Stats   func() map[string]any // called for each request
	Metrics http.Handler
	TURN    func() TURN    // asked at each request, as roles start after the door; nil result: none here
	Revoker func() Revoker // same
	Reload  Reloader
	Drainer Drainer
	Upgrade Upgrader
}

// Server answers on the socket.
type Server struct {
	l   *net.UnixListener
	srv *http.Server
	api *api

	mu   sync.Mutex // guards name
	name string     // of the socket
}

// New opens the socket in cfg.Dir with mode 0600. A socket that a killed process left is replaced;
// the caller holds the data folder's lock, so none is in use.
func New(cfg Config) (*Server, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	name := filepath.Join(cfg.Dir, SocketName)
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("admin: old socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("admin: socket %s: %w\n  hint: a socket's path may have 107 bytes; use a data folder with a shorter name", name, err)
	}
	if err := os.Chmod(name, 0o600); err != nil {
		_ = l.Close() // it has served nobody
		return nil, fmt.Errorf("admin: socket %s: %w", name, err)
	}
	l.SetUnlinkOnClose(false) // the name may be another process's by then
	owner := door{uid: os.Geteuid(), log: cfg.Log}
	api, mux := newAPI(cfg)
	srv := server(owner.guard(mux), cfg.Log)
	srv.ConnContext = owner.note
	return &Server{l: l, srv: srv, api: api, name: name}, nil
}

// Serve answers until ctx ends, and removes the socket.
func (s *Server) Serve(ctx context.Context) error {
	err := serve(ctx, s.srv, s.l)
	s.api.end()
	s.mu.Lock()
	defer s.mu.Unlock()
	if one := os.Remove(s.name); !errors.Is(one, fs.ErrNotExist) { // nobody listens, so another process may have
		err = errors.Join(err, one)
	}
	return err
}

// Alias gives the socket a second name in the data folder. Then Rename makes it the only one, so that
// the first is free for the next process, or Unalias takes it away again.
func (s *Server) Alias(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	alias := filepath.Join(filepath.Dir(s.name), name)
	if err := os.Remove(alias); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("admin: %w", err)
	}
	if err := os.Link(s.name, alias); err != nil {
		return fmt.Errorf("admin: second name of the socket: %w", err)
	}
	return nil
}

// Unalias takes an Alias away.
func (s *Server) Unalias(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = os.Remove(filepath.Join(filepath.Dir(s.name), name)) // the next Alias does it, if this fails
}

// Rename makes an Alias the only name. The other is not removed: it may be the next process's already.
func (s *Server) Rename(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.name = filepath.Join(filepath.Dir(s.name), name)
}

// server is an http.Server with bounds.
func server(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler: http.MaxBytesHandler(h, maxBody), ReadTimeout: readTime, WriteTimeout: answerTime, IdleTimeout: idleTime, MaxHeaderBytes: headerSize,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// serve serves until ctx ends, then lets requests under way finish for up to 1 s.
func serve(ctx context.Context, srv *http.Server, l net.Listener) error {
	done := make(chan error, 1)
	go func() { done <- srv.Serve(limit(l, maxConns)) }()
	select {
	case err := <-done:
		if !errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("admin: %w", err)
		}
		done <- http.ErrServerClosed // Leave has closed the listener
		<-ctx.Done()
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	err := srv.Shutdown(grace)
	if errors.Is(err, context.DeadlineExceeded) {
		err = srv.Close()
	}
	if served := <-done; err == nil && !errors.Is(served, http.ErrServerClosed) {
		err = served
	}
	return err
}
