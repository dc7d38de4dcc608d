package publish

import (
	"context"
	"fmt"
	"strings"

	"github.com/rota-dns/rota/internal/rota"
)

// looker is what a Backend can do without writing.
type looker interface {
	Zone(ctx context.Context, name rota.Name) (rota.Name, error)
	Read(ctx context.Context, zone rota.Name, keys []rota.Key) (Reading, error)
	Capabilities() Capabilities
}

// dryRun is a Backend that cannot write: what it holds has no Write.
type dryRun struct{ looker }

// Write says that it does not.
func (dryRun) Write(_ context.Context, b Batch) (int, error) {
	return 0, &Reason{Code: CodeDryRun, Zone: b.Zone, Text: "this is a dry run: nothing is written"}
}

// stopped says why nothing may be written to the zone now, or nil.
func (z *zone) stopped() *Reason { return z.o.stopped(z.name) }

func (o *Options) stopped(zone rota.Name) *Reason {
	if o.DryRun {
		return &Reason{Code: CodeDryRun, Zone: zone, Text: "dry run", Advice: "turn dry_run off to write"}
	}
	if why := o.Frozen(); why != "" {
		return &Reason{Code: CodeFrozen, Zone: zone, Text: "frozen (" + rota.CleanReason("%s", why) + ")", Advice: "rota thaw lets publishers write again"}
	}
	return nil
}

// send is the only way to Backend.Write. What was decided before this process was stopped is written only if this node still leads.
func (z *zone) send(ctx context.Context, b Batch) (int, error) {
	if r := z.stopped(); r != nil {
		return 0, r
	}
	if n := z.o.Lapses(); n != z.lapses {
		if err := z.o.Confirm(ctx, z.term); err != nil {
			z.held = false
			return 0, &Reason{
				Code: CodeFenced, Transient: true, Zone: z.name,
				Text: rota.CleanReason("this process was stopped for a while, and cannot confirm that it still leads: %v", err),
			}
		}
		z.lapses = n
	}
	return z.o.Backend.Write(ctx, b)
}

// shown is how many changes a reason lists; the status has them all.
const shown = 5

// would returns r with what would be written, or nil when there is nothing to write.
func (r *Reason) would(changes []rota.Change) *Reason {
	if len(changes) == 0 {
		return nil
	}
	parts := make([]string, 0, shown+1)
	for _, c := range changes[:min(len(changes), shown)] {
		parts = append(parts, c.String())
	}
	if more := len(changes) - len(parts); more > 0 {
		parts = append(parts, fmt.Sprintf("and %d more", more))
	}
	out := *r
	out.Text += ": would write " + strings.Join(parts, ", ")
	return &out
}
