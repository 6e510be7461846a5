package main

import (
	"io"

	"wicgate/internal/config"
	"wicgate/internal/keyring"
)

type turnUserCmd struct {
	Name string `arg:"" help:"USERNAME." placeholder:"NAME"`
	password
	Config string `help:"Configuration file, for turn.name. Default: none." type:"existingfile" placeholder:"FILE" xor:"realm"`
	Realm  string `help:"TURN server name whose user it is; default: turn.name." placeholder:"NAME" xor:"realm"`
}

// Help implements [kong.HelpProvider].
func (turnUserCmd) Help() string {
	return `The line holds two keys made of name, realm and password, and no password. Who reads it can act as that user in that realm, so the file is for its owner alone.

The password is read from --password-file, from $WICGATE_PASSWORD, or asked for at the terminal.

Examples:

	(umask 077; wicgate turn user alice --config turn.yaml >> turn-users.txt)
	wicgate turn user alice --realm turn.example.org --password-file pw
`
}

// Run implements the command turn user.
func (c *turnUserCmd) Run(out io.Writer) error {
	if c.Realm == "" {
		file, err := config.Load(c.Config)
		if err != nil {
			return err
		}
		c.Realm = file.TURN.Name
	}
	ctx, stop := untilSignal()
	defer stop()
	pw, err := c.password.read(ctx, c.Name)
	if err != nil {
		return err
	}
	line, err := keyring.AppendUser(nil, c.Name, c.Realm, pw)
	if err != nil {
		return err
	}
	_, err = out.Write(line)
	return err
}
