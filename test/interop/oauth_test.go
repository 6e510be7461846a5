package interop

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"wicgate/internal/keyring"
	"wicgate/internal/peerpolicy"
	"wicgate/internal/secret"
	"wicgate/internal/token"
	"wicgate/internal/turnclient"
	"wicgate/test/lab"
	"wicgate/turn"
)

// Debian's coturn 4.6.1. It knows GCM alone, uses the first 16 bytes of a mac_key (so ours end in
// zeros), and must see no hostile token: it has memory faults before authentication.

const coturnName = "turn.example.org"

// turnserver is one that runs, or a turnutils_uclient that has run.
type turnserver struct {
	addr netip.AddrPort
	mu   sync.Mutex
	log  bytes.Buffer
}

func (c *turnserver) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.log.Write(b)
}

func (c *turnserver) Log() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.log.String()
}

// freeBoth is a port that is free over TCP and UDP.
func freeBoth(t testing.TB) int {
	t.Helper()
	for {
		port := FreePort(t)
		if l, err := net.ListenPacket("udp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			_ = l.Close() // for its number alone
			return port
		}
	}
}

// startCoturn starts a turnserver on loopback and waits until it listens. The test's end ends it.
func startCoturn(t testing.TB, args ...string) *turnserver {
	t.Helper()
	if _, err := exec.LookPath("turnserver"); err != nil {
		t.Fatalf("coturn is missing: run test/setup.sh (%v)", err)
	}
	port, dir := freeBoth(t), lab.DataFolder(t)
	s := &turnserver{addr: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(port))}
	args = append([]string{"-n", "--listening-ip=127.0.0.1", "--relay-ip=127.0.0.1", "--listening-port=" + strconv.Itoa(port), "--no-tls", "--no-dtls", "--no-cli",
		"--allow-loopback-peers", "--log-file=stdout", "--simple-log", "--verbose", "--pidfile=" + filepath.Join(dir, "pid")}, args...)
	cmd := exec.Command("turnserver", args...)
	cmd.Dir = dir
	cmd.Stdout, cmd.Stderr = s, s
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // its log says how it ended
	}()
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // on SIGTERM it takes seconds; it holds nothing
		<-ended
		if t.Failed() {
			t.Logf("coturn:\n%s", s.Log())
		}
	})
	lab.Eventually(t, 20*time.Second, "coturn listens", func() bool {
		select {
		case <-ended:
			t.Fatalf("coturn has ended:\n%s", s.Log())
		default:
		}
		c, err := net.Dial("tcp", s.addr.String())
		if err != nil {
			return false
		}
		_ = c.Close() // it listens
		return true
	})
	return s
}

// plainRing has a key of each format that coturn knows.
func plainRing(t testing.TB) *keyring.Ring {
	t.Helper()
	end := time.Now().Add(24 * time.Hour)
	r, err := keyring.NewPlain(coturnName,
		keyring.PlainKey{KID: "k1", Enc: token.A256GCM, K: secret.Random(32), Exp: end},
		keyring.PlainKey{KID: "k2", Enc: token.A128GCM, K: secret.Random(16), Exp: end})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func seal(t testing.TB, r *keyring.Ring, kid string, mac secret.Bytes, at time.Time, life time.Duration) []byte {
	t.Helper()
	k, f, _, ok := r.Key(kid)
	if !ok {
		t.Fatalf("no key %q", kid)
	}
	tok, err := token.Seal(f, k, r.Server(), token.Payload{MACKey: mac, Timestamp: token.NewTimestamp(at), Lifetime: life})
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func issue(t testing.TB, r *keyring.Ring, kid string) turnclient.Credential {
	t.Helper()
	mac := token.NewMACKey()
	return turnclient.AccessToken(kid, seal(t, r, kid, mac, time.Now(), time.Hour), mac)
}

// echo is a peer that sends back what it gets.
func echo(t testing.TB) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 1500)
		for {
			n, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = c.WriteToUDPAddrPort(b[:n], from) // lost, the test fails
		}
	}()
	t.Cleanup(func() { _ = c.Close(); <-done })
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

func dial(t testing.TB, s netip.AddrPort, network string, c turnclient.Credential) *turnclient.Client {
	t.Helper()
	cl, err := turnclient.Dial(turnclient.Config{Server: s, Network: network, Credential: c})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cl.Close() }) // its allocation has been ended, or refused
	return cl
}

// round sends through the relay and back.
func round(t testing.TB, cl *turnclient.Client, peer netip.AddrPort) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := cl.CreatePermission(ctx, peer); err != nil {
		t.Fatal(err)
	}
	if _, err := cl.ChannelBind(ctx, peer); err != nil {
		t.Fatal(err)
	}
	if err := cl.Send(peer, []byte("through coturn")); err != nil {
		t.Fatal(err)
	}
	if p, err := cl.Receive(ctx); err != nil || string(p.Data) != "through coturn" || p.Peer != peer {
		t.Fatalf("%q from %v: %v", p.Data, p.Peer, err)
	}
}

// TestOurTokensAtCoturn: our tokens and our client against turnserver --oauth, with our keys in its
// table (RFC 7635 §4.1.2).
func TestOurTokensAtCoturn(t *testing.T) {
	ring := plainRing(t)
	db := filepath.Join(lab.DataFolder(t), "turndb")
	b, err := os.ReadFile("/usr/share/doc/coturn/examples/var/db/turndb")
	if err != nil {
		t.Fatalf("coturn is missing: run test/setup.sh (%v)", err)
	}
	if err := os.WriteFile(db, b, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, k := range ring.Plain(time.Now()) {
		row := fmt.Sprintf("insert into oauth_key values('%s','%s',strftime('%%s','now'),86400,'%v','');", k.KID, base64.StdEncoding.EncodeToString(k.K.Expose()), k.Enc)
		cmd := exec.Command("sqlite3", db)
		cmd.Stdin = strings.NewReader(row) // not in the list of processes
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("sqlite3: %v: %s", err, out)
		}
	}
	s := startCoturn(t, "--lt-cred-mech", "--oauth", "--realm=north.gov", "--server-name="+coturnName, "--userdb="+db)
	peer := echo(t)
	for _, network := range []string{"udp", "tcp"} {
		for _, kid := range []string{"k1", "k2"} {
			cl := dial(t, s.addr, network, issue(t, ring, kid))
			a, err := cl.Allocate(t.Context(), 10*time.Minute)
			if err != nil || a.Lifetime != 10*time.Minute {
				t.Fatalf("%s, %s: %v, %v", network, kid, a.Lifetime, err)
			}
			if cl.ThirdPartyAuthorization() != coturnName {
				t.Errorf("THIRD-PARTY-AUTHORIZATION %q", cl.ThirdPartyAuthorization())
			}
			round(t, cl, peer)
			for _, next := range []string{kid, "k1", "k2"} { // a new token, and coturn lets the kid change
				cl.SetCredential(issue(t, ring, next))
				if life, err := cl.Refresh(t.Context(), 10*time.Minute); err != nil || life != 10*time.Minute {
					t.Errorf("%s, %s to %s: %v, %v", network, kid, next, life, err)
				}
				round(t, cl, peer)
			}
			if _, err := cl.Refresh(t.Context(), 0); err != nil {
				t.Error(err)
			}
			if n := cl.Dropped(); n > 0 {
				t.Errorf("%d answers without integrity", n)
			}
		}
	}
	// A token of a minute caps the LIFETIME (RFC 7635 §4.1.1).
	mac := token.NewMACKey()
	cl := dial(t, s.addr, "udp", turnclient.AccessToken("k1", seal(t, ring, "k1", mac, time.Now(), time.Minute), mac))
	if a, err := cl.Allocate(t.Context(), 10*time.Minute); err != nil || a.Lifetime < 60*time.Second || a.Lifetime > 65*time.Second {
		t.Errorf("a token of a minute: %v, %v", a.Lifetime, err)
	}
	if _, err := cl.Refresh(t.Context(), 0); err != nil {
		t.Error(err)
	}

	stranger, err := keyring.NewPlain(coturnName, keyring.PlainKey{KID: "k1", Enc: token.A256GCM, K: secret.Random(32)}, keyring.PlainKey{KID: "k9", Enc: token.A256GCM, K: secret.Random(32)})
	if err != nil {
		t.Fatal(err)
	}
	elsewhere, err := keyring.NewPlain("elsewhere.example.org", ring.Plain(time.Now())...)
	if err != nil {
		t.Fatal(err)
	}
	whole := secret.Random(20)
	for name, c := range map[string]turnclient.Credential{
		"another key":    issue(t, stranger, "k1"),
		"unknown kid":    issue(t, stranger, "k9"),
		"another server": issue(t, elsewhere, "k1"),
		"expired":        turnclient.AccessToken("k1", seal(t, ring, "k1", mac, time.Now().Add(-time.Hour), 10*time.Minute), mac),
		"another mac":    turnclient.AccessToken("k1", seal(t, ring, "k1", token.NewMACKey(), time.Now(), time.Hour), mac),
		// The one that is coturn's fault, and why NewMACKey ends in zeros.
		"20 random bytes of mac_key": turnclient.AccessToken("k1", seal(t, ring, "k1", whole, time.Now(), time.Hour), whole),
	} {
		if _, err := dial(t, s.addr, "udp", c).Allocate(t.Context(), 0); turnclient.Code(err) != 401 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestEphemeralAtCoturn: our ephemeral credentials against turnserver --use-auth-secret.
func TestEphemeralAtCoturn(t *testing.T) {
	sec := secret.New([]byte("shared-with-coturn"))
	s := startCoturn(t, "--use-auth-secret", "--static-auth-secret="+string(sec.Expose()), "--realm=north.gov", "--userdb="+filepath.Join(lab.DataFolder(t), "turndb"))
	peer := echo(t)
	credential := func(sec secret.Bytes, name string) turnclient.Credential {
		return turnclient.LongTerm(name, token.EphemeralPassword(sec, name))
	}
	hour := time.Now().Add(time.Hour)
	for _, network := range []string{"udp", "tcp"} {
		cl := dial(t, s.addr, network, credential(sec, token.EphemeralUsername(hour, "k3v9t2")))
		if _, err := cl.Allocate(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		round(t, cl, peer)
		if _, err := cl.Refresh(t.Context(), 0); err != nil {
			t.Error(err)
		}
	}
	for name, c := range map[string]turnclient.Credential{
		"another secret":                  credential(secret.New([]byte("another")), token.EphemeralUsername(hour, "k3v9t2")),
		"expired":                         credential(sec, token.EphemeralUsername(time.Now().Add(-time.Minute), "k3v9t2")),
		"SHA-256, which is wicgate's own": credential(sec, token.EphemeralUsernameSHA256(hour, "k3v9t2")),
	} {
		if _, err := dial(t, s.addr, "udp", c).Allocate(t.Context(), 0); turnclient.Code(err) != 401 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// printable is a mac_key that turnutils_oauth can print.
func printable() secret.Bytes { return secret.New([]byte(rand.Text()[:20])) }

func turnutilsOAuth(t testing.TB, k keyring.PlainKey, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "turnutils_oauth", append([]string{"--server-name", coturnName, "--auth-key-id", k.KID, "--auth-key", base64.StdEncoding.EncodeToString(k.K.Expose()),
		"--auth-key-timestamp", strconv.FormatInt(time.Now().Unix(), 10), "--auth-key-lifetime", "86400", "--auth-key-as-rs-alg", k.Enc.String()}, args...)...)
	cmd.Env = append(os.Environ(), "TZ=UTC") // else its default for the time is off by the zone
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestTurnutilsOAuth: a second implementation opens our tokens, and we open its.
func TestTurnutilsOAuth(t *testing.T) {
	if _, err := exec.LookPath("turnutils_oauth"); err != nil {
		t.Fatalf("coturn is missing: run test/setup.sh (%v)", err)
	}
	ring := plainRing(t)
	for _, k := range ring.Plain(time.Now()) {
		mac, at := printable(), time.Now().Truncate(time.Second)
		ours := base64.StdEncoding.EncodeToString(seal(t, ring, k.KID, mac, at, time.Hour))
		out, err := turnutilsOAuth(t, k, "-d", "-v", "--token", ours)
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		for _, want := range []string{string(mac.Expose()), "lifetime: 3600", strconv.FormatInt(at.Unix(), 10)} {
			if !strings.Contains(out, want) {
				t.Errorf("%v: no %q in\n%s", k.Enc, want, out)
			}
		}

		out, err = turnutilsOAuth(t, k, "-e", "--token-mac-key", base64.StdEncoding.EncodeToString(mac.Expose()), "--token-timestamp", strconv.FormatUint(uint64(token.NewTimestamp(at)), 10), "--token-lifetime", "3600")
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		var answer struct {
			AccessToken string `json:"access_token"`
			KID         string `json:"kid"`
		}
		if err := json.Unmarshal([]byte(out), &answer); err != nil {
			t.Fatalf("%v in %s", err, out)
		}
		theirs, err := base64.StdEncoding.DecodeString(answer.AccessToken)
		if err != nil {
			t.Fatal(err)
		}
		p, err := token.Open(k.Enc, k.K, coturnName, theirs)
		if err != nil || !p.MACKey.Equal(mac) || p.Lifetime != time.Hour || !p.Timestamp.Time().Equal(at) || answer.KID != k.KID {
			t.Errorf("%v: %v of %v, %v", k.Enc, p.Lifetime, p.Timestamp.Time(), err)
		}
	}
}

// TestCoturnClientAtOurs: turnutils_uclient -J against our server, with the keys that are built into it.
// It takes another kid and another mac_key for each Allocate and Refresh, and 16 bytes of the latter:
// so it needs both switches, and without them is refused as the standards have it.
func TestCoturnClientAtOurs(t *testing.T) {
	if _, err := exec.LookPath("turnutils_uclient"); err != nil {
		t.Fatalf("coturn is missing: run test/setup.sh (%v)", err)
	}
	ring, err := keyring.NewPlain(coturnName,
		keyring.PlainKey{KID: "north", Enc: token.A256GCM, K: secret.New([]byte("01234567890123456789012345678901"))},
		keyring.PlainKey{KID: "union", Enc: token.A128GCM, K: secret.New([]byte("1234567890123456"))},
		keyring.PlainKey{KID: "oldempire", Enc: token.A256GCM, K: secret.New([]byte("12345678901234567890123456789012"))})
	if err != nil {
		t.Fatal(err)
	}
	lo := netip.MustParseAddr("127.0.0.1")
	for _, c := range []struct {
		name         string
		loose, mac16 bool
		args         []string
		good         bool
	}{
		{"udp, channels", true, true, nil, true},
		{"udp, Send", true, true, []string{"-s"}, true},
		{"tcp", true, true, []string{"-t"}, true},
		{"whole mac_key", true, false, nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			port := freeBoth(t)
			addr := netip.AddrPortFrom(lo, uint16(port))
			s, err := turn.New(turn.Config{Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Listen: []netip.AddrPort{addr}, TCP: []netip.AddrPort{addr},
				Relays: []turn.Relay{{Bind: lo}}, ChannelNumbers5766: true, Tenant: turn.Tenant{
					Name: coturnName, Keys: ring, Quota: 100, OAuthLoose: c.loose, OAuthMAC16: c.mac16,
					Peers: peerpolicy.General(peerpolicy.Range{Prefix: netip.PrefixFrom(lo, 32), MinPort: 1024, MaxPort: 65535}),
				}})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- s.Serve(ctx) }()
			defer func() {
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			}()
			limit, stop := context.WithTimeout(t.Context(), 40*time.Second)
			defer stop()
			// -y: clients talk to each other; -c: no RTCP.
			out, err := exec.CommandContext(limit, "turnutils_uclient", append(c.args, "-J", "-y", "-c", "-n", "10", "-m", "2", "-p", strconv.Itoa(port), "-u", "x", "-w", "x", "127.0.0.1")...).CombinedOutput()
			lost := regexp.MustCompile(`Total lost packets 0 \(0\.000000%\)`).Match(out)
			if good := err == nil && lost; good != c.good {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
