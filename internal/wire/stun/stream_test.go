package stun

import (
	"bytes"
	"errors"
	"testing"
)

func TestStreamSize(t *testing.T) {
	for _, c := range []struct {
		b    []byte
		want int
		err  error
	}{
		{nil, 0, nil},
		{[]byte{0}, 0, nil},
		{[]byte{0, 1, 0}, 0, nil},
		{[]byte{0, 1, 0, 0}, 20, nil},
		{[]byte{1, 1, 0, 8, 9}, 28, nil},
		{[]byte{0, 1, 0xff, 0xfc}, MaxStreamSize, nil},
		{[]byte{0, 1, 0, 2}, 0, ErrFraming}, // STUN is a multiple of 4
		{[]byte{0x40, 0, 0}, 0, nil},
		{[]byte{0x40, 0, 0, 0}, 4, nil},
		{[]byte{0x40, 0, 0, 1}, 8, nil},
		{[]byte{0x40, 0, 0, 4}, 8, nil},
		{[]byte{0x4f, 0xff, 0xff, 0xff}, 4 + 65536, nil},
		{[]byte{4}, 0, ErrFraming},
		{[]byte{22}, 0, ErrFraming},
		{[]byte{0x50}, 0, ErrFraming},
		{[]byte{0x80, 0, 0, 0}, 0, ErrFraming},
		{[]byte("POST /"), 0, ErrFraming},
		{[]byte("GET /"), 4 + 0x5420, nil}, // reads as ChannelData; a limit for strangers ends it
	} {
		if got, err := StreamSize(c.b, false); got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%x: %d, %v, want %d, %v", c.b, got, err, c.want, c.err)
		}
	}
	if got, err := StreamSize([]byte{0x7f, 0xff, 0, 1}, true); got != 8 || err != nil {
		t.Errorf("a channel of RFC 5766: %d, %v", got, err)
	}
	for n := range 9 {
		data := bytes.Repeat([]byte{7}, n)
		m := AppendStreamPadding(AppendChannelData(nil, MinChannel, data))
		if size, err := StreamSize(m, false); err != nil || size != len(m) {
			t.Errorf("%d bytes of data: %d of %d, %v", n, size, len(m), err)
		}
		if _, got, err := ParseChannelData(m); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d bytes of data: %x, %v", n, got, err)
		}
	}
}
