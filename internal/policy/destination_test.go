package policy

import (
	"strings"
	"testing"
)

func TestDestinations(t *testing.T) {
	d, err := ParseDestinations("ims.test", []string{"alice", "sip:help@Example.ORG", "*@partner.example", "tel:+4930123"})
	if err != nil {
		t.Fatal(err)
	}
	for aor, want := range map[string]bool{
		"sip:alice@ims.test": true, "sips:alice@ims.test": true, "sip:help@example.org": true, "sip:anyone@partner.example": true, "tel:+4930123": true,
		"sip:bob@ims.test": false, "sip:Alice@ims.test": false, "sip:%61lice@ims.test": false, "sip:alice@evil.test": false, "sip:alice@ims.test.evil.test": false,
		"sip:help@sub.example.org": false, "sip:x@sub.partner.example": false, "sip:evil.test;x@partner.example": false, "sip:evil.test?x@partner.example": false,
		"sip:x%40evil.test@partner.example": false, "sip:x:y@partner.example": false, "sip:/x@partner.example": false, "sip:+49.30-1@partner.example": true, "sip:@partner.example": false, "sip:partner.example": false, "sip:a@b@partner.example": false,
		"tel:+49301234": false, "tel:112": false, "alice": false, "": false, "http://alice@ims.test": false, "alice@ims.test": false,
	} {
		if got := d.Allows(aor); got != want {
			t.Errorf("%q: %v", aor, got)
		}
	}
	if d.String() != "alice, sip:help@Example.ORG, *@partner.example, tel:+4930123" || (Destinations{}).String() != "nobody" {
		t.Error(d)
	}
	if (Destinations{}).Allows("sip:alice@ims.test") {
		t.Error("the zero value allows")
	}
}

func TestDestinationsRefused(t *testing.T) {
	for _, e := range []string{"", "*", "sip:alice", "sip:@ims.test", "alice@", "@", "a b", "sip:alice@ims.test:5060 ", "tel:112", "tel:+", "tel:+49 30", "tel:+" + strings.Repeat("1", 16), "sip:a@b@c", "sips:x", "<sip:a@b>", "ä"} {
		if d, err := ParseDestinations("ims.test", []string{e}); err == nil {
			t.Errorf("%q is taken as %v", e, d)
		}
	}
	if _, err := ParseDestinations("ims.test", make([]string, maxDestinations+1)); err == nil {
		t.Error("too many are taken")
	}
}

func FuzzDestinations(f *testing.F) {
	f.Add("alice", "sip:alice@ims.test")
	f.Add("*@x.y", "sip:@x.y")
	f.Add("tel:+1", "tel:+1")
	f.Fuzz(func(t *testing.T, entry, aor string) {
		d, err := ParseDestinations("ims.test", []string{entry})
		if err != nil || !d.Allows(aor) {
			return
		}
		// What is allowed ends as the entry does.
		_, host, _ := strings.Cut(entry, "@")
		if strings.HasPrefix(entry, "tel:") {
			if aor != entry {
				t.Errorf("%q allows %q", entry, aor)
			}
		} else if host == "" && !strings.HasSuffix(aor, ":"+entry+"@ims.test") || host != "" && !strings.HasSuffix(aor, "@"+strings.ToLower(host)) {
			t.Errorf("%q allows %q", entry, aor)
		}
	})
}
