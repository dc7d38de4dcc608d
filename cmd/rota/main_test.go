package main

import (
	"bytes"
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/rota-dns/rota/internal/api"
	"github.com/rota-dns/rota/internal/config"
	"github.com/rota-dns/rota/internal/rota"
)

var t0 = time.Date(2026, 11, 21, 2, 14, 0, 0, time.UTC)

// fold is a cluster of one in memory.
type fold struct {
	mu      sync.Mutex
	state   *rota.State
	changed chan struct{}
	records []api.Record
}

func (f *fold) State() *rota.State {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state
}

func (f *fold) Changed() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.changed
}

func (f *fold) Append(_ context.Context, e rota.Event) (rota.Event, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e.Index = f.state.Index() + 1
	next, err := f.state.Apply(e)
	f.records = append(f.records, api.Record{Event: e, Transitions: rota.Transitions(f.state, next)})
	f.state = next
	close(f.changed)
	f.changed = make(chan struct{})
	return e, err
}

func (f *fold) Records(after uint64, limit int) []api.Record {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := slices.DeleteFunc(slices.Clone(f.records), func(r api.Record) bool { return r.Event.Index <= after })
	if limit > 0 {
		out = out[max(0, len(out)-limit):]
	}
	return out
}

var vantages = []rota.Vantage{{Name: "ams", Site: "ams"}, {Name: "fra", Site: "fra"}, {Name: "nyc", Site: "nyc"}}

// night is a rota at 02:15: of www.example.org one endpoint is down by two of three.
func night() (*fold, []*rota.Report) {
	check := rota.Check{Name: "web", Kind: rota.KindTCP, Port: 443, Timing: rota.DefaultTiming()}
	svc := func(name string, addrs ...string) rota.Service {
		v := rota.Service{
			Name: rota.MustParseName(name), TTL: 30, Safety: rota.DefaultSafety(), Publish: []string{"cf"},
			Labels: map[string]string{"team": strings.Split(name, ".")[0]},
		}
		for _, a := range addrs {
			v.Endpoints = append(v.Endpoints, rota.Endpoint{Address: netip.MustParseAddr(a), Weight: 1, Checks: []rota.Use{{Check: check}}})
		}
		return v
	}
	f := &fold{state: &rota.State{}, changed: make(chan struct{})}
	must := func(e rota.Event) {
		if _, err := f.Append(context.Background(), e); err != nil {
			panic(err)
		}
	}
	spec := rota.Spec{Vantages: vantages, Services: []rota.Service{
		svc("www.example.org", "192.0.2.10", "192.0.2.11", "192.0.2.12"), svc("one.example.org", "198.51.100.1"),
	}, Registers: []rota.RegisterTemplate{{
		Name: "vms", HostName: "{id}-{service}-{env}", ServiceName: "{service}.sky.example.org", HostRecord: "{host}.sky.example.org", ExpireAfter: time.Hour,
		Service:     rota.Service{TTL: 7200, Safety: rota.DefaultSafety(), Publish: []string{"cf"}, Zone: "sky.example.org."},
		HostPublish: []string{"cf"}, Reverse: []rota.Reverse{{Publish: []string{"cf"}}}, Endpoint: rota.Endpoint{Weight: 1},
	}}}
	must(rota.Event{At: t0, Kind: rota.EventSpec, Actor: "ams1", Spec: &spec})
	var up []rota.Verdict
	reports := make([]*rota.Report, len(vantages))
	for i, v := range vantages {
		reports[i] = &rota.Report{Vantage: v.Name, Seq: 3, At: t0.Add(time.Minute)}
	}
	var down rota.Verdict
	for _, t := range f.State().Targets() {
		v := rota.Verdict{Target: t.ID, Status: rota.Up, Since: t0.Add(time.Second), Need: 2}
		bad := t.Address == netip.MustParseAddr("192.0.2.11")
		for i, w := range vantages {
			v.Votes = append(v.Votes, rota.Vote{Vantage: w.Name, Site: w.Site, Status: rota.Up})
			o := &rota.Opinion{Target: t.ID, Status: rota.Up, Since: t0.Add(time.Second)}
			if bad && w.Name != "fra" {
				o.Status, o.Since, o.Class, o.Reason = rota.Down, t0.Add(19*time.Second), rota.ClassTimeout, "connect timeout\x1b[2J"
			}
			reports[i].Opinions = append(reports[i].Opinions, o)
		}
		up = append(up, v)
		if bad {
			down = v
			down.Status, down.Since, down.Votes = rota.Down, t0.Add(19*time.Second), slices.Clone(v.Votes)
			for _, i := range []int{0, 2} {
				down.Votes[i].Status, down.Votes[i].Reason = rota.Down, "connect timeout"
			}
		}
	}
	must(rota.Event{At: t0.Add(time.Second), Kind: rota.EventVerdicts, Actor: "ams1", Verdicts: up})
	must(rota.Event{At: t0.Add(19 * time.Second), Kind: rota.EventVerdicts, Actor: "ams1", Verdicts: []rota.Verdict{down}})
	return f, reports
}

// nightOptions is an API over a night.
func nightOptions() (api.Options, *fold) {
	f, reports := night()
	www := rota.MustParseName("www.example.org")
	old := rota.RRset{Name: www, Type: rota.TypeA, TTL: 30, Data: []string{"192.0.2.10", "192.0.2.11", "192.0.2.12"}}
	want := old
	want.Data = []string{"192.0.2.10", "192.0.2.12"}
	return api.Options{
		Source: f, Append: f.Append, Records: f.Records, Reports: func() []*rota.Report { return reports },
		Publishers: func() []api.PublisherStatus {
			return []api.PublisherStatus{{Publisher: "cf", Type: "rfc2136", Zones: []api.PublishedZone{{
				Zone: "example.org.", State: "pending", Read: t0.Add(50 * time.Second), Records: []rota.RRset{old},
			}}}}
		},
		Plan: func(context.Context, string) ([]api.Plan, error) {
			return []api.Plan{{
				Publisher: "cf", Zone: "example.org.", Changes: []rota.Change{{Old: old, New: want, Why: "down by 2 of 3 (web: connect timeout)"}},
			}}, nil
		},
		Cluster: func() api.ClusterStatus {
			s := new(crew).status()
			s.Applied = f.State().Index()
			return s
		},
		Operator: new(crew),
		Config:   func() []byte { return []byte("version: 1\n") }, Reload: func(context.Context) error { return nil },
		Now: func() time.Time { return t0.Add(time.Minute) },
	}, f
}

// remembered is what a node remembers of probing 192.0.2.10 and 192.0.2.11, and nobody else.
func remembered(id rota.TargetID) (api.TargetProbes, bool) {
	up := api.Probe{
		Observation: rota.Observation{Status: rota.Up, At: t0.Add(55 * time.Second), Took: 12 * time.Millisecond}, Started: t0.Add(55 * time.Second),
		Steps: []api.ProbeStep{{Name: "connect", Took: 3 * time.Millisecond, Note: "192.0.2.1:5 to 192.0.2.10:443"}, {Name: "first byte", At: 3 * time.Millisecond, Took: 9 * time.Millisecond}},
		Sent:  "GET / HTTP/1.1\nAuthorization: ***\n", Received: "HTTP/1.1 200 OK\n", ReceivedSize: 7,
		TLS: &api.ProbeTLS{Version: "TLS 1.3", Cipher: "TLS_AES_128_GCM_SHA256", ServerName: "www.example.org", Chain: []api.ProbeCertificate{
			{Subject: "CN=www.example.org", Issuer: "CN=ca", Names: []string{"www.example.org", "example.org"}, NotBefore: t0, NotAfter: t0.AddDate(0, 3, 0)},
		}},
	}
	lost := api.Probe{
		Observation: rota.Observation{Status: rota.Down, Class: rota.ClassTimeout, Reason: "connect: timeout", At: t0.Add(50 * time.Second), Took: 3 * time.Second},
		Steps:       []api.ProbeStep{{Name: "connect", Took: 3 * time.Second, Note: "failed"}},
	}
	switch {
	case strings.Contains(string(id), "192.0.2.10"):
		return api.TargetProbes{Streak: rota.Streak{Successes: 2, Last: up.Observation}, Recent: []api.Probe{lost, up}}, true
	case strings.Contains(string(id), "192.0.2.11"):
		return api.TargetProbes{Streak: rota.Streak{Failures: 4, Last: lost.Observation}, Recent: []api.Probe{lost}}, true
	}
	return api.TargetProbes{}, false
}

// serve starts an API over a night on a socket and stops it when the script ends.
func serve(env *testscript.Env, socket string) error {
	o, f := nightOptions()
	o.Socket = socket
	if filepath.Base(env.WorkDir) == "script-ask" {
		withPublishers(&o, f, filepath.Dir(socket))
	}
	if filepath.Base(env.WorkDir) == "script-check" {
		o.Probes = remembered
	}
	s, err := api.New(o)
	if err != nil {
		return err
	}
	if err := s.Listen(context.Background()); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	env.Defer(func() {
		cancel()
		<-done
	})
	return nil
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			return serve(env, filepath.Join(env.WorkDir, "data", api.SocketName))
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// rota CODE ARG...: runs the command in this process, expects the exit code, and leaves what it wrote in the files out and err.
			"rota": func(ts *testscript.TestScript, _ bool, args []string) {
				want, err := strconv.Atoi(args[0])
				ts.Check(err)
				var out, errs bytes.Buffer
				a := &app{
					out: &out, err: &errs, getenv: ts.Getenv, version: "v1.2.3", now: func() time.Time { return t0.Add(time.Minute) },
					once: func(_ context.Context, _ *config.Config, t rota.Target) api.Probe {
						return api.Probe{
							Observation: rota.Observation{Status: rota.Up, Took: 12 * time.Millisecond},
							Steps:       []api.ProbeStep{{Name: "connect", Took: 3 * time.Millisecond, Note: "to " + t.Address.String()}},
						}
					},
				}
				args = slices.Clone(args[1:])
				if !slices.ContainsFunc(args, func(s string) bool {
					return strings.HasPrefix(s, "--data-dir") || strings.HasPrefix(s, "--addr") && s != "--address" || s == "bootstrap" || s == "join"
				}) {
					args = append(args, "--data-dir="+ts.MkAbs("data"))
				}
				if !slices.ContainsFunc(args, func(s string) bool { return strings.HasPrefix(s, "--config") }) {
					args = append(args, "--config="+ts.MkAbs("rota.yaml"))
				}
				code := a.main(context.Background(), args)
				ts.Check(os.WriteFile(ts.MkAbs("out"), out.Bytes(), 0o600))
				ts.Check(os.WriteFile(ts.MkAbs("err"), errs.Bytes(), 0o600))
				if code != want {
					ts.Fatalf("exit code %d, want %d\n%s%s", code, want, out.String(), errs.String())
				}
			},
		},
		UpdateScripts: os.Getenv("UPDATE_SCRIPTS") != "",
	})
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"plain ü –\n": "plain ü –\n", "\x1b[31mred": `\x1b[31mred`, "a\u202eb": `a\u202eb`, "\xff": `\xff`, "\u009b1m": `\u009b1m`, "a\tb\r": `a\x09b\x0d`,
	} {
		if got := printable(in); got != want {
			t.Errorf("%q gives %q, want %q", in, got, want)
		}
	}
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 41 * time.Second: "41s", 5 * time.Minute: "5m", 3*time.Hour + 4*time.Minute: "3h4m", 98 * time.Hour: "4d2h",
	} {
		if got := span(d); got != want {
			t.Errorf("%v gives %s, want %s", d, got, want)
		}
	}
}
