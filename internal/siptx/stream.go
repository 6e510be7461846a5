package siptx

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strconv"
	"strings"
)

// ReadMessage takes the bytes of the next message off a stream (RFC 3261 §18.3). An empty result
// without error is a keep-alive, CRLF CRLF (RFC 5626 §3.5.1), to be answered with CRLF. begun is called at a message's
// first byte. The reader should have a deadline.
func ReadMessage(r *bufio.Reader, begun func()) ([]byte, error) {
	for blank := 0; ; {
		c, err := r.Peek(1)
		if err != nil {
			return nil, err
		}
		if c[0] != '\r' {
			break
		}
		crlf, err := r.Peek(2)
		if err != nil {
			return nil, unexpected(err)
		}
		if crlf[1] != '\n' {
			return nil, malformed("CR without LF between messages")
		}
		if _, err := r.Discard(2); err != nil {
			return nil, err
		}
		if blank++; blank == 2 {
			return nil, nil
		}
	}
	begun()
	var b []byte
	length := -1
	for lines := 0; ; lines++ {
		line, err := r.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) || len(b)+len(line) > MaxHead || lines > maxFields {
			return nil, malformed("header fields over %d bytes, or a line over the buffer", MaxHead)
		}
		if err != nil {
			return nil, unexpected(err)
		}
		b = append(b, line...)
		if len(line) == 2 && line[0] == '\r' {
			break
		}
		if line[0] == ' ' || line[0] == '\t' {
			continue // the last field goes on
		}
		name, value, ok := strings.Cut(string(line), ":")
		if !ok || !isLength(strings.TrimSpace(name)) {
			continue
		}
		n, err := strconv.ParseUint(strings.TrimSpace(value), 10, 32)
		if err != nil || length >= 0 || n > MaxMessage {
			return nil, malformed("Content-Length")
		}
		length = int(n)
	}
	if length < 0 {
		return nil, malformed("no Content-Length on a stream")
	}
	if len(b)+length > MaxMessage {
		return nil, malformed("over %d bytes", MaxMessage)
	}
	if !bytes.HasSuffix(b, []byte("\r\n\r\n")) {
		return nil, malformed("no end of the header fields")
	}
	at := len(b)
	b = append(b, make([]byte, length)...)
	if _, err := io.ReadFull(r, b[at:]); err != nil {
		return nil, unexpected(err)
	}
	return b, nil
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
