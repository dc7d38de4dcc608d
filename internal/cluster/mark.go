package cluster

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"
)

// mark remembers the newest entry of the log that the state holds. raft does not keep on disk what is committed; without the mark, a
// node of many that is killed would serve at its next start what the state file has, which may be a second older than what it served. It is
// written at every event and not synced: it outlives the process, not the machine.
type mark struct{ f *os.File }

// markSize is an index, a term and a checksum over both.
const markSize = 8 + 8 + 4

func openMark(dir string) (mark, error) {
	f, err := os.OpenFile(filepath.Join(dir, markFile), os.O_RDWR|os.O_CREATE, 0o600)
	return mark{f}, err
}

// set marks an entry. It is called before the state that holds it can be seen.
func (m mark) set(index, term uint64) {
	_, _ = m.f.WriteAt(markOf(index, term), 0) // an older mark, or one that is broken, says less and nothing wrong
}

func markOf(index, term uint64) []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, markSize), index)
	b = binary.BigEndian.AppendUint64(b, term)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// read returns the index of the marked entry, and 0 when there is none that the log still has.
func (m mark) read(log raft.LogStore) (uint64, error) {
	var b [markSize]byte
	if _, err := m.f.ReadAt(b[:], 0); errors.Is(err, io.EOF) {
		return 0, nil
	} else if err != nil {
		return 0, err
	}
	if binary.BigEndian.Uint32(b[16:]) != crc32.Checksum(b[:16], castagnoli) {
		return 0, nil
	}
	index := binary.BigEndian.Uint64(b[:])
	var l raft.Log
	switch err := log.GetLog(index, &l); {
	case errors.Is(err, raft.ErrLogNotFound):
		return 0, nil
	case err != nil:
		return 0, err
	case l.Term != binary.BigEndian.Uint64(b[8:]):
		return 0, nil // of another log
	}
	return index, nil
}
