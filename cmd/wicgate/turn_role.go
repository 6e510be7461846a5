package main

import (
	"net/http"
	"slices"
	"time"

	"wicgate/internal/config"
	"wicgate/internal/keyring"
	"wicgate/internal/listen"
	"wicgate/internal/peerpolicy"
	"wicgate/internal/secret"
	"wicgate/internal/session"
	"wicgate/internal/wire/stun"
	"wicgate/turn"
)

// turn builds the role turn.
func (h *house) turn(*http.ServeMux) error {
	c := h.file.TURN
	secrets, err := h.secrets()
	if err != nil {
		return err
	}
	tenants, err := h.tenants(h.file, secrets)
	if err != nil {
		return err
	}
	if tenants[0].Keys, err = h.pulled(c.First(), h.rings); err != nil {
		return err
	}
	if err := h.pushedTo(&tenants[0]); err != nil {
		return err
	}
	var others []turn.Other
	for i, o := range c.Others() {
		ring, err := h.openRing(o, o.File)
		if err != nil {
			return err
		}
		if tenants[i+1].Keys, err = h.pulled(o, ring); err != nil {
			return err
		}
		others = append(others, turn.Other{Tenant: tenants[i+1], Listen: addrPorts(o.Listen), ServerNames: o.ServerNames})
	}
	for _, t := range tenants {
		h.reloader.keys = append(h.reloader.keys, t.Keys)
	}
	tcp := addrPorts(c.ListenTCP)
	if web := h.file.HTTPS.Listen.AddrPort; (h.has("waf") || h.has("wwsf") || h.has("epcscf")) && slices.Contains(tcp, web) {
		h.shared = listen.NewHandover(web)
	}
	cfg := turn.Config{
		Log: h.log.With("role", "turn"), Listen: addrPorts(c.Listen), TCP: tcp, Certificate: h.cert, HTTPS: h.shared,
		Proxies: prefixes(c.TrustedProxies), DTLS: c.DTLS,
		Relays: relays(c.Relay),
		Tenant: tenants[0], Tenants: others,
		Revoked: h.news.follower.Revoked, BlindClosed: c.Blind == "closed",
		NATDiscovery: c.NATDiscovery != "off", NATReflect: c.NATDiscovery == "reflect", NATClassic: c.NATDiscovery == "rfc3489",
		TCPRelay: c.TCPRelay, Mobility: c.Mobility, ChannelNumbers5766: c.ChannelNumbers == "rfc5766", Siblings: siblings(c.Siblings),
	}
	if h.taker != nil {
		cfg.Heritage, cfg.Takeover = h.heritage, h.takeOver
	}
	s, err := turn.New(cfg)
	if err != nil {
		return err
	}
	h.operator.turn = s
	h.news.follower.Hear(session.Handler{
		Extended: s.Extend, Revoked: func(r session.Revocation) { s.Revoke(r.Pseudonym) }, Missed: s.Missed, Blind: s.Blind,
	})
	h.add("turn", s.Serve, func() any { return s.Stats() })
	return nil
}

func siblings(list []config.Sibling) (out []turn.Sibling) {
	for _, s := range list {
		out = append(out, turn.Sibling{Address: s.Address.AddrPort, Domain: s.Domain, Transport: map[string]uint8{"udp": stun.ProtocolUDP, "tcp": stun.ProtocolTCP}[s.Transport]})
	}
	return out
}

// tenants are those of f, the first first, without their keys. secrets are the first's.
func (h *house) tenants(f *config.File, secrets *[]secret.Bytes) (list []turn.Tenant, err error) {
	for i, c := range append([]config.Tenant{f.TURN.First()}, f.TURN.Others()...) {
		t, err := tenant(f, c)
		if err != nil {
			return nil, err
		}
		if i > 0 {
			secrets = nil
			if c.Secrets != "" {
				own, err := keyring.OpenSecrets(c.Secrets, false)
				if err != nil {
					return nil, err
				}
				secrets = &own
			}
		}
		if own := secrets; own != nil {
			t.Secrets = func() []secret.Bytes { return *own }
		}
		list = append(list, t)
	}
	return list, nil
}

// tenant is a tenant of f without its keys and secrets.
func tenant(f *config.File, c config.Tenant) (t turn.Tenant, err error) {
	var open []peerpolicy.Range
	if c.Profile == "ims" {
		agw := f.IMSAGW.Access
		open = append(open, peerpolicy.Range{Prefix: host(agw.Public()), MinPort: agw.Ports.First, MaxPort: agw.Ports.Last})
	}
	for _, r := range c.Open {
		open = append(open, peerpolicy.Range{Prefix: r.Prefix, MinPort: r.Ports.First, MaxPort: r.Ports.Last})
	}
	peers := peerpolicy.IMS(open...)
	if c.Profile == "general" {
		peers = peerpolicy.General(open...)
	}
	for _, closed := range c.Closed {
		peers = peers.WithClosed(closed.Prefix)
	}
	t = turn.Tenant{
		Name: c.Name, Peers: peers.WithNAT64(prefixes(f.TURN.NAT64)...),
		Policy:   map[string]turn.CredentialPolicy{"session": turn.Session, "call-grace": turn.CallGrace, "strict": turn.Strict}[c.Credentials],
		GraceMax: time.Duration(c.GraceMax), Quota: c.Quota, QuotaTenant: c.QuotaTotal,
		Rate: c.Rates.Allocation, RatePseudonym: c.Rates.Pseudonym, RateTenant: c.Rates.Total,
		OAuthLoose: f.TURN.OAuth.Loose, OAuthMAC16: f.TURN.OAuth.MAC16,
	}
	if c.Users != "" {
		users, err := keyring.OpenUsers(c.Users, c.Name)
		if err != nil {
			return t, err
		}
		t.Users = users
	}
	return t, nil
}

func relays(sides []config.Side) (out []turn.Relay) {
	for _, s := range sides {
		out = append(out, turn.Relay{Bind: s.Bind.Addr, Advertise: s.Public(), MinPort: s.Ports.First, MaxPort: s.Ports.Last})
	}
	return out
}
