package publish

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/libdns/libdns"
	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/rota"
)

// LibDNSOptions say what provider of the libdns project to write to.
type LibDNSOptions struct {
	Name string // of the provider, for reasons
	// Provider must be a libdns.RecordGetter, RecordAppender, RecordSetter and RecordDeleter. It is called by several goroutines at once
	// and must heed contexts, as libdns demands.
	Provider any
	Zones    []rota.Name   // empty: the provider is a libdns.ZoneLister and is asked
	MinTTL   uint32        // seconds; what is wanted with less is published with this
	Settle   time.Duration // how long the provider's lists may lag behind a write; 0: 30 seconds
	Secrets  []string      // never shown, wherever the provider repeats them
}

func (o LibDNSOptions) String() string { return "libdns provider " + o.Name }

// GoString hides the provider, which holds credentials, from %#v.
func (o LibDNSOptions) GoString() string { return o.String() }

// libDNSProvider is what a provider must be able to do.
type libDNSProvider interface {
	libdns.RecordGetter
	libdns.RecordAppender
	libdns.RecordSetter
	libdns.RecordDeleter
}

// libDNS is the driver. Records are appended and deleted one by one: a provider may set an RRset by deleting it first.
type libDNS struct {
	o     LibDNSOptions
	p     libDNSProvider
	turns chan struct{} // calls that have not ended
}

const (
	libDNSTimeout = 15 * time.Second // of one call of a provider
	libDNSGrace   = time.Second      // in which a call ends whose time is over
	libDNSCalls   = 16               // of one provider at once, those included that were given up
)

// NewLibDNS returns a Backend for the zones of a libdns provider.
func NewLibDNS(o LibDNSOptions) (Backend, error) {
	p, ok := o.Provider.(libDNSProvider)
	if !ok {
		return nil, fmt.Errorf("the libdns provider %s cannot get, append, set and delete records: it is a %T", o.Name, o.Provider)
	}
	if _, ok := o.Provider.(libdns.ZoneLister); !ok && len(o.Zones) == 0 {
		return nil, fmt.Errorf("the libdns provider %s cannot list its zones: name them", o.Name)
	}
	return newLedger(&libDNS{o: o, p: p, turns: make(chan struct{}, libDNSCalls)}, cmp.Or(o.Settle, settleFor)), nil
}

func (l *libDNS) capabilities() Capabilities {
	return Capabilities{
		Fence: FenceCompare, Batch: 25, MinTTL: l.o.MinTTL,
		Types: []rota.Type{rota.TypeA, rota.TypeAAAA, rota.TypeCNAME, rota.TypeMX, rota.TypeTXT},
	}
}

// reason makes one of a provider's error, of which nothing is known but its text.
func (l *libDNS) reason(err error, changes bool) error {
	text := err.Error()
	for _, s := range l.o.Secrets {
		if s != "" {
			text = strings.ReplaceAll(text, s, "***")
		}
	}
	r := &Reason{
		Code: CodeServfail, Transient: true, InDoubt: changes, Server: l.o.Name, Text: rota.CleanReason("%s", text),
		Advice: "see what the provider says; check its credentials and its zone",
	}
	if _, ok := errors.AsType[net.Error](err); ok || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		r.Code, r.Advice = CodeUnreachable, "check that the provider can be reached from here"
	}
	if _, ok := errors.AsType[libDNSPanic](err); ok {
		r.Code, r.Advice = CodeInternal, "report it to the provider's authors"
	}
	return r
}

// libDNSCall has a provider do something. One that panics has failed, and one that goes on when its time is over is left to itself:
// neither may take others with it. The error is a *Reason.
func libDNSCall[T any](ctx context.Context, l *libDNS, changes bool, do func(context.Context) (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	ctx, cancel := context.WithTimeout(ctx, libDNSTimeout)
	defer cancel()
	select {
	case l.turns <- struct{}{}:
	case <-ctx.Done():
		return *new(T), l.reason(fmt.Errorf("%d calls of the provider have not ended: %w", libDNSCalls, ctx.Err()), false)
	}
	done := make(chan result, 1)
	go func() {
		defer func() { <-l.turns }()
		defer func() {
			if v := recover(); v != nil {
				done <- result{err: libDNSPanic{v}}
			}
		}()
		value, err := do(ctx)
		done <- result{value, err}
	}()
	var r result
	select {
	case r = <-done:
	case <-ctx.Done():
		last := time.NewTimer(libDNSGrace)
		defer last.Stop()
		select {
		case r = <-done:
		case <-last.C:
			r.err = fmt.Errorf("the provider goes on although its time is over: %w", ctx.Err())
		}
	}
	if r.err != nil {
		return *new(T), l.reason(r.err, changes)
	}
	return r.value, nil
}

// libDNSPanic is what a provider panicked with.
type libDNSPanic struct{ value any }

func (p libDNSPanic) Error() string { return fmt.Sprintf("the provider panicked: %v", p.value) }

func (l *libDNS) zones(ctx context.Context) ([]rota.Name, error) {
	if len(l.o.Zones) > 0 {
		return l.o.Zones, nil
	}
	list, err := libDNSCall(ctx, l, false, l.o.Provider.(libdns.ZoneLister).ListZones)
	if err != nil {
		return nil, err
	}
	var out []rota.Name
	for _, z := range list {
		if n, err := rota.ParseName(z.Name); err == nil {
			out = append(out, n)
		}
	}
	return out, nil
}

// libDNSRecord is a provider's own record and what it is to rota.
type libDNSRecord struct {
	entry
	own libdns.Record
	rr  libdns.RR
}

func (l *libDNS) all(ctx context.Context, zone rota.Name) ([]libDNSRecord, error) {
	list, err := libDNSCall(ctx, l, false, func(ctx context.Context) ([]libDNSRecord, error) {
		list, err := l.p.GetRecords(ctx, zone.String())
		out := make([]libDNSRecord, len(list))
		for i, own := range list {
			out[i].own, out[i].rr = own, own.RR() // which is the provider's, too
		}
		return out, err
	})
	if err != nil {
		return nil, err
	}
	var out []libDNSRecord
	for _, r := range list {
		rr := r.rr
		name, err := inZone(zone, rr.Name)
		if err != nil {
			continue // no name of ours
		}
		ttl := uint32(min(max(rr.TTL/time.Second, 0), 1<<31-1))
		text := rr.Data
		switch rr.Type {
		case "TXT":
			text = libDNSText(text)
		case "CNAME", "NS", "DNAME", "PTR":
			text = strings.TrimSuffix(text, ".") + "."
			if rr.Data == "@" {
				text = zone.String()
			}
		}
		e := newEntry(name, rr.Type, ttl, text)
		e.AnyTTL = ttl == 0 // it says none
		r.entry = e
		out = append(out, r)
	}
	return out, nil
}

// libDNSText returns the text of a TXT record, which libdns has raw, as DNS data. Providers that hand on their API's quotes are borne.
func libDNSText(text string) string {
	if strings.HasPrefix(text, `"`) && strings.HasSuffix(text, `"`) && len(text) > 1 {
		if rr, err := dns.NewRR(". 0 IN TXT " + text); err == nil && rr != nil {
			return text
		}
	}
	return quoteTXT(text)
}

func (l *libDNS) list(ctx context.Context, zone rota.Name, _ []rota.Name) ([]entry, error) {
	all, err := l.all(ctx, zone)
	out := make([]entry, len(all))
	for i, r := range all {
		out[i] = r.entry
	}
	return out, err
}

func (l *libDNS) commit(ctx context.Context, b Batch, held []entry) error {
	return stepwise(ctx, l, b, held)
}

// own makes a libdns record, of the type that stands for its kind.
func (l *libDNS) own(zone rota.Name, e entry) (libdns.Record, error) {
	rr := libdns.RR{
		Name: libdns.RelativeName(e.Key.Name.String(), zone.String()), TTL: time.Duration(e.TTL) * time.Second, Type: mnemonic(e.Key.Type), Data: e.Data,
	}
	if e.Key.Type == rota.TypeTXT {
		text, err := plainTXT(e.Data)
		if err != nil {
			return nil, err
		}
		rr.Data = text
	}
	return rr.Parse()
}

// create appends a record. Some providers refuse one that is there already, which is seen by reading.
func (l *libDNS) create(ctx context.Context, zone rota.Name, e entry) error {
	own, err := l.own(zone, e)
	if err != nil {
		return &Reason{Code: CodeUnsupported, Name: e.Key.Name, Text: rota.CleanReason("%v", err)}
	}
	_, err = libDNSCall(ctx, l, true, func(ctx context.Context) ([]libdns.Record, error) {
		return l.p.AppendRecords(ctx, zone.String(), []libdns.Record{own})
	})
	if err == nil {
		return nil
	}
	there, rerr := l.all(ctx, zone)
	if rerr == nil && slices.ContainsFunc(there, func(r libDNSRecord) bool { return r.Key == e.Key && r.Data == e.Data }) {
		return nil
	}
	return err
}

// retime sets the whole RRset as it is now with the new TTL, which is the only way that libdns has.
func (l *libDNS) retime(ctx context.Context, zone rota.Name, e entry, ttl uint32) error {
	all, err := l.all(ctx, zone)
	if err != nil {
		return err
	}
	var set []libdns.Record
	late := false
	for _, r := range all {
		if r.Key != e.Key {
			continue
		}
		late = late || r.TTL != ttl
		r.entry.TTL = ttl
		own, err := l.own(zone, r.entry)
		if err != nil {
			return &Reason{Code: CodeUnsupported, Name: e.Key.Name, Text: rota.CleanReason("%v", err)}
		}
		set = append(set, own)
	}
	if !late {
		return nil
	}
	_, err = libDNSCall(ctx, l, true, func(ctx context.Context) ([]libdns.Record, error) { return l.p.SetRecords(ctx, zone.String(), set) })
	return err
}

// remove deletes the provider's own records of the data, exactly as it lists them.
func (l *libDNS) remove(ctx context.Context, zone rota.Name, e entry) error {
	all, err := l.all(ctx, zone)
	if err != nil {
		return err
	}
	var gone []libdns.Record
	for _, r := range all {
		if r.Key == e.Key && r.Data == e.Data {
			gone = append(gone, r.own)
		}
	}
	if len(gone) == 0 {
		return nil
	}
	_, err = libDNSCall(ctx, l, true, func(ctx context.Context) ([]libdns.Record, error) { return l.p.DeleteRecords(ctx, zone.String(), gone) })
	return err
}
