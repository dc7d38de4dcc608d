package rota

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"
)

// A packed report is the word "rota", a version and fields: a tag, a length and that many bytes, by ascending tag, each at most once.
// A tag that is not known is skipped, so that later versions can say more. Fields with tags below fieldTable differ in every report;
// those from there on are equal when the opinions are, byte for byte.
//
// fieldStatus holds two bits a target, in the table's order, the first target in the lowest bits of the first byte: 0 unknown, 1 up,
// 2 down, 3 draining. fieldWords holds pairs of class and reason, each a length and text.
// fieldDetails tells of targets that are not plainly up, by ascending place: uvarint of the places skipped, uvarint of twice the word
// (0: none, else its place from 1) plus one if the time of the opinion's last change follows, as varint of the milliseconds since the
// last time told (the first: since 1970). fieldWeights tells the weights, in percent, of targets that are up, by ascending place:
// uvarint of the places skipped, one byte.
const (
	packMagic   = "rota"
	packVersion = 1

	fieldVantage     = 1 // text
	fieldIncarnation = 2 // uvarint
	fieldSeq         = 3 // uvarint
	fieldSent        = 4 // varint: milliseconds since 1970
	fieldTable       = 16
	fieldAbstain     = 17 // text
	fieldStatus      = 18
	fieldWords       = 19
	fieldDetails     = 20
	fieldWeights     = 21
	fieldEnd         = 127 // empty, and the last: without it the report was cut short
)

// Bounds of packed reports.
const (
	MaxPacked     = 2<<20 + 4<<10 // bytes of a packed report
	MaxTargets    = 4 << 20       // targets that a packed report can speak of
	maxWords      = 4 << 10       // reasons told in one report; those beyond lose theirs, never their status
	maxWordBytes  = 256 << 10
	maxDetails    = 700 << 10 // bytes
	maxWeights    = 256 << 10 // bytes; weights beyond are not told, never the status
	maxHeaderText = 1 << 10   // bytes of a vantage's name
)

// Errors of packed reports.
var (
	ErrReport = errors.New("not a report that can be read")
	ErrTable  = errors.New("the report speaks of other targets than those given: fetch the targets again and send it anew")
)

const (
	notProbed  = "not probed yet"
	notTold    = "too much is unusual at once to tell each reason"
	msPerDay   = 24 * 60 * 60 * 1000
	latestTime = 2_900_000 * msPerDay // before the year 10000, which has no place in JSON's times
)

// Pack writes the report for the wire. It tells the status of every target of the table, and of those that are not plainly up the
// class, the reason and since when, as far as that fits into MaxPacked. Opinions on targets outside the table are left out.
func (t *Table) Pack(r *Report) []byte {
	b := append(make([]byte, 0, 128+len(t.ids)/4), packMagic...)
	b = append(b, packVersion)
	field := func(tag byte, payload []byte) {
		b = append(binary.AppendUvarint(append(b, tag), uint64(len(payload))), payload...)
	}
	field(fieldVantage, []byte(r.Vantage))
	field(fieldIncarnation, binary.AppendUvarint(nil, r.Incarnation))
	field(fieldSeq, binary.AppendUvarint(nil, r.Seq))
	if !r.Sent.IsZero() {
		field(fieldSent, binary.AppendVarint(nil, r.Sent.UnixMilli()))
	}
	field(fieldTable, t.mark[:])
	if r.Abstain != "" {
		field(fieldAbstain, []byte(CleanReason("%s", r.Abstain)))
	}
	p := packer{status: make([]byte, (len(t.ids)+3)/4)}
	j := 0
	for i, id := range t.ids {
		for j < len(r.Opinions) && r.Opinions[j].Target < id {
			j++
		}
		if j == len(r.Opinions) {
			break
		}
		if o := r.Opinions[j]; o.Target == id {
			p.add(i, o)
			j++
		}
	}
	field(fieldStatus, p.status)
	if len(p.details) > 0 {
		field(fieldWords, p.text)
		field(fieldDetails, p.details)
	}
	if weights := t.weights(r, min(maxWeights, MaxPacked-len(b)-64)); len(weights) > 0 {
		field(fieldWeights, weights)
	}
	field(fieldEnd, nil)
	return b
}

// weights packs the weights of targets that are up, in at most so many bytes.
func (t *Table) weights(r *Report, most int) []byte {
	var out []byte
	next, i := 0, 0
	for _, o := range r.Opinions {
		if o.Status != Up || o.Weight == 0 {
			continue
		}
		for i < len(t.ids) && t.ids[i] < o.Target {
			i++
		}
		if i == len(t.ids) || len(out) > most-binary.MaxVarintLen64-1 {
			break
		}
		if t.ids[i] == o.Target {
			out = append(binary.AppendUvarint(out, uint64(i-next)), min(o.Weight, 100))
			next = i + 1
		}
	}
	return out
}

// word is what many targets may say alike.
type word struct {
	class  Class
	reason string
}

type packer struct {
	status        []byte
	words         map[word]uint64 // places, from 1
	text, details []byte
	next          int // the place after the last one with details
	since         int64
}

func (p *packer) add(i int, o *Opinion) {
	if o.Status > Draining {
		return
	}
	p.status[i/4] |= byte(o.Status) << (i % 4 * 2)
	plainlyUp := o.Status == Up && (o.Class == ClassOK || o.Class == ClassNone)
	blank := o.Status == Unknown && o.Class == ClassNone && o.Since.IsZero() && (o.Reason == notProbed || o.Reason == "")
	if plainlyUp || blank || len(p.details) > maxDetails-3*binary.MaxVarintLen64 {
		return
	}
	head := 2 * p.place(word{knownClass(string(o.Class)), CleanReason("%s", o.Reason)})
	if !o.Since.IsZero() {
		head++
	}
	p.details = binary.AppendUvarint(p.details, uint64(i-p.next))
	p.details = binary.AppendUvarint(p.details, head)
	if head&1 == 1 {
		ms := o.Since.UnixMilli()
		p.details = binary.AppendVarint(p.details, ms-p.since)
		p.since = ms
	}
	p.next = i + 1
}

// place returns the place of a word, with its class alone when there are too many reasons.
func (p *packer) place(w word) uint64 {
	if w == (word{}) {
		return 0
	}
	if at := p.words[w]; at != 0 {
		return at
	}
	if w.reason != "" && (len(p.words) >= maxWords-64 || len(p.text) > maxWordBytes-16<<10) {
		return p.place(word{class: w.class})
	}
	if len(p.words) == maxWords {
		return 0
	}
	for _, s := range []string{string(w.class), w.reason} {
		p.text = append(binary.AppendUvarint(p.text, uint64(len(s))), s...)
	}
	if p.words == nil {
		p.words = map[word]uint64{}
	}
	at := uint64(len(p.words) + 1)
	p.words[w] = at
	return at
}

// Envelope is what a packed report says of itself.
type Envelope struct {
	Vantage     string
	Incarnation uint64
	Seq         uint64
	Sent        time.Time // by the vantage's clock; zero: not said
	Table       Fingerprint
}

// packed is a packed report taken apart; its slices lie in the report.
type packed struct {
	Envelope
	body    []byte // all that is equal when the opinions are
	abstain string
	status  []byte
	words   []byte
	details []byte
	weights []byte
}

// ReadEnvelope reads what a packed report says of itself. The error wraps ErrReport.
func ReadEnvelope(b []byte) (Envelope, error) {
	p, err := takeApart(b)
	return p.Envelope, err
}

func takeApart(b []byte) (p packed, err error) {
	bad := func(format string, args ...any) (packed, error) {
		return packed{}, fmt.Errorf("%w: %s", ErrReport, fmt.Sprintf(format, args...))
	}
	switch {
	case len(b) > MaxPacked:
		return bad("%d bytes, which is more than %d", len(b), MaxPacked)
	case len(b) <= len(packMagic) || string(b[:len(packMagic)]) != packMagic:
		return bad("it does not begin like one")
	case b[len(packMagic)] != packVersion:
		return bad("its form is of version %d, and this version of rota reads %d: upgrade the older side", b[len(packMagic)], packVersion)
	}
	last, seen := byte(0), 0
	for rest := b[len(packMagic)+1:]; len(rest) > 0; {
		tag := rest[0]
		size, n := binary.Uvarint(rest[1:])
		if tag <= last || n <= 0 || size > uint64(len(rest)-1-n) {
			return bad("the field after %d is cut short, out of order or given twice", last)
		}
		if last < fieldTable && tag >= fieldTable {
			p.body = rest
		}
		last = tag
		payload := rest[1+n : 1+n+int(size)]
		rest = rest[1+n+int(size):]
		whole := true
		switch tag {
		case fieldVantage:
			p.Vantage, whole = string(payload), len(payload) > 0 && len(payload) <= maxHeaderText
		case fieldIncarnation:
			p.Incarnation, whole = uvarint(payload)
		case fieldSeq:
			p.Seq, whole = uvarint(payload)
		case fieldSent:
			var ms int64
			ms, n = binary.Varint(payload)
			p.Sent, whole = timeOf(ms), n == len(payload)
		case fieldTable:
			whole = len(payload) == copy(p.Table[:], payload) && len(payload) == len(p.Table)
		case fieldAbstain:
			p.abstain, whole = string(payload), len(payload) <= maxHeaderText
		case fieldStatus:
			p.status = payload
		case fieldWords:
			p.words, whole = payload, len(payload) <= maxWordBytes
		case fieldDetails:
			p.details, whole = payload, len(payload) <= maxDetails
		case fieldWeights:
			p.weights, whole = payload, len(payload) <= maxWeights
		default:
			continue
		}
		if !whole {
			return bad("field %d says nothing that can be read", tag)
		}
		seen |= 1 << tag
	}
	const needed = 1<<fieldVantage | 1<<fieldSeq | 1<<fieldTable | 1<<fieldStatus
	if last != fieldEnd {
		return bad("it is cut short")
	}
	if seen&needed != needed {
		return bad("it lacks its vantage, number, targets or statuses")
	}
	return p, nil
}

func uvarint(b []byte) (uint64, bool) {
	v, n := binary.Uvarint(b)
	return v, n > 0 && n == len(b)
}

// timeOf returns the time so many milliseconds after 1970, or the zero time when no clock says that.
func timeOf(ms int64) time.Time {
	if ms <= 0 || ms >= latestTime {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// detail is what is told of one target beside its status.
type detail struct {
	place  int
	told   bool // word and since are
	word   word
	since  time.Time
	weight uint8
}

// read gives out the details with the weights among them, by place; it checks all of them.
func (p *packed) read(targets int) ([]detail, error) {
	out, err := p.readDetails(targets)
	if err != nil || len(p.weights) == 0 {
		return out, err
	}
	weights, err := p.readWeights(targets)
	if err != nil {
		return nil, err
	}
	both := make([]detail, 0, len(out)+len(weights))
	for len(out) > 0 || len(weights) > 0 {
		switch {
		case len(weights) == 0 || len(out) > 0 && out[0].place < weights[0].place:
			both, out = append(both, out[0]), out[1:]
		case len(out) == 0 || weights[0].place < out[0].place:
			both, weights = append(both, weights[0]), weights[1:]
		default:
			out[0].weight = weights[0].weight
			both, out, weights = append(both, out[0]), out[1:], weights[1:]
		}
	}
	return both, nil
}

// readWeights gives out the weights. One that is no percentage, as a later version may send, says nothing.
func (p *packed) readWeights(targets int) ([]detail, error) {
	out := make([]detail, 0, min(targets, len(p.weights)/2))
	place := -1
	for rest := p.weights; len(rest) > 0; {
		skip, n := binary.Uvarint(rest)
		if n <= 0 || skip >= uint64(targets-place-1) || len(rest) == n {
			return nil, fmt.Errorf("%w: a weight after target %d is cut short or beyond the %d targets", ErrReport, place, targets)
		}
		place += int(skip) + 1
		if w := rest[n]; w <= 100 {
			out = append(out, detail{place: place, weight: w})
		}
		rest = rest[n+1:]
	}
	return out, nil
}

// readDetails gives out what is told in words.
func (p *packed) readDetails(targets int) ([]detail, error) {
	words := []word{{}}
	for rest := p.words; len(rest) > 0; {
		var texts [2]string
		for i := range texts {
			size, n := binary.Uvarint(rest)
			if n <= 0 || size > uint64(len(rest)-n) {
				return nil, fmt.Errorf("%w: reason %d is cut short", ErrReport, len(words))
			}
			texts[i] = string(rest[n : n+int(size)])
			rest = rest[n+int(size):]
		}
		if len(words) > maxWords {
			return nil, fmt.Errorf("%w: more than %d reasons", ErrReport, maxWords)
		}
		words = append(words, word{knownClass(texts[0]), CleanReason("%s", texts[1])})
	}
	var out []detail
	place, since := -1, int64(0)
	for rest := p.details; len(rest) > 0; {
		skip, n := binary.Uvarint(rest)
		if n <= 0 || skip >= uint64(targets-place-1) {
			return nil, fmt.Errorf("%w: a detail after target %d is cut short or beyond the %d targets", ErrReport, place, targets)
		}
		head, m := binary.Uvarint(rest[n:])
		if m <= 0 || head/2 >= uint64(len(words)) {
			return nil, fmt.Errorf("%w: a detail after target %d is cut short or has a reason that is not told", ErrReport, place)
		}
		rest = rest[n+m:]
		place += int(skip) + 1
		d := detail{place: place, told: true, word: words[head/2]}
		if head&1 == 1 {
			ms, n := binary.Varint(rest)
			if n <= 0 {
				return nil, fmt.Errorf("%w: the time of target %d is cut short", ErrReport, place)
			}
			rest = rest[n:]
			since += ms // of a liar it may wrap around; no harm is in that
			d.since = timeOf(since)
		}
		if out == nil {
			out = make([]detail, 0, min(targets, 1+len(p.details)/2))
		}
		out = append(out, d)
	}
	return out, nil
}

// Unpacker reads the packed reports of one vantage, each in the light of the one before: opinions that are as they were keep their
// pointers, and a report in which nothing moved costs a comparison of bytes. The zero value has read nothing yet.
type Unpacker struct {
	table   *Table
	body    []byte // of the last report
	status  []byte // inside body
	details []detail
	last    *Report
}

// Last returns the report that was read last, or nil.
func (u *Unpacker) Last() *Report { return u.last }

// Unpack reads a packed report that was taken in at a time. A class that this version does not know claims nothing; the
// report holds an opinion of every target of the table. The time since when a target is up is not on the wire: it is known, as at,
// of those that were down or draining in the report before. The error wraps ErrReport, or is ErrTable when the report is of another table; then
// the next report is read as if this one had not been.
func (u *Unpacker) Unpack(t *Table, b []byte, at time.Time) (*Report, error) {
	p, err := takeApart(b)
	if err != nil {
		return nil, err
	}
	if p.Table != t.mark {
		return nil, ErrTable
	}
	r := &Report{Vantage: p.Vantage, Incarnation: p.Incarnation, Seq: p.Seq, Sent: p.Sent, At: at}
	if u.last != nil && string(p.body) == string(u.body) {
		r.Abstain, r.Opinions = u.last.Abstain, u.last.Opinions
		u.last = r
		return r, nil
	}
	n := len(t.ids)
	if len(p.status) != (n+3)/4 || n%4 != 0 && p.status[n/4]>>(n%4*2) != 0 {
		return nil, fmt.Errorf("%w: %d bytes of statuses for %d targets", ErrReport, len(p.status), n)
	}
	details, err := p.read(n)
	if err != nil {
		return nil, err
	}
	r.Abstain = CleanReason("%s", p.abstain)
	u.opine(r, t, &p, details)
	u.table, u.details, u.last = t, details, r
	u.body = slices.Clone(p.body)
	u.status = statusIn(u.body)
	return r, nil
}

// statusIn returns the statuses inside a body that was taken apart before.
func statusIn(body []byte) []byte {
	for {
		size, n := binary.Uvarint(body[1:])
		if body[0] == fieldStatus {
			return body[1+n : 1+n+int(size)]
		}
		body = body[1+n+int(size):]
	}
}

// opine gives r its opinions.
func (u *Unpacker) opine(r *Report, t *Table, p *packed, details []detail) {
	at := r.At.UTC().Round(0)
	renew := func(i int, d *detail) {
		s := Status(p.status[i/4] >> (i % 4 * 2) & 3)
		r.Opinions[i] = renewed(r.Opinions[i], &t.plain[i], s, d, at)
	}
	if u.last == nil || u.table.mark != t.mark {
		r.Opinions = make([]*Opinion, len(t.ids))
		if u.last != nil {
			u.align(t, r.Opinions)
		}
		k := 0
		for i := range r.Opinions {
			var d *detail
			if k < len(details) && details[k].place == i {
				d = &details[k]
				k++
			}
			renew(i, d)
		}
		return
	}
	r.Opinions = slices.Clone(u.last.Opinions)
	at8 := func(b []byte, i int) uint64 { return binary.LittleEndian.Uint64(b[i:]) }
	k := 0
	byteMoved := func(i int) {
		if p.status[i] == u.status[i] {
			return
		}
		for j := 4 * i; j < min(4*i+4, len(t.ids)); j++ {
			for k < len(details) && details[k].place < j {
				k++
			}
			if k < len(details) && details[k].place == j {
				renew(j, &details[k])
			} else {
				renew(j, nil)
			}
		}
	}
	i := 0
	for ; i+8 <= len(p.status); i += 8 {
		if at8(p.status, i) != at8(u.status, i) {
			for j := i; j < i+8; j++ {
				byteMoved(j)
			}
		}
	}
	for ; i < len(p.status); i++ {
		byteMoved(i)
	}
	// And those of which something else than the status is told, now or before.
	x, y := u.details, details
	for len(x) > 0 || len(y) > 0 {
		switch {
		case len(y) == 0 || len(x) > 0 && x[0].place < y[0].place:
			renew(x[0].place, nil)
			x = x[1:]
		case len(x) == 0 || y[0].place < x[0].place:
			renew(y[0].place, &y[0])
			y = y[1:]
		default:
			if x[0] != y[0] {
				renew(y[0].place, &y[0])
			}
			x, y = x[1:], y[1:]
		}
	}
}

// align puts the opinions of the last report into their places in another table.
func (u *Unpacker) align(t *Table, out []*Opinion) {
	j := 0
	for i, id := range t.ids {
		for j < len(u.last.Opinions) && u.last.Opinions[j].Target < id {
			j++
		}
		if j < len(u.last.Opinions) && u.last.Opinions[j].Target == id {
			out[i] = u.last.Opinions[j]
		}
	}
}

// renewed returns the opinion that a status and its detail make of the one before, which is kept when it says the same.
func renewed(was, plain *Opinion, s Status, d *detail, at time.Time) *Opinion {
	next := Opinion{Target: plain.Target, Status: s}
	if d != nil && s == Up {
		next.Weight = d.weight
	}
	switch {
	case d != nil && d.told:
		next.Class, next.Reason, next.Since = d.word.class, d.word.reason, d.since
	case s == Up:
		next.Class = ClassOK
		if was != nil && was.Status == Up {
			next.Since = was.Since
		} else if was != nil && (was.Status == Down || was.Status == Draining) {
			next.Since = at
		}
		if next.Since.IsZero() && next.Weight == 0 {
			return plain
		}
	case s == Unknown:
		next.Reason = notProbed
	default:
		next.Reason, next.Since = notTold, at
		if was != nil && was.Status == s {
			next.Since = was.Since
		}
	}
	if was != nil && *was == next {
		return was
	}
	kept := next // only what is kept goes to the heap
	return &kept
}

// knownClass returns the class of that name; one of a later version is ClassNone.
func knownClass(s string) Class {
	if i := slices.Index(classes, Class(s)); i >= 0 {
		return classes[i]
	}
	return ClassNone
}

// classes are those of this version.
var classes = []Class{
	ClassNone, ClassOK, ClassTimeout, ClassRefused, ClassReset, ClassUnreachable, ClassTLS, ClassCertificate, ClassStatus, ClassHeader,
	ClassBody, ClassRedirect, ClassProtocol, ClassLoss, ClassThreshold, ClassPermission, ClassResource, ClassUnroutable, ClassCancelled,
	ClassDNS, ClassExit, ClassSaid, ClassExporter, ClassStale,
}
