package probe

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"wicgate/internal/secret"
	"wicgate/internal/turnclient"
	"wicgate/internal/wire/stun"
)

// relay is one TURN URL (RFC 7065).
type relay struct {
	name       string // "udp turn.example.org:3478"
	network    string
	host, port string
	username   string
	password   secret.Bytes
	roots      *x509.CertPool

	client  *turnclient.Client // nil: not allocated
	relayed netip.AddrPort
	calls   string // how the server calls itself in THIRD-PARTY-AUTHORIZATION (RFC 7635 §6.1)
}

func newRelay(raw, username string, password secret.Bytes, roots *x509.CertPool) (*relay, error) {
	bad := faultf("Correct turn.urls.", "%q is no TURN URL", raw)
	scheme, rest, ok := strings.Cut(raw, ":")
	if !ok || scheme != "turn" && scheme != "turns" {
		return nil, bad
	}
	address, query, _ := strings.Cut(rest, "?")
	q, err := url.ParseQuery(query)
	if err != nil {
		return nil, bad
	}
	t := &relay{network: "udp", username: username, password: password, roots: roots}
	port := "3478"
	if q.Get("transport") == "tcp" {
		t.network = "tcp"
	}
	if scheme == "turns" {
		t.network, port = "tls", "5349"
		if q.Get("transport") == "udp" {
			t.network = "dtls"
		}
	}
	t.host, t.port, err = net.SplitHostPort(address)
	if err != nil {
		t.host, t.port = address, port
	}
	if t.host == "" {
		return nil, bad
	}
	t.name = t.network + " " + net.JoinHostPort(t.host, t.port)
	return t, nil
}

func (t *relay) allocate(ctx context.Context) (string, error) {
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", t.host)
	if err != nil {
		return "", fault{err, "Set the name in DNS, or write an address into turn.urls."}
	}
	port, err := net.DefaultResolver.LookupPort(ctx, "udp", t.port)
	if err != nil {
		return "", fault{err, "Correct turn.urls."}
	}
	var first error
	for _, a := range addrs {
		detail, err := t.allocateAt(ctx, netip.AddrPortFrom(a.Unmap(), uint16(port)))
		if err == nil {
			return detail, nil
		}
		if first == nil {
			first = err
		}
	}
	return "", first
}

func (t *relay) allocateAt(ctx context.Context, server netip.AddrPort) (string, error) {
	c, err := turnclient.DialContext(ctx, turnclient.Config{
		Server: server, Network: t.network, TLS: &tls.Config{RootCAs: t.roots, ServerName: t.host, MinVersion: tls.VersionTLS12},
		Credential: turnclient.LongTerm(t.username, t.password), RTO: 500 * time.Millisecond, Tries: 4,
	})
	if err != nil {
		var unknown x509.UnknownAuthorityError
		var name x509.HostnameError
		switch {
		case errors.As(err, &unknown), errors.As(err, &name):
			return "", fault{err, "The TURN server's certificate is that of https: see that it names the host in turn.urls, and give a private CA with --ca."}
		}
		key := "turn.listen_tcp"
		if t.network == "dtls" {
			key = "turn.listen, with turn.dtls: true"
		}
		return "", fault{err, "See that the role turn runs and has this address in " + key + ", and that no firewall is between."}
	}
	a, err := c.Allocate(ctx, 0)
	t.calls = c.ThirdPartyAuthorization()
	if err != nil {
		_ = c.Close() // it has failed already
		return "", allocateFault(err, t.network)
	}
	t.client, t.relayed = c, a.Relayed
	return fmt.Sprintf("relayed address %v, seen as %v, server %s", a.Relayed, a.Mapped, t.calls), nil
}

func allocateFault(err error, network string) error {
	switch code := turnclient.Code(err); {
	case errors.Is(err, turnclient.ErrTimeout) && network == "udp":
		return fault{err, "A firewall drops UDP, or turn does not listen there (turn.listen). Browsers take TCP or TLS then, where these work."}
	case code == 401: // see probe.allocate
		return err
	case errors.Is(err, turnclient.ErrTimeout):
		return fault{err, "The connection is there, and nobody answers: is turn.urls that of wicgate's turn?"}
	case errors.Is(err, turnclient.ErrClosed):
		return fault{err, "Something listens there and hangs up: is turn.urls that of wicgate's turn? If it is, its log says which limit was reached."}
	case code == 486:
		return fault{err, "The quota of this log-in is used up (turn.quota)."}
	case code == 508:
		return fault{err, "No relay port is free (turn.relay), or the server is draining."}
	}
	return fault{err, "Look into the log of turn."}
}

// gateway is where A's leg ends, as its answer says.
type gateway struct {
	at         netip.AddrPort
	ufrag, pwd string
	own        string // A's ufrag
}

// echo sends connectivity checks (RFC 8445 §7) through the relay and counts the gateway's answers.
func (t *relay) echo(ctx context.Context, g gateway, packets int) (string, error) {
	if err := t.client.CreatePermission(ctx, g.at); err != nil {
		check := "Look into the log of turn."
		if turnclient.Code(err) == 403 {
			check = "The TURN server may not relay to the gateway: with turn.profile ims its peers are imsagw.access; see that both roles have the same configuration, or name the gateway's range in turn.open."
		}
		return "", fault{fmt.Errorf("permission for the gateway %v: %w", g.at, err), check}
	}
	type sent struct {
		at  time.Time
		rtt time.Duration
	}
	checks := map[stun.TransactionID]*sent{}
	h := stun.NewHasher()
	received := make(chan turnclient.Packet, packets)
	reading, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		defer close(received)
		for {
			p, err := t.client.Receive(reading)
			if err != nil {
				return
			}
			select {
			case received <- p:
			case <-reading.Done():
				return
			}
		}
	}()
	defer func() { // the reader has gone when the allocation is given up
		stop()
		for range received {
		}
	}()
	pace := time.NewTicker(20 * time.Millisecond)
	defer pace.Stop()
	end := time.NewTimer(time.Duration(packets)*20*time.Millisecond + 1500*time.Millisecond)
	defer end.Stop()
	answers := 0
	for done := false; !done && answers < packets; {
		select {
		case <-pace.C:
			if len(checks) == packets {
				continue
			}
			var id stun.TransactionID
			rand.Read(id[:])
			var tie [8]byte
			rand.Read(tie[:])
			m := stun.AppendHeader(nil, stun.NewType(stun.Binding, stun.Request), id)
			m = stun.AppendText(m, stun.AttrUsername, g.ufrag+":"+g.own)
			m = stun.AppendUint32(m, stun.AttrPriority, 110<<24|65535<<8|255)
			m = stun.AppendAttr(m, stun.AttrICEControlling, tie[:])
			m = stun.AppendAttr(m, stun.AttrUseCandidate, nil)
			m = stun.AppendFingerprint(h.AppendIntegrity(m, []byte(g.pwd)))
			checks[id] = &sent{at: time.Now()}
			if err := t.client.Send(g.at, m); err != nil {
				return "", fault{err, "Look into the log of turn."}
			}
		case p, ok := <-received:
			if !ok {
				done = true
				break
			}
			m, err := stun.Parse(p.Data)
			if err != nil || p.Peer != g.at || m.Type() != stun.NewType(stun.Binding, stun.Success) || !h.CheckIntegrity(m, []byte(g.pwd)) {
				continue // the gateway's own checks
			}
			if s := checks[m.TransactionID()]; s != nil && s.rtt == 0 {
				s.rtt = time.Since(s.at)
				answers++
			}
		case <-end.C:
			done = true
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
	if answers == 0 {
		return "", faultf("The relay reaches no gateway: see that imsagw.access.advertise is an address that the TURN server reaches, and that no firewall is between turn.relay and imsagw.access.", "no answer of the gateway %v to %d checks", g.at, len(checks))
	}
	var all []time.Duration
	for _, s := range checks {
		if s.rtt > 0 {
			all = append(all, s.rtt)
		}
	}
	slices.Sort(all)
	detail := fmt.Sprintf("%d of %d back from %v, median %v, most %v", answers, len(checks), g.at, all[len(all)/2].Round(10*time.Microsecond), all[len(all)-1].Round(10*time.Microsecond))
	if lost := len(checks) - answers; lost*20 > len(checks) { // more than 5 %
		return "", faultf("Packets are lost on the way to the relay or from there to the gateway: look at the interfaces' counters of drops.", "%s", detail)
	}
	return detail, nil
}

func (t *relay) close(ctx context.Context) {
	if t.client == nil {
		return
	}
	_, _ = t.client.Refresh(ctx, 0) // else the allocation ends by its lifetime
	_ = t.client.Close()
}
