package cluster

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"

	"github.com/rota-dns/rota/internal/rota"
)

// A state on disk, as the state file and as a raft snapshot, is four lines of JSON: the header, the rota.Snapshot, the notes of the
// newest records, and the trailer with the checksum of all before it.
const stateFormat = 1

type header struct {
	Format  int    `json:"format"`
	Cluster string `json:"cluster"`
	Node    string `json:"node"`  // who wrote it
	Index   uint64 `json:"index"` // of the last event in it
	Term    uint64 `json:"term"`  // raft's, of that event
}

type trailer struct {
	CRC32C string `json:"crc32c"` // hexadecimal
	Bytes  int64  `json:"bytes"`  // before the trailer
}

// saved is a state as it is stored.
type saved struct {
	header header
	state  *rota.State
	notes  []note
	covers uint64 // entry of the log up to which this is the state, when that is above its index
}

// summing counts and sums what passes.
type summing struct {
	w   io.Writer
	sum uint32
	n   int64
}

func (s *summing) Write(b []byte) (int, error) {
	n, err := s.w.Write(b)
	s.sum = crc32.Update(s.sum, castagnoli, b[:n])
	s.n += int64(n)
	return n, err
}

func (s *saved) write(w io.Writer) error {
	out := &summing{w: w}
	b := bufio.NewWriterSize(out, 64<<10)
	s.header.Format = stateFormat
	s.header.Index = s.state.Index()
	lines := []any{s.header, s.state.Snapshot(), s.notes}
	for _, l := range lines {
		if err := streamJSON(b, reflect.ValueOf(l)); err != nil {
			return err
		}
		if err := b.WriteByte('\n'); err != nil {
			return err
		}
	}
	if err := b.Flush(); err != nil {
		return err
	}
	return json.NewEncoder(w).Encode(trailer{fmt.Sprintf("%08x", out.sum), out.n})
}

// streamJSON writes what json.Marshal would, without ever holding the text of more than one element of a slice: at 100,000 services
// the whole would be a hundred megabytes. It walks plain structs and slices of structs; all else is left to encoding/json.
func streamJSON(w *bufio.Writer, v reflect.Value) error {
	_, marshals := reflect.TypeAssert[json.Marshaler](v)
	switch {
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Struct && !v.IsNil():
		w.WriteByte('[') //nolint:errcheck // a bufio.Writer remembers its error
		for i := range v.Len() {
			if i > 0 {
				w.WriteByte(',')
			}
			if err := marshalTo(w, v.Index(i)); err != nil {
				return err
			}
		}
		return w.WriteByte(']')
	case v.Kind() == reflect.Struct && !marshals:
		return streamStruct(w, v)
	}
	return marshalTo(w, v)
}

func streamStruct(w *bufio.Writer, v reflect.Value) error {
	w.WriteByte('{')
	first := true
	for i := range v.NumField() {
		field := v.Type().Field(i)
		name, options, _ := strings.Cut(field.Tag.Get("json"), ",")
		if field.Anonymous || name == "" || name == "-" || strings.Contains(options, "string") {
			return fmt.Errorf("%s.%s has a JSON form that cannot be streamed", v.Type(), field.Name)
		}
		if strings.Contains(options, "omitzero") && v.Field(i).IsZero() || strings.Contains(options, "omitempty") && isEmpty(v.Field(i)) {
			continue
		}
		if !first {
			w.WriteByte(',')
		}
		first = false
		w.WriteString(`"` + name + `":`)
		if err := streamJSON(w, v.Field(i)); err != nil {
			return err
		}
	}
	return w.WriteByte('}')
}

// isEmpty is what omitempty means.
func isEmpty(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Array, reflect.Map, reflect.Slice, reflect.String:
		return v.Len() == 0
	case reflect.Struct:
		return false
	}
	return v.IsZero()
}

func marshalTo(w *bufio.Writer, v reflect.Value) error {
	b, err := json.Marshal(v.Interface())
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	return err
}

// readJSON is the inverse of streamJSON: it holds the text of one element at a time.
func readJSON(d *json.Decoder, v reflect.Value) error {
	_, unmarshals := reflect.TypeAssert[json.Unmarshaler](v.Addr())
	switch {
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Struct:
		t, err := d.Token()
		if err != nil || t == nil { // null
			return err
		}
		if t != json.Delim('[') {
			return fmt.Errorf("%v where a list should be", t)
		}
		for d.More() {
			e := reflect.New(v.Type().Elem())
			if err := d.Decode(e.Interface()); err != nil {
				return err
			}
			v.Set(reflect.Append(v, e.Elem()))
		}
		_, err = d.Token()
		return err
	case v.Kind() == reflect.Struct && !unmarshals:
		return readStruct(d, v)
	}
	return d.Decode(v.Addr().Interface())
}

func readStruct(d *json.Decoder, v reflect.Value) error {
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return errors.Join(fmt.Errorf("%v where an object should be", t), err)
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return err
		}
		var field reflect.Value
		for i := range v.NumField() {
			if name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ","); name == key {
				field = v.Field(i)
			}
		}
		if !field.IsValid() {
			var skipped json.RawMessage
			if err := d.Decode(&skipped); err != nil {
				return err
			}
			continue
		}
		if err := readJSON(d, field); err != nil {
			return fmt.Errorf("%v: %w", key, err)
		}
	}
	_, err := d.Token()
	return err
}

// readSaved reads what write wrote, but for the trailer. All errors but *newerError mean damage.
func readSaved(r io.Reader) (*saved, error) {
	d := json.NewDecoder(r)
	var s saved
	if err := d.Decode(&s.header); err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	if s.header.Format > stateFormat {
		return nil, &newerError{"it"}
	}
	if s.header.Format < 1 {
		return nil, errors.New("header: it does not say its format")
	}
	var snap rota.Snapshot
	if err := readJSON(d, reflect.ValueOf(&snap).Elem()); err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	if snap.Index != s.header.Index {
		return nil, fmt.Errorf("state of event %d under the header of event %d", snap.Index, s.header.Index)
	}
	if err := d.Decode(&s.notes); err != nil {
		return nil, fmt.Errorf("notes: %w", err)
	}
	var err error
	s.state, err = rota.Restore(snap)
	return &s, err
}

// loadState reads a state file. The error is fs.ErrNotExist when there is none and *newerError when it is of a later version;
// all others mean that the file cannot be used.
func loadState(path string) (*saved, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := checkSum(f); err != nil {
		// The header of a later version may be all that this one understands.
		if _, e := f.Seek(0, io.SeekStart); e == nil {
			var h header
			if e := json.NewDecoder(bufio.NewReader(f)).Decode(&h); e == nil && h.Format > stateFormat {
				return nil, &newerError{path}
			}
		}
		return nil, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	s, err := readSaved(bufio.NewReaderSize(f, 64<<10))
	if newer := (*newerError)(nil); errors.As(err, &newer) {
		return nil, &newerError{path}
	}
	return s, err
}

// checkSum compares a state file with its trailer.
func checkSum(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	const most = 128 // bytes of a trailer
	size := info.Size()
	if size == 0 {
		return errors.New("it is empty")
	}
	tail := make([]byte, min(size, most))
	if _, err := f.ReadAt(tail, size-int64(len(tail))); err != nil {
		return err
	}
	i := bytes.LastIndexByte(bytes.TrimSuffix(tail, []byte("\n")), '\n')
	var t trailer
	if i < 0 || json.Unmarshal(tail[i+1:], &t) != nil {
		return errors.New("it is cut off")
	}
	body := size - int64(len(tail)-i-1)
	sum := &summing{w: io.Discard}
	if _, err := io.Copy(sum, io.NewSectionReader(f, 0, body)); err != nil {
		return err
	}
	if t.Bytes != body || t.CRC32C != fmt.Sprintf("%08x", sum.sum) {
		return errors.New("it does not match its checksum")
	}
	return nil
}

// saveState puts a state in the state file. The one before is kept, but for a damaged one: that must not take the place of a good one.
func saveState(dir string, s *saved, keep bool) error {
	path, prev := filepath.Join(dir, stateFile), filepath.Join(dir, previousFile)
	return replaceFile(path, func(w io.Writer) error {
		if err := s.write(w); err != nil {
			return err
		}
		if !keep {
			return nil
		}
		// A second name for the old file, so that the state file is there at every moment.
		if err := os.Remove(prev); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := os.Link(path, prev); err != nil && !errors.Is(err, os.ErrNotExist) {
			return os.Rename(path, prev) // a file system without hard links
		}
		return nil
	})
}
