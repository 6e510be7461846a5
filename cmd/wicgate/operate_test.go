package main

import (
	"bytes"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"wicgate/democore"
	"wicgate/epcscf"
	"wicgate/imsagw"
	"wicgate/internal/admin"
	"wicgate/internal/obs"
	"wicgate/internal/pushed"
	"wicgate/turn"
	"wicgate/waf"
	"wicgate/wwsf"
)

// TestEachCounterIsAMetric: a field that a role adds to its Stats must get a line in internal/obs, and a
// line whose field is gone must go.
func TestEachCounterIsAMetric(t *testing.T) {
	known := obs.Fields()
	seen := map[string]bool{}
	for role, stats := range map[string]any{
		"turn": turn.Stats{}, "waf": waf.Stats{}, "wwsf": wwsf.Stats{}, "epcscf": epcscf.Stats{}, "imsagw": imsagw.Stats{}, "democore": democore.Stats{}, "pushed": pushed.Stats{},
	} {
		var walk func(typ reflect.Type, name string)
		walk = func(typ reflect.Type, name string) {
			for i := range typ.NumField() {
				key := name + "." + typ.Field(i).Name
				switch {
				case slices.Contains(known, key):
					seen[key] = true
				case typ.Field(i).Type.Kind() == reflect.Struct:
					walk(typ.Field(i).Type, key)
				default:
					t.Errorf("%s has no metric; add a line to internal/obs/metrics.go", key)
				}
			}
		}
		walk(reflect.TypeOf(stats), role)
		if err := obs.New("", "").Role(role, func() any { return stats }); err != nil {
			t.Error(err)
		}
	}
	for _, key := range known {
		if !seen[key] {
			t.Errorf("internal/obs/metrics.go has a line for %s, which is no field", key)
		}
	}
}

var sessionsShown = admin.SessionList{Left: 3, Sessions: []admin.Session{
	{ID: "7", Pseudonym: "5cUbjNn1ezD3u7vBkGfE0g", Tenant: "turn.ims.test", Client: "198.51.100.200:50000", Transport: "udp", Relayed: []string{"203.0.113.1:49170"},
		Since: at(-12 * time.Second), Expires: at(588 * time.Second), Credential: "token", CredentialEnds: at(time.Hour), ToPeerBytes: 999, ToClientBytes: 123456, ToPeerPackets: 9, ToClientPackets: 1234},
	{ID: "1234567", Pseudonym: "p", Tenant: "b.test", Credential: "static", Client: "[2001:db8:1234:5678:9abc:def0:1234:5678]:50000", Transport: "tls", Since: at(-50 * time.Hour), Expires: at(time.Hour),
		ToPeerBytes: 1 << 40, ToClientBytes: 9996, Permissions: []string{"192.0.2.1", "192.0.2.2"}, Channels: []string{"0x4000 192.0.2.1:40000"}},
}}

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

func at(d time.Duration) time.Time { return noon.Add(d) }

func TestSessionTable(t *testing.T) {
	var out bytes.Buffer
	if err := printSessions(&out, sessionsShown, noon); err != nil {
		t.Fatal(err)
	}
	want := `ID       PSEUDONYM   CLIENT                 VIA  AGE    LEFT   SENT    GOT
7        5cUbjNn1e…  198.51.100.200:50000   udp  12s    9m48s  999B    123kB
1234567  p           [2001:db8:123…]:50000  tls  2d02h  1h00m  1.10TB  10.0kB
and 3 more; --pseudonym narrows the list
`
	if got := out.String(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	for line := range strings.Lines(out.String()) {
		if n := len([]rune(strings.TrimRight(line, "\n"))); n > 80 {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	out.Reset()
	if err := printSessions(&out, admin.SessionList{}, noon); err != nil || out.String() != "No TURN sessions.\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
}

func TestSessionShown(t *testing.T) {
	var out bytes.Buffer
	printSession(&out, sessionsShown.Sessions[0], noon)
	want := `id           7
pseudonym    5cUbjNn1ezD3u7vBkGfE0g
tenant       turn.ims.test
credential   token, until 2026-01-02 13:00:00 UTC
client       198.51.100.200:50000 over udp
relayed      203.0.113.1:49170
since        2026-01-02 11:59:48 UTC (12s ago)
expires      2026-01-02 12:09:48 UTC (in 9m48s, unless refreshed)
to peers     9 packets, 999 B
to client    1234 packets, 123 kB
permissions  none
channels     none
`
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
	out.Reset()
	printSession(&out, sessionsShown.Sessions[1], noon)
	if !strings.Contains(out.String(), "\ntenant       b.test\ncredential   static, without an end\n") || !strings.HasSuffix(out.String(), "permissions  192.0.2.1\n             192.0.2.2\nchannels     0x4000 192.0.2.1:40000\n") {
		t.Errorf("got\n%s", out.String())
	}
}

func TestUnits(t *testing.T) {
	for s, want := range map[string]string{"": "", "1234567890": "1234567890", "12345678901": "123456789…", "süßwassermatrosen": "süßwasser…", "süßwassers": "süßwassers"} {
		if got := cut(s, 10); got != want {
			t.Errorf("%s: %q, want %q", s, got, want)
		}
	}
	for d, want := range map[time.Duration]string{-time.Second: "0s", 0: "0s", 59 * time.Second: "59s", time.Minute: "1m00s", 3*time.Minute + 7*time.Second: "3m07s",
		time.Hour: "1h00m", 26*time.Hour + 40*time.Minute: "1d02h"} {
		if got := age(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
	for n, want := range map[uint64]string{0: "0 B", 999: "999 B", 1000: "1.00 kB", 9994: "9.99 kB", 9996: "10.0 kB", 99950: "100 kB", 999_400: "999 kB", 999_600: "1.00 MB", 1 << 63: "9.22 EB"} {
		if got := size(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}
