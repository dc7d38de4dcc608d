package publish

import (
	"context"
	"fmt"

	"github.com/miekg/dns"

	"github.com/rota-dns/rota/internal/rota"
)

// Swap makes all of the changes true in one UPDATE, without a fence, only if every Old, and every RRset of require, is what the zone
// holds (TTLs aside; without data: absent). Otherwise nothing happens and the error is ErrMoved. Without changes it asks whether this
// writer may update the zone. It is for those who register a single host: a message that is held on its way can still be carried out
// later, should the zone then look the same again. Errors are as those of Write; more than fits in one message is refused whole.
func (b *RFC2136) Swap(ctx context.Context, zone rota.Name, require []rota.RRset, changes []rota.Change) error {
	m, n, err := update(Batch{Zone: zone, Changes: changes})
	if err != nil {
		return err
	}
	for _, s := range require {
		must, err := prerequisite(s)
		if err != nil {
			return &Reason{Code: CodeInternal, Zone: zone, Name: s.Name, Text: rota.CleanReason("%v", err)}
		}
		m.Answer = append(m.Answer, must...)
	}
	if n < len(changes) || m.Len() > maxUpdate {
		return &Reason{Code: CodeTooLarge, Zone: zone, Text: fmt.Sprintf("%d changes do not fit in one UPDATE", len(changes))}
	}
	answer, road, err := b.ask(ctx, b.writes, m)
	if err != nil {
		return err
	}
	switch answer.Rcode {
	case dns.RcodeSuccess:
		return nil
	case dns.RcodeNXRrset, dns.RcodeYXRrset, dns.RcodeNameError, dns.RcodeYXDomain:
		return ErrMoved
	}
	return road.explain(m, answer.Rcode, 0)
}
