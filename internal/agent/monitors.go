package agent

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// MaxMonitors bounds the list that healthagents are given. An agent posts all its statuses in one body of at most a million bytes, and
// a status with the text of an error takes up to 200: what an agent could not report when everything falls at once is not asked.
const MaxMonitors = 5000

// Monitor returns the words in which a healthagent is asked about a target: http://ip:port, which means GET /healthz and 200 to 299,
// or tcp://ip:port, which means to connect. The error says why a target cannot be put so.
func Monitor(t rota.Target) (string, error) {
	c := t.Check
	switch c.Kind {
	case rota.KindTCP:
		if c.Send != "" || c.Expect != "" {
			return "", errors.New("healthagents only connect; this check also talks")
		}
	case rota.KindHTTP:
		if err := plainHTTP(c); err != nil {
			return "", err
		}
	default:
		return "", fmt.Errorf("healthagents know http and tcp, not %s", c.Kind)
	}
	if !t.Address.Is4() {
		return "", errors.New("healthagents know IPv4 only")
	}
	if c.Port == 0 {
		return "", errors.New("without a port")
	}
	return string(c.Kind) + "://" + netip.AddrPortFrom(t.Address, c.Port).String(), nil
}

// plainHTTP reports what of an HTTP check a healthagent cannot do.
func plainHTTP(c rota.Check) error {
	switch {
	case c.Path != "/healthz":
		return errors.New("healthagents ask for /healthz only")
	case c.Method != "" && c.Method != "GET":
		return errors.New("healthagents know GET only")
	case c.Host != "":
		return errors.New(`healthagents send the address as host: write host: "{}"`)
	case len(c.Header) > 0:
		return errors.New("healthagents send no headers of their own")
	case len(c.ExpectHeader) > 0 || c.Body != "":
		return errors.New("healthagents look at the status only")
	case c.Follow:
		return errors.New("healthagents do not keep redirects to one address")
	}
	for _, all := range []rota.StatusRange{{From: 200, To: 299}, {From: 200, To: 399}} {
		if len(c.Status) == 0 || slices.Equal(c.Status, []rota.StatusRange{all}) {
			return nil
		}
	}
	return errors.New("healthagents count 200 to 299 as up")
}

// LeftOut is a target that healthagents are not asked about, and why. They hold it unknown.
type LeftOut struct {
	Target rota.TargetID
	Why    string
}

// place is what healthagents are asked about one address and port. A status names no protocol, so both questions there share it.
type place struct{ http, tcp bool }

func (p place) asks(k rota.Kind) bool {
	return p.http && k == rota.KindHTTP || p.tcp && k == rota.KindTCP
}

// entry is one target as healthagents know it.
type entry struct {
	id   rota.TargetID
	kind rota.Kind
	at   netip.AddrPort // invalid: not asked
	mute *rota.Opinion  // held while nothing is heard of it; all agents share it
}

// monitors is a table of targets and the list that healthagents are given for it. It is immutable.
type monitors struct {
	targets []rota.Target // what it was made of
	entries []entry       // of all targets, sorted
	places  map[netip.AddrPort]place
	body    []byte // the list, as GET returns it: the same bytes for the same targets
	leftOut []LeftOut
}

func newMonitors(ts []rota.Target) *monitors {
	m := &monitors{targets: ts, entries: make([]entry, 0, len(ts)), places: map[netip.AddrPort]place{}}
	list := []string{}
	listed := map[string]bool{}
	sorted := slices.IsSortedFunc(ts, func(a, b rota.Target) int { return cmp.Compare(a.ID, b.ID) })
	if !sorted {
		ts = slices.SortedFunc(slices.Values(ts), func(a, b rota.Target) int { return cmp.Compare(a.ID, b.ID) })
	}
	for i, t := range ts {
		if i > 0 && t.ID == ts[i-1].ID {
			continue
		}
		e := entry{id: t.ID, kind: t.Check.Kind}
		word, err := Monitor(t)
		if err == nil && !listed[word] && len(list) == MaxMonitors {
			err = fmt.Errorf("healthagents are given %d monitors at most, so that all their statuses fit into one message", MaxMonitors)
		}
		reason := "not heard of from this agent yet"
		if err != nil {
			reason = rota.CleanReason("%v", err)
			m.leftOut = append(m.leftOut, LeftOut{t.ID, reason})
		} else {
			e.at = netip.AddrPortFrom(t.Address, t.Check.Port)
			p := m.places[e.at]
			p.http, p.tcp = p.http || e.kind == rota.KindHTTP, p.tcp || e.kind == rota.KindTCP
			m.places[e.at] = p
			if !listed[word] {
				listed[word] = true
				list = append(list, word)
			}
		}
		e.mute = &rota.Opinion{Target: t.ID, Reason: reason}
		m.entries = append(m.entries, e)
	}
	slices.Sort(list)
	m.body, _ = json.Marshal(list) // strings always can
	return m
}

// madeOf reports whether the table was made of the very slice: State.Targets returns the same one until the targets change.
func (m *monitors) madeOf(ts []rota.Target) bool {
	return m != nil && len(m.targets) == len(ts) && (len(ts) == 0 || &m.targets[0] == &ts[0])
}

// status is one element of a healthagent's POST. A monitor that was not checked yet is the zero value.
type status struct {
	IP        string
	Port      int
	Healthy   bool
	Message   string
	DidChange bool
}

// heard is what one POST says of one place.
type heard struct {
	up, down     int
	saidUp, said string // the last message with each
}

func (h *heard) add(s status) {
	if s.Healthy {
		h.up++
		h.saidUp = s.Message
	} else {
		h.down++
		h.said = s.Message
	}
}

// about reads what was heard of a place as an answer to one of the questions asked there. An answer over HTTP proves that the port
// can be connected to, so of two that differ it is HTTP that failed; one alone, where both questions were asked, tells what holds
// for whichever it answers.
func (h heard) about(p place, k rota.Kind) (rota.Status, rota.Class, string) {
	if !p.asks(k) || h.up+h.down == 0 {
		return rota.Unknown, rota.ClassNone, ""
	}
	both := p.http && p.tcp
	whole := !both || h.up+h.down > 1
	var st rota.Status
	switch {
	case !both && h.up > 0 && h.down > 0:
		return rota.Unknown, rota.ClassNone, "the agent says up and down at once"
	case k == rota.KindHTTP && h.down > 0, h.up == 0 && whole:
		st = rota.Down
	case k == rota.KindTCP && h.up > 0, h.down == 0 && whole:
		st = rota.Up
	default:
		return rota.Unknown, rota.ClassNone, "the agent has checked one of http and tcp there so far"
	}
	if st == rota.Up {
		return rota.Up, rota.ClassOK, rota.CleanReason("%s", h.saidUp)
	}
	class, own := classOf(h.said)
	if own {
		st = rota.Unknown
	}
	return st, class, rota.CleanReason("%s", h.said)
}

// texts are what Go's network errors say, which is all that a healthagent tells of a failure. Its own failures are no evidence.
var texts = []struct {
	text  string
	class rota.Class
	own   bool
}{
	{"too many open files", rota.ClassResource, true},
	{"cannot assign requested address", rota.ClassResource, true},
	{"no buffer space available", rota.ClassResource, true},
	{"cannot allocate memory", rota.ClassResource, true},
	{"network is unreachable", rota.ClassUnroutable, true},
	{"operation not permitted", rota.ClassPermission, true},
	{"permission denied", rota.ClassPermission, true},
	{"connection refused", rota.ClassRefused, false},
	{"connection reset", rota.ClassReset, false},
	{"no route to host", rota.ClassUnreachable, false},
	{"timeout", rota.ClassTimeout, false},
	{"deadline exceeded", rota.ClassTimeout, false},
}

// classOf sorts the message of a failed check; own says that it is the agent that could not check. A message without any of the texts
// has no class: it was down, and nobody knows how.
func classOf(message string) (class rota.Class, own bool) {
	for _, t := range texts {
		if strings.Contains(message, t.text) {
			return t.class, t.own
		}
	}
	return rota.ClassNone, false
}

// opine makes the opinions of all targets of a table from what an agent said when it had been given a list. Opinions that say what
// they said before keep their pointer.
func (m *monitors) opine(given *monitors, said map[netip.AddrPort]*heard, last *rota.Report, now time.Time) []*rota.Opinion {
	out := make([]*rota.Opinion, len(m.entries))
	aligned := last != nil && len(last.Opinions) == len(out)
	for i, e := range m.entries {
		var was *rota.Opinion
		switch {
		case aligned && last.Opinions[i].Target == e.id:
			was = last.Opinions[i]
		case last != nil:
			was = last.Opinion(e.id)
		}
		st, class, reason := rota.Unknown, rota.ClassNone, ""
		if e.at.IsValid() && said[e.at] != nil {
			st, class, reason = said[e.at].about(given.places[e.at], e.kind)
		}
		next := &rota.Opinion{Target: e.id, Status: st, Class: class, Reason: reason}
		if st == rota.Unknown && class == rota.ClassNone && reason == "" {
			next = e.mute
		} else if was != nil && was.Status == st {
			next.Since = was.Since
		} else {
			next.Since = now
		}
		if was != nil && *was == *next {
			next = was
		}
		out[i] = next
	}
	return out
}
