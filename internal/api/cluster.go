package api

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/rota-dns/rota/internal/rota"
)

// Operator changes the cluster and looks after it. Any node takes what a person says and hands it to whom it concerns. An error that
// wraps ErrNoLeader, ErrNoSuch, ErrConflict or ErrBusy is answered as such; the text of any error is for people.
type Operator interface {
	// Change makes one change of the members or of who leads.
	Change(ctx context.Context, c ClusterChange) (ClusterChanged, error)

	// Token makes a token that lets a newcomer in.
	Token(ctx context.Context, r TokenRequest) (TokenReply, error)
	// Tokens lists the tokens that are kept, without what would let one use them.
	Tokens(ctx context.Context) ([]TokenView, error)
	// Revoke ends a token.
	Revoke(ctx context.Context, id, author string) error

	// Verify asks every member how it is.
	Verify(ctx context.Context) (ClusterVerification, error)

	// Save writes the newest state of this node. Nothing may be written before what can fail at once has been tried.
	Save(ctx context.Context, w io.Writer) error
	// Restore makes configuration and overrides those of what Save wrote and returns the index of the event. What is of another
	// cluster is refused with ErrConflict, unless foreign says that it is meant. It reads at most once; r may fail in the middle.
	Restore(ctx context.Context, r io.Reader, foreign bool, author string) (index uint64, err error)
}

// Errors that an Operator wraps, besides ErrNoLeader.
var (
	ErrNoSuch   = errors.New("no such thing")
	ErrConflict = errors.New("refused as things stand")
	ErrBusy     = errors.New("busy")
)

// ClusterOp is a change of the cluster.
type ClusterOp string

// The changes.
const (
	OpAdd      ClusterOp = "add"      // a node that waits, or a member's new address
	OpPromote  ClusterOp = "promote"  // give a vote
	OpDemote   ClusterOp = "demote"   // take the vote
	OpRemove   ClusterOp = "remove"   // out, for good
	OpTransfer ClusterOp = "transfer" // hand over leadership, to Node or to any that is fit
	OpLeave    ClusterOp = "leave"    // this node goes
)

// ClusterChange is what a person wants changed.
type ClusterChange struct {
	Op      ClusterOp
	Node    string // name or id; may be empty for OpTransfer, is for OpLeave
	Address string // OpAdd: host:port where others reach it
	Voter   bool   // OpAdd
	Author  string // who says so
}

// ClusterChanged is what became of a change.
type ClusterChanged struct {
	Op      ClusterOp       `json:"op" enum:"add,promote,demote,remove,transfer,leave"`
	Node    string          `json:"node,omitempty" doc:"Name of the node it was about, or its id."`
	Leader  string          `json:"leader,omitempty" doc:"Who leads afterwards, as far as this node knows."`
	Members []ClusterMember `json:"members" nullable:"false" doc:"The members afterwards, as far as this node knows."`
	Notes   []string        `json:"notes,omitempty" doc:"What is left to do, for people."`
}

// ClusterMember is a node of the cluster.
type ClusterMember struct {
	ID      string `json:"id" doc:"Made once."`
	Name    string `json:"name" doc:"Empty until the node, or whoever added it, said it."`
	Site    string `json:"site,omitempty"`
	Address string `json:"address"`
	Voter   bool   `json:"voter"`
	Self    bool   `json:"self" doc:"It is the node that answers."`
	Leader  bool   `json:"leader"`

	LastContact time.Duration `json:"last_contact_ns" doc:"Since it answered the leader; -1: not known here, or never. Only the leader knows it of others."`
	Trailing    uint64        `json:"trailing" doc:"Entries of the log that it does not hold yet. Means nothing while last_contact_ns is -1."`
}

// MemberRequest is a node to take in.
type MemberRequest struct {
	Node     string `json:"node" minLength:"1" maxLength:"64" doc:"Name or id of a node that waits, or of a member."`
	Address  string `json:"address" minLength:"1" maxLength:"300" doc:"host:port where the others reach it." example:"fra1.example.org:3648"`
	Nonvoter bool   `json:"nonvoter,omitempty" doc:"It is sent everything and has no vote."`
	Author   string `json:"author,omitempty" maxLength:"64" doc:"Who says so; believed on the unix socket only."`
}

// TokenRequest is a join token to make.
type TokenRequest struct {
	Role   string `json:"role" enum:"node,agent"`
	Name   string `json:"name,omitempty" maxLength:"63" doc:"Name of the agent; required for one."`
	For    string `json:"for,omitempty" maxLength:"20" doc:"How long it lets somebody in, such as 30m or 2d; default 1h, at most 30d."`
	Uses   int    `json:"uses,omitempty" minimum:"0" maximum:"1000" doc:"How many may come with it; 0: one."`
	Author string `json:"author,omitempty" maxLength:"64" doc:"Who says so; believed on the unix socket only."`

	Life time.Duration `json:"-"` // For as a duration; 0: nothing was said
}

// TokenReply is a token that was made. It is shown this once.
type TokenReply struct {
	Token   string    `json:"token"`
	ID      string    `json:"id"`
	Expires time.Time `json:"expires"`
	Notes   []string  `json:"notes,omitempty" doc:"What to do with it, for people."`
}

// TokenView is a token as it is kept.
type TokenView struct {
	ID      string     `json:"id"`
	Role    string     `json:"role" enum:"node,agent"`
	Name    string     `json:"name,omitempty" doc:"Of the agent it is for."`
	State   string     `json:"state" enum:"open,used,expired,revoked" doc:"open: it lets somebody in."`
	Created time.Time  `json:"created"`
	Expires time.Time  `json:"expires"`
	Uses    int        `json:"uses" doc:"How many may come with it."`
	Used    []TokenUse `json:"used" nullable:"false"`
	Revoked bool       `json:"revoked"`
	Note    string     `json:"note,omitempty" doc:"Who asked for it."`
	Node    string     `json:"node,omitempty" doc:"Node that keeps it, which alone takes it."`
}

// TokenUse is a newcomer that a token let in.
type TokenUse struct {
	By string    `json:"by"`
	At time.Time `json:"at"`
}

// ClusterVerification is how the members are, asked one by one.
type ClusterVerification struct {
	OK       bool                 `json:"ok" doc:"There is no problem."`
	Problems []string             `json:"problems" nullable:"false"`
	Members  []MemberVerification `json:"members" nullable:"false"`
}

// MemberVerification is how one member is.
type MemberVerification struct {
	ID       string        `json:"id"`
	Name     string        `json:"name"`
	Voter    bool          `json:"voter"`
	Answers  bool          `json:"answers" doc:"It answered. If not, what follows is not known, and error says why."`
	Error    string        `json:"error,omitempty"`
	Index    uint64        `json:"index" doc:"Of the last event in its state."`
	Behind   uint64        `json:"behind" doc:"Entries that it lacks."`
	Compared uint64        `json:"compared_index,omitempty" doc:"Index at which its state was compared with the others'; absent: it was not."`
	Same     bool          `json:"same" doc:"At compared_index its state is that of the others."`
	Offset   time.Duration `json:"clock_offset_ns" doc:"How far its clock is ahead of this node's, with the way there."`
	Expires  time.Time     `json:"certificate_expires,omitzero"`
	Version  string        `json:"version,omitempty"`
}

// RestoreReply says that a snapshot was restored.
type RestoreReply struct {
	Event uint64 `json:"event" doc:"Index of the event that brought it."`
}

type (
	nodeInput struct {
		Node   string `path:"node" maxLength:"64" doc:"Name or id."`
		Author string `query:"author" maxLength:"64" doc:"Who says so; believed on the unix socket only."`
	}
	transferInput struct {
		To     string `query:"to" maxLength:"64" doc:"Name or id; empty: any that is fit."`
		Author string `query:"author" maxLength:"64" doc:"Who says so; believed on the unix socket only."`
	}
	authorInput struct {
		Author string `query:"author" maxLength:"64" doc:"Who says so; believed on the unix socket only."`
	}
	tokenInput struct {
		ID     string `path:"id" maxLength:"64"`
		Author string `query:"author" maxLength:"64" doc:"Who says so; believed on the unix socket only."`
	}
	restoreInput struct {
		Foreign bool   `query:"foreign" doc:"It is meant that the snapshot is of another cluster."`
		Author  string `query:"author" maxLength:"64" doc:"Who says so; believed on the unix socket only."`
		request *http.Request
		writer  http.ResponseWriter
	}
)

// Resolve keeps the request, whose body is read as it comes.
func (in *restoreInput) Resolve(c huma.Context) []error {
	in.request, in.writer = humago.Unwrap(c)
	return nil
}

const (
	maxSnapshot   = 1 << 30          // bytes of a snapshot that is restored
	operate       = 25 * time.Second // for an operation; less than a caller waits for its answer
	transferWrite = 15 * time.Second // what a reader may take to accept one piece of a snapshot, or a sender to send one
	octets        = "application/octet-stream"
)

func (s *Server) clusterRoutes(a huma.API) {
	const base = "/api/v1/cluster/"
	failures := []int{403, 404, 409, 422, 501, 503}
	admin := func(method, path, id, summary string) route {
		return route{method, base + path, id, AccessAdmin, summary, failures}
	}
	register(s, a, admin(http.MethodPost, "members", "add-member", "Take a node in, or say that a member has another address"),
		func(ctx context.Context, in *struct{ Body MemberRequest }) (*ClusterChanged, error) {
			b := in.Body
			return s.change(ctx, ClusterChange{
				Op: OpAdd, Node: b.Node, Address: b.Address, Voter: !b.Nonvoter, Author: b.Author,
			})
		})
	for _, x := range []struct {
		op      ClusterOp
		method  string
		path    string
		summary string
	}{
		{OpPromote, http.MethodPost, "members/{node}/promote", "Give a node a vote"},
		{OpDemote, http.MethodPost, "members/{node}/demote", "Take a node's vote"},
		{OpRemove, http.MethodDelete, "members/{node}", "Take a node out of the cluster, for good"},
	} {
		register(s, a, admin(x.method, x.path, string(x.op)+"-member", x.summary), func(ctx context.Context, in *nodeInput) (*ClusterChanged, error) {
			return s.change(ctx, ClusterChange{Op: x.op, Node: in.Node, Author: in.Author})
		})
	}
	register(s, a, admin(http.MethodPost, "transfer", "transfer", "Hand over leadership"),
		func(ctx context.Context, in *transferInput) (*ClusterChanged, error) {
			return s.change(ctx, ClusterChange{Op: OpTransfer, Node: in.To, Author: in.Author})
		})
	register(s, a, admin(http.MethodPost, "leave", "leave", "Take the node that is asked out of the cluster, for good"),
		func(ctx context.Context, in *authorInput) (*ClusterChanged, error) {
			return s.change(ctx, ClusterChange{Op: OpLeave, Author: in.Author})
		})
	register(s, a, admin(http.MethodPost, "tokens", "make-token", "Make a token that lets a newcomer in"), s.makeToken)
	register(s, a, admin(http.MethodGet, "tokens", "list-tokens", "Tokens that are kept"), s.listTokens)
	register(s, a, admin(http.MethodDelete, "tokens/{id}", "revoke-token", "End a token"), s.revokeToken)
	register(s, a, admin(http.MethodGet, "verify", "verify", "Ask every member how it is"), s.verify)

	save := s.operation(admin(http.MethodGet, "snapshot", "save-snapshot", "The state of this node, to be kept and restored"))
	save.Responses = map[string]*huma.Response{"200": {Description: "OK", Content: map[string]*huma.MediaType{octets: {Schema: binary()}}}}
	huma.Register(a, save, s.saveSnapshot)
	load := admin(http.MethodPost, "snapshot", "restore-snapshot", "Make configuration and overrides those of a saved state")
	load.errors = append(load.errors, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType)
	s.uploads[load.method+" "+load.path] = true
	op := s.operation(load)
	op.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{octets: {Schema: binary()}}}
	huma.Register(a, op, func(ctx context.Context, in *restoreInput) (*body[*RestoreReply], error) {
		out, err := s.restoreSnapshot(ctx, in)
		if err != nil {
			return nil, err
		}
		return &body[*RestoreReply]{out}, nil
	})
}

func binary() *huma.Schema { return &huma.Schema{Type: huma.TypeString, Format: "binary"} }

// operator returns who does what people want of the cluster, or the problem that there is nobody.
func (s *Server) operator() (Operator, error) {
	if s.o.Operator == nil {
		return nil, problem(http.StatusNotImplemented, "this node runs alone: set cluster.election to raft, and cluster.listen, in its configuration; "+
			"see `rota cluster bootstrap --help`")
	}
	return s.o.Operator, nil
}

// bounded is operator, with a context that ends while the caller still listens.
func (s *Server) bounded(ctx context.Context) (Operator, context.Context, context.CancelFunc, error) {
	o, err := s.operator()
	if err != nil {
		return nil, nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, operate)
	return o, ctx, cancel, nil
}

// audit writes down who did what, and what came of it.
func (s *Server) audit(ctx context.Context, what, author string, err error, more ...any) {
	args := append([]any{"what", what, "author", author, "actor", callerOf(ctx).actor}, more...)
	if err != nil {
		s.log.Warn("cluster operation failed", append(args, "err", err)...)
		return
	}
	s.log.Info("cluster operation", args...)
}

func (s *Server) change(ctx context.Context, c ClusterChange) (*ClusterChanged, error) {
	o, ctx, cancel, err := s.bounded(ctx)
	if err != nil {
		return nil, err
	}
	defer cancel()
	c.Author = callerOf(ctx).author(c.Author)
	out, err := o.Change(ctx, c)
	s.audit(ctx, string(c.Op), c.Author, err, "node", c.Node, "address", c.Address, "voter", c.Voter)
	if err != nil {
		return nil, operatorProblem(err)
	}
	out.Members = orNone(out.Members)
	return &out, nil
}

func (s *Server) makeToken(ctx context.Context, in *struct{ Body TokenRequest }) (*TokenReply, error) {
	o, ctx, cancel, err := s.bounded(ctx)
	if err != nil {
		return nil, err
	}
	defer cancel()
	r := in.Body
	if r.For != "" {
		if r.Life, err = parseLife(r.For); err != nil {
			return nil, err
		}
	}
	if r.Role == "agent" && strings.TrimSpace(r.Name) == "" {
		return nil, problem(http.StatusUnprocessableEntity, "name the agent that the token is for")
	}
	r.Author = callerOf(ctx).author(r.Author)
	out, err := o.Token(ctx, r)
	s.audit(ctx, "token", r.Author, err, "role", r.Role, "name", r.Name, "id", out.ID, "expires", out.Expires)
	if err != nil {
		return nil, operatorProblem(err)
	}
	return &out, nil
}

func (s *Server) listTokens(ctx context.Context, _ *noInput) (*List[TokenView], error) {
	o, ctx, cancel, err := s.bounded(ctx)
	if err != nil {
		return nil, err
	}
	defer cancel()
	v := s.view()
	out, err := o.Tokens(ctx)
	if err != nil {
		return nil, operatorProblem(err)
	}
	for i := range out {
		t := &out[i]
		t.Used, t.Note = orNone(t.Used), rota.CleanReason("%s", t.Note)
		switch {
		case t.Revoked:
			t.State = "revoked"
		case len(t.Used) >= t.Uses:
			t.State = "used"
		case !v.now.Before(t.Expires):
			t.State = "expired"
		default:
			t.State = "open"
		}
	}
	return list(v, out), nil
}

// RevokeReply names the token that was ended.
type RevokeReply struct {
	ID string `json:"id"`
}

func (s *Server) revokeToken(ctx context.Context, in *tokenInput) (*RevokeReply, error) {
	o, ctx, cancel, err := s.bounded(ctx)
	if err != nil {
		return nil, err
	}
	defer cancel()
	author := callerOf(ctx).author(in.Author)
	err = o.Revoke(ctx, in.ID, author)
	s.audit(ctx, "revoke token", author, err, "id", in.ID)
	if err != nil {
		return nil, operatorProblem(err)
	}
	return &RevokeReply{in.ID}, nil
}

// alone lets one of what is costly run at a time, and says so to the others.
func (s *Server) alone() (done func(), err error) {
	select {
	case s.costly <- struct{}{}:
		return func() { <-s.costly }, nil
	default:
		return nil, again(huma.NewError(http.StatusServiceUnavailable, "busy: another verification, save or restore is under way; try again"))
	}
}

func (s *Server) verify(ctx context.Context, _ *noInput) (*ClusterVerification, error) {
	o, ctx, cancel, err := s.bounded(ctx)
	if err != nil {
		return nil, err
	}
	defer cancel()
	done, err := s.alone()
	if err != nil {
		return nil, err
	}
	defer done()
	out, err := o.Verify(ctx)
	if err != nil {
		return nil, operatorProblem(err)
	}
	out.Problems, out.Members = orNone(out.Problems), orNone(out.Members)
	for i := range out.Problems {
		out.Problems[i] = printable(out.Problems[i])
	}
	for i := range out.Members {
		out.Members[i].Error = rota.CleanReason("%s", out.Members[i].Error)
	}
	return &out, nil
}

func (s *Server) saveSnapshot(context.Context, *noInput) (*huma.StreamResponse, error) {
	o, err := s.operator()
	if err != nil {
		return nil, err
	}
	return &huma.StreamResponse{Body: func(c huma.Context) {
		r, w := humago.Unwrap(c)
		done, err := s.alone()
		if err != nil {
			fail(w, r, err)
			return
		}
		defer done()
		out := &snapshotWriter{w: w, rc: http.NewResponseController(w)}
		err = o.Save(r.Context(), out)
		s.audit(r.Context(), "save snapshot", callerOf(r.Context()).actor, err, "bytes", out.n)
		switch {
		case err == nil:
		case out.n > 0:
			panic(http.ErrAbortHandler) // the reader must not take what there is for the whole
		default:
			fail(w, r, operatorProblem(err))
		}
	}}, nil
}

// fail answers with a problem where huma does not.
func fail(w http.ResponseWriter, r *http.Request, err error) {
	status := http.StatusInternalServerError
	var s huma.StatusError
	if errors.As(err, &s) {
		status = s.GetStatus()
	}
	var more huma.HeadersError
	if errors.As(err, &more) {
		for k, v := range more.GetHeaders() {
			w.Header()[k] = v
		}
	}
	refuse(w, r, &refusal{status, err.Error()})
}

// snapshotWriter passes a snapshot on; who does not take a piece in time loses the connection.
type snapshotWriter struct {
	w  http.ResponseWriter
	rc *http.ResponseController
	n  int64
}

func (s *snapshotWriter) Write(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil // would begin the answer
	}
	if s.n == 0 {
		s.w.Header().Set("Content-Type", octets)
		s.w.Header().Set("Content-Disposition", `attachment; filename="rota.snapshot"`)
	}
	_ = s.rc.SetWriteDeadline(time.Now().Add(transferWrite))
	n, err := s.w.Write(b)
	s.n += int64(n)
	return n, err
}

func (s *Server) restoreSnapshot(ctx context.Context, in *restoreInput) (*RestoreReply, error) {
	o, err := s.operator()
	if err != nil {
		return nil, err
	}
	if in.request.ContentLength > maxSnapshot {
		return nil, tooLarge()
	}
	done, err := s.alone()
	if err != nil {
		return nil, err
	}
	defer done()
	author := callerOf(ctx).author(in.Author)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	from := &snapshotReader{r: in.request.Body, rc: http.NewResponseController(in.writer), whole: func() { time.AfterFunc(operate, cancel) }}
	index, err := o.Restore(ctx, from, in.Foreign, author)
	s.audit(ctx, "restore snapshot", author, err, "foreign", in.Foreign, "event", index, "bytes", from.n)
	if err != nil {
		return nil, operatorProblem(err)
	}
	return &RestoreReply{index}, nil
}

// snapshotReader reads a snapshot as it comes; who does not send a piece in time loses the connection.
type snapshotReader struct {
	r     io.Reader
	rc    *http.ResponseController
	whole func() // called at the end
	n     int64
}

func (s *snapshotReader) Read(b []byte) (int, error) {
	now := time.Now()
	_ = s.rc.SetReadDeadline(now.Add(transferWrite))
	_ = s.rc.SetWriteDeadline(now.Add(transferWrite + writeTimeout))
	n, err := s.r.Read(b)
	s.n += int64(n)
	if err == io.EOF {
		s.whole()
	}
	return n, err
}

func tooLarge() error {
	return problem(http.StatusRequestEntityTooLarge, "a snapshot has at most %d bytes", maxSnapshot)
}

// again marks a problem that passes by itself.
func again(err error) error {
	return huma.ErrorWithHeaders(err, http.Header{"Retry-After": {"2"}})
}

// maxDetail bounds what an Operator's error may say, in bytes.
const maxDetail = 2000

// operatorProblem says why a thing was not done.
func operatorProblem(err error) error {
	text := printable(strings.ToValidUTF8(err.Error(), "?"))
	if len(text) > maxDetail {
		text = strings.ToValidUTF8(text[:maxDetail], "") + "…"
	}
	var large *http.MaxBytesError
	switch {
	case errors.Is(err, ErrNoLeader):
		return again(huma.NewError(http.StatusServiceUnavailable, "no leader: "+text+"; nothing was changed, try again"))
	case errors.Is(err, ErrBusy):
		return again(huma.NewError(http.StatusServiceUnavailable, text))
	case errors.Is(err, ErrNoSuch):
		return huma.NewError(http.StatusNotFound, text)
	case errors.Is(err, ErrConflict):
		return huma.NewError(http.StatusConflict, text)
	case errors.As(err, &large):
		return tooLarge()
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return again(huma.NewError(http.StatusServiceUnavailable, "not confirmed in time ("+text+"); it may still be done: look with `rota cluster status` before trying again"))
	}
	return huma.NewError(http.StatusUnprocessableEntity, text)
}

func orNone[T any](in []T) []T {
	if in == nil {
		return []T{}
	}
	return in
}
