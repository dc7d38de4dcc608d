package probe

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/rota-dns/rota/internal/rota"
)

// Bounds of an answer by HTTP/2. Its heads are bounded as those of HTTP/1.1 are, on the wire and unpacked.
const (
	maxFrame  = 16 << 10 // bytes of a frame (RFC 9113 §4.2: the least that everybody takes)
	maxBeside = 256      // frames that bring nothing of the answer: settings, pings, empty data
	window    = 64<<10 - 1
)

var (
	errStreamReset = errors.New("stream ended by the target")
	errBeside      = fmt.Errorf("more than %d frames that bring nothing", maxBeside)
	errNotHTTP2    = errors.New("the target does not speak HTTP/2")
)

// exchange2 asks p over HTTP/2 (RFC 9113) on a connection of its own: one stream, nothing pushed, in the blocking style of all probes and
// without a goroutine. The framing and HPACK are of golang.org/x/net; the rules of the stream are here, where bytes, frames and time
// have the same bounds as with HTTP/1.1.
func (r *run) exchange2(c net.Conn, p page) answer {
	fields := r.fields(p)
	r.trace.Sent = firstLines(r.conceal(head2(p.method+" "+p.path+" HTTP/2", fields)))
	done := r.trace.begin("request")
	_, err := c.Write(request2(p, fields, r.q.maxBody))
	done(p.method + " " + p.path)
	if err != nil && timedOut(err) {
		return answer{err: err, unsent: true}
	}
	sent, came := time.Now(), time.Time{}
	a := readAnswer2(c, p.method, r.q.maxBody, func() { came = time.Now() })
	r.answered(sent, came, a)
	return a
}

// request2 is the beginning of the connection and the whole request. Flow control never comes into it: MaxData is less than every
// server's first window, and the window that is opened here takes all that is going to be read.
func request2(p page, fields []rota.Header, maxBody int) []byte {
	var head, out bytes.Buffer
	pack := hpack.NewEncoder(&head)
	field := func(name, value string) {
		_ = pack.WriteField(hpack.HeaderField{Name: name, Value: value, Sensitive: secret(name)})
	}
	scheme := "http"
	if p.tls {
		scheme = "https"
	}
	field(":method", p.method)
	field(":scheme", scheme)
	field(":authority", fields[0].Value)
	field(":path", p.path)
	for _, f := range fields[1:] {
		switch name := strings.ToLower(f.Name); name {
		case "keep-alive", "proxy-connection", "te", "upgrade": // RFC 9113 §8.2.2
		default:
			field(name, f.Value)
		}
	}
	f := http2.NewFramer(&out, nil)
	out.WriteString(http2.ClientPreface)
	_ = f.WriteSettings(
		http2.Setting{ID: http2.SettingEnablePush, Val: 0},
		http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(maxBody + window)},
		http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: maxHTTPHead},
	)
	_ = f.WriteWindowUpdate(0, uint32(maxBody))
	block := head.Bytes()
	first := block[:min(len(block), maxFrame)]
	block = block[len(first):]
	_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: first, EndHeaders: len(block) == 0, EndStream: p.data == ""})
	for len(block) > 0 {
		next := block[:min(len(block), maxFrame)]
		block = block[len(next):]
		_ = f.WriteContinuation(1, len(block) == 0, next)
	}
	if p.data != "" {
		_ = f.WriteData(1, true, []byte(p.data))
	}
	return out.Bytes()
}

// head2 shows the head of a message as if it were of HTTP/1.1.
func head2(first string, fields []rota.Header) []byte {
	var b bytes.Buffer
	b.WriteString(first + "\r\n")
	for _, f := range fields {
		if b.Len() > maxHead {
			break
		}
		b.WriteString(f.Name + ": " + f.Value + "\r\n")
	}
	return b.Bytes()
}

// stream is an answer that comes in frames.
type stream struct {
	answer
	c       net.Conn
	in      *headReader
	frames  *http2.Framer // reads from in, writes to c
	method  string
	maxBody int
	interim int
	beside  int
	length  int64 // that the head promises; -1: nothing
	got     int64 // bytes of the body, also those that are not kept
	ended   bool
}

// readAnswer2 reads the answer to a request of method; begun is called at the first byte.
func readAnswer2(c net.Conn, method string, maxBody int, begun func()) answer {
	in := &headReader{r: c, left: maxHTTPHead, keep: len("HTTP/")}
	br := bufio.NewReaderSize(in, 4<<10)
	s := &stream{c: c, in: in, method: method, maxBody: maxBody, length: -1}
	if _, s.err = br.Peek(1); s.err != nil {
		return s.answer
	}
	s.begun = true
	begun()
	s.frames = http2.NewFramer(c, br)
	s.frames.SetMaxReadFrameSize(maxFrame)
	s.frames.ReadMetaHeaders = hpack.NewDecoder(4<<10, nil)
	s.frames.MaxHeaderListSize = maxHTTPHead
	for first := true; s.err == nil && !s.ended && len(s.body) < maxBody; first = false {
		frame, err := s.frames.ReadFrame()
		switch {
		case err != nil:
			s.err = s.readFault(frame, err, first)
		case first && frame.Header().Type != http2.FrameSettings:
			s.err = errNotHTTP2
		default:
			s.err = s.take(frame)
		}
	}
	return s.answer
}

// readFault is why there is no next frame.
func (s *stream) readFault(frame http2.Frame, err error, first bool) error {
	head, _ := frame.(*http2.MetaHeadersFrame)
	_, network := errors.AsType[net.Error](err)
	switch detail := s.frames.ErrorDetail(); {
	case s.in.exceeded, head != nil && head.Truncated:
		return errHeadTooLarge
	case network:
		return err
	case first || string(s.in.kept) == "HTTP/":
		return errNotHTTP2
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return io.ErrUnexpectedEOF
	case detail != nil:
		return fmt.Errorf("HTTP/2: %s", strings.TrimPrefix(detail.Error(), "http2: "))
	}
	return fmt.Errorf("HTTP/2: %s", strings.TrimPrefix(err.Error(), "http2: "))
}

// take works one frame.
func (s *stream) take(frame http2.Frame) error {
	h := frame.Header()
	if h.StreamID > 1 || h.Type == http2.FramePushPromise {
		return errors.New("HTTP/2: frames of a stream that nobody asked for")
	}
	switch f := frame.(type) {
	case *http2.MetaHeadersFrame:
		return s.takeHead(f)
	case *http2.DataFrame:
		return s.takeData(f)
	case *http2.RSTStreamFrame:
		return fmt.Errorf("%w (%v)", errStreamReset, f.ErrCode)
	case *http2.GoAwayFrame:
		if f.LastStreamID < 1 || f.ErrCode != http2.ErrCodeNo {
			return fmt.Errorf("%w (GOAWAY, %v)", errStreamReset, f.ErrCode)
		}
	case *http2.SettingsFrame:
		if !f.IsAck() {
			return s.reply(s.frames.WriteSettingsAck())
		}
	case *http2.PingFrame:
		if !f.IsAck() {
			return s.reply(s.frames.WritePing(true, f.Data))
		}
	}
	return s.another()
}

// reply takes the outcome of an acknowledgement. A server that has said all may be gone by then.
func (s *stream) reply(err error) error {
	if err != nil && timedOut(err) {
		return err
	}
	return s.another()
}

// another counts a frame that brings nothing of the answer.
func (s *stream) another() error {
	if s.beside++; s.beside > maxBeside {
		return errBeside
	}
	return nil
}

func (s *stream) takeHead(f *http2.MetaHeadersFrame) error {
	switch {
	case f.Truncated:
		return errHeadTooLarge
	case s.inBody && !f.StreamEnded():
		return errors.New("HTTP/2: a second head that is no trailer")
	case s.inBody: // trailers say nothing that a check asks
		return s.end(true)
	}
	status, err := strconv.ParseUint(f.PseudoValue("status"), 10, 16)
	if err != nil || status < 100 || status > 999 || status == http.StatusSwitchingProtocols || len(f.PseudoFields()) != 1 {
		return errors.New("HTTP/2: an answer without a valid :status")
	}
	if status < 200 {
		if s.interim++; s.interim > maxInterim {
			return errInterim
		}
		if f.StreamEnded() {
			return errors.New("HTTP/2: nothing after an informational answer")
		}
		return nil
	}
	s.header = http.Header{}
	var fields []rota.Header
	for _, h := range f.RegularFields() {
		s.header.Add(h.Name, h.Value)
		fields = append(fields, rota.Header{Name: h.Name, Value: h.Value})
	}
	lengths := s.header.Values("Content-Length")
	if len(lengths) > 0 && s.method != http.MethodHead && status != http.StatusNoContent && status != http.StatusNotModified {
		n, err := strconv.ParseUint(lengths[0], 10, 63)
		if err != nil || len(lengths) > 1 {
			return errors.New("HTTP/2: malformed content-length")
		}
		s.length = int64(n)
	}
	s.status, s.inBody = int(status), true
	s.head = head2("HTTP/2 "+strconv.Itoa(s.status), fields)
	s.in.unbound()
	return s.end(f.StreamEnded())
}

// end notes whether the stream has ended, and compares its length with what the head promised (RFC 9113 §8.1.1).
func (s *stream) end(ended bool) error {
	s.ended = ended
	if s.length >= 0 && (s.got > s.length || ended && s.got < s.length) {
		return fmt.Errorf("HTTP/2: %d bytes where content-length says %d", s.got, s.length)
	}
	return nil
}

func (s *stream) takeData(f *http2.DataFrame) error {
	if !s.inBody {
		return errors.New("HTTP/2: data before the head")
	}
	data := f.Data()
	s.body = append(s.body, data[:min(len(data), s.maxBody-len(s.body))]...)
	s.got += int64(len(data))
	if len(data) == 0 && !f.StreamEnded() {
		return s.another()
	}
	return s.end(f.StreamEnded())
}
