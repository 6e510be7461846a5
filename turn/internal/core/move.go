package core

import (
	"container/heap"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"time"

	"wicgate/internal/secret"
	"wicgate/internal/wire/stun"
)

// This file takes allocations from one process to the next, which goes on with the same sockets. What
// is on its way is a [State]; its encoding holds the clients' keys and is for a socket between two
// processes of one user, never for a file.

// staying bounds how many allocations the old process may begin yet, on its connections: an ID is of one
// allocation in all of them.
const staying = 1 << 20

// StateVersion is of the encoding of a [State]. A field more, and it is another: two processes that
// differ in it do not take over from one another.
const StateVersion = 1

// State is what a Core hands over.
type State struct {
	lastID      ID
	stats       Stats
	living      map[string]time.Time
	allocations []*allocation
	reserved    []reservation
	// stays are the sockets of the allocations that the old process keeps, or one before it: peers of
	// those that move.
	stays []Socket
}

// Sockets is how many relay sockets move with s.
func (s *State) Sockets() int {
	n := len(s.reserved)
	for _, a := range s.allocations {
		for i := range a.halves {
			if a.halves[i].Relayed.IsValid() {
				n++
			}
		}
	}
	return n
}

// moves says whether a can go on in another process: one whose client is on UDP, or nowhere for now.
// Connections and associations cannot, and have what is TCP with them.
func (a *allocation) moves() bool {
	if a.state != open || a.tcp {
		return false
	}
	if m := a.mobile; m != nil && (m.next != (Tuple{}) || m.lost) {
		return m.next == (Tuple{})
	}
	return a.tuple.Transport == stun.ProtocolUDP
}

// State is what c hands over: the allocations that can move, and every reservation. The sockets are in
// the order in which [Core.Restore] asks for them. c must not be called with packets of these until
// [Core.Leave], or until nothing has come of it.
func (c *Core) State() (s *State, sockets []any) {
	s = &State{lastID: c.lastID, stats: c.Stats(), living: c.living, reserved: c.reserved}
	for _, a := range c.ids {
		if m := a.mobile; m != nil && m.next.Transport == stun.ProtocolUDP {
			c.arrived(a, m.next) // the old path is not waited for
		}
		if a.moves() {
			s.allocations = append(s.allocations, a)
		}
	}
	slices.SortFunc(s.allocations, func(a, b *allocation) int { return int(a.id) - int(b.id) })
	for _, a := range s.allocations {
		for i := range a.halves {
			if h := &a.halves[i]; h.open() {
				sockets = append(sockets, h.Relay)
			}
		}
	}
	for i := range s.reserved {
		sockets = append(sockets, s.reserved[i].socket.Relay)
	}
	for relayed, a := range c.relays {
		if a.state == ended || a.state == open && !a.moves() {
			s.stays = append(s.stays, a.half(relayed.Addr()).Socket)
		}
	}
	return s, sockets
}

// Leave forgets what a State has handed over: nobody is told of an end, for there is none. Their
// relayed addresses stay those of peers. What is left ends at end.
func (c *Core) Leave(now time.Time, s *State, end time.Time) {
	for _, a := range s.allocations {
		if c.ids[a.id] != a {
			continue // its time has come meanwhile; the new process finds so too
		}
		if c.tuples[a.tuple] == a {
			delete(c.tuples, a.tuple)
		}
		c.forgetMobile(a)
		delete(c.ids, a.id)
		a.cur.tenant.remove(a, now)
		heap.Remove(&c.queue, a.place)
		a.state = ended
	}
	c.reserved = nil
	c.drained = end
}

// Restore takes over s. tuple says what a client's 5-tuple is here, and socket opens relay socket i of
// s, whose addresses were those. Nothing must have been allocated before. After an error c is of no
// use any more. What has been revoked meanwhile is ended.
func (c *Core) Restore(now time.Time, s *State, tuple func(Tuple) (Tuple, error), socket func(i int, id ID, was Socket) (Socket, error), out *Outbox) error {
	out.reset()
	if len(c.ids)+len(c.reserved) > 0 {
		return errors.New("core: restore into a core with allocations")
	}
	// Wall clock to monotonic clock: a step of the former then ends nothing.
	here := func(t *time.Time) {
		if !t.IsZero() {
			*t = now.Add(time.Duration(t.UnixNano() - now.UnixNano()))
		}
	}
	tenants := make(map[string]*tenant, len(c.tenants))
	for _, t := range c.tenants {
		tenants[t.Name] = t
	}
	tenant := func(t **tenant) error {
		known := tenants[(*t).Name]
		if known == nil {
			return fmt.Errorf("core: sessions of the TURN server name %q, which is not in the new configuration; add it to turn.tenants, or end them", (*t).Name)
		}
		*t = known
		return nil
	}
	n := 0
	for _, a := range s.allocations {
		for _, cred := range []*credential{a.cur, a.old} {
			if cred == nil {
				continue
			}
			if err := tenant(&cred.tenant); err != nil {
				return err
			}
			if cred.kind == KindStatic && cred.tenant.Users == nil {
				return fmt.Errorf("core: sessions of static users of %q, which has none in the new configuration; set its users, or end the sessions", cred.tenant.Name)
			}
			here(&cred.ends)
		}
		if c.ids[a.id] != nil || a.id > s.lastID {
			return fmt.Errorf("core: allocation %d is there twice", a.id)
		}
		var err error
		if m := a.mobile; m == nil || !m.lost {
			if a.tuple, err = tuple(a.tuple); err != nil {
				return err
			}
			if c.tuples[a.tuple] != nil {
				return fmt.Errorf("core: the 5-tuple of allocation %d is there twice", a.id)
			}
			c.tuples[a.tuple] = a
		}
		if m := a.mobile; m != nil {
			here(&m.until)
			c.tickets[m.ticket] = a
			if m.old != (ticket{}) {
				c.tickets[m.old] = a
			}
		}
		for _, t := range []*time.Time{&a.oldUntil, &a.born, &a.extended} {
			here(t)
		}
		for addr, until := range a.permissions {
			here(&until)
			a.permissions[addr] = until
		}
		for _, ch := range a.channels {
			here(&ch.expires)
		}
		c.ids[a.id] = a
		a.cur.tenant.add(a)
		heap.Push(&c.queue, a)
		a.state = open
		for i := range a.halves {
			h := &a.halves[i]
			if !h.Relayed.IsValid() {
				continue
			}
			if h.Socket, err = socket(n, a.id, h.Socket); err != nil {
				return err
			}
			n++
			here(&h.expires)
			c.address(h.Socket, a)
		}
		c.reschedule(a)
	}
	for i := range s.reserved {
		r := &s.reserved[i]
		if err := tenant(&r.tenant); err != nil {
			return err
		}
		var err error
		if r.socket, err = socket(n, 0, r.socket); err != nil {
			return err
		}
		n++
		here(&r.expires)
	}
	c.reserved = s.reserved
	for _, k := range s.stays {
		a := &allocation{state: ended}
		*a.half(k.Relayed.Addr()) = half{Socket: k}
		c.address(k, a)
	}
	c.lastID, c.stats = s.lastID+staying, s.stats
	for p, until := range s.living {
		here(&until)
		c.Extend(now, p, until)
	}
	for _, a := range s.allocations {
		if c.living[a.owner].After(a.extended) { // heard here before the allocation was
			a.extended = c.living[a.owner]
		}
		if c.revoked(a.owner) {
			c.end(a, now, EndRevoked, out)
		}
	}
	return nil
}

// address makes s known as the socket of a.
func (c *Core) address(s Socket, a *allocation) {
	c.relays[s.Relayed] = a
	if s.Local != s.Relayed {
		c.locals[s.Local] = s.Relayed
	}
}

// Alone tells that the processes before this one have ended: their relayed addresses are nobody's any
// more.
func (c *Core) Alone() {
	for relayed, a := range c.relays {
		if a.state == ended {
			delete(c.locals, a.half(relayed.Addr()).Local)
			delete(c.relays, relayed)
		}
	}
}

// Append appends the encoding of s.
func (s *State) Append(b []byte) []byte {
	w := &wire{b: b}
	w.state(s)
	return w.b
}

// ErrState says that a State cannot be read.
var ErrState = errors.New("core: malformed state of another process")

// ParseState reads the encoding of a State.
func ParseState(b []byte) (*State, error) {
	w := &wire{b: b, read: true}
	s := new(State)
	w.state(s)
	if w.bad || len(w.b) > 0 {
		return nil, ErrState
	}
	for _, a := range s.allocations {
		if !a.sound() {
			return nil, ErrState
		}
	}
	for _, k := range s.stays {
		if !k.Relayed.IsValid() || !k.Local.IsValid() {
			return nil, ErrState
		}
	}
	return s, nil
}

// sound says whether a can be what another process had.
func (a *allocation) sound() bool {
	if a.cur == nil || a.owner == "" || a.id == 0 || a.peers < 0 || !a.tuple.Client.IsValid() || len(a.channels) != len(a.byPeer) {
		return false
	}
	if a.tuple.Transport != stun.ProtocolUDP && (a.mobile == nil || !a.mobile.lost) {
		return false
	}
	there := func(addr netip.Addr) bool { return a.half(addr).Relayed.IsValid() }
	n := 0
	for i := range a.halves {
		h := &a.halves[i]
		if !h.Relayed.IsValid() {
			if *h != (half{}) {
				return false
			}
			continue
		}
		if n++; !h.Local.IsValid() || familyAt(h.Relayed.Addr()) != i || h.expires.IsZero() {
			return false
		}
	}
	for num, ch := range a.channels {
		if num != ch.number || num < stun.MinChannel || num > stun.MaxChannel5766 || !ch.peer.IsValid() || !there(ch.peer.Addr()) {
			return false
		}
	}
	for addr := range a.permissions {
		if !addr.IsValid() || !there(addr) {
			return false
		}
	}
	return n > 0
}

// wire writes or reads: each form is told once, for both directions. What cannot be read is bad, and
// leaves zeros. What is read is no longer than what was sent, times some 20.
type wire struct {
	b    []byte // written, or still to be read
	read bool
	bad  bool
}

func number[T ~uint8 | ~uint16 | ~uint64 | ~int | ~int64](w *wire, v *T) {
	if !w.read {
		w.b = binary.AppendUvarint(w.b, uint64(*v))
		return
	}
	x, n := binary.Uvarint(w.b)
	if n <= 0 || uint64(T(x)) != x {
		w.bad, w.b = true, nil
		return
	}
	*v, w.b = T(x), w.b[n:]
}

func (w *wire) bool(v *bool) {
	var n uint8
	if *v {
		n = 1
	}
	number(w, &n)
	w.bad = w.bad || n > 1
	*v = n == 1
}

func (w *wire) bytes(v *[]byte) {
	n := len(*v)
	number(w, &n)
	if !w.read {
		w.b = append(w.b, *v...)
		return
	}
	if n < 0 || n > len(w.b) {
		w.bad, w.b = true, nil
		return
	}
	*v = nil
	if n > 0 {
		*v, w.b = slices.Clone(w.b[:n]), w.b[n:]
	}
}

func (w *wire) text(v *string) {
	b := []byte(*v)
	w.bytes(&b)
	*v = string(b)
}

func (w *wire) secret(v *secret.Bytes) {
	b := v.Expose()
	w.bytes(&b)
	if w.read {
		*v = secret.New(b)
		clear(b)
	}
}

// time is in nanoseconds since 1970, and 0 the zero Time.
func (w *wire) time(v *time.Time) {
	var n uint64
	if !w.read && v.Unix() >= 0 && v.Unix() < math.MaxInt64/int64(time.Second) {
		n = uint64(v.UnixNano())
	}
	number(w, &n)
	if !w.read {
		return
	}
	if w.bad = w.bad || n > math.MaxInt64; !w.bad && n > 0 {
		*v = time.Unix(0, int64(n))
	}
}

func (w *wire) addrPort(v *netip.AddrPort) {
	b, _ := v.MarshalBinary() // never fails
	w.bytes(&b)
	if w.read && v.UnmarshalBinary(b) != nil {
		w.bad = true
	}
}

func (w *wire) addr(v *netip.Addr) {
	b, _ := v.MarshalBinary() // never fails
	w.bytes(&b)
	if w.read && v.UnmarshalBinary(b) != nil {
		w.bad = true
	}
}

// list is of values that each of which takes a byte or more.
func list[T any](w *wire, v *[]T, each func(*T)) {
	n := len(*v)
	number(w, &n)
	if w.read && (n < 0 || n > len(w.b)) {
		w.bad, w.b = true, nil
	}
	for i := 0; i < n && !w.bad; i++ {
		if w.read {
			*v = append(*v, *new(T))
		}
		each(&(*v)[i])
	}
}

// table is a map with keys in order.
func table[K comparable, V any](w *wire, v *map[K]V, order func(a, b K) int, each func(*K, *V)) {
	keys := slices.SortedFunc(maps.Keys(*v), order)
	list(w, &keys, func(k *K) {
		e := (*v)[*k]
		each(k, &e)
		if w.read && !w.bad {
			if *v == nil {
				*v = map[K]V{}
			}
			(*v)[*k] = e
		}
	})
}

func (w *wire) state(s *State) {
	version := uint16(StateVersion)
	number(w, &version)
	if w.bad = w.bad || version != StateVersion; w.bad {
		return
	}
	number(w, &s.lastID)
	w.stats(&s.stats)
	table(w, &s.living, compare, func(p *string, until *time.Time) { w.text(p); w.time(until) })
	list(w, &s.allocations, func(a **allocation) {
		if w.read {
			*a = new(allocation)
		}
		w.allocation(*a)
	})
	list(w, &s.reserved, func(r *reservation) {
		w.fixed(r.token[:])
		w.tenant(&r.tenant)
		w.text(&r.owner)
		w.socket(&r.socket)
		w.time(&r.expires)
	})
	list(w, &s.stays, w.socket)
}

func compare[T ~string | ~uint16](a, b T) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func (w *wire) socket(s *Socket) {
	w.addrPort(&s.Relayed)
	w.addrPort(&s.Local)
}

func (w *wire) allocation(a *allocation) {
	number(w, &a.id)
	w.addrPort(&a.tuple.Client)
	number(w, &a.tuple.Listener)
	number(w, &a.tuple.Transport)
	number(w, &a.tuple.Tenant)
	w.mobility(&a.mobile)
	w.text(&a.owner)
	number(w, &a.families)
	w.answer(&a.created)
	for i := range a.halves {
		w.socket(&a.halves[i].Socket)
		w.time(&a.halves[i].expires)
	}
	w.credential(&a.cur, a.owner)
	w.credential(&a.old, a.owner)
	for _, t := range []*time.Time{&a.oldUntil, &a.born, &a.extended} {
		w.time(t)
	}
	table(w, &a.permissions, netip.Addr.Compare, func(p *netip.Addr, until *time.Time) { w.addr(p); w.time(until) })
	table(w, &a.channels, compare, func(n *uint16, ch **channel) {
		number(w, n)
		if w.read {
			*ch = &channel{number: *n}
		}
		w.addrPort(&(*ch).peer)
		w.time(&(*ch).expires)
		if w.read {
			if a.byPeer == nil {
				a.byPeer = map[netip.AddrPort]*channel{}
			}
			a.byPeer[(*ch).peer] = *ch
		}
	})
	number(w, &a.peers)
	w.traffic(&a.traffic)
}

func (w *wire) answer(v *answer) {
	w.fixed(v.id[:])
	number(w, &v.lifetime)
	w.bool(&v.sha256)
	w.bool(&v.fingerprint)
	w.bytes(&v.counter)
	w.bytes(&v.reservation)
	w.bytes(&v.ticket)
	for i := range v.failed {
		number(w, &v.failed[i])
	}
	if w.read && (len(v.counter) != 0 && len(v.counter) != 4 || len(v.reservation) != 0 && len(v.reservation) != 8 || len(v.ticket) != 0 && len(v.ticket) != TicketSize || v.lifetime < 0 || v.lifetime > MaxLifetime) {
		w.bad = true
	}
	for _, code := range v.failed {
		w.bad = w.bad || code < 0 || code > 699
	}
}

func (w *wire) fixed(v []byte) {
	b := v
	w.bytes(&b)
	if w.bad = w.bad || len(b) != len(v); !w.bad {
		copy(v, b)
	}
}

// mobility without next: what has one does not move.
func (w *wire) mobility(v **mobility) {
	is := *v != nil
	if w.bool(&is); !is {
		return
	}
	if w.read {
		*v = new(mobility)
	}
	m := *v
	w.fixed(m.ticket[:])
	w.bool(&m.lost)
	w.fixed(m.old[:])
	w.time(&m.until)
	w.fixed(m.id[:])
	number(w, &m.life)
}

// credential is of an allocation of owner; nil is one of no kind.
func (w *wire) credential(v **credential, owner string) {
	cr := *v
	if cr == nil {
		cr = new(credential)
	}
	w.text((*string)(&cr.kind))
	if cr.kind == "" {
		*v = nil
		return
	}
	w.tenant(&cr.tenant)
	w.text(&cr.username)
	number(w, &cr.alg)
	w.secret(&cr.key)
	w.secret(&cr.mac)
	w.bool(&cr.plain)
	w.time(&cr.ends)
	if w.read {
		cr.owner, *v = owner, cr
		w.bad = w.bad || !slices.Contains([]CredentialKind{KindToken, KindUsername, KindEphemeral, KindPushed, KindStatic}, cr.kind)
	}
}

// tenant is its name. Restore finds it.
func (w *wire) tenant(v **tenant) {
	if w.read {
		*v = new(tenant)
	}
	w.text(&(*v).Name)
}

func (w *wire) traffic(v *Traffic) {
	for _, n := range []*uint64{&v.SentPackets, &v.SentBytes, &v.ReceivedPackets, &v.ReceivedBytes} {
		number(w, n)
	}
}

// stats are counters by name, as two versions of the program need not have the same ones.
func (w *wire) stats(v *Stats) {
	named := map[string]*uint64{"total": &v.AllocationsTotal, "bindings": &v.Bindings, "401": &v.Unauthenticated, "icmp": &v.ICMP}
	for i := range v.Refused {
		named["refused "+Cause(i).Label()] = &v.Refused[i]
	}
	for i := range v.Ended {
		named["ended "+EndCause(i).String()] = &v.Ended[i]
	}
	w.traffic(&v.Traffic)
	var counters map[string]uint64
	if !w.read {
		counters = make(map[string]uint64, len(named))
		for name, n := range named {
			counters[name] = *n
		}
	}
	table(w, &counters, compare, func(name *string, n *uint64) { w.text(name); number(w, n) })
	if w.read {
		for name, n := range counters {
			if at := named[name]; at != nil {
				*at = n
			}
		}
	}
}
