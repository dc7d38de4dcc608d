package publish

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/rota"
)

// ExecOptions says which script keeps the records.
type ExecOptions struct {
	Name    string        // of the publisher, for the script
	Command []string      // the script by its absolute path, and its arguments; no secrets
	Zones   []rota.Name   // that it keeps; none: it is asked
	Timeout time.Duration // of one run in all; 0: 10 seconds, at most a minute
	// Simple are the servers to read from, by DNS, when the script can only add and delete single records: it is then called once for
	// each. They must show a change as soon as the script has ended. nil: the script speaks the protocol of docs/scripts.md.
	Simple *RFC2136Options
	Run    Run
}

// execKeep is how much a script may say in a reply, in bytes: 100,000 records.
const execKeep = 16 << 20

// NewExec makes a Backend of an operator's script. It checks the options and does not run it. Names and data reach the script by its
// standard input and environment, never through a shell.
func NewExec(o ExecOptions) (Backend, error) {
	var err error
	if o.Timeout, err = checkCommand("exec", o.Command, o.Timeout, o.Run); err != nil {
		return nil, err
	}
	if o.Simple == nil {
		return newLedger(&script{publisher: o.Name, fixed: o.Zones, ask: o.ask}, 0), nil
	}
	servers := *o.Simple
	servers.Zones = slices.Concat(servers.Zones, o.Zones)
	read, err := NewRFC2136(servers)
	if err != nil {
		return nil, fmt.Errorf("exec: %w", err)
	}
	return &simple{RFC2136: read, o: o}, nil
}

// environment is what every call has.
func (o ExecOptions) environment(action string, zone rota.Name) []string {
	return []string{
		"ROTA_VERSION=" + strconv.Itoa(scriptVersion), "ROTA_PUBLISHER=" + o.Name, "ROTA_ACTION=" + action, "ROTA_ZONE=" + string(zone),
	}
}

// ask runs the script for one request.
func (o ExecOptions) ask(ctx context.Context, q scriptRequest, body []byte) (scriptReply, error) {
	c := Command{Argv: o.Command, Env: o.environment(q.Action, q.Zone), Stdin: body, Keep: execKeep, Timeout: o.Timeout}
	changes := q.Action == scriptWrite
	out, err := o.Run(ctx, c)
	if err != nil {
		return scriptReply{}, failedCommand(c, out, err, changes)
	}
	if out.Code == 0 && changes && len(bytes.TrimSpace(out.Stdout)) == 0 {
		return scriptReply{}, nil // its exit code says it
	}
	reply, err := readReply(out.Stdout)
	switch {
	case err == nil && reply.Error != nil:
		return reply, nil
	case out.Code != 0:
		return scriptReply{}, failedCommand(c, out, nil, changes)
	case err == nil && out.Cut:
		err = errors.New("it is longer than 16 MiB, or something that the script left behind keeps its output open")
	}
	if err != nil {
		r := malformedReply("%s: the reply to %s cannot be read: %v", o.Command[0], q.Action, err)
		r.InDoubt = changes
		return scriptReply{}, r
	}
	return reply, nil
}

// simple is a Backend that reads by DNS and has a script add and delete single records.
type simple struct {
	*RFC2136
	o ExecOptions
}

// simpleBatch bounds one write: each record takes a run of its own.
const simpleBatch = 20

// Capabilities are weaker than those of the servers: the script writes after they were read, record by record.
func (b *simple) Capabilities() Capabilities {
	return Capabilities{Fence: FenceCompare, Batch: simpleBatch}
}

// Write compares, and then calls the script once for each record: the fence first, what comes before what goes.
func (b *simple) Write(ctx context.Context, batch Batch) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, writeWithin)
	defer cancel()
	batch.Changes = batch.Changes[:fitting(batch.Changes, simpleBatch, eachIsOne)]
	n := len(batch.Changes)
	keys := []rota.Key{batch.Fence.Key()}
	for _, c := range batch.Changes {
		keys = append(keys, c.Key())
	}
	have, err := b.Read(ctx, batch.Zone, keys)
	if err != nil {
		return n, err
	}
	held := entriesOf(have.Sets)
	if err := stands(batch, held); err != nil {
		return n, err
	}
	if err := b.alone(ctx, batch.Zone, batch.Changes); err != nil {
		return n, err
	}
	return n, stepwise(ctx, simpleEditor{b}, batch, held)
}

func entriesOf(sets []rota.RRset) []entry {
	var out []entry
	for _, s := range sets {
		for _, d := range s.Data {
			out = append(out, entry{Key: s.Key(), TTL: s.TTL, Data: d})
		}
	}
	return out
}

// simpleEditor changes single records by the script.
type simpleEditor struct{ b *simple }

// list reads the addresses and aliases of the names, and their TXT records, which is where a fence is.
func (e simpleEditor) list(ctx context.Context, zone rota.Name, names []rota.Name) ([]entry, error) {
	var keys []rota.Key
	for _, n := range names {
		for _, t := range []rota.Type{rota.TypeTXT, rota.TypeA, rota.TypeAAAA, rota.TypeCNAME} {
			keys = append(keys, rota.Key{Name: n, Type: t})
		}
	}
	have, err := e.b.Read(ctx, zone, keys)
	return entriesOf(have.Sets), err
}

func (e simpleEditor) create(ctx context.Context, zone rota.Name, r entry) error {
	return e.b.call(ctx, "add", zone, r)
}

func (e simpleEditor) retime(ctx context.Context, zone rota.Name, r entry, ttl uint32) error {
	r.TTL = ttl
	return e.b.call(ctx, "add", zone, r)
}

func (e simpleEditor) remove(ctx context.Context, zone rota.Name, r entry) error {
	return e.b.call(ctx, "delete", zone, r)
}

// call runs the script for one record.
func (b *simple) call(ctx context.Context, action string, zone rota.Name, r entry) error {
	c := Command{Argv: b.o.Command, Timeout: b.o.Timeout, Env: append(b.o.environment(action, zone),
		"ROTA_NAME="+r.Key.Name.String(), "ROTA_TYPE="+dns.Type(r.Key.Type).String(), "ROTA_TTL="+strconv.FormatUint(uint64(r.TTL), 10), "ROTA_DATA="+r.Data)}
	out, err := b.o.Run(ctx, c)
	if err != nil || out.Code != 0 {
		return failedCommand(c, out, err, true)
	}
	return nil
}
