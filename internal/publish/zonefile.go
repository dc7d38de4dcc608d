package publish

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/rota-dns/rota/internal/rota"
)

// ZoneFileOptions says which file holds the zone, and how its server is told.
type ZoneFileOptions struct {
	Path    string        // of the zone file in master format (RFC 1035 §5); a link is followed and stays
	Zone    rota.Name     // the file's origin; empty: the file says it, by $ORIGIN or a whole name before its SOA
	Reload  []string      // run after each write: a program by its absolute path, and its arguments; none: the server looks by itself
	Timeout time.Duration // of Reload; 0: 10 seconds, at most a minute
	Run     Run           // needed with Reload
}

// ZoneFile is a Backend for servers that load one zone from a file, such as NSD or Unbound's auth-zone. What is not rota's stays byte
// for byte as it is, the SOA's serial apart; what rota adds stands between two marks. Writers are kept apart by a lock on a file beside it.
type ZoneFile struct {
	*ledger
	o    ZoneFileOptions
	owes atomic.Bool // the server was not told of our last write

	mu    sync.Mutex  // the lock of the file is between processes; guards what follows
	wrote os.FileInfo // the file as we left it; nil: not yet
}

// The marks around what rota adds.
const (
	zoneBegin = "; rota begins here: what stands up to its end is rota's, edits are undone"
	zoneEnd   = "; rota ends here"
)

const (
	lockWait = 5 * time.Second // that another writer may hold the file
	// zoneStill is how long a file that is not of our making has to be as it is: editors and copies that write it in its place may not be
	// done yet, and what they write after it was replaced would be lost.
	zoneStill = time.Second
)

// NewZoneFile checks the options. It does not look at the file yet.
func NewZoneFile(o ZoneFileOptions) (*ZoneFile, error) {
	if !filepath.IsAbs(o.Path) {
		return nil, fmt.Errorf("zonefile: path %q: name the file by its absolute path", o.Path)
	}
	if len(o.Reload) > 0 {
		var err error
		if o.Timeout, err = checkCommand("zonefile: reload", o.Reload, o.Timeout, o.Run); err != nil {
			return nil, err
		}
	}
	z := &ZoneFile{o: o}
	z.ledger = newLedger((*zoneFileDriver)(z), 0)
	return z, nil
}

// badZone says that the file is no zone rota can keep.
func badZone(format string, args ...any) *Reason {
	return &Reason{
		Code: CodeMalformed, Transient: true, Text: "the zone file: " + rota.CleanReason(format, args...), Advice: "check it with named-checkzone or nsd-checkzone",
	}
}

// zoneText is a zone file, read.
type zoneText struct {
	zone  rota.Name
	lines []zoneLine
}

// zoneLine is one entry of a zone file with its line end: a record, a directive, a comment or nothing. It is several lines when it has
// parentheses.
type zoneLine struct {
	text    string
	records []dns.RR // none, one, or what $GENERATE makes
}

// parseZone reads a zone file and finds which entry each record comes from.
func parseZone(text []byte, origin rota.Name) (zoneText, error) {
	var z zoneText
	var all []dns.RR
	parser := dns.NewZoneParser(bytes.NewReader(text), string(origin), "")
	for rr, ok := parser.Next(); ok; rr, ok = parser.Next() {
		all = append(all, rr)
		if soa, ok := rr.(*dns.SOA); ok && z.zone == "" {
			n, err := rota.ParseName(soa.Hdr.Name)
			if err != nil {
				return z, badZone("%v", err)
			}
			z.zone = n
		}
	}
	if err := parser.Err(); err != nil {
		r := badZone("%v", err)
		if origin == "" {
			r.Advice += "; if its names are relative, name the zone in the configuration"
		}
		return z, r
	}
	switch {
	case z.zone == "":
		return z, badZone("it has no SOA")
	case origin != "" && z.zone != origin:
		return z, badZone("its SOA is of %s, not of %s", z.zone.Short(), origin.Short())
	}
	at := 0
	for _, line := range splitZone(string(text)) {
		n := recordsIn(line)
		if n > len(all)-at {
			return z, badZone("line %q is not understood", strings.TrimSpace(line))
		}
		z.lines = append(z.lines, zoneLine{text: line, records: all[at : at+n : at+n]})
		at += n
	}
	if at != len(all) {
		return z, badZone("it has %d records, and %d were found line by line", len(all), at)
	}
	return z, nil
}

// splitZone parts a zone file into entries; together they are the file.
func splitZone(text string) []string {
	var out []string
	begin, depth := 0, 0
	quoted, comment := false, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '\n':
			comment = false
			if depth == 0 && !quoted {
				out = append(out, text[begin:i+1])
				begin = i + 1
			}
		case comment:
		case c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == ';':
			comment = true
		case c == '(':
			depth++
		case c == ')':
			depth = max(0, depth-1)
		}
	}
	if begin < len(text) {
		out = append(out, text[begin:])
	}
	return out
}

// recordsIn says how many records an entry makes.
func recordsIn(line string) int {
	words := strings.Fields(line)
	switch {
	case len(words) == 0 || strings.HasPrefix(words[0], ";"):
		return 0
	case strings.EqualFold(words[0], "$GENERATE") && len(words) > 1:
		span, step, _ := strings.Cut(words[1], "/")
		first, last, _ := strings.Cut(span, "-")
		a, aerr := strconv.Atoi(first)
		b, berr := strconv.Atoi(last)
		n, nerr := strconv.Atoi(cmp.Or(step, "1"))
		if err := errors.Join(aerr, berr, nerr); err != nil || n < 1 || b < a {
			return 0
		}
		return (b-a)/n + 1
	case strings.HasPrefix(words[0], "$"):
		return 0
	}
	return 1
}

// keyOf names the RRset of a record; false when it is of no class that rota keeps.
func keyOf(rr dns.RR) (rota.Key, bool) {
	n, err := rota.ParseName(rr.Header().Name)
	return rota.Key{Name: n, Type: rota.Type(rr.Header().Rrtype)}, err == nil && rr.Header().Class == dns.ClassINET
}

// entries are the zone's records in the form of rota.RRset.
func (z zoneText) entries() ([]entry, error) {
	var out []entry
	for _, l := range z.lines {
		for _, rr := range l.records {
			k, ok := keyOf(rr)
			if !ok {
				continue
			}
			data, err := rdata(rr)
			if err != nil {
				return nil, badZone("%s: %v", k, err)
			}
			out = append(out, entry{Key: k, TTL: rr.Header().Ttl, Data: data})
		}
	}
	return out, nil
}

// edit returns the file's text with the batch made true. A record that stays keeps its line; one that comes is put between the marks.
func (z zoneText) edit(b Batch, now time.Time) (string, error) {
	wanted := map[rota.Key]rota.RRset{}
	missing := map[rota.Key][]string{}
	changes := append([]rota.Change{b.Fence}, b.Changes...)
	for _, c := range changes {
		wanted[c.Key()], missing[c.Key()] = c.New, slices.Clone(c.New.Data)
	}
	var lines []string
	orphan := "" // owner that the next record says only by the line that went
	begin, end := -1, -1
	for _, l := range z.lines {
		stays := true
		for _, rr := range l.records {
			k, ok := keyOf(rr)
			set, ours := wanted[k]
			if !ok || !ours {
				continue
			}
			data, err := rdata(rr)
			if err != nil {
				return "", badZone("%v", err)
			}
			at := slices.Index(missing[k], data)
			if stays = at >= 0 && rr.Header().Ttl == set.TTL; stays {
				missing[k] = slices.Delete(missing[k], at, at+1)
			} else if len(l.records) > 1 {
				return "", badZone("%s is made by $GENERATE, which rota does not change", k)
			}
		}
		text := l.text
		switch {
		case !stays:
			orphan = l.records[0].Header().Name
			continue
		case len(l.records) > 0:
			if orphan != "" && strings.ContainsAny(text[:1], " \t") {
				text = orphan + text
			}
			orphan = ""
			if soa, ok := l.records[0].(*dns.SOA); ok {
				var err error
				if text, err = raise(text, soa.Serial, nextSerial(soa.Serial, now)); err != nil {
					return "", err
				}
			}
		case strings.TrimSpace(text) == zoneBegin && begin < 0:
			begin = len(lines)
		case strings.TrimSpace(text) == zoneEnd && begin >= 0 && end < 0:
			end = len(lines)
		}
		lines = append(lines, text)
	}
	var fresh []string
	for _, c := range changes {
		set := c.New
		set.Data = missing[c.Key()]
		rrs, err := records(set)
		if err != nil {
			return "", &Reason{Code: CodeInternal, Zone: b.Zone, Name: c.Key().Name, Text: rota.CleanReason("%v", err)}
		}
		for _, rr := range rrs {
			fresh = append(fresh, rr.String()+"\n")
		}
	}
	if len(fresh) > 0 && end < 0 {
		if n := len(lines); n > 0 && !strings.HasSuffix(lines[n-1], "\n") {
			lines[n-1] += "\n"
		}
		fresh = slices.Concat([]string{zoneBegin + "\n"}, fresh, []string{zoneEnd + "\n"})
		end = len(lines)
	}
	if len(fresh) > 0 {
		lines = slices.Insert(lines, end, fresh...)
	}
	return strings.Join(lines, ""), nil
}

// raise replaces the serial in the text of an SOA record: the third of the seven words that end it.
func raise(text string, from, to uint32) (string, error) {
	var words [][2]int
	begin := -1
	comment := false
	for i := 0; i <= len(text); i++ {
		c := byte('\n')
		if i < len(text) {
			c = text[i]
		}
		space := strings.IndexByte(" \t\r\n();", c) >= 0
		if (space || comment) && begin >= 0 {
			words = append(words, [2]int{begin, i})
			begin = -1
		}
		switch {
		case c == '\n':
			comment = false
		case c == ';':
			comment = true
		case !space && !comment && begin < 0:
			begin = i
		}
	}
	if len(words) >= 7 {
		at := words[len(words)-5]
		if text[at[0]:at[1]] == strconv.FormatUint(uint64(from), 10) {
			return text[:at[0]] + strconv.FormatUint(uint64(to), 10) + text[at[1]:], nil
		}
	}
	return "", badZone("the serial %d is not found in its SOA", from)
}

// nextSerial returns a serial that follows (RFC 1982), in the style of the old one: YYYYMMDDnn, Unix time, or a count.
func nextSerial(old uint32, now time.Time) uint32 {
	now = now.UTC()
	next := old
	day, err := time.Parse("20060102", strconv.FormatUint(uint64(old/100), 10))
	switch seconds := now.Unix(); {
	case err == nil && day.Year() >= 1990 && !day.After(now):
		today, _ := strconv.ParseUint(now.Format("20060102"), 10, 32)
		next = uint32(today) * 100
	case int64(old) <= seconds && int64(old) > seconds-20*366*24*3600:
		next = uint32(seconds)
	}
	if int32(next-old) <= 0 {
		next = old + 1
	}
	return next
}

// same compares what two texts say: everything but the batch and the serial.
func (z zoneText) same(o zoneText, b Batch) bool {
	changed := map[rota.Key]bool{b.Fence.Key(): true}
	for _, c := range b.Changes {
		changed[c.Key()] = true
	}
	foreign := func(z zoneText) []string {
		var out []string
		for _, l := range z.lines {
			for _, rr := range l.records {
				if k, ok := keyOf(rr); ok && changed[k] {
					continue
				}
				if soa, ok := rr.(*dns.SOA); ok {
					still := *soa
					still.Serial = 0
					rr = &still
				}
				out = append(out, rr.String())
			}
		}
		slices.Sort(out)
		return out
	}
	return slices.Equal(foreign(z), foreign(o))
}

// load reads the file.
func (z *ZoneFile) load() (text []byte, parsed zoneText, err error) {
	text, err = readBounded(z.o.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, parsed, z.missing()
	case err != nil:
		return nil, parsed, z.failed(err, false)
	}
	parsed, err = parseZone(text, z.o.Zone)
	return text, parsed, err
}

// missing says that there is no file.
func (z *ZoneFile) missing() *Reason {
	return &Reason{
		Code: CodeNoZone, Text: z.o.Path + " is not there", Advice: "make the zone with its SOA and NS records first; rota never creates zones",
	}
}

// failed says why a file operation did not work.
func (z *ZoneFile) failed(err error, doubt bool) *Reason {
	r := &Reason{Code: CodeServfail, Transient: true, InDoubt: doubt, Text: rota.CleanReason("%v", err), Advice: "check the disk and the directory of the zone file"}
	if errors.Is(err, fs.ErrPermission) {
		r.Code = CodeDenied
		r.Advice = "let the user that rota runs as read and write the file and its directory, and keep the file's owner and group"
	}
	return r
}

// Read reads the file. While the server could not be told of our last write it tries that first: until then what the file says is not
// what the DNS says. Whoever has not written only reads; a new leader tells the server when it takes the fence.
func (z *ZoneFile) Read(ctx context.Context, zone rota.Name, keys []rota.Key) (Reading, error) {
	if z.owes.Load() {
		if err := z.locked(ctx, func() error { return z.reload(ctx) }); err != nil {
			return Reading{}, err
		}
	}
	return z.ledger.Read(ctx, zone, keys)
}

// lockPath returns where the lock of the file is: beside it, whatever links lead there, so that all who write it meet.
func (z *ZoneFile) lockPath() (string, error) {
	path, err := filepath.EvalSymlinks(z.o.Path)
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".rota-lock"), err
}

// locked runs do while no other writer has the file.
func (z *ZoneFile) locked(ctx context.Context, do func() error) error {
	z.mu.Lock()
	defer z.mu.Unlock()
	path, err := z.lockPath()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return z.missing()
	case err != nil:
		return z.failed(err, false)
	}
	lock, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return z.failed(err, false)
	}
	defer lock.Close() // which unlocks
	for end := time.Now().Add(lockWait); ; {
		err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return do()
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(end) || ctx.Err() != nil {
			return &Reason{
				Code: CodeServfail, Transient: true, Text: rota.CleanReason("the lock %s is not to be had: %v", path, err),
				Advice: "see which other rota writes the same file",
			}
		}
		t := time.NewTimer(20 * time.Millisecond)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
		}
	}
}

// reload has the server read the file.
func (z *ZoneFile) reload(ctx context.Context) error {
	if len(z.o.Reload) == 0 {
		return nil
	}
	z.owes.Store(true)
	c := Command{Argv: z.o.Reload, Timeout: z.o.Timeout}
	out, err := z.o.Run(ctx, c)
	if err != nil || out.Code != 0 {
		r := failedCommand(c, out, err, true)
		r.Text = "the file is written, and the server was not told: " + r.Text
		r.InDoubt = true
		return r
	}
	z.owes.Store(false)
	return nil
}

// replace puts a new file in the place of the old one, with its owner and mode, if the old one is still what was read.
func (z *ZoneFile) replace(old []byte, text string) error {
	path, err := filepath.EvalSymlinks(z.o.Path)
	if err != nil {
		return z.failed(err, false)
	}
	info, err := os.Stat(path)
	if err != nil {
		return z.failed(err, false)
	}
	dir := filepath.Dir(path)
	next := filepath.Join(dir, "."+filepath.Base(path)+".rota-new")
	defer os.Remove(next)
	if err := writeLike(next, text, info); err != nil {
		return z.failed(err, false)
	}
	if age := time.Since(info.ModTime()); age >= 0 && age < zoneStill && !z.ours(info) {
		return &Reason{
			Code: CodeMoving, Transient: true, After: zoneStill, Text: z.o.Path + " changed a moment ago, and may not be whole yet",
			Advice: "it is written when nobody else writes it; replace a zone file in one step (mv)",
		}
	}
	if now, err := readBounded(path); err != nil || !bytes.Equal(now, old) {
		return ErrMoved
	}
	left, err := os.Stat(next)
	if err != nil {
		return z.failed(err, false)
	}
	if err := os.Rename(next, path); err != nil {
		return z.failed(err, false)
	}
	z.wrote = left
	d, err := os.Open(dir)
	if err != nil {
		return z.failed(err, true)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return z.failed(err, true)
	}
	return nil
}

// ours reports whether the file is as we left it. The caller holds mu.
func (z *ZoneFile) ours(now os.FileInfo) bool {
	return z.wrote != nil && os.SameFile(now, z.wrote) && now.ModTime().Equal(z.wrote.ModTime()) && now.Size() == z.wrote.Size()
}

// writeLike writes a file with the mode and owner of another one, to the disk.
func writeLike(path, text string, like os.FileInfo) error {
	os.Remove(path) // of a writer that was killed
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	own, err := f.Stat()
	if err != nil {
		return err
	}
	ours, theirs := own.Sys().(*syscall.Stat_t), like.Sys().(*syscall.Stat_t)
	if theirs.Uid != ours.Uid || theirs.Gid != ours.Gid {
		if err := f.Chown(int(theirs.Uid), int(theirs.Gid)); err != nil {
			return err
		}
	}
	if err := f.Chmod(like.Mode().Perm()); err != nil {
		return err
	}
	if _, err := f.WriteString(text); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return f.Close()
}

// zoneFileDriver is ZoneFile as the ledger sees it.
type zoneFileDriver ZoneFile

func (z *zoneFileDriver) capabilities() Capabilities {
	return Capabilities{Fence: FenceServer, Atomic: true}
}

func (z *zoneFileDriver) zones(context.Context) ([]rota.Name, error) {
	_, parsed, err := (*ZoneFile)(z).load()
	if err != nil {
		return nil, err
	}
	return []rota.Name{parsed.zone}, nil
}

func (z *zoneFileDriver) list(_ context.Context, zone rota.Name, _ []rota.Name) ([]entry, error) {
	_, parsed, err := (*ZoneFile)(z).load()
	if err != nil {
		return nil, err
	}
	if parsed.zone != zone {
		return nil, &Reason{
			Code: CodeNoZone, Zone: zone, Text: fmt.Sprintf("%s holds %s", z.o.Path, parsed.zone.Short()), Advice: "give each zone a publisher with its own file",
		}
	}
	return parsed.entries()
}

// commit reads, compares and writes while it holds the lock, and tells the server.
func (z *zoneFileDriver) commit(ctx context.Context, b Batch, _ []entry) error {
	f := (*ZoneFile)(z)
	return f.locked(ctx, func() error {
		text, parsed, err := f.load()
		if err != nil {
			return err
		}
		held, err := parsed.entries()
		if err != nil {
			return err
		}
		if err := stands(b, held); err != nil {
			return err
		}
		next, err := parsed.edit(b, time.Now())
		if err != nil {
			return err
		}
		again, err := parseZone([]byte(next), z.o.Zone)
		if err != nil || !parsed.same(again, b) {
			r := badZone("writing the change would change other records")
			r.Transient, r.Advice = false, "give the file a $TTL, and records a TTL of their own where they follow rota's"
			return r
		}
		if err := f.replace(text, next); err != nil {
			return err
		}
		return f.reload(ctx)
	})
}
