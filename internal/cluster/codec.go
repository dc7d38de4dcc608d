package cluster

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/rota-dns/rota/internal/rota"
)

// An event in the log is one byte of form, four bytes of CRC-32C over what follows, four bytes of the size of its JSON (both big
// endian), and the event as JSON, packed when that pays. Its index is not in it: that is its place.
const (
	formPlain  = 1
	formPacked = 2 // DEFLATE, RFC 1951

	frameSum    = 5 // where what is summed begins
	frameHeader = 9
	packAbove   = 4 << 10 // bytes of JSON
)

// Bounds of an event in the log.
const (
	MaxEvent   = 64 << 20 // bytes in the log, packed
	maxUnpack  = 1 << 30  // bytes of JSON
	newestForm = formPacked
)

// ErrTooLarge says that an event would take more than MaxEvent bytes in the log.
var ErrTooLarge = errors.New("event is too large")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encodeEvent returns the event as it stands in the log, and the size of its JSON.
func encodeEvent(e rota.Event) (frame []byte, size int, err error) {
	e.Index = 0
	plain, err := json.Marshal(e)
	if err != nil {
		return nil, 0, fmt.Errorf("event %s: %w", e.Kind, err)
	}
	b := bytes.NewBuffer(make([]byte, frameHeader, frameHeader+min(len(plain), packAbove)))
	form := byte(formPlain)
	if len(plain) > packAbove {
		form = formPacked
		w, err := flate.NewWriter(b, flate.BestSpeed)
		if err != nil {
			return nil, 0, err
		}
		if _, err := w.Write(plain); err != nil {
			return nil, 0, err
		}
		if err := w.Close(); err != nil {
			return nil, 0, err
		}
	} else {
		b.Write(plain)
	}
	if b.Len() > MaxEvent || len(plain) > maxUnpack {
		return nil, 0, fmt.Errorf("%w: this %s event takes %d MiB in the log, the limit is %d MiB; split it",
			ErrTooLarge, e.Kind, b.Len()>>20, MaxEvent>>20)
	}
	frame = b.Bytes()
	frame[0] = form
	binary.BigEndian.PutUint32(frame[frameSum:], uint32(len(plain)))
	binary.BigEndian.PutUint32(frame[1:], crc32.Checksum(frame[frameSum:], castagnoli))
	return frame, len(plain), nil
}

// newerError says that data was written by a later version.
type newerError struct{ what string }

func (e *newerError) Error() string {
	return e.what + " was written by a newer version of rota: start that version, or a newer one"
}

// checkFrame returns the size of an event's JSON, of a frame that is whole and of a known form.
func checkFrame(frame []byte) (size int, err error) {
	if len(frame) == 0 || frame[0] == 0 {
		return 0, errors.New("event is blank")
	}
	if frame[0] > newestForm {
		return 0, &newerError{"an event"}
	}
	if len(frame) < frameHeader {
		return 0, fmt.Errorf("event of %d bytes is cut off", len(frame))
	}
	if sum := crc32.Checksum(frame[frameSum:], castagnoli); sum != binary.BigEndian.Uint32(frame[1:]) {
		return 0, errors.New("event does not match its checksum")
	}
	if n := binary.BigEndian.Uint32(frame[frameSum:]); n <= maxUnpack {
		return int(n), nil
	}
	return 0, errors.New("event is larger than any may be")
}

// decodeEvent is the inverse of encodeEvent.
func decodeEvent(frame []byte) (e rota.Event, size int, err error) {
	if size, err = checkFrame(frame); err != nil {
		return e, 0, err
	}
	body := frame[frameHeader:]
	if frame[0] == formPacked {
		var plain bytes.Buffer
		plain.Grow(min(size, 1024*len(body)) + bytes.MinRead) // DEFLATE packs no better than that, so a lie costs no memory
		if _, err := io.Copy(&plain, io.LimitReader(flate.NewReader(bytes.NewReader(body)), int64(size)+1)); err != nil {
			return e, 0, fmt.Errorf("event cannot be unpacked: %w", err)
		}
		body = plain.Bytes()
	}
	if len(body) != size {
		return e, 0, fmt.Errorf("event has %d bytes and says %d", len(body), size)
	}
	if err := json.Unmarshal(body, &e); err != nil {
		return e, 0, fmt.Errorf("event cannot be read: %w", err)
	}
	return e, size, nil
}
