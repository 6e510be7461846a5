// Command pionserver is a TURN server of pion/turn as its own examples make one: a UDP socket a
// thread, TCP and TLS, and credentials of the REST scheme. bench/turn measures it beside wicgate.
package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/pion/turn/v5"
	"golang.org/x/sys/unix"
)

func main() {
	if err := run(); err != nil {
		log.Fatal("pionserver: ", err)
	}
}

func run() error {
	address := flag.String("address", "127.0.0.1", "IP address of listeners and relays")
	realm := flag.String("realm", "bench", "realm")
	cert := flag.String("cert", "", "PEM file of the certificate")
	key := flag.String("key", "", "PEM file of its key")
	secrets := flag.String("secrets", "", "file with the secret of credentials")
	version := flag.Bool("version", false, "print the version of pion/turn")
	flag.Parse()
	if *version {
		info, _ := debug.ReadBuildInfo()
		for _, m := range info.Deps {
			if m.Path == "github.com/pion/turn/v5" {
				fmt.Println("pion/turn", m.Version, info.GoVersion)
			}
		}
		return nil
	}
	secret, err := os.ReadFile(*secrets)
	if err != nil {
		return err
	}
	certificate, err := tls.LoadX509KeyPair(*cert, *key)
	if err != nil {
		return err
	}
	relay := &turn.RelayAddressGeneratorStatic{RelayAddress: net.ParseIP(*address), Address: *address}
	config := turn.ServerConfig{Realm: *realm, AuthHandler: turn.LongTermTURNRESTAuthHandler(string(bytes.TrimSpace(secret)), nil)}

	shared := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }), err)
	}}
	for range runtime.GOMAXPROCS(0) {
		c, err := shared.ListenPacket(context.Background(), "udp4", *address+":3478")
		if err != nil {
			return err
		}
		config.PacketConnConfigs = append(config.PacketConnConfigs, turn.PacketConnConfig{PacketConn: c, RelayAddressGenerator: relay})
	}
	plain, err := net.Listen("tcp4", *address+":3478")
	if err != nil {
		return err
	}
	secure, err := tls.Listen("tcp4", *address+":5349", &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12})
	if err != nil {
		return err
	}
	for _, l := range []net.Listener{plain, secure} {
		config.ListenerConfigs = append(config.ListenerConfigs, turn.ListenerConfig{Listener: l, RelayAddressGenerator: relay})
	}
	s, err := turn.NewServer(config)
	if err != nil {
		return err
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGINT, syscall.SIGTERM)
	<-end
	return s.Close()
}
