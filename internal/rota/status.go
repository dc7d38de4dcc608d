package rota

import (
	"fmt"
	"time"
	"unicode"
)

// Status is up, down, draining or unknown. The zero value is Unknown and claims nothing: it is never evidence for or against anyone.
type Status uint8

// The values of a Status.
const (
	Unknown Status = iota
	Up
	Down
	Draining // the endpoint itself says that it is about to leave
)

func (s Status) String() string {
	switch s {
	case Up:
		return "up"
	case Down:
		return "down"
	case Draining:
		return "draining"
	}
	return "unknown"
}

// MarshalText writes the status in words.
func (s Status) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads a status; a word of a later version is Unknown.
func (s *Status) UnmarshalText(b []byte) error {
	switch string(b) {
	case "up":
		*s = Up
	case "down":
		*s = Down
	case "draining":
		*s = Draining
	default:
		*s = Unknown
	}
	return nil
}

// Class sorts the reasons of observations for machines: metrics, filters and tests use it, people read Reason.
type Class string

// The classes of observations. ClassOK goes with Up; ClassExporter, ClassStale, ClassPermission, ClassResource, ClassUnroutable and ClassCancelled are the
// prober's own failures and go with Unknown; the others go with Down.
const (
	ClassNone        Class = ""
	ClassOK          Class = "ok"
	ClassTimeout     Class = "timeout"
	ClassRefused     Class = "refused"
	ClassReset       Class = "reset"
	ClassUnreachable Class = "unreachable" // an ICMP error from the way there
	ClassTLS         Class = "tls"         // handshake failed
	ClassCertificate Class = "certificate" // not trusted, wrong name, expired or about to
	ClassStatus      Class = "status"
	ClassHeader      Class = "header"
	ClassBody        Class = "body"
	ClassRedirect    Class = "redirect"
	ClassProtocol    Class = "protocol" // the answer is not what the protocol allows
	ClassLoss        Class = "loss"
	ClassThreshold   Class = "threshold"
	ClassDNS         Class = "dns"      // the answer has another code or other data
	ClassExit        Class = "exit"     // the command's exit code
	ClassSaid        Class = "said"     // the endpoint, or who watches it, says so
	ClassExporter    Class = "exporter" // what it says cannot be read, or not be judged: goes with Unknown unless the check says down
	ClassStale       Class = "stale"    // what was said is too old: goes with Unknown
	ClassPermission  Class = "permission"
	ClassResource    Class = "resource" // no descriptor, port or memory here
	ClassUnroutable  Class = "unroutable"
	ClassCancelled   Class = "cancelled"
)

// Observation is the outcome of one probe.
type Observation struct {
	Status Status        `json:"status"`
	Class  Class         `json:"class,omitempty"`
	Reason string        `json:"reason,omitempty"` // one line for people, at most MaxReason bytes, no control characters
	Sure   bool          `json:"sure,omitempty"`   // of Down: the endpoint said so itself, so it acts at once, without waiting for Fall
	Weight uint8         `json:"weight,omitempty"` // percent of its weight that the endpoint asks for, 1 to 100; 0: nothing was said
	At     time.Time     `json:"at"`               // when the probe ended
	Took   time.Duration `json:"took_ns"`
}

// MaxReason bounds a Reason, in bytes: it may come from the other side.
const MaxReason = 200

// CleanReason makes text from anywhere fit to be a Reason: characters that control a terminal or the direction of text become '?',
// invalid UTF-8 becomes U+FFFD and what exceeds MaxReason is cut. Without args, format is the text itself.
func CleanReason(format string, args ...any) string {
	s := format
	if len(args) > 0 {
		s = fmt.Sprintf(format, args...)
	}
	return clean(s, MaxReason)
}

// MaxText bounds, in bytes, text that says what to do after it said what is wrong.
const MaxText = 1000

// CleanText does to text what CleanReason does, with the bound MaxText.
func CleanText(s string) string { return clean(s, MaxText) }

// printable reports whether s is printable ASCII.
func printable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

func clean(s string, most int) string {
	if len(s) <= most && printable(s) {
		return s
	}
	out := make([]rune, 0, min(len(s), most))
	size := 0
	for _, r := range s {
		if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) || r == '\u2028' || r == '\u2029' {
			r = '?'
		}
		n := len(string(r))
		if size+n > most {
			break
		}
		size += n
		out = append(out, r)
	}
	return string(out)
}
