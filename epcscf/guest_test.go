package epcscf

import (
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"wicgate/internal/claims"
	"wicgate/internal/policy"
)

// guests is a house in which alice is a guest.
func guests(t *testing.T, change func(*GuestConfig)) *house {
	t.Helper()
	d, err := policy.ParseDestinations(testDomain, []string{"bob"})
	if err != nil {
		t.Fatal(err)
	}
	h := newHouse(t, func(c *Config) {
		c.Guests = GuestConfig{Destinations: d}
		if change != nil {
			change(&c.Guests)
		}
	})
	t.Cleanup(func() { h.over(); goleak.VerifyNone(t) })
	h.ua("alice").auth = "Bearer " + token("alice", func(c *claims.SIP) { c.IMS.Scenario = claims.ScenarioPool })
	h.play(registeredBoth+"carol connects\ncarol> REGISTER\n<carol 200 OK\n", "guests")
	return h
}

const toBob = "alice> INVITE bob\n<bob INVITE\nbob> 200\n<alice 200\nalice> ACK\n<bob ACK\n"

// TestGuestDestinations: a guest calls whom the policy names, and nobody else, by whatever URI;
// others are not held to it, and may call guests.
func TestGuestDestinations(t *testing.T) {
	h := guests(t, nil)
	h.play("alice> INVITE carol\n<alice 403 Destination Not Allowed For Guests\nalice> MESSAGE carol\n<alice 403 Destination Not Allowed For Guests\n", "guests")
	for _, uri := range []string{"sip:Bob@ims.test", "sip:%62ob@ims.test", "sip:bob@ims.test.evil.test", "tel:+4930123", "sip:bob@evil.test", "sip:ims.test;user=bob@ims.test", "sip:bob@ims.test;maddr=192.0.2.1", "sip:bob@ims.test:5070",
		"sip:bob@ims.test:0", "sip:bob:@ims.test", "sip:bob@[ims.test]", "sip:bob@ims.test?", "sip:bob@ims.test;"} {
		a := h.ua("alice")
		a.raw(strings.Replace(edit(a.request("INVITE", "sip:bob@ims.test", "guest-"+uri[:8], "x", "", "sip:bob@ims.test", 1, newBranch()), []string{"Contact: <" + a.contact() + ">"}, a.sdp("offer.sdp")), "INVITE sip:bob@ims.test SIP", "INVITE "+uri+" SIP", 1))
		if _, m, err := a.next(); err != nil || m.Status != 403 && m.Status != 400 {
			t.Fatalf("%s: %v, %v", uri, m, err)
		}
	}
	h.play(toBob+"alice> BYE\n<bob BYE\nbob> 200 BYE\n<alice 200\ncarol> INVITE alice\n<alice INVITE\nalice> 180\n<carol 180\n", "guests")
	if st := h.edge.Stats().Refused; st.Guest < 6 {
		t.Errorf("%+v", st)
	}
}

// TestGuestCalls: as many calls at once, and in a minute, as guests may.
func TestGuestCalls(t *testing.T) {
	h := guests(t, func(g *GuestConfig) { g.Rate = 3 })
	h.play(toBob+"alice> INVITE bob\n<alice 403 Too Many Calls For A Guest\n", "guests")
	h.play("bob> BYE\n<alice BYE\nalice> 200 BYE\n<bob 200\n", "guests")
	h.settled()
	for range 2 {
		h.play("alice> INVITE bob\n<bob INVITE\nbob> 486\n<bob ACK\n<alice 486\nalice> ACK\n", "guests")
		h.settled()
	}
	h.play("alice> INVITE bob\n<alice 403 Too Many Calls For A Guest\n", "guests")
}

// TestGuestDuration: the longest call of a guest ends on both sides with the reason.
func TestGuestDuration(t *testing.T) {
	h := guests(t, func(g *GuestConfig) { g.Duration = 300 * time.Millisecond })
	begun := time.Now()
	h.play(toBob+"<alice BYE\n  Reason: SIP;cause=403;text=\"Longest Guest Call\"\n<bob BYE\n  Reason: SIP;cause=403;text=\"Longest Guest Call\"\nalice> 200 BYE\nbob> 200 BYE\n", "guests")
	if d := time.Since(begun); d < 300*time.Millisecond {
		t.Errorf("ended after %v", d)
	}
	h.settled()
	// One that ends before leaves nothing behind: goleak and the clean end of the house say so.
}
