package check

import (
	"fmt"

	"wicgate/internal/keyring"
)

// tenants looks at the static users of the TURN server's tenants, and at the secrets of those beside the first.
func (c *checker) tenants() {
	t := c.File.TURN
	c.users("turn.users", t.Users, t.Name)
	for i, o := range t.Others() {
		prefix := fmt.Sprintf("turn.tenants[%d].", i)
		c.users(prefix+"users", o.Users, o.Name)
		if o.Secrets != "" {
			if _, err := keyring.OpenSecrets(o.Secrets, false); err != nil {
				c.fails(prefix+"secrets", err)
			}
		}
	}
}

func (c *checker) users(key, name, realm string) {
	if name == "" {
		return
	}
	if u, err := keyring.OpenUsers(name, realm); err != nil {
		c.fails(key, err)
	} else {
		c.ok("static users of TURN server %s: %d in %s", realm, u.Len(), name)
	}
}
