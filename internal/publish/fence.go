package publish

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/rota-dns/rota/internal/rota"
)

// Fence says who may write a zone. It stands in the zone itself, as the TXT record FenceKey names, and every write replaces it by its
// successor while requiring that the predecessor is still there: a deposed leader, a late message and a replayed one find another.
type Fence struct {
	Owner string // the installation; another one's zone is never written
	Epoch uint64 // grows with every leader that takes the zone, and is at least the leader's term
	Seq   uint64 // grows with every write of that leader
	By    string // random, names this holder: two that took the same epoch at once are told apart
	Offer string // an installation that may take the zone over; empty: none
}

// fenceTTL is the TTL of fence records, in seconds. Nobody but publishers asks for them.
const fenceTTL = 60

// maxOwner keeps the fence in one character-string of a TXT record (RFC 1035 §3.3).
const maxOwner = 128

// FenceKey names a zone's fence record.
func FenceKey(zone rota.Name) rota.Key {
	name := "_rota." + zone
	if zone == "." {
		name = "_rota."
	}
	return rota.Key{Name: name, Type: rota.TypeTXT}
}

// String returns the fence as its TXT record says it.
func (f Fence) String() string {
	s := fmt.Sprintf("owner=%s epoch=%d seq=%d by=%s", url.QueryEscape(f.Owner), f.Epoch, f.Seq, f.By)
	if f.Offer != "" {
		s += " offer=" + url.QueryEscape(f.Offer)
	}
	return s
}

// RRset returns the record that stands in the zone.
func (f Fence) RRset(zone rota.Name) rota.RRset {
	k := FenceKey(zone)
	return rota.RRset{Name: k.Name, Type: k.Type, TTL: fenceTTL, Data: []string{quoteTXT(f.String())}}
}

// Next returns the fence that a write leaves behind.
func (f Fence) Next() Fence {
	f.Seq++
	return f
}

// same reports whether both are held by the same writer, who may have written meanwhile.
func (f Fence) same(o Fence) bool { return f.Owner == o.Owner && f.Epoch == o.Epoch && f.By == o.By }

// take returns the fence of a leader of a term that follows f, or the first one.
func (f Fence) take(owner string, term uint64) Fence {
	var id [8]byte
	rand.Read(id[:]) // never fails
	return Fence{Owner: owner, Epoch: max(term, f.Epoch+1), By: hex.EncodeToString(id[:])}
}

// ParseFence reads what stands in a zone. Fields of a later version are passed over. Of several records of one owner, which a writer
// leaves that was stopped between two steps, the newest counts; so does that of an installation which took up the offer of the other. It
// fails when the records do not say who owns the zone: then somebody else put them there.
func ParseFence(set rota.RRset) (Fence, error) { return parseFences(set, nil) }

// parseFences is ParseFence for one who takes over from the owners named: all of these are one to it.
func parseFences(set rota.RRset, one []string) (Fence, error) {
	if len(set.Data) == 0 {
		return Fence{}, fmt.Errorf("%s has no record", set.Name.Short())
	}
	var all []Fence
	for _, data := range set.Data {
		f, err := parseFence(set.Name, data)
		if err != nil {
			return Fence{}, err
		}
		all = append(all, f)
	}
	var newest Fence
	for _, f := range all {
		both := slices.Contains(one, f.Owner) && slices.Contains(one, newest.Owner)
		switch {
		case f.yielded(all):
		case newest.Owner != "" && f.Owner != newest.Owner && !both:
			return Fence{}, fmt.Errorf("%s names two owners, %q and %q", set.Name.Short(), rota.CleanReason("%s", newest.Owner), rota.CleanReason("%s", f.Owner))
		case newest.Owner == "" || f.newer(newest):
			newest = f
		}
	}
	return newest, nil
}

// newer reports whether f was written after o.
func (f Fence) newer(o Fence) bool { return f.Epoch > o.Epoch || f.Epoch == o.Epoch && f.Seq > o.Seq }

// yielded reports whether the owner of f has since offered the zone to one whose later fence stands beside it.
func (f Fence) yielded(all []Fence) bool {
	return slices.ContainsFunc(all, func(offer Fence) bool {
		return offer.Owner == f.Owner && !f.newer(offer) && slices.ContainsFunc(all, func(next Fence) bool {
			return next.Owner == offer.Offer && next.Owner != f.Owner && next.Epoch > offer.Epoch
		})
	})
}

func parseFence(name rota.Name, data string) (Fence, error) {
	text := strings.ReplaceAll(strings.TrimSuffix(strings.TrimPrefix(data, `"`), `"`), `" "`, "")
	var f Fence
	var err error
	seen := 0
	for field := range strings.FieldsSeq(text) {
		key, value, _ := strings.Cut(field, "=")
		switch key {
		case "owner":
			f.Owner, err = url.QueryUnescape(value)
			seen++
		case "epoch":
			f.Epoch, err = strconv.ParseUint(value, 10, 63)
			seen++
		case "seq":
			f.Seq, err = strconv.ParseUint(value, 10, 63)
		case "by":
			f.By = value
		case "offer":
			f.Offer, err = url.QueryUnescape(value)
		}
		if err != nil {
			return Fence{}, fmt.Errorf("%s says %q, which rota did not write", name.Short(), rota.CleanReason("%s", text))
		}
	}
	if seen != 2 || f.Owner == "" {
		return Fence{}, fmt.Errorf("%s says %q, which rota did not write", name.Short(), rota.CleanReason("%s", text))
	}
	return f, nil
}

// find returns the RRset of a key, absent when it is not among the sets.
func find(sets []rota.RRset, k rota.Key) rota.RRset {
	for _, s := range sets {
		if s.Key() == k {
			s.Data = slices.Clone(s.Data)
			return s
		}
	}
	return rota.RRset{Name: k.Name, Type: k.Type}
}
