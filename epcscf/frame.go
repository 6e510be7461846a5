package epcscf

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"github.com/gobwas/ws"

	"wicgate/internal/siptx"
)

// closing ends a WebSocket with a status code and a reason that the peer is told (RFC 6455 §7.4).
type closing struct {
	code ws.StatusCode
	text string
}

func (c closing) Error() string { return fmt.Sprintf("closed with %d: %s", c.code, c.text) }

// frames reads messages off a WebSocket (RFC 6455 §5, §6.2), text and binary alike (RFC 7118 §5).
type frames struct {
	r *bufio.Reader
	// control is given each ping, pong and close; its error ends the reading.
	control func(op ws.OpCode, payload []byte) error
	// begun is called when a message, or a control frame between messages, has begun.
	begun func()
	// idle, where not nil, is called after a control frame between messages. Inside of one it is
	// not: the message's own time runs on.
	idle func()
}

// next returns the next whole message. Its errors are a closing, or the connection's own.
func (f *frames) next() ([]byte, error) {
	var message []byte
	var text, inside bool
	for {
		h, err := ws.ReadHeader(f.r)
		if err != nil {
			if errors.Is(err, ws.ErrHeaderLengthMSB) || errors.Is(err, ws.ErrHeaderLengthUnexpected) {
				return nil, closing{ws.StatusProtocolError, "malformed frame"}
			}
			return nil, err
		}
		if !inside {
			f.begun()
		}
		switch {
		case !h.Masked:
			return nil, closing{ws.StatusProtocolError, "frame is not masked"}
		case h.Rsv != 0:
			return nil, closing{ws.StatusProtocolError, "no extension was agreed"}
		case h.OpCode.IsReserved():
			return nil, closing{ws.StatusProtocolError, "reserved opcode"}
		case h.OpCode.IsControl() && (!h.Fin || h.Length > ws.MaxControlFramePayloadSize):
			return nil, closing{ws.StatusProtocolError, "control frame fragmented or too long"}
		case h.OpCode == ws.OpContinuation && !inside, (h.OpCode == ws.OpText || h.OpCode == ws.OpBinary) && inside:
			return nil, closing{ws.StatusProtocolError, "fragments out of order"}
		case h.OpCode.IsData() && h.Length > int64(siptx.MaxClientMessage-len(message)):
			return nil, closing{ws.StatusMessageTooBig, fmt.Sprintf("message over %d bytes", siptx.MaxClientMessage)}
		}
		payload := make([]byte, h.Length)
		if _, err := io.ReadFull(f.r, payload); err != nil {
			return nil, err
		}
		ws.Cipher(payload, h.Mask, 0)
		if h.OpCode.IsControl() {
			if err := f.control(h.OpCode, payload); err != nil {
				return nil, err
			}
			if !inside && f.idle != nil {
				f.idle()
			}
			continue
		}
		if h.OpCode != ws.OpContinuation {
			text, inside = h.OpCode == ws.OpText, true
			message = payload
		} else {
			message = append(message, payload...)
		}
		if !h.Fin {
			continue
		}
		if text && !utf8.Valid(message) {
			return nil, closing{ws.StatusInvalidFramePayloadData, "text is not UTF-8"}
		}
		return message, nil
	}
}

// closeFrame answers a close frame, or begins the close handshake.
func closeFrame(code ws.StatusCode, text string) []byte {
	return ws.MustCompileFrame(ws.NewCloseFrame(ws.NewCloseFrameBody(code, text)))
}

// dataFrame wraps a message: text, or binary where it is not UTF-8, which a browser would not take as text.
func dataFrame(m []byte) []byte {
	if !utf8.Valid(m) {
		return ws.MustCompileFrame(ws.NewBinaryFrame(m))
	}
	return ws.MustCompileFrame(ws.NewTextFrame(m))
}
