package listen

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// front is a Front on loopback within limits: / answers, /socket is hijacked and answers what is written.
func front(t *testing.T, l Limits) (dial func() *tls.Conn, d *door) {
	ca, err := DevelopmentCA(filepath.Join(t.TempDir(), "ca"), []string{"localhost"})
	if err != nil {
		t.Fatal(err)
	}
	f, err := NewFront("https.listen", loopback, ca.GetCertificate, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/socket" {
			io.WriteString(w, "hello")
			return
		}
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		_, _ = io.Copy(c, c)
	}), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	d = newDoor(l, slog.New(slog.DiscardHandler))
	f.srv.ConnState = d.state
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- f.Serve(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
		counted(t, d, 0)
		if d.gate.opening.Len() != 0 || len(d.gate.sources) != 0 {
			t.Errorf("at the end %d open, of %d sources", d.gate.opening.Len(), len(d.gate.sources))
		}
		goleak.VerifyNone(t)
	})
	return func() *tls.Conn {
		c, err := net.Dial("tcp", f.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		return tls.Client(c, &tls.Config{RootCAs: ca.Pool(), ServerName: "localhost", NextProtos: []string{"http/1.1"}})
	}, d
}

// counted waits until n connections are known: net/http tells of an end on the connection's own goroutine.
func counted(t *testing.T, d *door, n int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		d.mu.Lock()
		known := len(d.in)
		d.mu.Unlock()
		if open, _ := d.gate.counts(); open == n && known == n {
			return
		} else if time.Now().After(end) {
			t.Fatalf("%d are counted and %d known, want %d", open, known, n)
		}
	}
}

// get asks on c for path, without closing it after the answer.
func get(c net.Conn, path string) error {
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", path); err != nil {
		return err
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err == nil && string(b) != "hello" {
		err = fmt.Errorf("the answer is %q", b)
	}
	return err
}

// TestFrontLimits: connections that stay open, of one source and of all, and those that open slowly.
func TestFrontLimits(t *testing.T) {
	refused := func(d *door, why string) uint64 {
		_, r := d.gate.counts()
		return r[why]
	}
	for _, c := range []struct {
		name string
		l    Limits
		why  string
	}{
		{"of one source", Limits{MaxOpenSource: 3}, refusedOpenSource},
		{"of all", Limits{MaxOpen: 3}, refusedOpen},
	} {
		t.Run(c.name, func(t *testing.T) {
			dial, d := front(t, c.l)
			var conns []*tls.Conn
			for range 3 {
				conns = append(conns, dial())
				for range 5 { // one connection, whatever comes on it
					if err := get(conns[len(conns)-1], "/"); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := get(dial(), "/"); err == nil || refused(d, c.why) != 1 {
				t.Errorf("a fourth: %v, %d refused", err, refused(d, c.why))
			}
			// One that goes makes room; so does one that becomes a WebSocket, which its handler counts.
			_ = conns[0].Close()
			counted(t, d, 2)
			if _, err := fmt.Fprint(conns[1], "GET /socket HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			counted(t, d, 1)
			if _, err := conns[1].Write([]byte("echo")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(conns[1], make([]byte, 4)); err != nil {
				t.Errorf("the hijacked one: %v", err)
			}
			for range 2 {
				if err := get(dial(), "/"); err != nil {
					t.Errorf("where there is room: %v", err)
				}
			}
		})
	}
	t.Run("opening", func(t *testing.T) {
		dial, d := front(t, Limits{MaxOpening: 2})
		slow := []*tls.Conn{dial(), dial()} // say nothing
		for range 2 {
			c := dial()
			if err := get(c, "/"); err != nil {
				t.Errorf("while others are slow: %v", err)
			}
			_ = c.Close()
		}
		if _, err := slow[0].NetConn().Read(make([]byte, 1)); err == nil || refused(d, refusedOpening) != 1 {
			t.Errorf("the oldest: %v, %d closed for newer ones", err, refused(d, refusedOpening))
		}
		if err := get(slow[1], "/"); err != nil {
			t.Errorf("the one that was not in the way: %v", err)
		}
	})
	t.Run("rate", func(t *testing.T) {
		dial, d := front(t, Limits{HandshakeBurst: 2, HandshakeEvery: time.Hour})
		for range 2 {
			if err := get(dial(), "/"); err != nil {
				t.Error(err)
			}
		}
		if err := get(dial(), "/"); err == nil || refused(d, refusedRate) != 1 {
			t.Errorf("a third: %v", err)
		}
	})
}
