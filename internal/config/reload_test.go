package config

import (
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReload(t *testing.T) {
	const tenants = "turn:\n  tenants:\n    - name: a.test\n      quota: 3\n    - name: b.test\n"
	for _, c := range []struct {
		name, old, next string
		want            []Change
		now             func(*File) any // what holds then
		is              any
	}{
		{"nothing", "domain: ims.test\n", "turn: {open: []}\n", nil, func(f *File) any { return f.TURN.Quota }, 32},
		{"live", "turn: {quota: 8}\n", "log: {level: debug}\nturn:\n  quota: 9\n  rates: {total: 1000}\n",
			[]Change{{"log.level", "info", "debug", 1, true}, {"turn.quota", "8", "9", 3, true}, {"turn.rates.total", "0", "1000", 4, true}},
			func(f *File) any { return f.TURN.Rates.Total }, int64(1000)},
		{"restart", "", "turn:\n  listen: ['127.0.0.1:1']\n  blind: closed\n",
			[]Change{{"turn.listen", "[127.0.0.1:3478]", "[127.0.0.1:1]", 2, false}, {"turn.blind", "open", "closed", 3, true}},
			func(f *File) any { return f.TURN.Listen[0].Port() }, uint16(3478)},
		{"peers", "", "turn:\n  open: ['192.0.2.1 1-2']\n  closed: [192.0.2.0/24]\n  profile: general\n  nat64: [2001:db8::/96]\n",
			[]Change{{"turn.profile", "ims", "general", 4, true}, {"turn.open", "[]", "[192.0.2.1/32 1-2]", 2, true}, {"turn.closed", "[]", "[192.0.2.0/24]", 3, true}, {"turn.nat64", "[]", "[2001:db8::/96]", 5, true}},
			func(f *File) any { return f.TURN.Closed[0].Prefix }, netip.MustParsePrefix("192.0.2.0/24")},
		{"to the default", "turn: {profile: general}\n", "", []Change{{"turn.profile", "general", "ims", 0, true}}, func(f *File) any { return f.TURN.Profile }, "ims"},
		{"a password", "bus: {url: 'nats://a:x@127.0.0.1'}\n", "bus: {url: 'nats://a:y@127.0.0.1'}\n",
			[]Change{{"bus.url", "nats://xxxxx@127.0.0.1", "nats://xxxxx@127.0.0.1 (another user or password)", 1, false}},
			func(f *File) any { return f.Bus.URL }, "nats://a:x@127.0.0.1"},
		{"of a tenant", tenants, "turn:\n  tenants:\n    - name: a.test\n      quota: 4\n      server_names: [x.test]\n    - name: b.test\n      users: f\n",
			[]Change{{"turn.tenants[0].server_names", "[]", "[x.test]", 5, false}, {"turn.tenants[0].quota", "3", "4", 4, true}, {"turn.tenants[1].users", `""`, "f", 7, true}},
			func(f *File) any {
				return []any{f.TURN.Tenants[0].Quota, len(f.TURN.Tenants[0].ServerNames), f.TURN.Tenants[1].Users}
			}, []any{4, 0, "f"}},
		{"tenants", tenants, "turn:\n  tenants:\n    - name: a.test\n      quota: 4\n", []Change{{"turn.tenants", "[a.test, b.test]", "[a.test]", 2, false}},
			func(f *File) any { return f.TURN.Tenants[0].Quota }, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, next := loadText(t, c.old), loadText(t, c.next)
			before := f.Settings()
			now, got := f.Reload(next)
			if d := cmp.Diff(c.want, got); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
			if got := c.now(now); !reflect.DeepEqual(got, c.is) {
				t.Errorf("%v holds, want %v", got, c.is)
			}
			if !slices.Equal(before, f.Settings()) {
				t.Error("what ran has changed")
			}
			// What was left as it is differs the next time too, and nothing else does.
			_, again := now.Reload(next)
			if left := slices.DeleteFunc(slices.Clone(got), func(c Change) bool { return c.Live }); !slices.Equal(left, again) {
				t.Errorf("the next time %v, want %v", again, left)
			}
		})
	}
}

// Each name in live is a key, and each key of a tenant takes effect at once but for its name, how clients
// choose it, and where its keys are.
func TestLiveKeys(t *testing.T) {
	var keys []string
	typ := reflect.TypeFor[TURN]()
	for i := range typ.NumField() {
		keys = append(keys, typ.Field(i).Tag.Get("yaml"))
	}
	for _, l := range live {
		if !slices.Contains(keys, l) {
			t.Errorf("turn.%s is no key", l)
		}
	}
	restart := []string{"name", "listen", "server_names", "keys", "kid_mode", "key_pull"}
	typ = reflect.TypeFor[Tenant]()
	for i := range typ.NumField() {
		if key := typ.Field(i).Tag.Get("yaml"); slices.Contains(live, key) == slices.Contains(restart, key) {
			t.Errorf("of a tenant %s is neither live nor known as what needs a restart, or both", key)
		}
	}
}
