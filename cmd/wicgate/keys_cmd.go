package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"wicgate/internal/config"
	"wicgate/internal/keyring"
)

type keysCmd struct {
	Rotate keysRotateCmd `cmd:"" help:"Put a new master and nonce secret in front of those of a TURN server name."`
}

type keysRotateCmd struct {
	Config  string        `help:"Configuration file, for turn.name and where its keys are. Default: none." type:"existingfile" placeholder:"FILE"`
	Data    string        `help:"Data folder, for keys without a file of their own." default:"wicgate-data" type:"path" placeholder:"DIR"`
	Server  string        `help:"TURN server name, of turn.name or turn.tenants; default: turn.name." placeholder:"NAME"`
	Overlap time.Duration `help:"How long those before stay good: 24h5s, the longest life of a token, or more." default:"24h5s" placeholder:"DURATION"`
}

// Help implements [kong.HelpProvider].
func (keysRotateCmd) Help() string {
	return `Tokens that are out stay good, and so do nonces; no call ends. TURN servers that share the file see the change by themselves. The WAF seals with the new master once it runs with turn in its process, or after "wicgate reload".

Plain keys (turn.oauth.kid_mode) are renewed by themselves, and refused here.

Examples:

	wicgate keys rotate --config wicgate.yaml --data /var/lib/wicgate
	wicgate keys rotate --config wicgate.yaml --server turn2.example.org --overlap 48h
`
}

// Run implements the command keys rotate.
func (c *keysRotateCmd) Run(out io.Writer) error {
	file, err := config.Load(c.Config)
	if err != nil {
		return err
	}
	tenant, base := file.TURN.First(), "turn-keys.json"
	if c.Server != "" && c.Server != tenant.Name {
		found := false
		for _, t := range file.TURN.Others() {
			if t.Name == c.Server {
				tenant, base, found = t, t.File(base), true
			}
		}
		if !found {
			return fmt.Errorf("keys rotate: no TURN server is named %q; turn.name is %q, others are in turn.tenants", c.Server, tenant.Name)
		}
	}
	if tenant.Plain() {
		return fmt.Errorf("keys rotate: the keys of %s are plain, and renewed by themselves (turn.oauth.key_life)", tenant.Name)
	}
	path := tenant.Keys
	if path == "" {
		path = filepath.Join(c.Data, base)
	}
	if _, err := os.Stat(path); err != nil { // opening would make it
		return fmt.Errorf("keys rotate: %w\n  hint: name the data folder with --data", err)
	}
	ring, err := keyring.OpenFile(path, tenant.Name)
	if err != nil {
		return err
	}
	old, now := ring.Current(), time.Now()
	if err := ring.Rotate(now, c.Overlap); err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%s: master %s is the new one; %s opens tokens until %s\n", tenant.Name, ring.Current(), old, now.Add(c.Overlap).UTC().Format(time.RFC3339))
	return err
}
