package rota

import (
	"hash/maphash"
	"iter"
	"math/bits"
)

// pmap is a persistent map: with and without return a new map that shares all but the path to the change with the old one, which
// stays as it is. It is a hash trie of 32-way nodes. The zero value is empty. Iteration order is arbitrary; sort before showing.
type pmap[K comparable, V any] struct {
	root *pnode[K, V]
	n    int
}

type pnode[K comparable, V any] struct {
	bitmap uint32
	slots  []pslot[K, V]
}

// pslot holds either a node below or the entries of one hash.
type pslot[K comparable, V any] struct {
	node  *pnode[K, V]
	entry *pentry[K, V]
}

type pentry[K comparable, V any] struct {
	hash uint64
	key  K
	val  V
	next *pentry[K, V] // entries whose whole hash is equal
}

var pseed = maphash.MakeSeed()

const (
	pbits = 5
	pmask = 1<<pbits - 1
)

func (m pmap[K, V]) len() int { return m.n }

func (m pmap[K, V]) get(k K) (V, bool) {
	h := maphash.Comparable(pseed, k)
	for n, shift := m.root, 0; n != nil; shift += pbits {
		bit := uint32(1) << (h >> shift & pmask)
		if n.bitmap&bit == 0 {
			break
		}
		s := &n.slots[bits.OnesCount32(n.bitmap&(bit-1))]
		if s.entry == nil {
			n = s.node
			continue
		}
		for e := s.entry; e != nil; e = e.next {
			if e.key == k {
				return e.val, true
			}
		}
		break
	}
	var zero V
	return zero, false
}

func (m pmap[K, V]) with(k K, v V) pmap[K, V] {
	e := &pentry[K, V]{hash: maphash.Comparable(pseed, k), key: k, val: v}
	root, grew := m.root.with(e, 0)
	if grew {
		m.n++
	}
	return pmap[K, V]{root, m.n}
}

func (n *pnode[K, V]) with(e *pentry[K, V], shift int) (*pnode[K, V], bool) {
	bit := uint32(1) << (e.hash >> shift & pmask)
	if n == nil {
		return &pnode[K, V]{bit, []pslot[K, V]{{entry: e}}}, true
	}
	i := bits.OnesCount32(n.bitmap & (bit - 1))
	if n.bitmap&bit == 0 {
		slots := make([]pslot[K, V], len(n.slots)+1)
		copy(slots, n.slots[:i])
		slots[i].entry = e
		copy(slots[i+1:], n.slots[i:])
		return &pnode[K, V]{n.bitmap | bit, slots}, true
	}
	slot, grew := n.slots[i].with(e, shift+pbits)
	slots := make([]pslot[K, V], len(n.slots))
	copy(slots, n.slots)
	slots[i] = slot
	return &pnode[K, V]{n.bitmap, slots}, grew
}

func (s pslot[K, V]) with(e *pentry[K, V], shift int) (pslot[K, V], bool) {
	if s.entry == nil {
		node, grew := s.node.with(e, shift)
		return pslot[K, V]{node: node}, grew
	}
	if s.entry.hash == e.hash {
		rest, had := s.entry.without(e.key)
		e.next = rest
		return pslot[K, V]{entry: e}, !had
	}
	// Two hashes meet: push the resident one level down, where their next bits may tell them apart.
	below := &pnode[K, V]{1 << (s.entry.hash >> shift & pmask), []pslot[K, V]{s}}
	node, grew := below.with(e, shift)
	return pslot[K, V]{node: node}, grew
}

// without returns the chain less the entry of k, copying what stood before it.
func (e *pentry[K, V]) without(k K) (*pentry[K, V], bool) {
	if e == nil {
		return nil, false
	}
	if e.key == k {
		return e.next, true
	}
	rest, had := e.next.without(k)
	if !had {
		return e, false
	}
	c := *e
	c.next = rest
	return &c, true
}

func (m pmap[K, V]) without(k K) pmap[K, V] {
	h := maphash.Comparable(pseed, k)
	root, had := m.root.without(h, k, 0)
	if !had {
		return m
	}
	return pmap[K, V]{root, m.n - 1}
}

func (n *pnode[K, V]) without(h uint64, k K, shift int) (*pnode[K, V], bool) {
	if n == nil {
		return nil, false
	}
	bit := uint32(1) << (h >> shift & pmask)
	if n.bitmap&bit == 0 {
		return n, false
	}
	i := bits.OnesCount32(n.bitmap & (bit - 1))
	s := n.slots[i]
	var had bool
	if s.entry != nil {
		s.entry, had = s.entry.without(k)
	} else {
		s.node, had = s.node.without(h, k, shift+pbits)
	}
	if !had {
		return n, false
	}
	if s.entry == nil && s.node == nil {
		if len(n.slots) == 1 {
			return nil, true
		}
		slots := make([]pslot[K, V], 0, len(n.slots)-1)
		slots = append(append(slots, n.slots[:i]...), n.slots[i+1:]...)
		return &pnode[K, V]{n.bitmap &^ bit, slots}, true
	}
	slots := make([]pslot[K, V], len(n.slots))
	copy(slots, n.slots)
	slots[i] = s
	return &pnode[K, V]{n.bitmap, slots}, true
}

// all visits every entry in arbitrary order.
func (m pmap[K, V]) all() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) { m.root.each(yield) }
}

func (n *pnode[K, V]) each(yield func(K, V) bool) bool {
	if n == nil {
		return true
	}
	for _, s := range n.slots {
		for e := s.entry; e != nil; e = e.next {
			if !yield(e.key, e.val) {
				return false
			}
		}
		if s.node != nil && !s.node.each(yield) {
			return false
		}
	}
	return true
}

// moved visits the keys whose entries in b are not the very entries of a: added, removed, or set again. Shared parts cost nothing.
func moved[K comparable, V any](a, b pmap[K, V], visit func(K)) { movedNodes(a.root, b.root, visit) }

func movedNodes[K comparable, V any](a, b *pnode[K, V], visit func(K)) {
	if a == b {
		return
	}
	var am, bm uint32
	if a != nil {
		am = a.bitmap
	}
	if b != nil {
		bm = b.bitmap
	}
	for both := am | bm; both != 0; both &= both - 1 {
		bit := both & -both
		var x, y pslot[K, V]
		if am&bit != 0 {
			x = a.slots[bits.OnesCount32(am&(bit-1))]
		}
		if bm&bit != 0 {
			y = b.slots[bits.OnesCount32(bm&(bit-1))]
		}
		if x == y {
			continue
		}
		if x.entry == nil && y.entry == nil {
			movedNodes(x.node, y.node, visit)
			continue
		}
		movedLeaves(x, y, visit)
	}
}

// movedLeaves compares two slots of which at least one is a leaf, so that few entries are on that side.
func movedLeaves[K comparable, V any](x, y pslot[K, V], visit func(K)) {
	old := map[K]*pentry[K, V]{}
	x.entries(func(e *pentry[K, V]) { old[e.key] = e })
	y.entries(func(e *pentry[K, V]) {
		if old[e.key] != e {
			visit(e.key)
		}
		delete(old, e.key)
	})
	for k := range old {
		visit(k)
	}
}

func (s pslot[K, V]) entries(visit func(*pentry[K, V])) {
	for e := s.entry; e != nil; e = e.next {
		visit(e)
	}
	if s.node != nil {
		for _, below := range s.node.slots {
			below.entries(visit)
		}
	}
}
