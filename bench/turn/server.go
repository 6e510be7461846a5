package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// server is a TURN server program that is measured.
type server struct {
	Name    string   `json:"name"`
	Version string   `json:"version"`
	Command []string `json:"command"`
	Config  string   `json:"config,omitempty"` // the file that the command names

	udpPort, tcpPort, tlsPort uint16
	secret                    string // of ephemeral credentials
}

// realm of all servers.
const realm = "bench"

// programs are where the servers are.
type programs struct{ wicgate, before, pion, coturn, newer string }

// servers writes the configurations into dir. All have one certificate, one secret, logs as they are
// by default (to a file), and no limit that the load would meet.
func servers(dir string, p programs) ([]*server, error) {
	b := make([]byte, 32)
	rand.Read(b)
	secret := hex.EncodeToString(b)
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	if err := writeCertificate(cert, key); err != nil {
		return nil, err
	}
	secrets := filepath.Join(dir, "secrets")
	if err := os.WriteFile(secrets, []byte(secret+"\n"), 0o600); err != nil {
		return nil, err
	}
	var list []*server
	add := func(s *server, config, version string, versionArgs ...string) error {
		if config != "" {
			if err := os.WriteFile(s.Command[len(s.Command)-1], []byte(config), 0o600); err != nil {
				return err
			}
			s.Config = strings.ReplaceAll(config, secret, "(random)")
		}
		out, err := exec.Command(version, versionArgs...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s %s: %w: %s", version, strings.Join(versionArgs, " "), err, out)
		}
		s.Version = strings.TrimSpace(string(out))
		s.udpPort, s.secret = 3478, secret
		list = append(list, s)
		return nil
	}

	for i, program := range []string{p.wicgate, p.before} {
		if program == "" {
			continue
		}
		name := []string{"wicgate", "wicgate-before"}[i]
		data := filepath.Join(dir, name)
		if err := os.Mkdir(data, 0o700); err != nil {
			return nil, err
		}
		config := fmt.Sprintf(`https: {certificate: %s, key: %s}
turn:
  name: %s
  listen: [%[4]s:3478]
  listen_tcp: [%[4]s:3478]
  urls: ["turn:%[4]s:3478"]
  relay: [{bind: %[4]s}]
  open: ["%[5]s/32 1024-65535"]
  secrets: %[6]s
`, cert, key, realm, serverAddress, peerAddress, secrets)
		err := add(&server{Name: name, tcpPort: 3478, tlsPort: 3478, Command: []string{program, "run", "turn", "--data", data, "--config", data + ".yaml"}},
			config, program, "version")
		if err != nil {
			return nil, err
		}
	}
	for i, program := range []string{p.coturn, p.newer} {
		if program == "" {
			continue
		}
		name := []string{"coturn", "coturn-newer"}[i]
		config := fmt.Sprintf(`listening-ip=%[1]s
relay-ip=%[1]s
realm=%s
use-auth-secret
static-auth-secret=%s
cert=%s
pkey=%s
userdb=%s
pidfile=%s
log-file=stdout
no-cli
no-dtls
`, serverAddress, realm, secret, cert, key, filepath.Join(dir, name+".db"), filepath.Join(dir, name+".pid"))
		err := add(&server{Name: name, tcpPort: 3478, tlsPort: 5349, Command: []string{program, "-c", filepath.Join(dir, name+".conf")}}, config, program, "--version")
		if err != nil {
			return nil, err
		}
	}
	if p.pion == "" {
		return list, nil
	}
	err := add(&server{Name: "pion", tcpPort: 3478, tlsPort: 5349, Command: []string{p.pion, "-address", serverAddress, "-realm", realm, "-cert", cert, "-key", key, "-secrets", secrets}},
		"", p.pion, "-version")
	return list, err
}

// writeCertificate makes a self-signed P-256 certificate.
func writeCertificate(cert, key string) error {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	t := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: realm}, DNSNames: []string{realm},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	c, err := x509.CreateCertificate(rand.Reader, t, t, k.Public(), k)
	if err != nil {
		return err
	}
	p, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c}), 0o600),
		os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: p}), 0o600))
}

// process is a server that runs, on hosts of its own.
type process struct {
	server *server
	hosts  hosts
	cmd    *exec.Cmd
	ended  chan struct{}
	log    string
}

// start starts a server on new hosts, on one CPU if cpu is not negative, and waits until it answers.
// To be called by the main goroutine, whose thread does not end before the process.
func (s *server) start(ctx context.Context, dir string, cpu int) (p *process, err error) {
	h, err := makeHosts()
	if err != nil {
		return nil, err
	}
	p = &process{server: s, hosts: h, ended: make(chan struct{}), log: filepath.Join(dir, s.Name+".log")}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, errors.Join(err, h.remove())
	}
	defer log.Close()
	args := []string{"netns", "exec", h.server}
	if cpu >= 0 {
		args = append(args, "taskset", "-c", strconv.Itoa(cpu))
	}
	// Both ip and taskset become the program: the process id stays.
	p.cmd = exec.Command("ip", append(args, s.Command...)...)
	p.cmd.Dir = dir
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, errors.Join(err, h.remove())
	}
	go func() {
		defer close(p.ended)
		_ = p.cmd.Wait() // killed, or its log says why
	}()
	err = on(h.load, nil, func() error { return p.ready(ctx) })
	if err != nil {
		text, _ := os.ReadFile(p.log)
		return nil, errors.Join(fmt.Errorf("%s: %w\n%s", s.Name, err, text), p.stop())
	}
	return p, nil
}

// ready waits until the server answers on UDP and takes connections.
func (p *process) ready(ctx context.Context) error {
	to := netip.MustParseAddr(serverAddress)
	try := func() error {
		for _, port := range []uint16{p.server.tcpPort, p.server.tlsPort} {
			s, err := newSocket(unix.SOCK_STREAM, netip.AddrPort{}, netip.AddrPortFrom(to, port))
			if err != nil {
				return err
			}
			if err := s.Close(); err != nil {
				return err
			}
		}
		c, err := dial(p, legUDP, netip.AddrPort{}, 0)
		if err != nil {
			return err
		}
		return errors.Join(c.binding(), c.close())
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-p.ended:
			return errors.New("it has ended")
		case <-ctx.Done():
			return ctx.Err()
		default:
		}
		if time.Now().After(end) {
			return fmt.Errorf("not ready after 10 s: %w", err)
		}
	}
}

// stop kills the server and waits for its end, so that the next does not share its port.
func (p *process) stop() error {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.ended
	return p.hosts.remove()
}

// cpu is the time that the process has used, user and system: what /proc/pid/stat says in ticks of
// 10 ms, in ns (clock_getcpuclockid(3)).
func (p *process) cpu() (time.Duration, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^p.cmd.Process.Pid)<<3|2, &t); err != nil {
		return 0, fmt.Errorf("%s: CPU time: %w", p.server.Name, err)
	}
	return time.Duration(t.Nano()), nil
}

// memory is the proportional set size, in bytes: the resident set, what is shared with others divided.
// own is the part that is no page of a file, which the kernel could not drop and read again.
func (p *process) memory() (all, own int, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", p.cmd.Process.Pid))
	if err != nil {
		return 0, 0, err
	}
	found := 0
	for line := range strings.Lines(string(b)) {
		var kb int
		if n, _ := fmt.Sscanf(line, "Pss: %d kB", &kb); n == 1 {
			all = kb << 10
			found++
		}
		if n, _ := fmt.Sscanf(line, "Pss_Anon: %d kB", &kb); n == 1 {
			own = kb << 10
			found++
		}
	}
	if found != 2 {
		return 0, 0, fmt.Errorf("no Pss and Pss_Anon in %q", b)
	}
	return all, own, nil
}
