package coturn

import "slices"

// kind is what an option's value is.
type kind uint8

const (
	toggle kind = iota // on where no value is given, or one that says yes
	text               // a value
	hidden             // a value that is a secret, or holds one
)

// fate is what becomes of an option.
type fate uint8

const (
	taken   fate = iota // Convert reads it
	moot                // nothing to take over: so it is here always, or another's business
	missing             // what it asks for, wicgate does not do
)

// option is one of coturn's, of 4.5 to 4.17. An option that is moot or missing says why.
type option struct {
	kind kind
	fate fate
	why  string
}

// Reasons that several options share.
const (
	whyService = "the service manager's business: systemd, a container"
	whyLog     = "the log goes to standard error, where systemd or a container takes it; log.format chooses text or json"
	whyCLI     = "no port to log in to: \"wicgate turn\" lists and ends sessions through a Unix socket in the data folder"
	whyTLS     = "Go's TLS chooses curves and suites with forward secrecy alone, in TLS 1.2 and 1.3"
	whyOldTLS  = "TLS below 1.2 is not spoken (RFC 8996)"
	whyBatch   = "how packets are read and sent is chosen at run time"
	whyTimers  = "the standard's: 300 s for permissions, 600 s for channels (RFC 8656 §9, §12)"
	whyStats   = "counters are at admin.listen for Prometheus, and news of sessions on the bus"
	whyMulti   = "each allocation has a port of its own, as RFC 8656 §7.2 wants it"
	whyMove    = "a client is not sent to another server at its first request; list the servers in turn.urls, and clients try all"
	whyDynamic = "the database is read once, now"
	whyRelay   = "a device is not bound to; name its address"
	whyOld     = "what ended in old protocols: RFC 3489 and RFC 5389 clients get the answers of RFC 8489"
	whyDatabse = "no reader for this database: copy its tables into an SQLite file of coturn's schema, and name that with --userdb"
)

// options is every option by its long name.
var options = map[string]option{
	// Addresses and transports.
	"listening-ip": {text, taken, ""}, "listening-port": {text, taken, ""}, "tls-listening-port": {text, taken, ""},
	"aux-server": {text, taken, ""}, "relay-ip": {text, taken, ""}, "external-ip": {text, taken, ""},
	"min-port": {text, taken, ""}, "max-port": {text, taken, ""}, "tcp-proxy-port": {text, taken, ""},
	"no-udp": {toggle, taken, ""}, "no-tcp": {toggle, taken, ""}, "no-tls": {toggle, taken, ""}, "no-dtls": {toggle, taken, ""}, "no_dtls": {toggle, taken, ""}, "dtls": {toggle, taken, ""},
	"no-udp-relay": {toggle, missing, "UDP is what an allocation relays; a server for RFC 6062 alone is not offered"},
	"no-tcp-relay": {toggle, taken, ""}, "mobility": {toggle, taken, ""}, "rfc5766-channel-numbers": {toggle, taken, ""},
	"listening-device": {text, missing, whyRelay}, "relay-device": {text, missing, whyRelay},
	"alt-listening-port": {text, taken, ""}, "alt-tls-listening-port": {text, missing, "NAT discovery (RFC 5780) is of UDP alone"},
	"rfc5780": {toggle, taken, ""}, "no-rfc5780": {toggle, moot, "off unless turn.nat_discovery says on"},
	"udp-self-balance": {toggle, missing, whyMove}, "alternate-server": {text, missing, whyMove}, "tls-alternate-server": {text, missing, whyMove},
	"tcp-alternate-server": {text, missing, whyMove}, "udp-alternate-server": {text, missing, whyMove},
	"multiplex-peer": {toggle, missing, whyMulti}, "multiplex-peer-port": {text, missing, whyMulti}, "multiplex-peer-max-peers": {text, missing, whyMulti},
	"keep-address-family": {toggle, missing, "who asks for no family gets IPv4 (RFC 8656 §7.2)"}, "allocation-default-address-family": {text, missing, "who asks for no family gets IPv4 (RFC 8656 §7.2)"},
	"server-relay": {toggle, missing, "a relay that takes packets without a permission is open to the world (RFC 8656 §9)"},

	// TLS.
	"cert": {text, taken, ""}, "pkey": {text, taken, ""}, "pkey-pwd": {hidden, taken, ""},
	"CA-file":         {text, missing, "clients are known by their TURN credentials, not by certificates"},
	"raw-public-keys": {toggle, missing, "browsers do not offer raw public keys (RFC 7250)"},
	"cipher-list":     {text, moot, whyTLS}, "ec-curve-name": {text, moot, whyTLS}, "dh-file": {text, moot, whyTLS}, "dh566": {toggle, moot, whyTLS}, "dh1066": {toggle, moot, whyTLS},
	"tlsv1": {toggle, missing, whyOldTLS}, "tlsv1_1": {toggle, missing, whyOldTLS}, "no-tlsv1": {toggle, moot, whyOldTLS}, "no-tlsv1_1": {toggle, moot, whyOldTLS},
	"no-sslv2": {toggle, moot, whyOldTLS}, "no-sslv3": {toggle, moot, whyOldTLS},
	"no-tlsv1_2":    {toggle, missing, "TLS 1.2 is always spoken beside 1.3; old browsers and libraries need it"},
	"acme-redirect": {text, missing, "https.acme gets certificates itself; or answer the challenge with the web server on port 80"},

	// Credentials.
	"realm": {text, taken, ""}, "server-name": {text, taken, ""},
	"lt-cred-mech": {toggle, taken, ""}, "no-auth": {toggle, taken, ""}, "use-auth-secret": {toggle, taken, ""}, "oauth": {toggle, taken, ""},
	"static-auth-secret": {hidden, taken, ""}, "user": {hidden, taken, ""}, "rest-api-separator": {text, taken, ""},
	"userdb": {text, taken, ""}, "db": {text, taken, ""}, "psql-userdb": {hidden, taken, ""}, "sql-userdb": {hidden, taken, ""}, "redis-userdb": {hidden, taken, ""},
	"mysql-userdb": {hidden, missing, whyDatabse}, "mongo-userdb": {hidden, missing, whyDatabse}, "secret-key-file": {text, moot, "it opens the password of MySQL alone"},
	"no-auth-pings": {toggle, moot, whyDynamic}, "no-dynamic-ip-list": {toggle, taken, ""}, "no-dynamic-realms": {toggle, taken, ""},
	"secure-stun":              {toggle, missing, "Binding requests are answered without a credential (RFC 8489 §12), within a budget per source"},
	"check-origin-consistency": {toggle, missing, "browsers send no ORIGIN, and it never became a standard"},
	"stale-nonce":              {text, taken, ""},
	"stateless-nonce":          {toggle, moot, "nonces are without state always"}, "stateless-nonce-secret": {hidden, moot, "nonce secrets are in turn.keys, shared by the nodes of a name"},
	"unauthorized-ratelimit": {toggle, moot, "answers to who has no valid nonce are within a budget per source always"}, "unauthorized-ratelimit-rps": {text, moot, "answers to who has no valid nonce are within a budget per source always"},

	// Quotas and lives.
	"user-quota": {text, taken, ""}, "total-quota": {text, taken, ""},
	"max-bps": {text, taken, ""}, "bps-capacity": {text, taken, ""},
	"max-allocate-lifetime": {text, taken, ""}, "channel-lifetime": {text, moot, whyTimers}, "permission-lifetime": {text, moot, whyTimers},
	"max-allocate-timeout":  {text, moot, "a TCP or TLS connection without an allocation is closed by timers of its own"},
	"drain-min-allocations": {text, missing, "\"wicgate drain\" waits for all, by age"},

	// Peers.
	"denied-peer-ip": {text, taken, ""}, "allowed-peer-ip": {text, taken, ""},
	"no-multicast-peers": {toggle, moot, "multicast is refused always"}, "no-loopback-peers": {toggle, moot, "loopback is refused always"},
	"allow-loopback-peers": {toggle, missing, "a server that others reach relays nothing to its own loopback; \"wicgate check\" refuses it in turn.open too"},

	// STUN.
	"fingerprint":           {toggle, moot, "FINGERPRINT is verified where a client sends it, and answered with one"},
	"stun-only":             {toggle, missing, "without an allocation there is nothing for the role turn to do"},
	"no-stun":               {toggle, missing, "Binding requests are part of TURN's connectivity, and are answered"},
	"log-binding":           {toggle, moot, "log.level: debug names the cause of every refused packet; answered Binding requests are counted"},
	"no-software-attribute": {toggle, moot, "no SOFTWARE attribute is sent"}, "prod": {toggle, moot, "no SOFTWARE attribute is sent"}, "software-attribute": {toggle, missing, "no SOFTWARE attribute is sent: it tells versions to strangers (RFC 8489 §16.1.2)"},
	"include-reason-string":          {toggle, missing, "errors carry their number and no phrase, to answer little to strangers"},
	"no-stun-backward-compatibility": {toggle, moot, whyOld}, "stun-backward-compatibility": {toggle, missing, whyOld}, "rfc3489-compatibility": {toggle, taken, ""}, "response-origin-only-with-rfc5780": {toggle, moot, "no RESPONSE-ORIGIN is sent"},
	"drop-invalid-packets": {toggle, moot, "what is not STUN is dropped always"}, "drop-invalid-packets-log": {toggle, moot, "log.level: debug names the cause of every refused packet"},
	"respond-http-unsupported": {toggle, missing, "plain HTTP on a TURN port is closed without an answer"},

	// Operation.
	"verbose": {toggle, taken, ""}, "Verbose": {toggle, taken, ""}, "log-min-level": {text, taken, ""},
	"log-file": {text, moot, whyLog}, "no-stdout-log": {toggle, moot, whyLog}, "syslog": {toggle, moot, whyLog}, "syslog-facility": {text, moot, whyLog}, "simple-log": {toggle, moot, whyLog},
	"new-log-timestamp": {toggle, moot, whyLog}, "new-log-timestamp-format": {text, moot, whyLog},
	"prometheus": {toggle, taken, ""}, "prometheus-port": {text, taken, ""}, "prometheus-address": {text, taken, ""},
	"prometheus-path":            {text, missing, "metrics are at /metrics"},
	"prometheus-username-labels": {toggle, missing, "a label for each user makes a monitoring system run out of memory; \"wicgate turn sessions\" names users"},
	"prometheus-tls":             {toggle, missing, "metrics are plain HTTP, on loopback or a private address"}, "prometheus-cert": {text, missing, "metrics are plain HTTP, on loopback or a private address"}, "prometheus-key": {text, missing, "metrics are plain HTTP, on loopback or a private address"},
	"cli": {toggle, missing, whyCLI}, "no-cli": {toggle, moot, whyCLI}, "cli-ip": {text, moot, whyCLI}, "cli-port": {text, moot, whyCLI}, "cli-password": {hidden, moot, whyCLI}, "cli-max-output-sessions": {text, moot, whyCLI},
	"web-admin": {toggle, missing, whyCLI}, "web-admin-ip": {text, moot, whyCLI}, "web-admin-port": {text, moot, whyCLI}, "web-admin-listen-on-workers": {toggle, missing, whyCLI},
	"redis-statsdb": {hidden, missing, whyStats},
	"daemon":        {toggle, moot, whyService}, "pidfile": {text, moot, whyService}, "proc-user": {text, moot, whyService}, "proc-group": {text, moot, whyService},
	"relay-threads": {text, moot, "as many as the processors, or as GOMAXPROCS says"}, "cpus": {text, moot, "as many as the processors, or as GOMAXPROCS says"}, "ne": {text, moot, whyBatch},
	"sock-buf-size": {text, moot, "buffers are asked for at start; \"wicgate check\" tells when the system gives less"},
	"udp-recvmmsg":  {toggle, moot, whyBatch}, "udp-recvmmsg-log": {toggle, moot, whyBatch}, "udp-sendmmsg-log": {toggle, moot, whyBatch}, "udp-gso": {toggle, moot, whyBatch},
	"version": {toggle, moot, "of the command line"},
}

// Names are all options that are known.
func Names() []string {
	names := make([]string, 0, len(options))
	for n := range options {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}
