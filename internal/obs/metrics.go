package obs

// spec is a metric. Its name gets the prefix wicgate_; one that ends in _total is a counter since the
// process's start, every other a gauge.
type spec struct {
	name, help string
	label      string            // whose values are a map's keys, or a struct's fields
	constant   map[string]string // labels by which several fields are one metric
}

// counts are the packets and bytes of one direction of the gateway.
func counts(table map[string]spec, field, side, direction string) {
	labels := map[string]string{"side": side, "direction": direction}
	table["imsagw."+field+".Packets"] = spec{name: "imsagw_packets_total", help: "RTP and RTCP packets. Received on the access side counts after decryption, sent there before encryption.", constant: labels}
	table["imsagw."+field+".Bytes"] = spec{name: "imsagw_bytes_total", help: "Bytes of RTP and RTCP, without UDP and IP headers.", constant: labels}
}

// table has a line for each field of each role's Stats; a test holds the two equal.
var table = func() map[string]spec {
	t := map[string]spec{
		"turn.Allocations":         {name: "turn_allocations", help: "TURN allocations now."},
		"turn.AllocationsTotal":    {name: "turn_allocations_granted_total", help: "TURN allocations granted."},
		"turn.Bindings":            {name: "turn_bindings_total", help: "STUN Binding requests answered."},
		"turn.Refused401":          {name: "turn_challenges_total", help: "401 responses sent. Many, and few allocations: somebody reflects, or tokens do not fit."},
		"turn.Refused":             {name: "turn_refused_total", help: "Packets of clients and peers refused or dropped, by cause; challenges too.", label: "cause"},
		"turn.Ended":               {name: "turn_allocations_ended_total", help: "Allocations that ended, by cause.", label: "cause"},
		"turn.ToPeerPackets":       {name: "turn_relayed_packets_total", help: "Packets relayed.", constant: map[string]string{"direction": "to_peer"}},
		"turn.ToClientPackets":     {name: "turn_relayed_packets_total", help: "Packets relayed.", constant: map[string]string{"direction": "to_client"}},
		"turn.ToPeerBytes":         {name: "turn_relayed_bytes_total", help: "Bytes of payload relayed.", constant: map[string]string{"direction": "to_peer"}},
		"turn.ToClientBytes":       {name: "turn_relayed_bytes_total", help: "Bytes of payload relayed.", constant: map[string]string{"direction": "to_client"}},
		"turn.SendErrors":          {name: "turn_send_errors_total", help: "Packets that the kernel did not take, or whose connection was gone."},
		"turn.TooLong":             {name: "turn_too_long_total", help: "Packets of peers above 4096 bytes, dropped."},
		"turn.ICMP":                {name: "turn_icmp_total", help: "ICMP errors about packets to peers, told to clients: peers that are gone, or too far."},
		"turn.Connections":         {name: "turn_connections", help: "Connections of clients on TCP and TLS now."},
		"turn.TCP":                 {name: "turn_connections_accepted_total", help: "Connections that began a TURN session, by transport.", constant: map[string]string{"transport": "tcp"}},
		"turn.TLS":                 {name: "turn_connections_accepted_total", help: "Connections that began a TURN session, by transport.", constant: map[string]string{"transport": "tls"}},
		"turn.DTLS":                {name: "turn_connections_accepted_total", help: "Connections that began a TURN session, by transport.", constant: map[string]string{"transport": "dtls"}},
		"turn.Associations":        {name: "turn_associations", help: "Associations of clients on DTLS now."},
		"turn.AssociationsRefused": {name: "turn_associations_refused_total", help: "Associations of DTLS that did not come to a first message, by cause.", label: "cause"},
		"turn.AssociationsEnded":   {name: "turn_associations_ended_total", help: "Associations of DTLS that ended, by cause.", label: "cause"},
		"turn.ConnectionsRefused":  {name: "turn_connections_refused_total", help: "Connections closed before a first message, by cause.", label: "cause"},
		"turn.ConnectionsEnded":    {name: "turn_connections_ended_total", help: "Connections that ended, by cause.", label: "cause"},
		"turn.QueueDropped":        {name: "turn_queue_dropped_total", help: "Packets of peers that a slow connection had no room for."},

		"waf.LogIns":       {name: "waf_log_ins_total", help: "Log-ins with the right password."},
		"waf.LogInsFailed": {name: "waf_log_ins_failed_total", help: "Log-ins that failed, whatever the cause."},
		"waf.LogOuts":      {name: "waf_log_outs_total", help: "Log-outs."},
		"waf.Codes":        {name: "waf_codes_total", help: "Authorization codes issued."},
		"waf.SIPTokens":    {name: "waf_sip_tokens_total", help: "SIP access tokens issued."},
		"waf.Refreshes":    {name: "waf_refreshes_total", help: "SIP access tokens issued for a refresh token; waf_sip_tokens_total has them too."},
		"waf.Leases":       {name: "waf_guest_leases_total", help: "Identities leased to new guests; waf_sip_tokens_total has their tokens too."},
		"waf.TURNTokens":   {name: "waf_turn_tokens_total", help: "TURN tokens issued."},
		"waf.Unchecked":    {name: "waf_unchecked_total", help: "TURN tokens issued without asking the store whether the log-in has ended, because it did not answer."},
		"waf.Refused":      {name: "waf_refused_total", help: "Requests refused, by cause.", label: "cause"},

		"wwsf.Pages":       {name: "wwsf_pages_total", help: "Answers with the page."},
		"wwsf.Assets":      {name: "wwsf_assets_total", help: "Answers with a part of the page."},
		"wwsf.Configs":     {name: "wwsf_configs_total", help: "Answers with config.json, the WAF being known."},
		"wwsf.Guests":      {name: "wwsf_guests_total", help: "Guests let in."},
		"wwsf.Unavailable": {name: "wwsf_unavailable_total", help: "503 for config.json or a guest: the WAF not reached, or no place left."},
		"wwsf.Missing":     {name: "wwsf_missing_total", help: "404 answers."},
		"wwsf.Refused":     {name: "wwsf_refused_total", help: "Requests refused: method; of guests also origin, length, rate."},

		"epcscf.Flows":           {name: "epcscf_websockets", help: "WebSockets of browsers now."},
		"epcscf.Bindings":        {name: "epcscf_registrations", help: "Registrations alive now."},
		"epcscf.Calls":           {name: "epcscf_calls", help: "Calls now, until their gateway session is released."},
		"epcscf.Dialogs":         {name: "epcscf_dialogs", help: "Answered calls now."},
		"epcscf.FlowsTotal":      {name: "epcscf_websockets_accepted_total", help: "WebSockets accepted."},
		"epcscf.Registers":       {name: "epcscf_registers_total", help: "REGISTER requests answered with 200, refreshes too."},
		"epcscf.Deregistered":    {name: "epcscf_deregistered_total", help: "Registrations ended by the edge, for a browser that is gone."},
		"epcscf.Revoked":         {name: "epcscf_revoked_total", help: "Registrations ended because their log-in was revoked."},
		"epcscf.TURNCredentials": {name: "epcscf_turn_credentials_total", help: "TURN credentials issued to browsers that asked (TURN-Credential)."},
		"epcscf.Restarts":        {name: "epcscf_ice_restarts_total", help: "ICE restarts of browsers answered by the edge."},
		"epcscf.CallsTotal":      {name: "epcscf_calls_begun_total", help: "Calls begun."},
		"epcscf.CallsAnswered":   {name: "epcscf_calls_answered_total", help: "Calls that were answered."},
		"epcscf.CallsFailed":     {name: "epcscf_calls_failed_total", help: "Calls ended by the edge: media lost, WebSocket gone, shutdown."},
		"epcscf.CoreConnections": {name: "epcscf_core_connections", help: "SIP connections with the core now."},
		"epcscf.Faults":          {name: "epcscf_faults_total", help: "Panics caught. Each is a bug and a line in the log."},
		"epcscf.Refused":         {name: "epcscf_refused_total", help: "Connections, requests and messages refused, by cause.", label: "cause"},

		"imsagw.Sessions":       {name: "imsagw_sessions", help: "Call legs now."},
		"imsagw.SessionsTotal":  {name: "imsagw_sessions_reserved_total", help: "Call legs reserved."},
		"imsagw.Connected":      {name: "imsagw_sessions_connected_total", help: "Call legs whose browser connected."},
		"imsagw.Abandoned":      {name: "imsagw_sessions_abandoned_total", help: "Call legs that the gateway ended because no edge did."},
		"imsagw.ICEFailed":      {name: "imsagw_ice_failed_total", help: "Call legs whose ICE failed."},
		"imsagw.ConsentLost":    {name: "imsagw_consent_lost_total", help: "Call legs whose browser stopped consenting (RFC 7675)."},
		"imsagw.Restarts":       {name: "imsagw_ice_restarts_total", help: "ICE restarts begun."},
		"imsagw.RestartsFailed": {name: "imsagw_ice_restarts_failed_total", help: "ICE restarts that found no path; the old one stays."},
		"imsagw.Asked":          {name: "imsagw_key_frames_asked_total", help: "Key frames that the gateway asked a sender of video for (PLI)."},
		"imsagw.EventsLost":     {name: "imsagw_events_lost_total", help: "Events for the edge that found no room."},
		"imsagw.Drops":          {name: "imsagw_dropped_packets_total", help: "Packets dropped, by cause.", label: "cause"},
		"imsagw.DTLSFailures":   {name: "imsagw_dtls_failures_total", help: "DTLS handshakes that failed, by cause.", label: "cause"},

		"democore.Registrations": {name: "democore_registrations", help: "Contacts registered now."},
		"democore.Calls":         {name: "democore_calls", help: "Calls answered and not ended now."},
		"democore.Connections":   {name: "democore_connections", help: "Connections with edges now."},
		"democore.Registers":     {name: "democore_registers_total", help: "REGISTER requests accepted."},
		"democore.Refused":       {name: "democore_refused_total", help: "REGISTER requests refused."},
		"democore.Routed":        {name: "democore_routed_total", help: "Requests sent on."},
		"democore.Leaks":         {name: "democore_leaks_total", help: "Messages in which an edge let a bearer token through. Each is a bug."},
	}
	counts(t, "AccessRx", "access", "received")
	counts(t, "AccessTx", "access", "sent")
	counts(t, "CoreRx", "core", "received")
	counts(t, "CoreTx", "core", "sent")
	return t
}()

// Fields are the fields that the table knows, as role.Field, for the test that holds it to the roles.
func Fields() (out []string) {
	for f := range table {
		out = append(out, f)
	}
	return out
}
