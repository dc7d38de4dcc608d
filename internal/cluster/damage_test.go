package cluster

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"

	"github.com/rota-dns/rota/internal/rota"
)

// lived makes a data directory with some history, closed, and returns the state it was closed with.
func lived(t *testing.T) (dir string, state *rota.State) {
	t.Helper()
	dir = t.TempDir()
	for life := range 2 { // twice, so that there is a previous state file
		n := mustOpen(t, dir)
		led(t, n)
		if life == 0 {
			mustAppend(t, n, rota.Event{Kind: rota.EventSpec, Spec: spec(20, 2)})
		}
		for i := range 30 {
			mustAppend(t, n, drain(life*30+i, n.State()))
		}
		mustClose(t, n)
		state = n.State()
	}
	return dir, state
}

func edit(t *testing.T, path string, f func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, f(b), 0o600); err != nil {
		t.Fatal(err)
	}
}

func rename(t *testing.T, dir, from, to string) {
	t.Helper()
	if err := os.Rename(filepath.Join(dir, from), filepath.Join(dir, to)); err != nil {
		t.Fatal(err)
	}
}

func half(b []byte) []byte    { return b[:len(b)/2] }
func nothing([]byte) []byte   { return nil }
func garbage(b []byte) []byte { return bytes.Repeat([]byte("garbage "), len(b)/8) }
func flip(b []byte) []byte    { b[len(b)/3] ^= 4; return b }
func forge(b []byte) []byte   { return bytes.ReplaceAll(b, []byte("number "), []byte("numbeR ")) }
func noTail(b []byte) []byte  { return b[:len(b)-3] }

func TestDamagedStateFile(t *testing.T) {
	for name, damage := range map[string]func([]byte) []byte{"half": half, "empty": nothing, "garbage": garbage, "flip": flip, "forge": forge, "no tail": noTail} {
		t.Run(name, func(t *testing.T) {
			dir, want := lived(t)
			prev, err := loadState(filepath.Join(dir, previousFile))
			if err != nil {
				t.Fatal(err)
			}
			edit(t, filepath.Join(dir, stateFile), damage)

			n := mustOpen(t, dir)
			if n.State().Index() < want.Index() {
				t.Fatalf("at index %d, want %d", n.State().Index(), want.Index())
			}
			if d := cmp.Diff(want.Overrides(), n.State().Overrides(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
				t.Fatalf("overrides (-want +got):\n%s", d)
			}
			mustClose(t, n)
			// The damaged file did not push out the good copy, and was replaced.
			if s, err := loadState(filepath.Join(dir, previousFile)); err != nil || s.header.Index < prev.header.Index {
				t.Fatalf("the previous file: %+v, %v", s, err)
			}
			if _, err := loadState(filepath.Join(dir, stateFile)); err != nil {
				t.Fatal(err)
			}
			// With the raft log gone as well, the copy before is what there is.
			edit(t, filepath.Join(dir, stateFile), damage)
			rename(t, dir, raftDir, "aside")
			n = mustOpen(t, dir)
			if n.State().Index() < prev.header.Index {
				t.Fatalf("at index %d, want at least %d", n.State().Index(), prev.header.Index)
			}
			mustClose(t, n)
			// And when nothing can be used, nothing is served as if it were everything.
			edit(t, filepath.Join(dir, stateFile), damage)
			edit(t, filepath.Join(dir, previousFile), damage)
			rename(t, dir, raftDir, "aside2")
			refused(t, dir, "restore the data directory from a backup")
		})
	}
}

func refused(t *testing.T, dir string, words ...string) {
	t.Helper()
	n, err := Open(Options{Dir: dir, Node: "a"})
	if err == nil {
		_ = n.Close()
		t.Fatalf("opened, want an error that says %q", words)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not say %q", err, w)
		}
	}
}

func TestRaftMovedAside(t *testing.T) {
	dir, want := lived(t)
	old := readID(t, dir)
	rename(t, dir, raftDir, "aside")
	for range 2 {
		n := mustOpen(t, dir)
		if n.State().Index() < want.Index() {
			t.Fatalf("at index %d, want at least %d", n.State().Index(), want.Index())
		}
		led(t, n)
		e := mustAppend(t, n, drain(7, n.State()))
		if e.Index <= want.Index() {
			t.Fatalf("new event at index %d, not after %d", e.Index, want.Index())
		}
		mustClose(t, n)
		want = n.State()
	}
	if now := readID(t, dir); now != old {
		t.Fatalf("identity %+v, was %+v", now, old)
	}
	// Without the identity the cluster stays the same, the node does not.
	rename(t, dir, raftDir, "aside2")
	rename(t, dir, identityFile, "aside3")
	n := mustOpen(t, dir)
	mustClose(t, n)
	same(t, want, mustLoad(t, dir).state)
	if now := readID(t, dir); now.Cluster != old.Cluster || now.Node == old.Node {
		t.Fatalf("identity %+v, was %+v", now, old)
	}
}

func mustLoad(t *testing.T, dir string) *saved {
	t.Helper()
	s, err := loadState(filepath.Join(dir, stateFile))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func readID(t *testing.T, dir string) identity {
	t.Helper()
	id, err := readIdentity(dir)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestRefused(t *testing.T) {
	newer := func(t *testing.T, dir string) {
		edit(t, filepath.Join(dir, stateFile), func(b []byte) []byte {
			return bytes.Replace(b, []byte(`"format":1`), []byte(`"format":2`), 1)
		})
	}
	for name, c := range map[string]struct {
		break_ func(t *testing.T, dir string)
		words  []string
	}{
		"log garbage": {
			func(t *testing.T, dir string) { edit(t, filepath.Join(dir, logFile), garbage) },
			[]string{"raft.db cannot be used"},
		},
		"log cut off": {
			func(t *testing.T, dir string) {
				edit(t, filepath.Join(dir, logFile), func(b []byte) []byte { return b[:8192] })
			},
			[]string{"raft.db cannot be used"},
		},
		"log empty": {
			func(t *testing.T, dir string) { edit(t, filepath.Join(dir, logFile), nothing) },
			[]string{"raft.db cannot be used", "holds no entry", "move it aside", "goes on from the state file"},
		},
		"log missing": {
			func(t *testing.T, dir string) { rename(t, dir, logFile, "aside") },
			[]string{"raft.db cannot be used", "holds no entry"},
		},
		"log flipped": {func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, logFile), func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("number 41"), []byte("number 99")) })
		}, []string{"raft.db cannot be used", "checksum"}},
		"raft and state gone": {func(t *testing.T, dir string) {
			rename(t, dir, raftDir, "1")
			rename(t, dir, stateFile, "2")
			rename(t, dir, previousFile, "3")
		}, []string{"are gone", "start anew"}},
		"identity gone":    {func(t *testing.T, dir string) { rename(t, dir, identityFile, "1") }, []string{"identity.json is missing"}},
		"identity damaged": {func(t *testing.T, dir string) { edit(t, filepath.Join(dir, identityFile), half) }, []string{"identity.json is damaged"}},
		"identity empty":   {func(t *testing.T, dir string) { edit(t, filepath.Join(dir, identityFile), nothing) }, []string{"identity.json is damaged"}},
		"identity newer": {func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, identityFile), func(b []byte) []byte { return bytes.Replace(b, []byte(`"format": 1`), []byte(`"format": 9`), 1) })
		}, []string{"newer version"}},
		"state newer": {newer, []string{"state.json was written by a newer version of rota"}},
		"another cluster": {func(t *testing.T, dir string) {
			other, _ := lived(t)
			edit(t, filepath.Join(dir, stateFile), func([]byte) []byte {
				b, _ := os.ReadFile(filepath.Join(other, stateFile))
				return b
			})
		}, []string{"two data directories were mixed"}},
		"world-writable": {func(t *testing.T, dir string) {
			if err := os.Chmod(dir, 0o777); err != nil {
				t.Fatal(err)
			}
		}, []string{"may be written by everyone", "chmod 700"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir, _ := lived(t)
			c.break_(t, dir)
			refused(t, dir, c.words...)
		})
	}
	refused(t, "", "no data directory")
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	refused(t, file, "not a directory")
}

// TestOlderLog puts an older copy of the raft log under a newer state file: new events would get the indexes of ones long applied.
func TestOlderLog(t *testing.T) {
	dir, _ := lived(t)
	old, err := os.ReadFile(filepath.Join(dir, logFile))
	if err != nil {
		t.Fatal(err)
	}
	n := mustOpen(t, dir)
	led(t, n)
	mustAppend(t, n, drain(1, n.State()))
	mustClose(t, n)
	edit(t, filepath.Join(dir, logFile), func([]byte) []byte { return old })
	refused(t, dir, "raft.db cannot be used", "older copy")
}

// TestBeginningCutShort stops the very first start at each of its steps.
func TestBeginningCutShort(t *testing.T) {
	for name, files := range map[string][]string{"nothing in raft": {}, "an empty log": {logFile}} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.Mkdir(filepath.Join(dir, raftDir), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := writeIdentity(dir, identity{Format: identityFormat, Cluster: "c", Node: "n", Name: "a"}); err != nil {
				t.Fatal(err)
			}
			for _, f := range files {
				if err := os.WriteFile(filepath.Join(dir, f), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			n := mustOpen(t, dir)
			led(t, n)
			if n.Status().Cluster != "c" {
				t.Error("another cluster id")
			}
			mustClose(t, n)
		})
	}
}

func TestLock(t *testing.T) {
	dir := t.TempDir()
	n := mustOpen(t, dir)
	defer n.Close()
	if _, err := Open(Options{Dir: dir, Node: "b"}); !errors.Is(err, ErrRunning) || !strings.Contains(err.Error(), fmt.Sprintf("pid %d", os.Getpid())) {
		t.Fatalf("second Open: %v", err)
	}
}

func TestNewName(t *testing.T) {
	dir, want := lived(t)
	n, err := Open(Options{Dir: dir, Node: "b"})
	if err != nil {
		t.Fatal(err)
	}
	led(t, n)
	if l := n.State().Lead(); l.Node != "b" || l.Term <= want.Lead().Term {
		t.Errorf("lead %+v after %+v", l, want.Lead())
	}
	mustClose(t, n)
}

// faulty is a disk that can be told to fail, and to fail but do it.
type faulty struct {
	store
	fail atomic.Bool
	done atomic.Bool
}

var errDisk = errors.New("no space left on device")

func (f *faulty) write(do func() error) error {
	if !f.fail.Load() {
		return do()
	}
	if f.done.Load() {
		_ = do()
	}
	return errDisk
}

func (f *faulty) StoreLogs(l []*raft.Log) error {
	return f.write(func() error { return f.store.StoreLogs(l) })
}

func (f *faulty) Set(k, v []byte) error { return f.write(func() error { return f.store.Set(k, v) }) }

func (f *faulty) SetUint64(k []byte, v uint64) error {
	return f.write(func() error { return f.store.SetUint64(k, v) })
}

func TestDiskFull(t *testing.T) {
	for _, done := range []bool{false, true} {
		t.Run(fmt.Sprintf("but done %v", done), func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				f := &faulty{}
				n, err := open(Options{Dir: dir, Node: "a"}, func(s store) store { f.store = s; return f })
				if err != nil {
					t.Fatal(err)
				}
				led(t, n)
				mustAppend(t, n, rota.Event{Kind: rota.EventSpec, Spec: spec(3, 2)})
				good := mustAppend(t, n, drain(1, n.State()))
				before := n.State()

				f.done.Store(done)
				f.fail.Store(true)
				if _, err := n.Append(t.Context(), drain(2, before)); !errors.Is(err, errDisk) {
					t.Fatalf("Append on a full disk: %v", err)
				}
				time.Sleep(time.Minute) // elections are tried meanwhile, and their term cannot be saved
				if n.State() != before {
					t.Error("the state moved")
				}
				if s := n.Status(); s.Healthy || s.Leading || len(s.Trouble) != 1 || !strings.Contains(s.Trouble[0], errDisk.Error()) {
					t.Errorf("status %+v", s)
				}
				if _, err := n.Append(t.Context(), drain(2, before)); err == nil {
					t.Error("appended without a disk")
				}

				f.fail.Store(false)
				time.Sleep(time.Minute)
				if s := n.Status(); !s.Healthy || !s.Leading {
					t.Errorf("healed, but status %+v", s)
				}
				last := mustAppend(t, n, drain(3, n.State()))
				if last.Index <= good.Index {
					t.Errorf("index %d after %d", last.Index, good.Index)
				}
				want := n.State()

				f.fail.Store(true) // and it can be closed in the middle of it
				_, _ = n.Append(t.Context(), drain(4, want))
				time.Sleep(time.Minute)
				if err := n.Confirm(t.Context(), n.Status().Term); !errors.Is(err, ErrNotLeader) {
					t.Errorf("Confirm without a disk: %v", err)
				}
				n.fed.Store(snapshotEvents)
				time.Sleep(time.Minute)
				mustClose(t, n)
				if done {
					return // the event that was not acknowledged may be in the log
				}
				n = mustOpen(t, dir)
				same(t, want, n.State())
				mustClose(t, n)
			})
		})
	}
}

func TestStateFileCannotBeWritten(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		n := mustOpen(t, dir)
		led(t, n)
		mustAppend(t, n, rota.Event{Kind: rota.EventSpec, Spec: spec(3, 2)})
		time.Sleep(time.Minute)
		good, err := os.ReadFile(filepath.Join(dir, stateFile))
		if err != nil {
			t.Fatal(err)
		}
		block := filepath.Join(dir, stateFile+".tmp")
		if err := os.Mkdir(block, 0o700); err != nil {
			t.Fatal(err)
		}
		mustAppend(t, n, drain(1, n.State()))
		time.Sleep(time.Minute)
		if s := n.Status(); s.Healthy || len(s.Trouble) != 1 || !strings.Contains(s.Trouble[0], "state file") {
			t.Errorf("status %+v", s)
		}
		if now, _ := os.ReadFile(filepath.Join(dir, stateFile)); !bytes.Equal(good, now) {
			t.Error("the good file was touched")
		}
		if err := os.RemoveAll(block); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if s := n.Status(); !s.Healthy {
			t.Errorf("status %+v", s)
		}
		same(t, n.State(), mustLoad(t, dir).state)
		mustClose(t, n)
	})
}

// TestStateFileAtRest looks at the state file for a virtual hour in which nothing changes, and at how often it is written in a storm.
func TestStateFileAtRest(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		n := mustOpen(t, dir)
		led(t, n)
		mustAppend(t, n, rota.Event{Kind: rota.EventSpec, Spec: spec(3, 2)})
		time.Sleep(time.Minute)
		path := filepath.Join(dir, stateFile)
		inode := func() os.FileInfo {
			i, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			return i
		}
		was, last := inode(), n.Status().Last
		time.Sleep(time.Hour)
		if !os.SameFile(was, inode()) {
			t.Error("the state file was written at rest")
		}
		if now := n.Status().Last; now != last {
			t.Errorf("the log grew from %d to %d at rest", last, now)
		}
		writes := 0
		for i := range 100 { // ten seconds
			mustAppend(t, n, drain(i, n.State()))
			time.Sleep(100 * time.Millisecond)
			if now := inode(); !os.SameFile(was, now) {
				was = now
				writes++
			}
		}
		if writes < 5 || writes > 11 {
			t.Errorf("%d writes in ten seconds of changes", writes)
		}
		mustClose(t, n)
	})
}

// TestSnapshots grows the log past the threshold and opens it with and without the state file.
func TestSnapshots(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		n, err := Open(Options{Dir: dir, Node: "a", History: 50})
		if err != nil {
			t.Fatal(err)
		}
		led(t, n)
		mustAppend(t, n, rota.Event{Kind: rota.EventSpec, Spec: spec(3, 2)})
		n.fed.Store(snapshotEvents - 100)
		for i := range 200 {
			mustAppend(t, n, drain(i, n.State()))
		}
		time.Sleep(time.Minute)
		s := n.Status()
		if s.Snapshot == 0 || !s.Healthy {
			t.Fatalf("no snapshot: %+v", s)
		}
		first, err := n.disk.FirstIndex()
		if err != nil || first+60 < s.Last || first > s.Last-49 {
			t.Errorf("log from %d to %d, %v", first, s.Last, err)
		}
		if got := n.Records(0, 0); len(got) != 50 {
			t.Errorf("%d records", len(got))
		}
		mustAppend(t, n, drain(1000, n.State()))
		want := n.State()
		mustClose(t, n)
		for _, f := range []string{stateFile, previousFile} {
			if err := os.Remove(filepath.Join(dir, f)); err != nil {
				t.Fatal(err)
			}
		}
		cut := filepath.Join(dir, raftDir, "snapshots", "9-9-9.tmp")
		if err := os.Mkdir(cut, 0o700); err != nil {
			t.Fatal(err)
		}
		n = mustOpen(t, dir)
		same(t, want, n.State())
		mustClose(t, n)
		if _, err := os.Stat(cut); err == nil {
			t.Error("a snapshot that was cut short is still there")
		}
		if err := os.Remove(filepath.Join(dir, stateFile)); err != nil {
			t.Fatal(err)
		}
		_ = os.Remove(filepath.Join(dir, previousFile))
		snaps, _ := filepath.Glob(filepath.Join(dir, raftDir, "snapshots", "*", "state.bin"))
		for _, p := range snaps {
			edit(t, p, flip)
		}
		refused(t, dir, "raft.db cannot be used", "begins at entry")
	})
}

// TestStream holds the streamed JSON against json.Marshal, so that a field that the hub gains cannot be left out.
func TestStream(t *testing.T) {
	s, err := new(rota.State).Apply(rota.Event{Index: 1, At: time.Unix(1, 0).UTC(), Kind: rota.EventSpec, Spec: spec(3, 2)})
	if err != nil {
		t.Fatal(err)
	}
	for name, state := range map[string]*rota.State{"zero": {}, "some": s} {
		var b bytes.Buffer
		if err := (&saved{state: state}).write(&b); err != nil {
			t.Fatal(err)
		}
		want, err := json.Marshal(state.Snapshot())
		if err != nil {
			t.Fatal(err)
		}
		if got := bytes.Split(b.Bytes(), []byte("\n"))[1]; !bytes.Equal(got, want) {
			t.Errorf("%s: streamed\n%s\nmarshalled\n%s", name, got, want)
		}
	}
}

func TestCodec(t *testing.T) {
	for _, e := range []rota.Event{{Kind: rota.EventTick}, {Kind: rota.EventSpec, Spec: spec(100, 2)}} {
		frame, size, err := encodeEvent(e)
		if err != nil {
			t.Fatal(err)
		}
		got, n, err := decodeEvent(frame)
		if err != nil || n != size {
			t.Fatalf("%d bytes of %d, %v", n, size, err)
		}
		a, _ := json.Marshal(e)
		b, _ := json.Marshal(got)
		if !bytes.Equal(a, b) {
			t.Error("differs")
		}
		for i := range frame[:40] {
			frame[i] ^= 1
			if _, _, err := decodeEvent(frame); err == nil {
				t.Errorf("byte %d flipped and not seen", i)
			}
			frame[i] ^= 1
		}
		if _, _, err := decodeEvent(append([]byte{newestForm + 1}, frame[1:]...)); err == nil || !strings.Contains(err.Error(), "newer version") {
			t.Errorf("newer form: %v", err)
		}
	}
	if testing.Short() {
		return
	}
	noise := make([]byte, 84<<20)
	x := uint32(1)
	for i := range noise {
		x = x*1664525 + 1013904223
		noise[i] = ' ' + byte(x>>24)%90
	}
	if _, _, err := encodeEvent(rota.Event{Kind: rota.EventTick, Reason: string(noise)}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("84 MiB of noise: %v", err)
	}
}

func FuzzDecodeEvent(f *testing.F) {
	for _, e := range []rota.Event{{Kind: rota.EventTick}, {Kind: rota.EventSpec, Spec: spec(20, 1)}} {
		frame, _, _ := encodeEvent(e)
		f.Add(frame)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if e, _, err := decodeEvent(b); err == nil {
			_, _ = fold(&rota.State{}, e)
		}
	})
}

func FuzzReadSaved(f *testing.F) {
	s, _ := new(rota.State).Apply(rota.Event{Index: 1, Kind: rota.EventSpec, Spec: spec(1, 2)})
	var b bytes.Buffer
	_ = (&saved{state: s}).write(&b)
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := readSaved(bytes.NewReader(b)); err == nil {
			_ = s.write(io.Discard)
		}
	})
}
