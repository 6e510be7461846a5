// Package admin is the one door for the operator of this machine: a small HTTP API on a Unix
// socket in the data folder. The command line is its client. Nobody but the socket's owner and
// root can open it.
//
//	GET /v1/stats   the counters of each role that runs here, as JSON: {"turn": {…}, …}
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// SocketName is the socket's file in the data folder.
const SocketName = "admin.sock"

// maxAnswer bounds what the client reads, in bytes.
const maxAnswer = 4 << 20

// Stats gives the counters of each role, by its name. It is called for each request.
type Stats func() map[string]any

// Server answers on the socket.
type Server struct {
	l   net.Listener
	srv *http.Server
}

// New opens the socket in dir with mode 0600. A socket that a killed process left is replaced;
// the caller holds the data folder's lock, so none is in use.
func New(dir string, stats Stats) (*Server, error) {
	name := filepath.Join(dir, SocketName)
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("admin: old socket: %w", err)
	}
	l, err := net.Listen("unix", name)
	if err != nil {
		return nil, fmt.Errorf("admin: socket %s: %w\n  hint: a socket's path may have 107 bytes; use a data folder with a shorter name", name, err)
	}
	if err := os.Chmod(name, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("admin: socket %s: %w", name, err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/stats", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(stats()) //nolint:errcheck // the client has gone
	})
	return &Server{l, &http.Server{Handler: mux, ReadTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second, MaxHeaderBytes: 4 << 10}}, nil
}

// Serve answers until ctx ends, and removes the socket.
func (s *Server) Serve(ctx context.Context) error {
	done := make(chan error, 1)
	go func() { done <- s.srv.Serve(s.l) }()
	select {
	case err := <-done:
		return fmt.Errorf("admin: %w", err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	err := s.srv.Shutdown(grace)
	if served := <-done; err == nil && !errors.Is(served, http.ErrServerClosed) {
		err = served
	}
	return err
}

// Get asks the process that uses the data folder dir, and returns the answer's JSON.
func Get(ctx context.Context, dir, path string) ([]byte, error) {
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(dir, SocketName))
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://admin"+path, nil)
	if err != nil {
		return nil, err
	}
	res, err := c.Do(req)
	if err != nil {
		return nil, fmt.Errorf("admin: nobody answers in %s: %w\n  hint: is wicgate running with --data %s, as this user?", dir, err, dir)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("admin: GET %s: %s", path, res.Status)
	}
	return b, err
}
