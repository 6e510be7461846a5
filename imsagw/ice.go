package imsagw

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/pion/ice/v4"
	"github.com/pion/logging"
	"github.com/pion/stun/v4"
	"github.com/pion/transport/v5"

	"wicgate/internal/iq"
)

const (
	// hostPriority is that of the one host candidate of component 1, RFC 8445 §5.1.2.1.
	hostPriority = 126<<24 | 65535<<8 | 255
	// checkInterval is how often the agent tries its pairs while it has none.
	checkInterval = 50 * time.Millisecond
	// maxRequests lets a pair be tried until the deadline for ICE; the default gives it up after 7.
	maxRequests = 600
	// maxTold bounds the candidates of one generation, over all descriptions of the browser.
	maxTold = 2 * iq.MaxCandidates
)

// newAgent makes the ICE agent of a generation. It gets its one candidate, the access socket, by hand:
// nothing is gathered, no interface is listed, and it can open no socket of its own. Its own
// timeouts and keep-alives are off, since consent and the deadline for ICE are ours.
func (n *generation) newAgent(local netip.AddrPort) (*ice.Agent, error) {
	a, err := ice.NewAgentWithOptions(
		ice.WithNet(noNet{}),
		ice.WithLoggerFactory(noLog{}),
		ice.WithNetworkTypes([]ice.NetworkType{ice.NetworkTypeUDP4, ice.NetworkTypeUDP6}),
		ice.WithCandidateTypes([]ice.CandidateType{ice.CandidateTypeHost}),
		ice.WithMulticastDNSMode(ice.MulticastDNSModeDisabled),
		ice.WithDisableActiveTCP(),
		ice.WithLocalCredentials(n.ufrag, string(n.pwd.Expose())),
		ice.WithCheckInterval(checkInterval),
		ice.WithMaxBindingRequests(maxRequests),
		// Whatever answers first is nominated first: with one local candidate there is no better
		// pair worth a wait, and a relayed browser would wait 2 s.
		ice.WithSrflxAcceptanceMinWait(0),
		ice.WithPrflxAcceptanceMinWait(0),
		ice.WithRelayAcceptanceMinWait(0),
		ice.WithDisconnectedTimeout(0),
		ice.WithFailedTimeout(0),
		ice.WithKeepaliveInterval(0),
		ice.WithBindingRequestHandler(n.renominated),
	)
	if err != nil {
		return nil, err
	}
	err = a.OnSelectedCandidatePairChange(func(_, remote ice.Candidate) { n.nominate(remote) })
	var c *ice.CandidateHost
	if err == nil {
		c, err = ice.NewCandidateHost(&ice.CandidateHostConfig{
			Network: "udp", Address: local.Addr().String(), Port: int(local.Port()), Component: ice.ComponentRTP,
		})
	}
	if err == nil {
		err = a.AddVirtualCandidate(c, n.queue)
	}
	if err != nil {
		return nil, errors.Join(err, a.Close())
	}
	return a, nil
}

// candidateAddr is the address of an agent's candidate.
func candidateAddr(c ice.Candidate) (netip.AddrPort, bool) {
	ip, err := netip.ParseAddr(c.Address())
	if err != nil || c.Port() < 1 || c.Port() > 65535 {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(ip.Unmap(), uint16(c.Port())), true
}

// nominate takes the agent's nominated pair. It must not wait: the agent's Close waits for it.
func (n *generation) nominate(remote ice.Candidate) {
	if a, ok := candidateAddr(remote); ok {
		n.st.elect(n, a)
	}
}

// renominated lets a controlling browser move to another pair. The agent by itself follows only to a
// pair of higher priority; browsers nominate again when a path dies, and mean the last.
func (n *generation) renominated(m *stun.Message, _, remote ice.Candidate, _ *ice.CandidatePair) bool {
	st := n.st
	if st.s.offerer || !m.Contains(stun.AttrUseCandidate) || st.elected.Load() != n {
		return false
	}
	a, ok := candidateAddr(remote)
	s := st.selected.Load()
	return ok && s != nil && *s != a && st.isValid(a)
}

// addCandidates gives the browser's candidates to the agent. What the gateway cannot or will not send to
// is passed over: other transports and components, names (mDNS), addresses that [portRange.reaches]
// refuses; and what is over maxTold, as the agent forgets none. The caller holds the session's mu.
func (n *generation) addCandidates(lines []string) {
	for _, line := range lines {
		line = strings.TrimPrefix(strings.TrimSpace(line), "candidate:")
		f := strings.Fields(line)
		if len(f) < 8 || f[1] != "1" || !strings.EqualFold(f[2], "udp") {
			continue
		}
		ip, err := netip.ParseAddr(f[4])
		if err != nil || ip.Zone() != "" {
			continue
		}
		port, err := strconv.ParseUint(f[5], 10, 16)
		at := netip.AddrPortFrom(ip, uint16(port))
		if err != nil || !n.st.g.access.reaches(at) {
			continue
		}
		if _, ok := n.told[at]; ok || len(n.told) >= maxTold {
			continue
		}
		c, err := ice.UnmarshalCandidate(line)
		if err != nil {
			continue
		}
		n.told[at] = struct{}{}
		_ = n.agent.AddRemoteCandidate(c) // fails only for names, or once closed
	}
}

// run waits for a pair, then keeps consent, until the stream closes or either fails.
func (st *stream) run() {
	deadline := time.NewTimer(st.g.timing.ice)
	defer deadline.Stop()
	for st.selected.Load() == nil {
		select {
		case <-st.ctx.Done():
			return
		case <-deadline.C:
			st.g.count.iceFailed.Add(1)
			for _, n := range *st.generations.Load() {
				_ = n.agent.Close() // no more checks; its error is always nil
			}
			st.s.fail(st, iq.ICEFailed, "no answered check from any address of the browser within "+st.g.timing.ice.String())
			return
		case <-st.pair:
		}
	}
	for st.consent.run(st.ctx, st.checkConsent) {
		st.muted.Store(true)
		if !st.awaitRestart() {
			if st.ctx.Err() != nil {
				return
			}
			st.g.count.consentLost.Add(1)
			st.s.fail(st, iq.ConsentLost, "no authenticated answer of the browser for "+st.g.timing.consentExpiry.String()+" (RFC 7675)")
			return
		}
		st.muted.Store(false)
	}
}

// checkConsent sends one check to the nominated address.
func (st *stream) checkConsent() {
	n, to := st.elected.Load(), st.selected.Load()
	if n == nil || to == nil {
		return
	}
	peer := n.peer.Load()
	if peer == nil {
		return
	}
	m, err := n.checks.consentCheck(peer.ufrag+":"+n.ufrag, string(peer.pwd.Expose()))
	if err != nil {
		st.s.log.Error("imsagw: consent check cannot be built", "error", err)
		return
	}
	n.checks.sent(m.Raw, *to, true)
	_, _ = st.send(m.Raw, *to) // counted there
}

// noNet is the network of an agent that owns no socket.
type noNet struct{}

var errNoNet = errors.New("imsagw: the ICE agent opens no sockets")

func (noNet) ListenPacket(string, string) (net.PacketConn, error)           { return nil, errNoNet }
func (noNet) ListenUDP(string, *net.UDPAddr) (transport.UDPConn, error)     { return nil, errNoNet }
func (noNet) ListenTCP(string, *net.TCPAddr) (transport.TCPListener, error) { return nil, errNoNet }
func (noNet) Dial(string, string) (net.Conn, error)                         { return nil, errNoNet }
func (noNet) DialUDP(string, *net.UDPAddr, *net.UDPAddr) (transport.UDPConn, error) {
	return nil, errNoNet
}
func (noNet) DialTCP(string, *net.TCPAddr, *net.TCPAddr) (transport.TCPConn, error) {
	return nil, errNoNet
}
func (noNet) ResolveIPAddr(string, string) (*net.IPAddr, error)           { return nil, errNoNet }
func (noNet) ResolveUDPAddr(string, string) (*net.UDPAddr, error)         { return nil, errNoNet }
func (noNet) ResolveTCPAddr(string, string) (*net.TCPAddr, error)         { return nil, errNoNet }
func (noNet) Interfaces() ([]*transport.Interface, error)                 { return nil, nil }
func (noNet) InterfaceByIndex(int) (*transport.Interface, error)          { return nil, errNoNet }
func (noNet) InterfaceByName(string) (*transport.Interface, error)        { return nil, errNoNet }
func (noNet) CreateDialer(*net.Dialer) transport.Dialer                   { return noNet{} }
func (noNet) CreateListenConfig(*net.ListenConfig) transport.ListenConfig { return noListen{} }

type noListen struct{}

func (noListen) Listen(context.Context, string, string) (net.Listener, error) { return nil, errNoNet }
func (noListen) ListenPacket(context.Context, string, string) (net.PacketConn, error) {
	return nil, errNoNet
}

// noLog is the log of pion's agents: none. At its debug level the ICE agent prints passwords, and at its
// warning level a line for each hostile packet; what matters of both is counted here.
type noLog struct{}

func (noLog) NewLogger(string) logging.LeveledLogger { return noLog{} }
func (noLog) Trace(string)                           {}
func (noLog) Tracef(string, ...any)                  {}
func (noLog) Debug(string)                           {}
func (noLog) Debugf(string, ...any)                  {}
func (noLog) Info(string)                            {}
func (noLog) Infof(string, ...any)                   {}
func (noLog) Warn(string)                            {}
func (noLog) Warnf(string, ...any)                   {}
func (noLog) Error(string)                           {}
func (noLog) Errorf(string, ...any)                  {}
