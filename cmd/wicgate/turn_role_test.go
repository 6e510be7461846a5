package main

import (
	"errors"
	"net/netip"
	"testing"

	"wicgate/internal/config"
	"wicgate/internal/peerpolicy"
)

// TestTenantPeers: what the file says of peers is what each tenant's policy does.
func TestTenantPeers(t *testing.T) {
	f := config.Default()
	prefix := func(s string) config.Prefix { return config.Prefix{Prefix: netip.MustParsePrefix(s)} }
	f.TURN.Profile = "general"
	f.TURN.Open = []config.Range{{Prefix: netip.MustParsePrefix("2606:4700:64::/96"), Ports: config.Ports{First: 1, Last: 65535}}}
	f.TURN.Closed = []config.Prefix{prefix("9.9.9.0/24")}
	f.TURN.NAT64 = []config.Prefix{prefix("2606:4700:64::/96")}
	f.TURN.Tenants = []config.Tenant{{Name: "other.test", Open: f.TURN.Open}}
	for _, c := range append(f.TURN.Others(), f.TURN.First()) {
		tenant, err := tenant(f, c)
		if err != nil {
			t.Fatal(err)
		}
		for addr, want := range map[string]error{
			"8.8.8.8": nil, "9.9.9.9": peerpolicy.ErrClosed, "10.0.0.1": peerpolicy.ErrSpecial,
			"2606:4700:64::8.8.8.8": nil, "2606:4700:64::9.9.9.9": peerpolicy.ErrClosed, "2606:4700:64::10.0.0.1": peerpolicy.ErrSpecial,
		} {
			if err := tenant.Peers.AllowAddr(netip.MustParseAddr(addr)); !errors.Is(err, want) {
				t.Errorf("%s, %s: %v, want %v", c.Name, addr, err, want)
			}
		}
	}
}
