package config

import (
	"reflect"
	"slices"
)

// live are the settings of section turn, and of its tenants, that change while the server runs. Sockets,
// names and what other roles are built from are not among them.
var live = []string{"profile", "open", "closed", "nat64", "credentials", "grace_max", "quota", "quota_total", "rates", "secrets", "users", "blind"}

// Change is a key whose value in a new file is not what runs.
type Change struct {
	Key  string
	Old  string
	New  string
	Line int  // in the new file; 0: its default
	Live bool // takes effect without a restart
}

// Reload returns the settings that hold once next has been read by a process that runs with f, which are
// f with what is live in next, and what in next differs from f. Tenants are live where their names and
// order are as before.
func (f *File) Reload(next *File) (now *File, changes []Change) {
	now = new(*f)
	now.source = next.source
	now.Log.Level = next.Log.Level
	adopt(&now.TURN, &next.TURN)
	same := slices.EqualFunc(f.TURN.Tenants, next.TURN.Tenants, func(a, b Tenant) bool { return a.Name == b.Name })
	if same {
		now.TURN.Tenants = slices.Clone(f.TURN.Tenants)
		for i := range now.TURN.Tenants {
			adopt(&now.TURN.Tenants[i], &next.TURN.Tenants[i])
		}
	}

	var runs, wanted, kept []field
	collect := func(g *File) (all []field) {
		each(reflect.ValueOf(g).Elem(), "", func(x field) { all = append(all, x) })
		for i := range g.TURN.Tenants {
			if same {
				each(reflect.ValueOf(g.TURN.Tenants[i]), tenantKey(i)+".", func(x field) { all = append(all, x) })
			}
		}
		return all
	}
	runs, wanted, kept = collect(f), collect(next), collect(now)
	for i, w := range wanted {
		if !differ(runs[i], w) {
			continue
		}
		c := Change{Key: w.key, Old: show(runs[i].value.Interface()), New: show(w.value.Interface()), Line: next.Line(w.key), Live: !differ(kept[i], w)}
		if c.Old == c.New {
			c.New += " (another user or password)"
		}
		changes = append(changes, c)
	}
	return now, changes
}

// adopt sets what is live in into to what it is in from.
func adopt[T TURN | Tenant](into, from *T) {
	a, b := reflect.ValueOf(into).Elem(), reflect.ValueOf(from).Elem()
	for i := range a.NumField() {
		if slices.Contains(live, a.Type().Field(i).Tag.Get("yaml")) {
			a.Field(i).Set(b.Field(i))
		}
	}
}

// differ compares what is shown, for which an absent list is an empty one, and the whole of texts, of
// which a part may be hidden.
func differ(a, b field) bool {
	return show(a.value.Interface()) != show(b.value.Interface()) || a.value.Kind() == reflect.String && a.value.String() != b.value.String()
}
