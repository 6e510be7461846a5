// Package siptx speaks SIP (RFC 3261) over transports that are reliable and keep order: TCP, and
// the WebSocket of RFC 7118. It holds strict reading of messages, framing by Content-Length, and the
// transactions of RFC 3261 §17 as RFC 6026 mends them, without retransmission, which reliable
// transports do not need. It does not route, does not know dialogs, and speaks no UDP.
//
//	bytes ── Parse ──► Message ── Layer.Receive ──► ServerTx, ClientTx ──► the owner
//	Conn  ◄─────────── Message.Append ◄──────────── Respond, Request   ◄──
//
// Start lines and URIs are read by sipgo's parser. Header fields are kept as they came, byte for
// byte: what a proxy does not understand, it must not rewrite.
package siptx
