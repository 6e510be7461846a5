package turn

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"wicgate/internal/peerpolicy"
	"wicgate/internal/turnclient"
)

// TestSessionLine: the line about a session that has ended has these fields and no others, whatever ended
// it and however the client came.
func TestSessionLine(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	log := new(journal)
	listeners, trust := streamed(t)
	b := start(t, listeners, func(c *Config) { c.Log = slog.New(slog.NewJSONHandler(log, nil)) })
	peer := echo(t)
	for _, network := range []string{"udp", "tcp", "tls"} {
		var c *turnclient.Client
		if cr := turnclient.TokenUsername(b.issue("p-"+network, time.Hour)); network == "udp" {
			c = b.client(cr)
		} else {
			c = b.stream(network, trust, cr)
		}
		ctx := timeout(t)
		if _, err := c.Allocate(ctx, 0); err != nil {
			t.Fatal(err)
		}
		for _, p := range []netip.AddrPort{peer, netip.MustParseAddrPort("127.0.0.1:4000")} { // one address
			if err := c.CreatePermission(ctx, p); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.Send(peer, []byte("12345")); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Receive(ctx); err != nil {
			t.Fatal(err)
		}
		if network != "udp" { // an end without a word
			_ = c.Close()
			b.eventually("ends with its connection", func(s Stats) bool { return s.Allocations == 0 })
		} else if n := b.s.Revoke("p-udp"); n != 1 {
			t.Errorf("%d revoked", n)
		}
	}
	b.stop()

	lines := map[string]map[string]any{} // by transport
	for line := range bytes.Lines([]byte(log.String())) {
		var m map[string]any
		if err := json.Unmarshal(line, &m); err != nil {
			t.Fatal(err)
		}
		if m["msg"] == "turn: session ended" {
			lines[m["transport"].(string)] = m
		}
	}
	fields := []string{"age_ms", "cause", "client", "credential", "id", "level", "msg", "peers", "pseudonym", "relayed", "tenant", "time",
		"to_client_bytes", "to_client_packets", "to_peer_bytes", "to_peer_packets", "transport"}
	for network, cause := range map[string]string{"udp": "revoked", "tcp": "disconnected", "tls": "disconnected"} {
		m := lines[network]
		if d := cmp.Diff(fields, slices.Sorted(maps.Keys(m))); d != "" {
			t.Errorf("%s (-want +got):\n%s", network, d)
			continue
		}
		for k, want := range map[string]any{"cause": cause, "pseudonym": "p-" + network, "credential": "username", "tenant": name, "peers": 1.0, "level": "INFO",
			"to_peer_packets": 1.0, "to_peer_bytes": 5.0, "to_client_packets": 1.0, "to_client_bytes": 5.0} {
			if m[k] != want {
				t.Errorf("%s: %s is %v, want %v", network, k, m[k], want)
			}
		}
		for _, k := range []string{"client", "relayed"} {
			if a, err := netip.ParseAddrPort(m[k].(string)); err != nil || a.Addr() != loopback {
				t.Errorf("%s: %s is %v", network, k, m[k])
			}
		}
	}
}

// TestReconfigure: a live allocation is under the new peers at its next packet, and none of a server's own
// addresses is opened by new settings; what cannot be taken changes nothing.
func TestReconfigure(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	b := start(t)
	peer := echo(t)
	ctx := timeout(t)
	c := b.client(turnclient.TokenUsername(b.issue("p1", time.Hour)))
	if _, err := c.Allocate(ctx, 0); err != nil {
		t.Fatal(err)
	}
	if err := c.CreatePermission(ctx, peer); err != nil {
		t.Fatal(err)
	}
	passes := func() bool {
		t.Helper()
		before := b.s.Stats().Refused["peer"]
		if err := c.Send(peer, []byte("x")); err != nil {
			t.Fatal(err)
		}
		for { // either of both counters
			if b.s.Stats().Refused["peer"] > before {
				return false
			}
			if b.s.Stats().ToClientPackets > 0 {
				if _, err := c.Receive(ctx); err != nil {
					t.Fatal(err)
				}
				return true
			}
			if ctx.Err() != nil {
				t.Fatal("neither relayed nor refused")
			}
			time.Sleep(time.Millisecond)
		}
	}
	general := Tenant{Name: name, Keys: b.ring, Peers: peerpolicy.General(), Quota: 1}
	if n, err := b.s.Reconfigure([]Tenant{general}, false); n != 0 || err != nil {
		t.Fatal(n, err)
	}
	if passes() {
		t.Error("a peer that the new policy refuses is relayed to")
	}
	again := b.client(turnclient.TokenUsername(b.issue("p1", time.Hour)))
	if _, err := again.Allocate(ctx, 0); turnclient.Code(err) != 486 {
		t.Errorf("second allocation under quota 1: %v", err)
	}
	open := general
	open.Peers = peerpolicy.General(peerpolicy.Range{Prefix: netip.PrefixFrom(loopback, 32)})
	for what, bad := range map[string][]Tenant{
		"one too many": {open, general}, "no keys": {{Name: name, Peers: open.Peers}}, "no peers": {{Name: name, Keys: b.ring}}, "another name": {{Name: "x", Keys: b.ring, Peers: open.Peers}},
	} {
		if _, err := b.s.Reconfigure(bad, true); err == nil || !strings.HasPrefix(err.Error(), "turn: ") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if passes() {
		t.Error("settings that were refused have effect")
	}
	if _, err := b.s.Reconfigure([]Tenant{open}, false); err != nil {
		t.Fatal(err)
	}
	if !passes() {
		t.Error("a peer that is open again is not relayed to")
	}
	for _, own := range b.s.Addrs() {
		before := b.s.Stats().Refused["peer"]
		if err := c.CreatePermission(ctx, own); err != nil {
			t.Fatal(err)
		}
		if err := c.Send(own, []byte("x")); err != nil {
			t.Fatal(err)
		}
		b.eventually("the listener is refused as a peer", func(s Stats) bool { return s.Refused["peer"] > before })
	}
	b.stop()
}
