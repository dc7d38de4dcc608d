package cluster

import (
	"cmp"
	"slices"

	"github.com/rota-dns/rota/internal/rota"
)

// maxVantages bounds how many vantages are heard at once.
const maxVantages = 1024

// hear makes a report the newest of its vantage. r must not be changed afterwards.
func (n *Node) hear(r *rota.Report) {
	n.reportsMu.Lock()
	defer n.reportsMu.Unlock()
	old, _ := n.reports.load()
	next := slices.Clone(old)
	if i, held := findReport(next, r.Vantage); held {
		next[i] = r
		n.reports.store(next)
		return
	}
	if len(next) >= maxVantages {
		gone := n.dispensable(next)
		if gone < 0 {
			n.log.Warn("too many vantages report; this one is not heard", "vantage", r.Vantage, "limit", maxVantages)
			return
		}
		next = slices.Delete(next, gone, gone+1)
	}
	i, _ := findReport(next, r.Vantage)
	n.reports.store(slices.Insert(next, i, r))
}

// dispensable returns the report that can make room: of those that are of no vantage any more, the one that spoke longest ago; -1: none.
func (n *Node) dispensable(rs []*rota.Report) int {
	gone := -1
	for i, r := range rs {
		if r.Vantage != rota.OwnAgent && n.given(r.Vantage) == nil && (gone < 0 || r.At.Before(rs[gone].At)) {
			gone = i
		}
	}
	return gone
}

// Reports returns the newest report of each vantage that was heard since this node started, sorted by vantage. Nothing in it may be
// changed.
func (n *Node) Reports() []*rota.Report {
	rs, _ := n.reports.load()
	return slices.Clone(rs)
}

// ReportsChanged returns a channel that is closed when what Reports returned after this call is no longer the newest.
func (n *Node) ReportsChanged() <-chan struct{} {
	_, changed := n.reports.load()
	return changed
}

func findReport(rs []*rota.Report, vantage string) (int, bool) {
	return slices.BinarySearchFunc(rs, vantage, func(r *rota.Report, v string) int { return cmp.Compare(r.Vantage, v) })
}
