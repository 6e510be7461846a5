package waf

import "sync/atomic"

// Cause is why something was refused. The set is fixed: it labels a metric.
type Cause uint8

// The causes. What a peer is told is less, see each refusal.
const (
	WrongPassword    Cause = iota // log-in: a known user, another password
	UnknownUser                   // log-in: no such user
	TooManyLogins                 // log-in: over the rate of source or user
	Busy                          // log-in: more password checks wait than may
	Forged                        // a form sent from a page of another origin
	UnknownClient                 // client_id missing or not registered
	BadRedirect                   // redirect_uri missing, not registered, or not that of the code
	BadPKCE                       // code_challenge missing or malformed, or not S256
	BadScope                      // no scope that is served here
	BadResponseType               // response_type other than code
	BadParameter                  // missing, twice, too long or malformed
	LoginRequired                 // prompt=none without a session
	BadMethod                     // another HTTP method
	TooLarge                      // body or URL over the limit
	ClientSecret                  // a wrong client secret, none where one is needed, or one in the body
	BadGrantType                  // grant_type not served
	UnknownCode                   // no such code, or its time has passed
	CodeReplayed                  // a code for the second time
	ForeignCode                   // a code or token of another client
	WrongVerifier                 // code_verifier does not match
	UnknownRefresh                // no such refresh token
	RefreshReused                 // a refresh token that was spent: the session ends
	SubjectGarbage                // subject_token is no token of this kind
	SubjectForeign                // subject_token signed by another, or for another purpose
	SubjectExpired                // subject_token was good once
	SessionEnded                  // the log-in behind code or token has been ended
	UnknownAudience               // no TURN server of that name
	TooManyTokens                 // over the rate of TURN tokens or refreshes of one pseudonym
	TooManySecrets                // over the rate of wrong client secrets of one source
	PoolEmpty                     // all identities for guests are leased
	StoreUnavailable              // the store did not answer
	causes
)

var causeNames = [causes]string{"wrong_password", "unknown_user", "too_many_logins", "busy", "forged", "unknown_client",
	"bad_redirect", "bad_pkce", "bad_scope", "bad_response_type", "bad_parameter", "login_required", "bad_method", "too_large",
	"client_secret", "bad_grant_type", "unknown_code", "code_replayed", "foreign_code", "wrong_verifier",
	"unknown_refresh", "refresh_reused", "subject_garbage",
	"subject_foreign", "subject_expired", "session_ended", "unknown_audience", "too_many_tokens", "too_many_secrets", "pool_empty", "store_unavailable"}

// String is the cause as metrics and logs name it.
func (c Cause) String() string { return causeNames[c] }

// Stats are counters since the start.
type Stats struct {
	LogIns       uint64 // passwords that were right
	LogInsFailed uint64 // all others
	LogOuts      uint64
	Codes        uint64            // authorization codes issued
	SIPTokens    uint64            // SIP access tokens issued
	Refreshes    uint64            // of these, for a refresh token
	Leases       uint64            // and for a new guest
	TURNTokens   uint64            // TURN tokens issued
	Unchecked    uint64            // of these, without asking the store whether the session has ended: it did not answer
	Refused      map[string]uint64 // by Cause, all of them
}

type counters struct {
	logIns, logInsFailed, logOuts, codes, sipTokens, turnTokens, unchecked, refreshes, leases atomic.Uint64

	refused [causes]atomic.Uint64
}

// Stats returns the counters. The caller owns the map.
func (s *Server) Stats() Stats {
	out := Stats{
		LogIns: s.stats.logIns.Load(), LogInsFailed: s.stats.logInsFailed.Load(), LogOuts: s.stats.logOuts.Load(),
		Codes: s.stats.codes.Load(), SIPTokens: s.stats.sipTokens.Load(), TURNTokens: s.stats.turnTokens.Load(),
		Unchecked: s.stats.unchecked.Load(), Refreshes: s.stats.refreshes.Load(), Leases: s.stats.leases.Load(), Refused: make(map[string]uint64, causes),
	}
	for c := range causes {
		out.Refused[c.String()] = s.stats.refused[c].Load()
	}
	return out
}
