package turn

import (
	"net/netip"
	"strings"
	"testing"

	"wicgate/internal/keyring"
	"wicgate/internal/peerpolicy"
)

func TestNATDiscoveryNeedsFour(t *testing.T) {
	cfg := func(list ...string) Config {
		c := Config{NATDiscovery: true, Relays: []Relay{{Bind: loopback}}, Tenant: Tenant{Name: name, Peers: peerpolicy.General(), Keys: keyring.New(name)}}
		for _, a := range list {
			c.Listen = append(c.Listen, netip.MustParseAddrPort(a))
		}
		return c
	}
	for _, list := range [][]string{{"127.0.0.1:0"}, {"127.0.0.1:0", "127.0.0.2:0", "127.0.0.1:0", "127.0.0.2:0"}} {
		if s, err := New(cfg(list...)); err == nil || !strings.Contains(err.Error(), "turn.listen") {
			t.Errorf("%v: %v", list, err)
			if s != nil {
				_ = s.Close()
			}
		}
	}
}
