package api

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// What people ask of publishers, and what they are shown before and after.

// InstructionRequest asks something of publishers.
type InstructionRequest struct {
	Verb      string   `json:"verb" enum:"apply,refresh,import,release" doc:"apply: look now, and write what is held of names; refresh: write names again, the live records first; import: take a zone over; release: stop keeping a zone."`
	Publisher string   `json:"publisher,omitempty" maxLength:"128" doc:"Empty, of apply and refresh: every one."`
	Zone      string   `json:"zone,omitempty" maxLength:"300" doc:"Empty, of apply and refresh: every one."`
	Names     []string `json:"names,omitempty" maxItems:"20000" doc:"Of apply: whose held changes may be written; of import: whose existing records are taken over, all without it."`
	From      string   `json:"from,omitempty" maxLength:"128" doc:"Of import: the owner that the zone is taken from."`
	To        string   `json:"to,omitempty" maxLength:"128" doc:"Of release: the owner that the zone is offered to."`
	For       string   `json:"for,omitempty" maxLength:"20" doc:"How long it is in force, such as 30m; 10m by default, at most 24h. A release is until an import."`
	Reason    string   `json:"reason" maxLength:"200"`
	Author    string   `json:"author,omitempty" maxLength:"64" doc:"Who says so; believed only over the unix socket."`
}

// InstructionReply is an instruction that was given.
type InstructionReply struct {
	Event       uint64          `json:"event" doc:"Index of the event."`
	Instruction rota.Instructed `json:"instruction"`
}

// instruction reads a request.
func (in InstructionRequest) instruction(now time.Time) (rota.Instruction, error) {
	x := rota.Instruction{Verb: rota.Verb(in.Verb), Publisher: in.Publisher, From: in.From, To: in.To}
	read := func(s string) (rota.Name, error) {
		n, err := rota.ParseName(s)
		if err != nil {
			return "", problem(http.StatusUnprocessableEntity, "%v", err)
		}
		return n, nil
	}
	var err error
	if in.Zone != "" {
		if x.Zone, err = read(in.Zone); err != nil {
			return x, err
		}
	}
	for _, s := range in.Names {
		n, err := read(s)
		if err != nil {
			return x, err
		}
		x.Names = append(x.Names, n)
	}
	if in.For != "" {
		life, err := parseLife(in.For)
		if err != nil {
			return x, err
		}
		x.Until = now.Add(life)
	}
	return x, nil
}

func (s *Server) instruct(ctx context.Context, in *struct{ Body InstructionRequest }) (*InstructionReply, error) {
	c, v := callerOf(ctx), s.view()
	now := v.now.UTC().Round(0)
	x, err := in.Body.instruction(now)
	if err != nil {
		return nil, err
	}
	reason := rota.CleanReason("%s", strings.TrimSpace(in.Body.Reason))
	if reason == "" {
		return nil, problem(http.StatusUnprocessableEntity, "say why: what is asked of publishers needs a reason")
	}
	if p := x.Publisher; p != "" && !slices.ContainsFunc(v.publishers, func(s PublisherStatus) bool { return s.Publisher == p }) {
		return nil, problem(http.StatusNotFound, "no publisher %q; `rota get publishers` lists them", p)
	}
	e := rota.Event{At: now, Kind: rota.EventInstruct, Actor: c.author(in.Body.Author), Reason: reason, Instruction: &x}
	try := e
	if try.Index = v.Index() + 1; now.Before(v.At()) {
		try.At = v.At()
	}
	if _, err := v.Apply(try); err != nil { // what nobody could take in is not ordered
		return nil, problem(http.StatusUnprocessableEntity, "%v", err)
	}
	if e, err = s.o.Append(ctx, e); err != nil {
		return nil, s.appendProblem(err)
	}
	out := &InstructionReply{Event: e.Index, Instruction: rota.Instructed{Instruction: x, Index: e.Index, At: e.At, Actor: e.Actor, Reason: reason}}
	for _, y := range s.o.Source.State().Instructed() {
		if y.Index == e.Index {
			out.Instruction = y
		}
	}
	return out, nil
}

func (s *Server) listInstructions(context.Context, *noInput) (*List[rota.Instructed], error) {
	v := s.view()
	return list(v, slices.Clone(v.Instructed())), nil
}

// FreezeRequest stops everything automatic.
type FreezeRequest struct {
	Reason string `json:"reason" maxLength:"200"`
	Author string `json:"author,omitempty" maxLength:"64" doc:"Who says so; believed only over the unix socket."`
	Here   bool   `json:"here,omitempty" doc:"Only this node, also when the cluster could be told."`
}

// FreezeView is what is frozen.
type FreezeView struct {
	Node    *rota.Freeze `json:"node,omitempty" doc:"This node by itself: it publishes nothing, and its name server's answers stand."`
	Cluster *rota.Freeze `json:"cluster,omitempty" doc:"The whole cluster: neither verdicts nor time change an answer; what a person says of endpoints and services still does."`
	Event   uint64       `json:"event,omitempty" doc:"Index of the event that this request became."`
	Trouble string       `json:"trouble,omitempty" doc:"Why the cluster was not told."`
}

func (s *Server) frozen() *FreezeView {
	out := &FreezeView{Cluster: s.o.Source.State().Frozen()}
	if s.o.Frozen != nil {
		out.Node = s.o.Frozen()
	}
	return out
}

func (s *Server) getFreeze(context.Context, *noInput) (*FreezeView, error) { return s.frozen(), nil }

// freezeWithin bounds how long the cluster is waited for: who freezes has no time.
const freezeWithin = 10 * time.Second

// freeze freezes this node first, which needs nobody else, and then tells the cluster.
func (s *Server) freeze(ctx context.Context, in *struct{ Body FreezeRequest }) (*FreezeView, error) {
	who := callerOf(ctx).author(in.Body.Author)
	reason := rota.CleanReason("%s", strings.TrimSpace(in.Body.Reason))
	if reason == "" {
		return nil, problem(http.StatusUnprocessableEntity, "say why: a freeze needs a reason")
	}
	var trouble []string
	if s.o.Freeze != nil {
		if err := s.o.Freeze(rota.Freeze{At: s.o.Now().UTC().Round(0), Actor: who, Reason: reason}, in.Body.Here); err != nil {
			trouble = append(trouble, "this node by itself: "+err.Error())
		}
	}
	var err error
	var e rota.Event
	if !in.Body.Here {
		if e, err = s.tell(ctx, rota.Event{Kind: rota.EventFreeze, Actor: who, Reason: reason}); err != nil {
			trouble = append(trouble, err.Error())
		}
	}
	out := s.frozen()
	out.Event, out.Trouble = e.Index, rota.CleanReason("%s", strings.Join(trouble, "; "))
	switch {
	case out.Node != nil || out.Cluster != nil:
		return out, nil
	case err != nil:
		return nil, err
	}
	return nil, problem(http.StatusInternalServerError, "nothing is frozen: %s", out.Trouble)
}

func (s *Server) thaw(ctx context.Context, in *struct {
	Reason string `query:"reason" maxLength:"200"`
	Author string `query:"author" maxLength:"64"`
	Here   bool   `query:"here" doc:"Only this node."`
},
) (*FreezeView, error) {
	who := callerOf(ctx).author(in.Author)
	var trouble []string
	if s.o.Thaw != nil {
		if err := s.o.Thaw(who); err != nil {
			trouble = append(trouble, "this node by itself: "+err.Error())
		}
	}
	var e rota.Event
	if !in.Here {
		var err error
		reason := cmp.Or(rota.CleanReason("%s", strings.TrimSpace(in.Reason)), "thawed by "+who)
		if e, err = s.tell(ctx, rota.Event{Kind: rota.EventThaw, Actor: who, Reason: reason}); err != nil {
			trouble = append(trouble, err.Error())
		}
	}
	out := s.frozen()
	out.Event, out.Trouble = e.Index, rota.CleanReason("%s", strings.Join(trouble, "; "))
	return out, nil
}

// tell orders an event that has no time to lose.
func (s *Server) tell(ctx context.Context, e rota.Event) (rota.Event, error) {
	ctx, cancel := context.WithTimeout(ctx, freezeWithin)
	defer cancel()
	e.At = s.o.Now().UTC().Round(0)
	e, err := s.o.Append(ctx, e)
	if err != nil {
		return rota.Event{}, s.appendProblem(err)
	}
	return e, nil
}

type planInput struct {
	Publisher string `query:"publisher" maxLength:"128" doc:"Only this one; the DNS of others is not asked."`
	Zone      string `query:"zone" maxLength:"300" doc:"Only this zone."`
}

type recordsInput struct {
	Publisher string `query:"publisher" maxLength:"128" doc:"Only this one; the DNS of others is not asked."`
	Zone      string `query:"zone" maxLength:"300" doc:"Only this zone."`
	State     string `query:"state" enum:"in-step,pending,held,drift" doc:"Only records of this state."`
}

// Forced is a name whose held changes may be written, because a person said so.
type Forced struct {
	Name   rota.Name `json:"name"`
	Until  time.Time `json:"until"`
	Actor  string    `json:"actor"`
	Reason string    `json:"reason"`
}

// plans asks the DNS of publishers what they would write now.
func (s *Server) plans(ctx context.Context, in *planInput) (*view, []Plan, error) {
	if s.o.Plan == nil {
		return nil, nil, problem(http.StatusNotFound, "no publisher is configured")
	}
	var zone rota.Name
	if in.Zone != "" {
		var err error
		if zone, err = rota.ParseName(in.Zone); err != nil {
			return nil, nil, problem(http.StatusUnprocessableEntity, "%v", err)
		}
	}
	select {
	case s.planning <- struct{}{}: // one at a time: each asks every publisher's DNS
		defer func() { <-s.planning }()
	case <-ctx.Done():
		return nil, nil, problem(http.StatusServiceUnavailable, "another plan is being made")
	}
	v := s.view()
	if p := in.Publisher; p != "" && !slices.ContainsFunc(v.publishers, func(s PublisherStatus) bool { return s.Publisher == p }) {
		return nil, nil, problem(http.StatusNotFound, "no publisher %q; `rota get publishers` lists them", p)
	}
	all, err := s.o.Plan(ctx, in.Publisher)
	if err != nil {
		return nil, nil, problem(http.StatusBadGateway, "%v", err)
	}
	if zone != "" {
		all = slices.DeleteFunc(all, func(p Plan) bool { return p.Zone != zone && p.Zone != "" })
		if !slices.ContainsFunc(all, func(p Plan) bool { return p.Zone == zone }) {
			return nil, nil, problem(http.StatusNotFound, "no publisher keeps anything in %s; `rota get zones` lists them", zone.Short())
		}
	}
	for i := range all {
		p := &all[i]
		p.Error, p.Owner, p.Offer = rota.CleanText(p.Error), rota.CleanReason("%s", p.Owner), rota.CleanReason("%s", p.Offer)
		p.Changes, p.Unchanged, p.Held = orNone(p.Changes), orNone(p.Unchanged), orNone(p.Held)
		p.Reasons = orNone(p.Reasons)
		p.Forced = v.forced(p.Publisher, p.Zone)
	}
	return v, all, nil
}

// forced lists the names of a zone whose held changes may be written now, sorted.
func (v *view) forced(publisher string, zone rota.Name) []Forced {
	out := []Forced{}
	for _, x := range slices.Backward(v.Instructions(publisher, zone)) {
		if x.Verb != rota.VerbApply || !v.now.Before(x.Until) {
			continue
		}
		for _, n := range x.Names {
			out = append(out, Forced{n, x.Until, x.Actor, x.Reason})
		}
	}
	slices.SortStableFunc(out, func(a, b Forced) int { return cmp.Compare(a.Name, b.Name) })
	return slices.CompactFunc(out, func(a, b Forced) bool { return a.Name == b.Name })
}

func (s *Server) plan(ctx context.Context, in *planInput) (*List[Plan], error) {
	v, all, err := s.plans(ctx, in)
	if err != nil {
		return nil, err
	}
	return list(v, all), nil
}

// RecordView is an RRset that rota keeps in a DNS, as it stands there.
type RecordView struct {
	Publisher string    `json:"publisher"`
	Zone      rota.Name `json:"zone"`
	Name      rota.Name `json:"name"`
	Type      rota.Type `json:"type"`
	State     string    `json:"state" enum:"in-step,pending,held,drift" doc:"in-step: as wanted; pending: about to be written; held: a safety limit keeps it; drift: rota wrote what is wanted, and somebody changed it since."`
	TTL       uint32    `json:"ttl" doc:"Seconds; of what is there, else of what is wanted."`
	Data      []string  `json:"data" nullable:"false" doc:"What is there."`
	Want      []string  `json:"want" nullable:"false" doc:"What should be there."`
	Why       string    `json:"why,omitempty" doc:"Why it differs, or what holds it."`
	Written   time.Time `json:"written,omitzero" doc:"When rota last wrote it, as far as history goes."`
	Event     uint64    `json:"event,omitempty" doc:"Index of the event of that."`
}

// RecordList is the RRsets that rota keeps, and what could not be read.
type RecordList struct {
	Index  uint64       `json:"index"`
	At     time.Time    `json:"at"`
	Items  []RecordView `json:"items" nullable:"false"`
	Unread []Unread     `json:"unread" nullable:"false" doc:"What is not among the items because it could not be read, or cannot be written."`
}

// Unread is a zone of a publisher of which nothing, or not everything, is known.
type Unread struct {
	Publisher string    `json:"publisher"`
	Zone      rota.Name `json:"zone"`
	Error     string    `json:"error"`
}

// recordsOf turns plans into the RRsets they speak of.
func recordsOf(plans []Plan, past []Record) ([]RecordView, []Unread) {
	type place struct {
		publisher string
		zone      rota.Name
		key       rota.Key
	}
	type write struct {
		at    time.Time
		event uint64
		data  []string
	}
	last := map[place]write{}
	for _, r := range past {
		if p := r.Event.Published; p != nil {
			for _, c := range p.Changes {
				last[place{p.Publisher, p.Zone, c.Key()}] = write{r.Event.At, r.Event.Index, c.New.Data}
			}
		}
	}
	items, unread := []RecordView{}, []Unread{}
	for _, p := range plans {
		if p.Error != "" {
			unread = append(unread, Unread{p.Publisher, p.Zone, p.Error})
		}
		at := map[rota.Key]int{}
		add := func(state string, have, want rota.RRset, why string) {
			k := want.Key()
			w := last[place{p.Publisher, p.Zone, k}]
			if state == "pending" && w.event > 0 && slices.Equal(w.data, want.Data) {
				state, why = "drift", cmp.Or(why, "it was as wanted when rota wrote it")
			}
			x := RecordView{
				Publisher: p.Publisher, Zone: p.Zone, Name: k.Name, Type: k.Type, State: state, TTL: have.TTL,
				Data: orEmpty(have.Data), Want: orEmpty(want.Data), Why: why, Written: w.at, Event: w.event,
			}
			if len(have.Data) == 0 {
				x.TTL = want.TTL
			}
			at[k] = len(items)
			items = append(items, x)
		}
		for _, s := range p.Unchanged {
			add("in-step", s, s, "")
		}
		for _, c := range p.Changes {
			add("pending", c.Old, c.New, c.Why)
		}
		for _, h := range p.Held {
			if i, ok := at[h.Change.Key()]; ok { // of what is wanted a part may be written
				items[i].State, items[i].Want, items[i].Why = "held", orEmpty(h.Change.New.Data), h.Why
				continue
			}
			add("held", h.Change.Old, h.Change.New, h.Why)
		}
	}
	slices.SortStableFunc(items, func(a, b RecordView) int {
		return cmp.Or(cmp.Compare(a.Publisher, b.Publisher), cmp.Compare(a.Zone, b.Zone), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Type, b.Type))
	})
	return items, unread
}

func (s *Server) records(ctx context.Context, in *recordsInput) (*RecordList, error) {
	v, all, err := s.plans(ctx, &planInput{in.Publisher, in.Zone})
	if err != nil {
		return nil, err
	}
	out := &RecordList{Index: v.Index(), At: v.At()}
	out.Items, out.Unread = recordsOf(all, s.o.Records(0, 0))
	if in.State != "" {
		out.Items = slices.DeleteFunc(out.Items, func(r RecordView) bool { return r.State != in.State })
	}
	return out, nil
}

func (s *Server) drift(ctx context.Context, in *recordsInput) (*RecordList, error) {
	out, err := s.records(ctx, in)
	if err != nil {
		return nil, err
	}
	out.Items = slices.DeleteFunc(out.Items, func(r RecordView) bool { return r.State == "in-step" })
	return out, nil
}
