package api

import (
	"net/netip"
	"reflect"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// Record is an event and what came of it.
type Record struct {
	Event       rota.Event        `json:"event"`
	Transitions []rota.Transition `json:"transitions,omitempty"` // answers that it changed
	Refused     string            `json:"refused,omitempty"`     // why the state did not take it, when it did not
}

// List is a page of things, with the age of the state they were read from.
type List[T any] struct {
	Index uint64    `json:"index" doc:"Index of the last event in the state this was read from."`
	At    time.Time `json:"at" doc:"Time of that event."`
	Items []T       `json:"items" nullable:"false"`
}

// ServiceView is a service as it stands.
type ServiceView struct {
	Service   string            `json:"service" doc:"Domain name, without the trailing dot."`
	Status    string            `json:"status" enum:"up,degraded,down,panic,warmup,empty,disabled" doc:"up: all of it; degraded: some of it; panic: too few are up, and health is not believed; down: nobody is up; disabled: neither verdicts nor time change its answer. What is answered in panic, also of a service that is down, say mode_a and mode_aaaa: rota status writes it as PANIC (keep) and DOWN, PANIC (keep)."`
	Endpoints int               `json:"endpoints"`
	Up        int               `json:"up"`
	Down      int               `json:"down"`
	Draining  int               `json:"draining" doc:"Endpoints that say themselves that they drain."`
	Unknown   int               `json:"unknown"`
	Held      int               `json:"overridden" doc:"Endpoints under an override."`
	Answer    []string          `json:"answer" nullable:"false" doc:"Addresses, or the fallback's name, that may be answered now."`
	TTL       uint32            `json:"ttl" doc:"Seconds."`
	ModeA     rota.Mode         `json:"mode_a"`
	ModeAAAA  rota.Mode         `json:"mode_aaaa"`
	OnAllDown rota.OnAllDown    `json:"on_all_down"`
	Zone      string            `json:"zone,omitempty"`
	Publish   []string          `json:"publish" nullable:"false" doc:"Publishers by name; dns is rota's own name server."`
	Labels    map[string]string `json:"labels,omitempty"`
	Unprobed  []string          `json:"unprobed,omitempty" doc:"Endpoints that a vantage cannot probe, and why: it is the vantage that fails, not they."`
	Trials    []string          `json:"on_trial,omitempty" doc:"Checks that no endpoint has passed since they are new or ask something else: that they say down does not count."`
	Disabled  time.Time         `json:"disabled,omitzero" doc:"While it is disabled: since when."`
	Changed   time.Time         `json:"changed,omitzero" doc:"When the answer last changed."`
	Event     uint64            `json:"event,omitempty" doc:"Index of the event that last changed the answer."`
}

// ServiceDetail is a service with its endpoints.
type ServiceDetail struct {
	Index   uint64         `json:"index"`
	At      time.Time      `json:"at"`
	Service ServiceView    `json:"service"`
	Members []EndpointView `json:"endpoints" nullable:"false"`
}

// VotesView is who holds the verdict of an endpoint, now.
type VotesView struct {
	For     int      `json:"for" doc:"Voices that hold the verdict."`
	Need    int      `json:"need" doc:"Voices that a change of verdict needs."`
	Of      int      `json:"of" doc:"Voices there are, heard or not."`
	Against []string `json:"against,omitempty" doc:"Vantages that hold something else, and what."`
}

// EndpointView is an endpoint as it stands.
type EndpointView struct {
	Service   string            `json:"service"`
	Endpoint  netip.Addr        `json:"endpoint"`
	Verdict   rota.Status       `json:"verdict" enum:"up,down,draining,unknown" doc:"What the quorum holds: the worst of the required checks."`
	Trial     bool              `json:"on_trial,omitempty" doc:"No endpoint has passed the check that is down yet, so that this does not count."`
	Votes     VotesView         `json:"votes"`
	Since     time.Time         `json:"since,omitzero" doc:"Since when the verdict holds."`
	Failures  int               `json:"failures,omitempty" doc:"Failures this node counts and has not forgiven."`
	Successes int               `json:"successes,omitempty" doc:"Successes in a row this node counts."`
	Last      rota.Status       `json:"last_status,omitempty" enum:"up,down,draining,unknown" doc:"Outcome of this node's last probe."`
	Class     rota.Class        `json:"last_class,omitempty"`
	Took      time.Duration     `json:"last_took_ns,omitempty" doc:"Duration of this node's last probe."`
	InAnswer  bool              `json:"in_answer" doc:"Whether it may be answered now."`
	Published []PublishedIn     `json:"published" nullable:"false"`
	State     string            `json:"state" enum:"ready,drain,maintenance,force-up,force-down" doc:"What a person said of it."`
	Step      rota.Step         `json:"step" doc:"Step of the selection that dropped it, or kept."`
	Cause     rota.Cause        `json:"cause,omitempty"`
	Why       string            `json:"why"`
	Unprobed  string            `json:"unprobed,omitempty" doc:"Why a vantage cannot probe it: it is the vantage that fails, not the endpoint."`
	Override  *rota.Override    `json:"override,omitempty"`
	Weight    uint32            `json:"weight" doc:"As configured."`
	Share     uint8             `json:"share,omitempty" doc:"Percent of the weight that counts now, by what the endpoint asks for and by slow start; absent: all of it."`
	Priority  uint16            `json:"priority"`
	Site      string            `json:"site,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
}

// PublishedIn says how one publisher's DNS stands to an endpoint.
type PublishedIn struct {
	Publisher string `json:"publisher"`
	State     string `json:"state" enum:"in,pending,held,leaving,unread" doc:"in: there, as wanted; pending: wanted and not there; held: wanted and held by a limit; leaving: there and not wanted; unread: wanted, and the DNS was not read yet."`
}

// CheckView is a target with its verdict.
type CheckView struct {
	Target   rota.TargetID `json:"target"`
	Check    string        `json:"check"`
	Kind     rota.Kind     `json:"kind"`
	Address  netip.Addr    `json:"address"`
	Services []string      `json:"services" nullable:"false"`
	Interval time.Duration `json:"interval_ns"`
	Timeout  time.Duration `json:"timeout_ns"`
	Verdict  rota.Status   `json:"verdict" enum:"up,down,draining,unknown"`
	Since    time.Time     `json:"since,omitzero"`
	Lazy     bool          `json:"lazy,omitempty" doc:"Nothing depends on it now, so that it is probed at its slow interval."`
	Votes    []rota.Vote   `json:"votes" nullable:"false" doc:"What each vantage holds now; on a node that does not lead, what the others held when the verdict was taken."`
	Probes   *TargetProbes `json:"probes,omitempty" doc:"What this node remembers of it."`
}

// TargetProbes is what one node remembers of probing a target.
type TargetProbes struct {
	Streak rota.Streak `json:"streak"`
	Recent []Probe     `json:"recent" nullable:"false" doc:"Newest last: some that were up and, kept longer, some that were not."`
}

// Probe is one run of a check. All text of it that came from elsewhere is escaped, and credentials are masked.
type Probe struct {
	rota.Observation
	Started      time.Time   `json:"started,omitzero"`
	Steps        []ProbeStep `json:"steps" nullable:"false" doc:"Its phases, in order."`
	Sent         string      `json:"sent,omitempty" doc:"Head of what was sent, in traces only."`
	Received     string      `json:"received,omitempty" doc:"Head of what came back, in traces only."`
	ReceivedSize int         `json:"received_size,omitempty" doc:"Bytes of the body, the banner or the replies that were read."`
	TLS          *ProbeTLS   `json:"tls,omitempty" doc:"What the handshake showed, before any judgement of it; in traces only."`
}

// ProbeStep is a phase of a probe.
type ProbeStep struct {
	Name string        `json:"name" doc:"connect, tls, request, first byte, body, send, expect, echo, …"`
	At   time.Duration `json:"at_ns" doc:"From the start of the probe."`
	Took time.Duration `json:"took_ns"`
	Note string        `json:"note,omitempty"`
}

// ProbeTLS is what a handshake showed.
type ProbeTLS struct {
	Version           string             `json:"version"`
	Cipher            string             `json:"cipher"`
	ServerName        string             `json:"server_name,omitempty" doc:"Sent as SNI."`
	ClientCertificate bool               `json:"client_certificate" doc:"The server asked for one."`
	Chain             []ProbeCertificate `json:"chain" nullable:"false" doc:"As sent, leaf first."`
}

// ProbeCertificate is what people ask about a certificate.
type ProbeCertificate struct {
	Subject   string    `json:"subject"`
	Issuer    string    `json:"issuer"`
	Names     []string  `json:"names" nullable:"false"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
}

// VantageView is a place that probes.
type VantageView struct {
	Vantage string    `json:"vantage"`
	Site    string    `json:"site"`
	Kind    string    `json:"kind" enum:"node,agent"`
	State   string    `json:"state" enum:"voting,abstaining,stale,silent,unknown" doc:"unknown: its reports go to the leader, and this node is not it."`
	Reason  string    `json:"reason,omitempty"`
	Report  time.Time `json:"last_report,omitzero" doc:"When its last report was taken in; absent: none was, or it is not known here."`
	Seq     uint64    `json:"seq,omitempty"`
	Checks  int       `json:"checks" doc:"Targets that it speaks of. Where its report is not known: those it had a vote on when their verdicts were taken, and so for up, down and unknown."`
	Up      int       `json:"up"`
	Down    int       `json:"down"`
	Unknown int       `json:"unknown"`

	Draining int  `json:"draining"`
	Failing  int  `json:"failing" doc:"Of those up, the targets that failed and are not forgiven yet; 0 where its report is not known."`
	Noisy    bool `json:"noisy" doc:"So many are failing, at least 3 and a fifth of those up, that the way from this vantage is more likely bad than they are."`

	Compared int  `json:"compared" doc:"Targets that it and another vantage claim something of."`
	Against  int  `json:"against" doc:"Of these, those of which more than half of the others claim the opposite."`
	Outlier  bool `json:"outlier" doc:"It contradicts the others so often that it is more likely wrong than they are."`

	From        string            `json:"from,omitempty" doc:"Where its last report came from."`
	Offset      time.Duration     `json:"clock_offset_ns,omitempty" doc:"How far its clock is behind this node's, with the way here."`
	Bytes       int               `json:"last_bytes,omitempty" doc:"Of its last report."`
	Taken       uint64            `json:"taken,omitempty" doc:"Reports that were taken since this node started."`
	Refused     map[string]uint64 `json:"refused,omitempty" doc:"Reports that were refused, by kind."`
	LastRefusal string            `json:"last_refusal,omitempty" doc:"Why its newest report was refused; absent: it was taken."`
	Twice       time.Time         `json:"twice,omitzero" doc:"When two processes were last heard to report under its name."`
}

// VantageStat is what a node counted of one vantage whose reports it takes.
type VantageStat struct {
	Vantage   string
	From      string        // where its last report came from
	Offset    time.Duration // how far its clock is behind ours, with the way here
	Taken     uint64
	LastBytes int
	Refused   map[string]uint64 // by kind, of a fixed set: a metric has them as labels
	Refusal   string            // why the newest was refused; empty: it was taken
	Twice     time.Time         // when two processes were last heard to report under its name
}

// VantageList is the vantages and how many of them a verdict needs.
type VantageList struct {
	Index  uint64        `json:"index"`
	At     time.Time     `json:"at"`
	Of     string        `json:"of" enum:"nodes,sites" doc:"What has a voice."`
	Voting int           `json:"voting" doc:"Voices that can be heard now; -1: unknown here."`
	Need   int           `json:"need" doc:"Voices that a change of verdict needs."`
	Voices int           `json:"voices" doc:"Voices there are."`
	Ask    string        `json:"ask,omitempty" doc:"While unknown here: the leader, which hears the reports; absent: there is none."`
	Items  []VantageView `json:"items" nullable:"false"`
}

// NameServer is rota's own name server.
type NameServer struct {
	Addresses []string    `json:"addresses" nullable:"false" doc:"host:port it listens on."`
	Zones     []rota.Name `json:"zones" nullable:"false" doc:"Zones it is authoritative for."`
}

// ZoneView is a zone and who keeps it.
type ZoneView struct {
	Zone      string    `json:"zone" doc:"Without the trailing dot; empty: a publisher has not found it yet."`
	Publisher string    `json:"publisher" doc:"dns is rota's own name server."`
	Services  int       `json:"services"`
	Serial    uint32    `json:"serial,omitempty" doc:"Of a zone rota answers for."`
	Servers   []string  `json:"servers,omitempty" doc:"Where rota answers for it."`
	State     string    `json:"state"`
	Written   time.Time `json:"written,omitzero"`
	Error     string    `json:"error,omitempty"`
}

// PublisherStatus is how one publisher stands.
type PublisherStatus struct {
	Publisher string          `json:"publisher"`
	Type      string          `json:"type"`
	Zones     []PublishedZone `json:"zones" nullable:"false"`
}

// PublishedZone is how one publisher stands to one zone.
type PublishedZone struct {
	Zone     rota.Name     `json:"zone"`
	State    string        `json:"state" enum:"in-step,pending,held,failing,unread,standby,frozen,dry-run,released" doc:"in-step: the DNS says what is wanted; held: a safety limit keeps it from that; frozen, dry-run, released: a person does."`
	Error    string        `json:"error,omitempty" doc:"What went wrong last, while failing."`
	Failures int           `json:"failures,omitempty" doc:"In a row."`
	Drift    int           `json:"drift,omitempty" doc:"RRsets that differ from what is wanted."`
	Epoch    uint64        `json:"epoch,omitempty"`
	Read     time.Time     `json:"read,omitzero" doc:"When the DNS was last read whole."`
	Written  time.Time     `json:"written,omitzero" doc:"When the DNS was last changed by rota."`
	Took     time.Duration `json:"took_ns,omitempty" doc:"Duration of the last round."`
	Next     time.Time     `json:"next,omitzero" doc:"When it tries again, while failing."`
	Records  []rota.RRset  `json:"records" nullable:"false" doc:"What it read of the names rota owns."`
	Held     []HeldChange  `json:"held,omitempty" doc:"Changes that a safety limit holds."`
}

// HeldChange is a change that a safety limit holds.
type HeldChange struct {
	Why    string      `json:"why"`
	Change rota.Change `json:"change"`
}

// Plan is what one publisher would write to one zone now.
type Plan struct {
	Publisher string        `json:"publisher"`
	Zone      rota.Name     `json:"zone"`
	Changes   []rota.Change `json:"changes" nullable:"false"`
	Unchanged []rota.RRset  `json:"unchanged" nullable:"false"`
	Held      []HeldChange  `json:"held" nullable:"false" doc:"What safety limits hold; a change may be held in part."`
	Forced    []Forced      `json:"forced" nullable:"false" doc:"Names whose held changes may be written, because a person said so."`
	Reasons   []PlanReason  `json:"reasons" nullable:"false" doc:"Why not everything is as it should be, or will not be written."`
	Owner     string        `json:"owner,omitempty" doc:"Who owns the zone, by its fence record; absent: nobody, or it could not be read."`
	Offer     string        `json:"offer,omitempty" doc:"To whom the owner offers it."`
	Error     string        `json:"error,omitempty" doc:"Why there is no plan for this zone."`
}

// PlanReason says why a zone, or a name in it, is not or will not be as it should be.
type PlanReason struct {
	Code      string    `json:"code" doc:"For machines, stable: held, frozen, dry-run, released, conflict, unreachable and so on."`
	Name      rota.Name `json:"name,omitempty" doc:"When it concerns one name only."`
	Text      string    `json:"text"`
	Transient bool      `json:"transient" doc:"It may pass by itself."`
}

// ChangeView is a change of an answer, or of a DNS.
type ChangeView struct {
	Event     uint64    `json:"event"`
	At        time.Time `json:"at"`
	What      string    `json:"what" enum:"answer,published" doc:"answer: what should be said changed; published: a DNS was made to say it."`
	Service   string    `json:"service" doc:"Domain name."`
	Type      rota.Type `json:"type"`
	Publisher string    `json:"publisher,omitempty"`
	Zone      string    `json:"zone,omitempty"`
	Before    []string  `json:"before" nullable:"false"`
	After     []string  `json:"after" nullable:"false"`
	Mode      rota.Mode `json:"mode,omitempty" doc:"How the family came to its answer."`
	Was       rota.Mode `json:"was,omitempty" doc:"The mode before."`
	Why       []string  `json:"why" nullable:"false"`
}

// ClusterStatus is how this node and the cluster stand.
type ClusterStatus struct {
	Cluster  string `json:"cluster" doc:"Id, made once."`
	NodeID   string `json:"node_id" doc:"Id, made once."`
	Node     string `json:"node"`
	Raft     string `json:"raft" doc:"leader, follower, candidate or shutdown."`
	Term     uint64 `json:"term"`
	Leader   string `json:"leader,omitempty" doc:"Name of the leader; empty: none."`
	Leading  bool   `json:"leading" doc:"This node leads and the state knows it."`
	Last     uint64 `json:"last_index"`
	Commit   uint64 `json:"commit_index"`
	Applied  uint64 `json:"applied_index"`
	Snapshot uint64 `json:"snapshot_index"`

	LastContact time.Duration `json:"last_contact_ns" doc:"Since the leader was heard of; 0 on the leader, -1 never."`
	Voters      int           `json:"voters"`
	Voter       bool          `json:"voter"`
	Removed     bool          `json:"removed,omitempty" doc:"The cluster goes on without this node."`
	Behind      uint64        `json:"behind" doc:"Entries that are known to be committed and are not in the state yet."`
	Since       time.Time     `json:"since,omitzero" doc:"The state may be older than the cluster's since then; absent: it is current."`
	Healthy     bool          `json:"healthy" doc:"The state is current, there is a leader and no trouble."`
	Trouble     []string      `json:"trouble,omitempty" doc:"What is wrong although the node serves."`

	Members []ClusterMember `json:"members" nullable:"false" doc:"The nodes of the cluster as this node knows them, sorted by name."`
}

// Explained is why a name answers as it does, up to what each publisher's DNS says.
type Explained struct {
	rota.Explanation
	State      uint64            `json:"state_index"`
	At         time.Time         `json:"state_at"`
	Client     string            `json:"client,omitempty" doc:"As asked for. No service places clients in this version, so that it changes nothing."`
	Now        []CheckView       `json:"now" nullable:"false" doc:"What each vantage holds now of the checks above, and this node's last probes."`
	Remembered string            `json:"remembered,omitempty" doc:"Of a node that does not lead: the votes of other vantages are those of when the verdicts were taken, and this says who knows what they hold now."`
	Need       int               `json:"need"`
	Voices     int               `json:"voices"`
	Published  []PublisherAnswer `json:"published" nullable:"false"`
	Transition *ChangeView       `json:"last_change,omitempty" doc:"Of this name and type, as far as history reaches back."`
}

// PublisherAnswer is what one publisher's DNS says of a name and type.
type PublisherAnswer struct {
	Publisher string    `json:"publisher"`
	Zone      string    `json:"zone,omitempty"`
	State     string    `json:"state"`
	Records   []string  `json:"records" nullable:"false"`
	Read      time.Time `json:"read,omitzero"`
	Error     string    `json:"error,omitempty"`
}

// OverrideRequest is what a person says of endpoints.
type OverrideRequest struct {
	Match  string `json:"match" minLength:"1" maxLength:"300" doc:"SERVICE, SERVICE/ADDRESS, ADDRESS, site:NAME or label:KEY=VALUE." example:"www.example.org/192.0.2.10"`
	Action string `json:"action" enum:"drain,maintenance,force-up,force-down"`
	For    string `json:"for,omitempty" maxLength:"20" doc:"How long, such as 90s, 2h or 3d; default 24h, at most 366d."`
	Reason string `json:"reason" minLength:"1" maxLength:"200"`
	Author string `json:"author,omitempty" maxLength:"64" doc:"Who says so; believed on the unix socket only."`
	Force  bool   `json:"force,omitempty" doc:"Even if a service then has no address of a family left. The last answer is kept until another endpoint serves, unless on_all_down is none."`
}

// OverrideReply is what became of it.
type OverrideReply struct {
	Event   uint64            `json:"event" doc:"Index of the event."`
	Set     []rota.Override   `json:"set,omitempty"`
	Lifted  []rota.EndpointID `json:"lifted,omitempty"`
	Answers []ServiceView     `json:"services" nullable:"false" doc:"The services it touches, afterwards."`

	StillAnswered []rota.EndpointID `json:"still_answered,omitempty" doc:"Endpoints that were taken out and are answered all the same, as nobody else can serve and on_all_down is not none."`
}

func typeOf[T any]() reflect.Type { return reflect.TypeFor[T]() }
