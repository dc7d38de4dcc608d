package probe

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
)

// Most answers to health checks are plain: a head of few lines and a body of known length, in one segment. They are read here, in
// place; everything else is left to net/http, which gets what has come so far, and which a fuzz test compares with this.

// room is the memory that a probe reads an answer into.
type room [4 << 10]byte

// rooms are used again: a probe needs one for a moment.
var rooms = sync.Pool{New: func() any { return new(room) }}

// plainHead is the head of a plain answer.
type plainHead struct {
	status int
	size   int // of the head, its empty line included
	body   int // the Content-Length
	closes bool
}

// parsePlain reads the head of a final HTTP/1.1 answer with a body and its length. It returns false for one that is not whole or not
// plain: it then says nothing about it.
func parsePlain(b []byte) (h plainHead, ok bool) {
	const version = "HTTP/1.1 "
	if len(b) < len(version)+4 || string(b[:len(version)]) != version {
		return h, false
	}
	for _, c := range b[len(version) : len(version)+3] {
		if c < '0' || c > '9' {
			return h, false
		}
		h.status = h.status*10 + int(c-'0')
	}
	if h.status < 200 || h.status == http.StatusNoContent || h.status == http.StatusNotModified {
		return h, false
	}
	if c := b[len(version)+3]; c != ' ' && c != '\r' {
		return h, false
	}
	sized, connection := false, false
	for at := 0; ; {
		n := bytes.IndexByte(b[at:], '\n')
		if n < 1 || b[at+n-1] != '\r' || at+n+1 > maxHead {
			return h, false
		}
		line := b[at : at+n-1]
		first := at == 0
		at += n + 1
		if len(line) == 0 {
			h.size = at
			return h, sized
		}
		if !printable(line) {
			return h, false
		}
		if first {
			continue
		}
		name, value, found := cutField(line)
		if !found {
			return h, false
		}
		switch {
		case fold(name, "Content-Length"):
			if sized || len(value) == 0 || len(value) > 6 {
				return h, false
			}
			for _, c := range value {
				if c < '0' || c > '9' {
					return h, false
				}
				h.body = h.body*10 + int(c-'0')
			}
			sized = true
		case fold(name, "Connection"):
			h.closes = fold(value, "close")
			if connection || !h.closes && !fold(value, "keep-alive") {
				return h, false
			}
			connection = true
		case fold(name, "Transfer-Encoding"), fold(name, "Trailer"), fold(name, "Pragma"): // these change what other fields mean
			return h, false
		}
	}
}

// cutField cuts a line of a head into the name of the field, which is a token, and its value.
func cutField(line []byte) (name, value []byte, ok bool) {
	i := bytes.IndexByte(line, ':')
	if i < 1 {
		return nil, nil, false
	}
	for _, c := range line[:i] {
		if !tokenByte[c] {
			return nil, nil, false
		}
	}
	return line[:i], bytes.Trim(line[i+1:], " \t"), true
}

// tokenByte says which bytes a token has.
var tokenByte = func() (t [256]bool) {
	for c := range t {
		t[c] = token(string([]byte{byte(c)}))
	}
	return t
}()

func printable(line []byte) bool {
	for _, c := range line {
		if (c < ' ' && c != '\t') || c > '~' {
			return false
		}
	}
	return true
}

// fold reports whether b is the word, whatever the case of its letters.
func fold(b []byte, word string) bool {
	return len(b) == len(word) && b[0]|0x20 == word[0]|0x20 && strings.EqualFold(string(b), word)
}

// plainAnswer reads an answer into the room. When it is not plain it returns a reader of all of it, what came included, and when
// there is nothing of it the answer says so. begun is called at the first byte.
func plainAnswer(c io.Reader, method string, maxBody int, in *room, begun func()) (a answer, rest io.Reader) {
	n, err := io.ReadAtLeast(c, in[:], 1)
	if err != nil {
		return answer{err: err}, nil
	}
	begun()
	h, ok := parsePlain(in[:n])
	need := h.size + h.body
	if !ok || method == http.MethodHead || h.body >= maxBody || need > len(in) {
		return answer{}, &replay{in[:n], err, c}
	}
	for n < need && err == nil {
		var more int
		more, err = c.Read(in[n:])
		n += more
	}
	if n < need {
		return answer{}, &replay{in[:n], err, c}
	}
	return answer{
		status: h.status, head: in[:h.size], body: in[h.size:need], begun: true, inBody: true, whole: !h.closes && n == need,
	}, nil
}

// replay is a stream of which some has been read, and perhaps how that ended.
type replay struct {
	came []byte
	err  error
	rest io.Reader
}

// Read gives what came, then how that ended, then what follows.
func (r *replay) Read(b []byte) (int, error) {
	switch {
	case len(r.came) > 0:
		n := copy(b, r.came)
		r.came = r.came[n:]
		return n, nil
	case r.err != nil:
		return 0, r.err
	}
	return r.rest.Read(b)
}

// values are those of a field of the answer's head, in order.
func (a *answer) values(name string) []string {
	if a.header != nil {
		return a.header.Values(name)
	}
	var values []string
	for b, rest := a.head, []byte(nil); ; b = rest {
		var line []byte
		if line, rest, _ = bytes.Cut(b, []byte("\r\n")); len(line) == 0 {
			return values
		}
		if len(line) > len(name) && line[len(name)] == ':' && len(b) < len(a.head) && strings.EqualFold(string(line[:len(name)]), name) {
			v := string(bytes.Trim(line[len(name)+1:], " \t"))
			if strings.EqualFold(v, "close") && strings.EqualFold(name, "Connection") {
				continue // net/http keeps that to itself
			}
			values = append(values, v)
		}
	}
}

// value is the first of a field, or empty.
func (a *answer) value(name string) string {
	if vs := a.values(name); len(vs) > 0 {
		return vs[0]
	}
	return ""
}

// wording is a request as it goes to every address: what stands before and behind the host, and the same as a trace shows it.
type wording struct {
	before, after           []byte
	shownBefore, shownAfter string
	note                    string // of the step
}

// wordings are those of a question: on a connection that ends with the answer, and on one that stays.
type wordings [2]atomic.Pointer[wording]

// words returns the request of a page, as a trace shows it, and what the step says.
func (r *run) words(p page) (request []byte, shown, note string) {
	if !p.own {
		request = r.request(p)
		return request, firstLines(r.conceal(request)), p.method + " " + p.path
	}
	i := 0
	if r.keeps() {
		i = 1
	}
	w := r.q.wordings[i].Load()
	if w == nil {
		w = r.word(p)
		r.q.wordings[i].Store(w)
	}
	request = append(append(append(r.room[:0], w.before...), p.host...), w.after...)
	return request, w.shownBefore + p.host + w.shownAfter, w.note
}

// word takes the host out of a page's request. It is the first field, and neither it nor what stands before it needs to be escaped.
func (r *run) word(p page) *wording {
	const field = "\r\nHost: "
	request := r.request(p)
	at := bytes.Index(request, []byte(field)) + len(field)
	behind := at + len(p.host)
	shown := firstLines(request)
	shownAt := strings.Index(shown, "\nHost: ") + len("\nHost: ")
	return &wording{
		before: request[:at], after: request[behind:],
		shownBefore: shown[:shownAt], shownAfter: shown[shownAt+len(p.host):],
		note: escape([]byte(p.method+" "+p.path), maxHead),
	}
}
