package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"wicgate/internal/secret"
)

// password is where a command gets a password from: never from its arguments, which others see.
type password struct {
	File string `name:"password-file" help:"File whose first line is the password." type:"existingfile" placeholder:"FILE"`
}

// read returns the password of user.
func (p password) read(ctx context.Context, user string) (secret.Bytes, error) {
	if p.File != "" {
		b, err := os.ReadFile(p.File)
		if err != nil {
			return secret.Bytes{}, fmt.Errorf("password: %w", err)
		}
		line, _, _ := bytes.Cut(b, []byte{'\n'})
		return secret.New(bytes.TrimRight(line, "\r")), nil
	}
	if v, ok := os.LookupEnv("WICGATE_PASSWORD"); ok {
		return secret.New([]byte(v)), nil
	}
	return askPassword(ctx, user)
}

// askPassword reads a line of the terminal that is not shown. It ends with ctx, and leaves the terminal
// as it was.
func askPassword(ctx context.Context, user string) (secret.Bytes, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return secret.Bytes{}, misuse("no password and no terminal to ask at\n  hint: set WICGATE_PASSWORD, or give --password-file")
	}
	defer func() { _ = tty.Close() }() // nothing is buffered
	old, err := echo(tty, nil)
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("terminal: %w", err)
	}
	defer func() {
		_, _ = echo(tty, old) // it was set a moment before
		fmt.Fprintln(tty)
	}()
	fmt.Fprintf(tty, "Password of %s: ", user)
	defer context.AfterFunc(ctx, func() { _ = tty.SetReadDeadline(time.Unix(1, 0)) })() // else a Ctrl-C waits for Enter
	var line []byte
	b := make([]byte, 1)
	for len(line) < 1024 {
		n, err := tty.Read(b)
		switch {
		case ctx.Err() != nil:
			return secret.Bytes{}, errors.New("interrupted: no password was given")
		case err != nil || n == 0 || b[0] == '\n':
			return secret.New(line), nil
		}
		line = append(line, b[0])
	}
	return secret.Bytes{}, errors.New("the password is too long: 1024 bytes are the most")
}

// echo turns the terminal's echo off, or makes the terminal again what it was. It returns what it was.
func echo(tty *os.File, to *unix.Termios) (was *unix.Termios, err error) {
	c, err := tty.SyscallConn() // Fd would make reads uninterruptible
	if err != nil {
		return nil, err
	}
	e := c.Control(func(fd uintptr) {
		if was, err = unix.IoctlGetTermios(int(fd), unix.TCGETS); err != nil {
			return
		}
		next := *was
		next.Lflag &^= unix.ECHO
		if to != nil {
			next = *to
		}
		err = unix.IoctlSetTermios(int(fd), unix.TCSETS, &next)
	})
	return was, errors.Join(e, err)
}
