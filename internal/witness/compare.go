package witness

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// Holding is what the DNS behind one publisher was last read to say of one service's RRsets.
type Holding struct {
	Service   rota.Name
	Publisher string
	Sets      []rota.RRset // without those that are absent
	Unread    bool         // it was never read: it takes no part
}

// Disagreement says that the publishers of one service do not hold the same.
type Disagreement struct {
	Service    rota.Name
	Publishers []string // sorted
	Since      time.Time
	Text       string // who holds what
}

// Equals compares what several publishers of one service hold. Its methods are safe for concurrent use; the zero value is ready.
type Equals struct {
	mu    sync.Mutex // guards what follows
	since map[rota.Name]time.Time
}

// Look compares all holdings and returns the disagreements that have lasted for a patience, sorted by service. TTLs are not compared:
// not every DNS takes every TTL.
func (e *Equals) Look(all []Holding, now time.Time, patience time.Duration) []Disagreement {
	e.mu.Lock()
	defer e.mu.Unlock()
	byService := map[rota.Name][]Holding{}
	for _, h := range all {
		if !h.Unread {
			byService[h.Service] = append(byService[h.Service], h)
		}
	}
	was := e.since
	e.since = map[rota.Name]time.Time{}
	var out []Disagreement
	for _, service := range slices.Sorted(maps.Keys(byService)) {
		d, ok := disagreement(service, byService[service])
		if !ok {
			continue
		}
		since, ok := was[service]
		if !ok {
			since = now
		}
		e.since[service] = since
		if d.Since = since; now.Sub(since) >= patience {
			out = append(out, d)
		}
	}
	return out
}

func disagreement(service rota.Name, all []Holding) (Disagreement, bool) {
	slices.SortFunc(all, func(a, b Holding) int { return cmp.Compare(a.Publisher, b.Publisher) })
	out := Disagreement{Service: service}
	var texts []string
	differ := false
	for _, h := range all {
		out.Publishers = append(out.Publishers, h.Publisher)
		texts = append(texts, fmt.Sprintf("%s has %s", h.Publisher, h.data()))
		differ = differ || h.data() != all[0].data()
	}
	out.Text = rota.CleanReason("%s", strings.Join(texts, ", "))
	return out, differ
}

// data is what is held, in one comparable text.
func (h Holding) data() string {
	var out []string
	for _, s := range h.Sets {
		for _, d := range s.Data {
			out = append(out, s.Key().String()+" "+d)
		}
	}
	slices.Sort(out)
	if len(out) == 0 {
		return "nothing"
	}
	return strings.Join(out, ", ")
}
