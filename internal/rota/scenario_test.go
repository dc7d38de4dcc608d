package rota

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/tools/txtar"
)

// epoch is when every scenario begins.
var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// TestScenarios tells stories of services in the domain's own words. Each testdata/*.txtar is an archive of stories; their lines:
//
//	service NAME ADDRESS[,priority=N][,weight=N][,nocheck]… [fall_open P%] [min_published N] [hold D] [answers N] [on_all_down WORD] [fallback NAME] [ttl N] [slow_start D] [disabled]
//	                                      further attributes: path=P (another question), also=P (beside it), alike (the same with another interval), hasty (the same with another timeout), monitor=ADDRESS, observe
//	vantages NAME[@SITE]… [need Q] [of sites] [max_age D]
//	load                                  apply the services and vantages as an event
//	at D LINE                             go to D after the start, then LINE
//	verdict ADDRESS[/PATH] up|down|draining|unknown[/N]  of all services that ask it
//	report VANTAGE ADDRESS=STATUS… | report VANTAGE abstain WHY ADDRESS=STATUS…      packed, heard by the quorum; verdicts follow as an
//	                                      event. ADDRESS all: all of them; STATUS may end in /N, a weight in percent
//	judge                                 count the votes again, as when one of them has aged
//	drain|maintenance|force-up|force-down SERVICE/ADDRESS D REASON
//	lift SERVICE/ADDRESS, tick, restart   restart: through a stored snapshot
//	freeze REASON, thaw
//	expect A|AAAA|CNAME ADDRESS… | none | untouched | drop ADDRESS…  what publishers are told
//	expect serve A|AAAA ADDRESS…          what rota's own name server answers from
//	expect weights ADDRESS=N…             of A, in hundredths
//	expect trial PATH… | none, expect lazy ADDRESS… | none
//	expect mode|mode6 MODE, expect why ADDRESS "part", expect summary "part", expect serial same|grown, expect deadline D|none
//	expect verdict ADDRESS up|down|draining|unknown[/N]
//	expect votes ADDRESS NAME=up|down|draining|unknown|silent|stale|abstains…
//	expect split SERVICE N/M              of how many of its targets the vantages contradict one another
//	expect outliers NAME… | none          who contradicts the others
//	expect emptied|kept SERVICE/ADDRESS…  what a drain of these would do
//	refuse LINE                           the line must give an error
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, f := range files {
		archive, err := txtar.ParseFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, story := range archive.Files {
			t.Run(strings.TrimSuffix(filepath.Base(f), ".txtar")+"/"+story.Name, func(t *testing.T) {
				w := &world{t: t, now: epoch, state: &State{}}
				for i, line := range strings.Split(string(story.Data), "\n") {
					line, _, _ = strings.Cut(line, "#")
					if line = strings.TrimSpace(line); line == "" {
						continue
					}
					w.line = fmt.Sprintf("%s:%s:%d: %s", filepath.Base(f), story.Name, i+1, line)
					if err := w.do(line); err != nil {
						t.Fatalf("%s\n\t%v", w.line, err)
					}
				}
				w.replay()
			})
		}
	}
}

// world is a story under way.
type world struct {
	t       *testing.T
	line    string
	now     time.Time
	spec    Spec
	state   *State
	serial  uint32
	reports []*Report
	inbox   map[string]*Unpacker
	log     []Event
}

var testCheck = Check{Name: "web", Kind: KindHTTP, Port: 80, Timing: DefaultTiming()}

func (w *world) do(line string) error {
	word, rest, _ := strings.Cut(line, " ")
	args := strings.Fields(rest)
	switch word {
	case "at":
		d, then, _ := strings.Cut(rest, " ")
		if err := w.goTo(d); err != nil {
			return err
		}
		if then == "" {
			return nil
		}
		return w.do(then)
	case "service":
		v, err := parseService(args)
		if err != nil {
			return err
		}
		w.spec.Services = slices.DeleteFunc(slices.Clone(w.spec.Services), func(s Service) bool { return s.Name == v.Name })
		w.spec.Services = append(w.spec.Services, v)
		return nil
	case "remove":
		w.spec.Services = slices.DeleteFunc(slices.Clone(w.spec.Services), func(s Service) bool { return s.Name.Short() == rest })
		return nil
	case "vantages":
		return w.vantages(args)
	case "load":
		s := w.spec
		return w.apply(Event{Kind: EventSpec, Spec: &s})
	case "verdict":
		return w.verdict(args)
	case "report":
		return w.report(args)
	case "judge":
		return w.judge()
	case "drain", "maintenance", "force-up", "force-down":
		return w.override(Action(word), args)
	case "lift":
		id, err := parseID(rest)
		if err != nil {
			return err
		}
		return w.apply(Event{Kind: EventLift, Lift: []EndpointID{id}})
	case "tick":
		return w.apply(Event{Kind: EventTick})
	case "freeze":
		return w.apply(Event{Kind: EventFreeze, Actor: "bob", Reason: rest})
	case "thaw":
		return w.apply(Event{Kind: EventThaw, Actor: "bob"})
	case "lead":
		term, err := strconv.ParseUint(args[1], 10, 64)
		if err != nil {
			return err
		}
		return w.apply(Event{Kind: EventLead, Lead: &Lead{Node: args[0], Term: term}})
	case "restart":
		return w.restart()
	case "refuse":
		if err := w.do(rest); err == nil {
			return fmt.Errorf("was not refused")
		}
		return nil
	case "expect":
		return w.expect(args, rest)
	}
	return fmt.Errorf("unknown line")
}

func (w *world) goTo(d string) error {
	after, err := time.ParseDuration(d)
	w.now = epoch.Add(after)
	return err
}

func (w *world) apply(e Event) error {
	e.Index, e.At = w.state.Index()+1, w.now
	w.serial = w.state.Serial()
	raw, err := json.Marshal(e)
	if err != nil {
		return err
	}
	var read Event
	if err := json.Unmarshal(raw, &read); err != nil {
		return err
	}
	w.log = append(w.log, read)
	w.state, err = w.state.Apply(e)
	return err
}

// replay applies the log again, as another node would, and compares byte for byte.
func (w *world) replay() {
	s := &State{}
	for _, e := range w.log {
		s, _ = s.Apply(e) // a refused event is refused alike
	}
	if got, want := snapshotBytes(w.t, s), snapshotBytes(w.t, w.state); !bytes.Equal(got, want) {
		w.t.Errorf("a replica that replays the log differs:\n got %s\nwant %s", got, want)
	}
}

func snapshotBytes(t interface{ Fatal(...any) }, s *State) []byte {
	b, err := json.Marshal(s.Snapshot())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (w *world) restart() error {
	var snap Snapshot
	if err := json.Unmarshal(snapshotBytes(w.t, w.state), &snap); err != nil {
		return err
	}
	s, err := Restore(snap)
	w.state, w.reports, w.inbox = s, nil, nil
	return err
}

func parseService(args []string) (Service, error) {
	n, err := ParseName(args[0])
	if err != nil {
		return Service{}, err
	}
	v := Service{Name: n, TTL: 30, Publish: []string{"bind"}, Safety: DefaultSafety()}
	v.Safety.MinHold = 0
	for i := 1; i < len(args); i++ {
		next := func() string { i++; return args[i] }
		switch args[i] {
		case "fall_open":
			p, err := strconv.ParseFloat(strings.TrimSuffix(next(), "%"), 64)
			if err != nil {
				return v, err
			}
			v.Safety.FailOpenBelow = p / 100
		case "min_published":
			v.Safety.MinPublished, err = strconv.Atoi(next())
		case "hold":
			v.Safety.MinHold, err = time.ParseDuration(next())
		case "slow_start":
			v.Policy.SlowStart, err = time.ParseDuration(next())
		case "disabled":
			v.Disabled = true
		case "answers":
			v.Policy.Answers, err = strconv.Atoi(next())
		case "on_all_down":
			v.Safety.OnAllDown = OnAllDown(next())
		case "fallback":
			v.Safety.Fallback, err = ParseName(next())
		case "ttl":
			ttl, e := strconv.ParseUint(next(), 10, 32)
			v.TTL, err = uint32(ttl), e
		default:
			var e Endpoint
			if e, err = parseEndpoint(args[i]); err == nil {
				v.Endpoints = append(v.Endpoints, e)
			}
		}
		if err != nil {
			return v, err
		}
	}
	return v, nil
}

func parseEndpoint(s string) (Endpoint, error) {
	parts := strings.Split(s, ",")
	a, err := netip.ParseAddr(parts[0])
	e := Endpoint{Address: a, Weight: 1, Checks: []Use{{Check: testCheck}}}
	for _, p := range parts[1:] {
		k, value, _ := strings.Cut(p, "=")
		n, numErr := strconv.ParseUint(value, 10, 32)
		switch {
		case k == "nocheck":
			e.Checks = nil
		case k == "priority" && numErr == nil:
			e.Priority = uint16(n)
		case k == "weight" && numErr == nil:
			e.Weight = uint32(n)
		case k == "site":
			e.Site = value
		case k == "path": // another question
			c := testCheck
			c.Path = value
			e.Checks = []Use{{Check: c}}
		case k == "alike":
			e.Checks[0].Check.Interval = time.Minute
		case k == "hasty":
			e.Checks[0].Check.Timeout = time.Millisecond
		case k == "also": // beside it
			c := testCheck
			c.Name, c.Path = "also", value
			e.Checks = append(e.Checks, Use{Check: c})
		case k == "monitor":
			e.Monitor, err = netip.ParseAddr(value)
		case k == "observe":
			c := testCheck
			c.Port = 81
			e.Checks = append(e.Checks, Use{Check: c, Observe: true})
		default:
			return e, fmt.Errorf("endpoint %q", s)
		}
	}
	return e, err
}

func parseID(s string) (EndpointID, error) {
	name, address, _ := strings.Cut(s, "/")
	n, err := ParseName(name)
	if err != nil {
		return EndpointID{}, err
	}
	a, err := netip.ParseAddr(address)
	return EndpointID{n, a}, err
}

func (w *world) vantages(args []string) error {
	w.spec.Vantages, w.spec.Quorum = nil, Quorum{}
	for i := 0; i < len(args); i++ {
		switch args[i] {
		case "need":
			i++
			w.spec.Quorum.Need = args[i]
		case "of":
			i++
			w.spec.Quorum.Of = args[i]
		case "max_age":
			i++
			d, err := time.ParseDuration(args[i])
			if err != nil {
				return err
			}
			w.spec.Quorum.MaxAge = d
		default:
			name, site, _ := strings.Cut(args[i], "@")
			w.spec.Vantages = append(w.spec.Vantages, Vantage{Name: name, Site: site})
		}
	}
	return nil
}

// sayingOf reads a status with the weight behind it, as in up/50.
func sayingOf(text string) (s Status, weight uint8) {
	word, percent, _ := strings.Cut(text, "/")
	_ = s.UnmarshalText([]byte(word))
	n, _ := strconv.Atoi(percent)
	return s, uint8(n)
}

// asked returns the targets in force that probe an address, or ask a path of it.
func (w *world) asked(address string) []Target {
	address, path, one := strings.Cut(address, "/")
	return slices.DeleteFunc(slices.Clone(w.state.Targets()), func(t Target) bool {
		return t.Address.String() != address || t.Check.Port != 80 || one && t.Check.Path != "/"+path
	})
}

func (w *world) verdict(args []string) error {
	targets := w.asked(args[0])
	if len(targets) == 0 {
		return fmt.Errorf("nobody asks %s", args[0])
	}
	e := Event{Kind: EventVerdicts}
	for _, t := range targets {
		s, weight := sayingOf(args[1])
		e.Verdicts = append(e.Verdicts, Verdict{Target: t.ID, Status: s, Weight: weight, Since: w.now, Need: 1, Votes: []Vote{
			{Vantage: "ams1", Site: "ams", Status: s, Weight: weight, Class: ClassTimeout, Reason: "no answer in 3 s"},
		}})
	}
	return w.apply(e)
}

// report packs a report and takes it in as a leader does.
func (w *world) report(args []string) error {
	r := &Report{Vantage: args[0], Incarnation: 1, Seq: 1}
	if len(args) > 1 && args[1] == "abstain" {
		r.Abstain = args[2]
		args = args[2:]
	}
	said := map[TargetID]*Opinion{}
	for _, a := range args[1:] {
		address, word, _ := strings.Cut(a, "=")
		targets := w.asked(address)
		if address == "all" {
			targets = w.state.Targets()
		}
		if len(targets) == 0 {
			return fmt.Errorf("nobody asks %s", address)
		}
		for _, t := range targets {
			s, weight := sayingOf(word)
			said[t.ID] = &Opinion{Target: t.ID, Status: s, Weight: weight, Since: w.now, Reason: s.String() + " here"}
		}
	}
	for _, o := range said {
		r.Opinions = append(r.Opinions, o)
	}
	slices.SortFunc(r.Opinions, func(a, b *Opinion) int { return strings.Compare(string(a.Target), string(b.Target)) })
	if w.inbox == nil {
		w.inbox = map[string]*Unpacker{}
	}
	if w.inbox[r.Vantage] == nil {
		w.inbox[r.Vantage] = &Unpacker{}
	}
	r, err := w.inbox[r.Vantage].Unpack(w.state.Table(), w.state.Table().Pack(r), w.now)
	if err != nil {
		return err
	}
	if err := r.Validate(); err != nil {
		return err
	}
	w.reports = append(slices.DeleteFunc(w.reports, func(o *Report) bool { return o.Vantage == r.Vantage }), r)
	return w.judge()
}

func (w *world) judge() error {
	if vs := w.state.Judge(w.state.Table().Targets(), w.reports, w.now); len(vs) > 0 {
		return w.apply(Event{Kind: EventVerdicts, Verdicts: vs})
	}
	w.serial = w.state.Serial()
	return nil
}

// votes says how the vantages vote on an address.
func (w *world) votes(address string) string {
	var out []string
	for _, v := range w.state.Votes(w.asked(address)[0].ID, w.reports, w.now) {
		word := v.Status.String()
		for prefix, is := range map[string]string{"silent": "silent", "report is older": "stale", "abstains": "abstains"} {
			if strings.HasPrefix(v.Reason, prefix) {
				word = is
			}
		}
		out = append(out, v.Vantage+"="+word)
	}
	return strings.Join(out, " ")
}

func (w *world) outliers() string {
	var out []string
	for _, v := range w.state.Dissent(w.reports, w.now).Vantages {
		if v.Outlier() {
			out = append(out, v.Vantage)
		}
	}
	if out == nil {
		return "none"
	}
	return strings.Join(out, " ")
}

func (w *world) split(service string) string {
	for _, d := range w.state.Dissent(w.reports, w.now).Services {
		if d.Service.Short() == service {
			return fmt.Sprintf("%d/%d", d.Split, d.Targets)
		}
	}
	return "nothing"
}

func (w *world) override(a Action, args []string) error {
	id, err := parseID(args[0])
	if err != nil {
		return err
	}
	life, err := time.ParseDuration(args[1])
	if err != nil {
		return err
	}
	return w.apply(Event{Kind: EventOverride, Overrides: []Override{{
		Endpoint: id, Action: a, Author: "alice", Reason: strings.Join(args[2:], " "), Set: w.now, Expires: w.now.Add(life),
	}}})
}

// service is the story's service that holds an address, else its first.
func (w *world) service(address string) Name {
	for _, v := range w.state.Services() {
		for _, e := range v.Endpoints {
			if e.Address.String() == address {
				return v.Name
			}
		}
	}
	return w.state.Services()[0].Name
}

func (w *world) expect(args []string, rest string) error {
	what, more := args[0], args[1:]
	same := func(got any, want ...string) error {
		if g, w := fmt.Sprint(got), strings.Join(want, " "); g != w {
			return fmt.Errorf("got %s, want %s", g, w)
		}
		return nil
	}
	switch what {
	case "A", "AAAA", "CNAME":
		return same(w.told(what), slices.Concat(more)...)
	case "weights": // ADDRESS=N in hundredths of the weight, of all that serve
		var out []string
		for _, m := range w.state.Selection(w.service("")).V4.Members {
			if m.Serves() {
				out = append(out, fmt.Sprintf("%v=%d", m.Address, m.Counts()))
			}
		}
		return same(strings.Join(out, " "), more...)
	case "trial": // NAME…, the paths of the checks on trial
		var out []string
		for _, k := range w.state.Trials(w.service("")) {
			k, _, _ = strings.Cut(strings.TrimPrefix(k, "http://{}:80"), "#")
			out = append(out, k)
		}
		if out == nil {
			out = []string{"none"}
		}
		return same(strings.Join(out, " "), more...)
	case "lazy": // ADDRESS… that are probed and nothing depends on
		out := []string{"none"}
		for _, t := range w.state.Targets() {
			if t.Lazy && t.Check.Port == 80 {
				out = append(out, t.Address.String())
			}
		}
		return same(strings.Join(out[min(len(out)-1, 1):], " "), more...)
	case "serve":
		t, _ := ParseType(more[0])
		return same(strings.Join(texts(w.state.Selection(w.service(more[1])).Family(t).Serving()), " "), more[1:]...)
	case "mode":
		return same(w.state.Selection(w.service("")).V4.Mode, more...)
	case "mode6":
		return same(w.state.Selection(w.service("")).V6.Mode, more...)
	case "serial":
		grown := map[bool]string{true: "grown", false: "same"}[int32(w.state.Serial()-w.serial) > 0]
		return same(grown, more...)
	case "deadline":
		d := w.state.Deadline()
		if d.IsZero() {
			return same("none", more...)
		}
		return same(d.Sub(epoch), more...)
	case "why":
		return w.expectWhy(more[0], rest)
	case "summary":
		x, _ := w.state.Explain(w.service(""), TypeA)
		return holds(x.Summary, rest)
	case "verdict":
		v := w.state.Verdict(w.asked(more[0])[0].ID)
		if v.Weight != 0 {
			return same(fmt.Sprint(v.Status, "/", v.Weight), more[1:]...)
		}
		return same(v.Status, more[1:]...)
	case "votes":
		return same(w.votes(more[0]), more[1:]...)
	case "split":
		return same(w.split(more[0]), more[1:]...)
	case "outliers":
		return same(w.outliers(), more...)
	case "emptied", "kept":
		var os []Override
		for _, s := range more {
			id, err := parseID(s)
			if err != nil {
				return err
			}
			os = append(os, Override{Endpoint: id, Action: ActionDrain})
		}
		return same(map[bool]string{true: "emptied", false: "kept"}[len(w.state.Emptied(os, w.now)) > 0], what)
	}
	return fmt.Errorf("unknown expectation")
}

func (w *world) expectWhy(address, rest string) error {
	for _, t := range []Type{TypeA, TypeAAAA} {
		x, _ := w.state.Explain(w.service(address), t)
		for _, e := range x.Endpoints {
			if e.Address.String() == address {
				return holds(e.Why, rest)
			}
		}
	}
	return fmt.Errorf("%s is not explained", address)
}

// holds reports whether text has the part that the line quotes.
func holds(text, rest string) error {
	_, quoted, _ := strings.Cut(rest, `"`)
	if part := strings.TrimSuffix(quoted, `"`); part == "" || !strings.Contains(text, part) {
		return fmt.Errorf("got %q, want it to hold %q", text, part)
	}
	return nil
}

// told says what publishers are told of the story's first service.
func (w *world) told(typ string) string {
	for want := range w.state.Wants("bind") {
		if want.Set.Type.String() != typ || want.Service != w.service("") {
			continue
		}
		switch {
		case want.Drop != nil:
			return "drop " + strings.Join(want.Drop, " ")
		case len(want.Set.Data) == 0:
			return "none"
		}
		return strings.Join(want.Set.Data, " ")
	}
	return "untouched"
}
