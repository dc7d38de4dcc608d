package raftadmin

import (
	"context"
	"maps"
	"strconv"
	"sync"
	"time"

	pb "github.com/Jille/raftadmin/proto"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// service is RaftAdmin as the stock command knows it.
type service struct {
	node  Node
	ops   *operations
	state *health.Server

	mu sync.Mutex // held while the state is looked at and announced, so that the last look is what stays
}

var _ pb.RaftAdminServer = (*service)(nil)

// start begins an operation and answers with its token.
func (s *service) start(t task) (*pb.Future, error) {
	token, err := s.ops.start(t)
	if err != nil {
		return nil, err
	}
	return &pb.Future{OperationToken: token}, nil
}

// change begins a change of the cluster. prepare says what is wrong with it, or completes it.
func (s *service) change(c Change, prepare func(*Change) error) (*pb.Future, error) {
	moves := s.leads() && c.Op != AddVoter && c.Op != AddNonvoter // the leader may be demoted or removed, too
	about := []any{"id", clean(c.ID), "address", clean(c.Address), "previous_index", c.PreviousIndex}
	return s.start(task{what: string(c.Op), about: about, moves: moves, do: func(ctx context.Context) (uint64, error) {
		if err := prepare(&c); err != nil {
			return 0, err
		}
		index, err := s.node.Change(ctx, c)
		if moves && err == nil {
			s.handOver(ctx)
		}
		return index, err
	}})
}

// Bounds of handing over, after which it is not waited for any longer.
const (
	handTime = 3 * time.Second        // to know who leads, after a change that may have moved the lead
	sayTime  = 250 * time.Millisecond // for a new leader to say so to those who watch it
)

// handOver returns when this node leads, or knows who does and that one had the time to say so.
func (s *service) handOver(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, handTime)
	defer cancel()
	for {
		changed := s.node.Changed()
		if s.leads() {
			return
		}
		if _, ok := s.node.Leader(); ok {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
	select {
	case <-time.After(sayTime):
	case <-ctx.Done():
	}
}

func (s *service) leads() bool { return s.node.Status().State == Leader }

// join is a change about a node that may not be a member yet: ID is passed on as the operator gave it.
func join(c *Change) error { return newcomer(c.ID, c.Address) }

// member is a change about a member, by its name or id.
func (s *service) member(c *Change) error {
	if err := word("ID", c.ID); err != nil {
		return err
	}
	m, err := find(s.node.Servers(), c.ID)
	c.ID = m.ID
	return err
}

func (s *service) AddVoter(_ context.Context, r *pb.AddVoterRequest) (*pb.Future, error) {
	return s.change(Change{AddVoter, r.GetId(), r.GetAddress(), r.GetPreviousIndex()}, join)
}

func (s *service) AddNonvoter(_ context.Context, r *pb.AddNonvoterRequest) (*pb.Future, error) {
	return s.change(Change{AddNonvoter, r.GetId(), r.GetAddress(), r.GetPreviousIndex()}, join)
}

func (s *service) DemoteVoter(_ context.Context, r *pb.DemoteVoterRequest) (*pb.Future, error) {
	return s.change(Change{Op: Demote, ID: r.GetId(), PreviousIndex: r.GetPreviousIndex()}, s.member)
}

func (s *service) RemoveServer(_ context.Context, r *pb.RemoveServerRequest) (*pb.Future, error) {
	return s.change(Change{Op: Remove, ID: r.GetId(), PreviousIndex: r.GetPreviousIndex()}, s.member)
}

func (s *service) LeadershipTransfer(context.Context, *pb.LeadershipTransferRequest) (*pb.Future, error) {
	return s.change(Change{Op: Transfer}, func(*Change) error { return nil })
}

func (s *service) LeadershipTransferToServer(_ context.Context, r *pb.LeadershipTransferToServerRequest) (*pb.Future, error) {
	return s.change(Change{Op: Transfer, ID: r.GetId(), Address: r.GetAddress()}, func(c *Change) error {
		if c.Address != "" {
			if err := word("ADDRESS", c.Address); err != nil {
				return err
			}
		}
		return s.member(c)
	})
}

func (s *service) Barrier(context.Context, *pb.BarrierRequest) (*pb.Future, error) {
	return s.start(task{what: "barrier", do: s.node.Barrier})
}

func (s *service) VerifyLeader(context.Context, *pb.VerifyLeaderRequest) (*pb.Future, error) {
	return s.start(task{what: "verify-leader", do: func(ctx context.Context) (uint64, error) { return 0, s.node.VerifyLeader(ctx) }})
}

func (s *service) Snapshot(context.Context, *pb.SnapshotRequest) (*pb.Future, error) {
	return s.start(task{what: "snapshot", do: func(ctx context.Context) (uint64, error) { return 0, s.node.Snapshot(ctx) }})
}

// Shutdown is answered first and done then: a process that stops is soon found by nobody.
func (s *service) Shutdown(context.Context, *pb.ShutdownRequest) (*pb.Future, error) {
	return s.start(task{what: "shutdown", do: func(context.Context) (uint64, error) { return 0, nil }, last: s.node.Shutdown})
}

// ApplyLog is refused by the call itself, so that raftadmin exits with 1.
func (*service) ApplyLog(context.Context, *pb.ApplyLogRequest) (*pb.Future, error) {
	return nil, status.Error(codes.Unimplemented, "rota's log holds decisions, which only rota writes; tell rota what to do by its own commands: rota --help lists them")
}

func (s *service) Await(ctx context.Context, r *pb.Future) (*pb.AwaitResponse, error) {
	index, text, err := s.ops.await(ctx, r.GetOperationToken())
	if err != nil {
		return nil, err
	}
	return &pb.AwaitResponse{Index: index, Error: text}, nil
}

func (s *service) Forget(_ context.Context, r *pb.Future) (*pb.ForgetResponse, error) {
	s.ops.forget(r.GetOperationToken())
	return &pb.ForgetResponse{}, nil
}

func (s *service) AppliedIndex(context.Context, *pb.AppliedIndexRequest) (*pb.AppliedIndexResponse, error) {
	return &pb.AppliedIndexResponse{Index: s.node.Status().Applied}, nil
}

func (s *service) LastIndex(context.Context, *pb.LastIndexRequest) (*pb.LastIndexResponse, error) {
	return &pb.LastIndexResponse{Index: s.node.Status().Last}, nil
}

func (s *service) LastContact(context.Context, *pb.LastContactRequest) (*pb.LastContactResponse, error) {
	var r pb.LastContactResponse
	if at := s.node.Status().LastContact; !at.IsZero() {
		r.UnixNano = at.UnixNano()
	}
	return &r, nil
}

func (s *service) Leader(context.Context, *pb.LeaderRequest) (*pb.LeaderResponse, error) {
	l, _ := s.node.Leader()
	return &pb.LeaderResponse{Address: l.Address}, nil
}

func (s *service) GetConfiguration(context.Context, *pb.GetConfigurationRequest) (*pb.GetConfigurationResponse, error) {
	var r pb.GetConfigurationResponse
	servers := s.node.Servers()
	for _, m := range servers {
		shown := &pb.GetConfigurationResponse_Server{Id: label(servers, m), Address: m.Address, Suffrage: pb.GetConfigurationResponse_Server_NONVOTER}
		if m.Voter {
			shown.Suffrage = pb.GetConfigurationResponse_Server_VOTER
		}
		r.Servers = append(r.Servers, shown)
	}
	return &r, nil
}

// states are the words of the service and of raft's statistics.
var states = map[State]struct {
	state pb.StateResponse_State
	word  string
}{
	Follower:  {pb.StateResponse_FOLLOWER, "Follower"},
	Candidate: {pb.StateResponse_CANDIDATE, "Candidate"},
	Leader:    {pb.StateResponse_LEADER, "Leader"},
	Shutdown:  {pb.StateResponse_SHUTDOWN, "Shutdown"},
}

func (s *service) State(context.Context, *pb.StateRequest) (*pb.StateResponse, error) {
	st := s.node.Status()
	known, ok := states[st.State]
	if !ok {
		return nil, status.Errorf(codes.Internal, "raftadmin has no word for a node that is %q", st.State)
	}
	return &pb.StateResponse{State: known.state}, nil
}

// Stats has the keys of hashicorp/raft for what every node knows.
func (s *service) Stats(context.Context, *pb.StatsRequest) (*pb.StatsResponse, error) {
	st := s.node.Status()
	number := func(n uint64) string { return strconv.FormatUint(n, 10) }
	out := map[string]string{
		"state": states[st.State].word, "term": number(st.Term),
		"last_log_index": number(st.Last), "commit_index": number(st.Commit), "applied_index": number(st.Applied),
	}
	maps.Copy(out, st.Stats)
	return &pb.StatsResponse{Stats: out}, nil
}

// announce tells those who watch whether this node leads.
func (s *service) announce() {
	s.mu.Lock()
	defer s.mu.Unlock()
	is := healthpb.HealthCheckResponse_NOT_SERVING
	if s.leads() || s.ops.moved() {
		is = healthpb.HealthCheckResponse_SERVING
	}
	s.state.SetServingStatus(leaderService, is)
}

// follow announces until ctx ends.
func (s *service) follow(ctx context.Context) {
	for {
		changed := s.node.Changed()
		s.announce()
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}
