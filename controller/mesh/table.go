package mesh

import (
	"hash/maphash"
	"iter"
	"maps"
)

// table is an immutable hash map made of small buckets. An edit of it copies
// only the buckets it touches, so that two consecutive snapshots share nearly
// everything: copying a whole map of 100 000 entries to change one costs
// milliseconds, copying one bucket microseconds.
type table[K comparable, V any] struct {
	seed    maphash.Seed
	buckets []map[K]V // length is a power of two
	n       int
}

// firstBuckets of an empty table.
const firstBuckets = 16

// full reports whether a table of that many buckets should grow before it takes
// entry n+1. A change copies the list of buckets and one bucket, so both grow
// with the square root of the table: the list of 512 pointers and a bucket of
// 40 entries weigh about the same.
func full(n, buckets int) bool { return n >= buckets*buckets/8 }

func (t *table[K, V]) get(k K) (V, bool) {
	if t.n == 0 {
		var zero V
		return zero, false
	}
	v, ok := t.buckets[t.slot(k)][k]
	return v, ok
}

func (t *table[K, V]) slot(k K) int {
	return int(maphash.Comparable(t.seed, k) & uint64(len(t.buckets)-1))
}

func (t *table[K, V]) values() iter.Seq[V] {
	return func(yield func(V) bool) {
		for _, b := range t.buckets {
			for _, v := range b {
				if !yield(v) {
					return
				}
			}
		}
	}
}

// edit is a table being changed by one Builder.
type edit[K comparable, V any] struct {
	table[K, V]
	shared []bool // bucket still belongs to the base table; nil before the first change
}

func editOf[K comparable, V any](t *table[K, V]) edit[K, V] {
	return edit[K, V]{table: *t}
}

func (e *edit[K, V]) set(k K, v V) {
	if full(e.n, len(e.buckets)) {
		e.grow()
	}
	b := e.own(e.slot(k))
	before := len(b)
	b[k] = v
	e.n += len(b) - before
}

func (e *edit[K, V]) delete(k K) {
	if _, ok := e.get(k); !ok {
		return
	}
	delete(e.own(e.slot(k)), k)
	e.n--
}

// own returns bucket i, copied first if the base table still uses it.
func (e *edit[K, V]) own(i int) map[K]V {
	if e.shared == nil {
		e.buckets = append([]map[K]V(nil), e.buckets...)
		e.shared = make([]bool, len(e.buckets))
		for j := range e.shared {
			e.shared[j] = true
		}
	}
	if e.shared[i] {
		e.shared[i] = false
		if e.buckets[i] == nil {
			e.buckets[i] = make(map[K]V)
		} else {
			e.buckets[i] = maps.Clone(e.buckets[i])
		}
	}
	return e.buckets[i]
}

func (e *edit[K, V]) grow() {
	old := e.buckets
	size := firstBuckets
	if len(old) > 0 {
		size = 2 * len(old)
	} else {
		e.seed = maphash.MakeSeed()
	}
	e.buckets = make([]map[K]V, size)
	for i := range e.buckets {
		e.buckets[i] = make(map[K]V)
	}
	e.shared = make([]bool, size)
	for _, b := range old {
		for k, v := range b {
			e.buckets[e.slot(k)][k] = v
		}
	}
}

// done ends the edit; the edit must not be used afterwards.
func (e *edit[K, V]) done() table[K, V] { return e.table }
