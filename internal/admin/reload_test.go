package admin

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReloadOverTheSocket(t *testing.T) {
	var bad error
	want := Reloaded{Changes: []Change{{"turn.quota", "32", "8", 5, true}}, Reread: []string{"turn.users: 2 users"}, Warnings: []string{}, Ended: 1}
	c := start(t, Config{Reload: func(dryRun bool) (Reloaded, error) {
		r := want
		r.DryRun = dryRun
		return r, bad
	}})
	for _, dry := range []bool{false, true} {
		var got Reloaded
		if err := c.Do(t.Context(), "POST", "/v1/reload", map[string]bool{"dry_run": dry}, &got); err != nil {
			t.Fatal(err)
		}
		want.DryRun = dry
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
	}
	for message, hint := range map[string]string{"a\n  hint: b": "b", "a\n  hint: b\nc\n  hint: d": ""} {
		bad = errors.New(message)
		err := c.Do(t.Context(), "POST", "/v1/reload", map[string]bool{}, &Reloaded{})
		e, ok := errors.AsType[*Error](err)
		if !ok || e.Status != 422 || e.Hint != hint || err.Error() != message {
			t.Errorf("%q: %v", message, err)
		}
	}
	if err := c.Do(t.Context(), "POST", "/v1/reload", map[string]int{"dry": 1}, &Reloaded{}); err == nil || !strings.Contains(err.Error(), "no JSON of the form") {
		t.Errorf("another form: %v", err)
	}
	if err := c.Do(t.Context(), "GET", "/v1/reload", nil, &Reloaded{}); err == nil {
		t.Error("GET reloads")
	}
}

func TestNoReloader(t *testing.T) {
	if err := start(t, Config{}).Do(t.Context(), "POST", "/v1/reload", map[string]bool{}, &Reloaded{}); err == nil || !strings.Contains(err.Error(), "reads no configuration") {
		t.Errorf("%v", err)
	}
}
