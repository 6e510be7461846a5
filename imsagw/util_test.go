package imsagw

import (
	"context"
	"net/netip"
	"strconv"

	"github.com/pion/webrtc/v4"

	"wicgate/internal/store"
)

type d = webrtc.SessionDescription

const answer = webrtc.SDPTypeAnswer

func mustAddr(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func itoa(n uint16) string { return strconv.Itoa(int(n)) }

func prefixes(s ...string) (p []netip.Prefix) {
	for _, one := range s {
		p = append(p, netip.MustParsePrefix(one))
	}
	return p
}

// nopBus is there, and carries nothing.
type nopBus struct{}

func (nopBus) Publish(string, []byte) error { return nil }
func (nopBus) Flush(context.Context) error  { return nil }
func (nopBus) Subscribe(string, func(store.Message)) (func(), error) {
	return func() {}, nil
}
func (nopBus) Request(context.Context, string, []byte) ([]byte, error) {
	return nil, store.ErrNoResponder
}
