package admin

import (
	"encoding/json"
	"net/http"
	"strings"
)

// Change is a setting whose value in the configuration file is not what runs.
type Change struct {
	Key  string `json:"key"`
	Old  string `json:"old"`
	New  string `json:"new"`
	Line int    `json:"line,omitempty"` // in the file; 0: its default
	Live bool   `json:"live"`           // takes effect now; else it needs a restart, and is left as it is
}

// Reloaded is what a reload has changed, or with DryRun would change. It names no secret.
type Reloaded struct {
	DryRun   bool     `json:"dry_run"`
	Changes  []Change `json:"changes"`
	Reread   []string `json:"reread"` // files that the configuration names, read again, with their keys
	Warnings []string `json:"warnings"`
	Ended    int      `json:"ended"` // TURN sessions of static users who are no longer there
}

// Reloader reads the configuration again. With an error nothing has changed.
type Reloader func(dryRun bool) (Reloaded, error)

func (a *api) reload(w http.ResponseWriter, r *http.Request) {
	if a.cfg.Reload == nil {
		refuse(w, http.StatusNotFound, "this process reads no configuration again", "")
		return
	}
	var q struct {
		DryRun bool `json:"dry_run"`
	}
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&q); err != nil {
		refuse(w, http.StatusBadRequest, "the body is no JSON of the form {\"dry_run\": false}", "")
		return
	}
	done, err := a.cfg.Reload(q.DryRun)
	if err != nil {
		message, hint, _ := strings.Cut(err.Error(), "\n  hint: ")
		if strings.Contains(hint, "\n") { // several findings, each with its own
			message, hint = err.Error(), ""
		}
		refuse(w, http.StatusUnprocessableEntity, message, hint)
		return
	}
	answer(w, http.StatusOK, done)
}
