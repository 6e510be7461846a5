package e2e_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wicgate/internal/keyring"
	"wicgate/internal/secret"
	"wicgate/internal/token"
	"wicgate/internal/turnclient"
	"wicgate/test/lab"
)

// TestReload: what a reload changes reaches sessions that live. A user who is taken out of the file loses
// theirs and nobody else does; a secret is replaced without a break; a peer that the new file closes
// gets no packet more.
func TestReload(t *testing.T) {
	data := lab.DataFolder(t)
	write := func(name, text string) string {
		t.Helper()
		name = filepath.Join(data, name)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	line := func(user string) string {
		t.Helper()
		b, err := keyring.AppendUser(nil, user, "turn.ims.test", secret.New([]byte("of "+user)))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	l, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddrPort(l.LocalAddr().String())
	_ = l.Close() // for its number alone
	peer, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = peer.Close() }()
	to := netip.MustParseAddrPort(peer.LocalAddr().String())

	write("users.txt", line("anna")+line("ben"))
	write("secrets.txt", "the first shared secret\n")
	config := func(open string) string {
		return write("wicgate.yaml", fmt.Sprintf("turn: {listen: ['%v'], listen_tcp: [], urls: ['turn:%v'], users: %s, secrets: %s, open: [%s]}\n",
			addr, addr, filepath.Join(data, "users.txt"), filepath.Join(data, "secrets.txt"), open))
	}
	cfg := config(fmt.Sprintf("'127.0.0.1 %d-%d'", to.Port(), to.Port()))
	p := lab.Start(t, nil, data, "--config", cfg, "turn")
	reload := func() string {
		t.Helper()
		out, err := wicgate(t, data, "reload")
		if err != nil {
			t.Fatalf("reload: %v\n%s", err, out)
		}
		return out
	}
	allocate := func(user, password string) (*turnclient.Client, error) {
		t.Helper()
		c, err := turnclient.Dial(turnclient.Config{Server: addr, Credential: turnclient.LongTerm(user, secret.New([]byte(password)))})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() }) // its allocation has been ended, or the server has
		_, err = c.Allocate(t.Context(), 0)
		return c, err
	}
	shared := func(sec string) error {
		name := token.EphemeralUsername(time.Now().Add(time.Hour), "carla")
		_, err := allocate(name, string(token.EphemeralPassword(secret.New([]byte(sec)), name).Expose()))
		return err
	}
	anna, err := allocate("anna", "of anna")
	if err != nil {
		t.Fatal(err)
	}
	ben, err := allocate("ben", "of ben")
	if err != nil {
		t.Fatal(err)
	}
	if err := ben.CreatePermission(t.Context(), to); err != nil {
		t.Fatal(err)
	}
	arrives := func() bool {
		t.Helper()
		if err := ben.Send(to, []byte("x")); err != nil {
			t.Fatal(err)
		}
		_ = peer.SetReadDeadline(time.Now().Add(time.Second)) // of a socket that is open
		_, _, err := peer.ReadFrom(make([]byte, 10))
		return err == nil
	}
	if !arrives() {
		t.Fatal("no packet before any reload")
	}
	if err := shared("the first shared secret"); err != nil {
		t.Fatal(err)
	}

	// A user out, and a secret in.
	write("users.txt", line("ben"))
	write("secrets.txt", "the second shared secret\nthe first shared secret\n")
	if out := reload(); !strings.Contains(out, "Ended 1 TURN session of users who are no longer there.") || !strings.Contains(out, "users of turn.ims.test: 1") || !strings.Contains(out, "secrets of turn.ims.test: 2") {
		t.Errorf("reload says\n%s", out)
	}
	if _, err := anna.Refresh(t.Context(), 0); err == nil {
		t.Error("the session of a user who is gone is refreshed")
	}
	if _, err := allocate("anna", "of anna"); turnclient.Code(err) != 401 {
		t.Errorf("a user who is gone: %v", err)
	}
	if !arrives() {
		t.Error("another user's session has ended, too")
	}
	for _, s := range []string{"the first shared secret", "the second shared secret"} {
		if err := shared(s); err != nil {
			t.Errorf("%s: %v", s, err)
		}
	}
	write("secrets.txt", "the second shared secret\n")
	reload()
	if err := shared("the first shared secret"); turnclient.Code(err) != 401 {
		t.Errorf("by a secret that is gone: %v", err)
	}

	// A peer closed.
	config("")
	if out := reload(); !strings.Contains(out, "turn.open: [127.0.0.1/32 ") {
		t.Errorf("reload says\n%s", out)
	}
	before := p.Count("turn", "Refused", "peer")
	if arrives() {
		t.Error("a packet arrives at a peer that has been closed")
	}
	if n := p.Count("turn", "Refused", "peer"); n != before+1 {
		t.Errorf("%v packets refused, want one more than %v", n, before)
	}
	if _, err := ben.Refresh(t.Context(), 10*time.Minute); err != nil {
		t.Errorf("the session has ended with its peer: %v", err)
	}
	if err := p.Stop(); err != nil {
		t.Errorf("end: %v", err)
	}
}
