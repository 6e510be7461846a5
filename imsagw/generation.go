package imsagw

import (
	"crypto/rand"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/pion/ice/v4"
	"github.com/pion/stun/v4"

	"wicgate/internal/iq"
	"wicgate/internal/secret"
)

// generation is ICE from one exchange of credentials to the next (RFC 8445 §9). A restart makes a new one beside the old:
//
//	Set, new ufrag ──► new generation: own ufrag and password, own agent, the same socket
//	                   media, consent and DTLS stay on the old one's pair …
//	new pair nominated ──► … until here: the stream sends there, consent is asked for there
//	linger            ──► the old one, whose checks were answered until now, is closed
//
// There are two at most: the newest, and the one whose pair carries media. Nothing else of the stream changes: ports, DTLS association and SRTP contexts are the same.
type generation struct {
	st     *stream
	number uint64
	ufrag  string // ours
	pwd    secret.Bytes
	agent  *ice.Agent
	queue  *queue
	checks checks
	peer   atomic.Pointer[credentials]
	known  map[netip.AddrPort]struct{} // authenticated STUN sources; the access reader's own
	told   map[netip.AddrPort]struct{} // candidates that the agent was given; guarded by the session's mu
	pair   netip.AddrPort              // the browser's address of its newest pair; guarded by electing
	closed chan struct{}               // closed by who takes it out of the stream's list
}

// credentials are the browser's.
type credentials struct {
	ufrag string
	pwd   secret.Bytes
}

func (c *credentials) are(a iq.AccessRemote) bool {
	return c.ufrag == a.Ufrag && c.pwd.Equal(secret.New([]byte(a.Pwd)))
}

// newGeneration makes an agent with credentials of its own. It does nothing before start.
func (st *stream) newGeneration() (*generation, error) {
	n := &generation{
		st: st,
		// 40 and 130 random bits; RFC 8445 §5.3 asks for 24 and 128.
		ufrag: rand.Text()[:8], pwd: secret.New([]byte(rand.Text())),
		known: map[netip.AddrPort]struct{}{}, told: map[netip.AddrPort]struct{}{}, closed: make(chan struct{}),
	}
	local := st.g.access.advertised(st.accessConn)
	n.queue = newQueue(local, n.write)
	var err error
	if n.agent, err = n.newAgent(local); err != nil {
		return nil, fmt.Errorf("imsagw: ICE agent: %w", err)
	}
	return n, nil
}

// start tells the agent the browser's side.
func (n *generation) start(a iq.AccessRemote) error {
	n.peer.Store(&credentials{ufrag: a.Ufrag, pwd: secret.New([]byte(a.Pwd))})
	n.addCandidates(a.Candidates)
	start := n.agent.StartAccept
	if n.st.s.offerer {
		start = n.agent.StartDial
	}
	if _, err := start(a.Ufrag, a.Pwd); err != nil {
		return fmt.Errorf("imsagw: ICE: %w", err)
	}
	return nil
}

// write sends what the agent writes. Requests are remembered, so that their answers count, and
// paced, so that candidates in an SDP cannot aim a stream of checks at somebody (RFC 8445 §19.5.1).
func (n *generation) write(b []byte, to netip.AddrPort) (int, error) {
	st := n.st
	if !st.g.access.reaches(to) {
		st.count.drop(dropSend)
		return len(b), nil
	}
	if isBindingRequest(b) && !n.checks.sent(b, to, false) {
		st.count.drop(dropPace)
		return len(b), nil
	}
	return st.send(b, to)
}

// nextGeneration restarts ICE where the browser's credentials are new, goes back where they are those before a restart that
// was refused, and else adds candidates. The caller holds the session's mu.
func (st *stream) nextGeneration(a iq.AccessRemote) error {
	list := *st.generations.Load()
	for i, n := range list {
		if c := n.peer.Load(); c == nil || !c.are(a) {
			continue
		}
		if i == 0 {
			n.addCandidates(a.Candidates)
			return nil
		}
		st.retire(func(o *generation) bool { return o.number > n.number }) // the browser takes its offer back (RFC 8839 §4.4.1.1.1)
		return nil
	}
	n, err := st.newGeneration()
	if err != nil {
		return err
	}
	n.number = list[0].number + 1
	n.checks.inherit(&list[0].checks)
	// Of the older ones that stays whose pair carries media, or, before there is one, the newest.
	st.electing.Lock()
	keep := st.elected.Load()
	if keep == nil || !slices.Contains(list, keep) {
		keep = list[0]
	}
	st.restarting.Add(1)
	next := []*generation{n, keep}
	st.generations.Store(&next)
	st.electing.Unlock()
	for _, o := range list {
		if o != keep {
			o.close()
		}
	}
	if err := n.start(a); err != nil {
		st.restarting.Add(-1)
		st.retire(func(o *generation) bool { return o == n })
		return err
	}
	st.g.count.restarts.Add(1)
	st.wg.Go(func() { st.restart(n) })
	return nil
}

// restart waits for the pair of a generation that is not the first, and then ends those before it. One that finds no pair in
// time ends alone: the old one carries on, and consent says for how long.
func (st *stream) restart(n *generation) {
	deadline := time.NewTimer(st.g.timing.ice)
	defer deadline.Stop()
	look := time.NewTicker(checkInterval)
	defer look.Stop()
	for {
		if e := st.elected.Load(); e != nil && e.number >= n.number {
			st.over()
			break
		}
		select {
		case <-st.ctx.Done():
			return
		case <-n.closed:
			st.over()
			return
		case <-deadline.C:
			st.over()
			st.g.count.restartsFailed.Add(1)
			st.s.log.Warn("imsagw: ICE restart found no path, the old one stays", "within", st.g.timing.ice)
			st.retire(func(o *generation) bool { return o == n })
			return
		case <-look.C:
		}
	}
	linger := time.NewTimer(st.g.timing.oldChecks)
	defer linger.Stop()
	select {
	case <-st.ctx.Done():
	case <-n.closed:
	case <-linger.C:
		st.retire(func(o *generation) bool { return o.number < n.number })
	}
}

// over ends one restart's time, and lets awaitRestart see.
func (st *stream) over() {
	st.restarting.Add(-1)
	nudge(st.pair)
}

// awaitRestart waits, without consent on the old pair, for the pair of a restart that is under way: the network that
// was lost is why browsers restart. It returns whether there is consent again.
func (st *stream) awaitRestart() bool {
	for st.restarting.Load() > 0 && !st.consent.fresh() {
		select {
		case <-st.ctx.Done():
			return false
		case <-st.pair:
		}
	}
	return st.consent.fresh()
}

// elect makes the pair of a generation the one that media takes. An older generation than the one elected has no say any more.
func (st *stream) elect(n *generation, a netip.AddrPort) {
	st.electing.Lock()
	defer st.electing.Unlock()
	if e := st.elected.Load(); e != nil && e.number > n.number || !slices.Contains(*st.generations.Load(), n) {
		return
	}
	n.pair = a
	st.elected.Store(n)
	st.selected.Store(&a)
	st.consent.renew() // the check that nominated it was answered just now
	nudge(st.pair)
	nudge(st.wake)
}

// retire takes generations out and closes them. One stays always. Where that takes out the one whose pair carries media, media
// goes back to the pair of the newest that stays.
func (st *stream) retire(which func(*generation) bool) {
	st.electing.Lock()
	list := *st.generations.Load()
	next := slices.DeleteFunc(slices.Clone(list), which)
	if len(next) == 0 {
		st.electing.Unlock()
		return
	}
	if e := st.elected.Load(); e != nil && !slices.Contains(next, e) {
		st.elected.Store(next[0])
		if a := next[0].pair; a.IsValid() {
			st.selected.Store(&a)
		}
	}
	st.generations.Store(&next)
	st.electing.Unlock()
	for _, n := range list {
		if !slices.Contains(next, n) {
			n.close()
		}
	}
}

// close ends the agent and its goroutines. Nobody finds the generation any more.
func (n *generation) close() {
	close(n.closed)
	_ = n.agent.GracefulClose() // its error is always nil
}

// closeGenerations ends all, once the stream's context has ended. The first list that is left is closed here, by the one
// caller that a stream's close has; what the others have taken out is closed by them.
func (st *stream) closeGenerations() {
	st.electing.Lock()
	list := *st.generations.Load()
	st.generations.Store(&[]*generation{})
	st.electing.Unlock()
	for _, n := range list {
		n.close()
	}
}

// generationOf finds the one that a Binding request names: USERNAME begins with our ufrag.
func (st *stream) generationOf(m *stun.Message) *generation {
	name, err := m.Get(stun.AttrUsername)
	if err != nil {
		return nil
	}
	for _, n := range *st.generations.Load() {
		if l := len(n.ufrag); len(name) > l && string(name[:l]) == n.ufrag && name[l] == ':' {
			return n
		}
	}
	return nil
}

// isKnown says whether a source has sent an authenticated Binding request.
func (st *stream) isKnown(a netip.AddrPort) bool {
	for _, n := range *st.generations.Load() {
		if _, ok := n.known[a]; ok {
			return true
		}
	}
	return false
}
