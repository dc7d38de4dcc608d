package probe

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/rota-dns/rota/internal/rota"
)

// Trace is one probe with its whole log, for `rota check` and for explanations.
type Trace struct {
	Target       rota.TargetID    `json:"target"`
	Kind         rota.Kind        `json:"kind"`
	Address      netip.Addr       `json:"address"`
	Port         uint16           `json:"port,omitempty"`
	Started      time.Time        `json:"started"`
	Steps        []Step           `json:"steps"`              // in order; at most maxSteps
	Sent         string           `json:"sent,omitempty"`     // head of what was sent, escaped, secrets masked, at most maxHead bytes
	Received     string           `json:"received,omitempty"` // head of what came back, likewise
	ReceivedSize int              `json:"received_size"`      // bytes of the body, the banner or the replies that were read
	TLS          *TLSFacts        `json:"tls,omitempty"`
	Observation  rota.Observation `json:"observation"`
	Streak       rota.Streak      `json:"streak,omitzero"` // of the target after it; zero for a probe beside the schedule

	lacks bool // finding.lacks
}

// Step is one phase of a probe: connect, tls, request, first byte, body, send, expect, echo, redirect, query, truncated, answer.
type Step struct {
	Name string        `json:"name"`
	At   time.Duration `json:"at_ns"`   // from the start of the probe
	Took time.Duration `json:"took_ns"` // of this phase
	Note string        `json:"note,omitempty"`
}

// TLSFacts is what a handshake showed, before any judgement of it.
type TLSFacts struct {
	Version           string            `json:"version"`
	Cipher            string            `json:"cipher"`
	ServerName        string            `json:"server_name,omitempty"` // sent as SNI
	ClientCertificate bool              `json:"client_certificate"`    // the server asked for one
	Chain             []CertificateFact `json:"chain,omitempty"`       // as sent, leaf first, at most maxChain
}

// CertificateFact is what people ask about a certificate.
type CertificateFact struct {
	Subject   string    `json:"subject"`
	Issuer    string    `json:"issuer"`
	Names     []string  `json:"names,omitempty"` // DNS names and addresses, at most maxNames
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
}

// Bounds of what a Trace keeps, so that a hostile target cannot make the history large.
const (
	maxSteps = 64
	// Most probes have as many steps or fewer.
	usualSteps = 4
	maxHead    = 2 << 10 // bytes of Sent and of Received, each
	maxChain   = 5
	maxNames   = 10
	maxFact    = 120 // bytes of one name or subject
)

// begin notes the start of a phase; the function it returns ends it. A phase that never ends has been cut off by the deadline and
// is closed by the caller's error path.
func (t *Trace) begin(name string) func(note string) {
	start := time.Now()
	return func(note string) { t.step(name, start, time.Now(), note) }
}

// step notes a phase that has ended.
func (t *Trace) step(name string, start, end time.Time, note string) {
	if len(t.Steps) < maxSteps {
		t.Steps = append(t.Steps, Step{Name: name, At: start.Sub(t.Started), Took: end.Sub(start), Note: tidy(note)})
	}
}

// tidy is a step's note, fit to be shown.
func tidy(note string) string {
	if len(note) <= rota.MaxReason && plainText(note) {
		return note
	}
	return escape([]byte(note), rota.MaxReason)
}

// plainText reports whether s is printable ASCII.
func plainText(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// escape makes bytes from anywhere fit to be shown: lines stay lines, every other control character, terminal sequence, bidirectional
// override and invalid byte becomes \xNN or \u{N}, and what exceeds limit is cut and said so.
func escape(b []byte, limit int) string {
	const cut = " …(cut)"
	var s strings.Builder
	if len(b) <= limit && simple(b) {
		s.Grow(len(b))
		for len(b) > 0 {
			line, rest, _ := bytes.Cut(b, []byte("\r"))
			s.Write(line)
			b = rest
		}
		return s.String()
	}
	for i := 0; i < len(b); {
		r, n := utf8.DecodeRune(b[i:])
		var piece string
		switch {
		case r == utf8.RuneError && n == 1:
			piece = fmt.Sprintf(`\x%02x`, b[i])
		case r == '\r' && i+1 < len(b) && b[i+1] == '\n':
			i++
			continue
		case r == '\n', r == '\t':
			piece = string(r)
		case r < ' ' || r == 0x7f || (r >= 0x80 && r < 0xa0):
			piece = fmt.Sprintf(`\x%02x`, r)
		case r == 0x2028 || r == 0x2029 || (r >= 0x200b && r <= 0x200f) || (r >= 0x202a && r <= 0x202e) || (r >= 0x2066 && r <= 0x2069):
			piece = fmt.Sprintf(`\u{%x}`, r)
		default:
			piece = string(r)
		}
		if s.Len()+len(piece) > limit {
			s.WriteString(cut)
			break
		}
		s.WriteString(piece)
		i += n
	}
	return s.String()
}

// simple reports whether b is lines of printable ASCII, with or without CR before LF.
func simple(b []byte) bool {
	for i, c := range b {
		switch {
		case c >= ' ' && c <= '~', c == '\n', c == '\t':
		case c == '\r' && i+1 < len(b) && b[i+1] == '\n':
		default:
			return false
		}
	}
	return true
}

// secret reports whether a header field of this name is masked in traces: it carries a credential.
func secret(name string) bool {
	for _, word := range [...]string{"cookie", "token", "secret", "password", "api-key", "apikey", "auth", "signature"} {
		for i := 0; i+len(word) <= len(name); i++ {
			if name[i]|0x20 == word[0] && strings.EqualFold(name[i:i+len(word)], word) {
				return true
			}
		}
	}
	return false
}

// maskHead masks the values of secret fields in an HTTP head.
func maskHead(head string) string {
	first, rest, _ := strings.Cut(head, "\n")
	for line := range strings.SplitSeq(rest, "\n") {
		if name, _, ok := strings.Cut(line, ":"); ok && secret(name) {
			return first + "\n" + maskFields(rest)
		}
	}
	return head
}

func maskFields(fields string) string {
	lines := strings.Split(fields, "\n")
	for i, line := range lines {
		if name, _, ok := strings.Cut(line, ":"); ok && secret(name) {
			lines[i] = name + ": ***"
		}
	}
	return strings.Join(lines, "\n")
}
