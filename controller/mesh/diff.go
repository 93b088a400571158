package mesh

import (
	"reflect"
	"slices"
)

// Diff names everything that differs between two snapshots. Buckets that both
// share are skipped, so between relatives it costs little more than the number
// of changes.
func Diff(from, to *Snapshot) Changes {
	return Changes{
		Workloads: diffTables(&from.workloads, &to.workloads),
		Services:  diffTables(&from.services, &to.services),
		Policies:  diffTables(&from.policies, &to.policies),
	}
}

func diffTables[V any](a, b *table[string, *V]) []string {
	var out []string
	if a.seed == b.seed && len(a.buckets) == len(b.buckets) {
		for i := range a.buckets {
			if !sameMap(a.buckets[i], b.buckets[i]) {
				out = diffMaps(out, a.buckets[i], b.buckets[i])
			}
		}
		slices.Sort(out)
		return out
	}
	for _, m := range a.buckets {
		for k, v := range m {
			if w, ok := b.get(k); !ok || w != v {
				out = append(out, k)
			}
		}
	}
	for _, m := range b.buckets {
		for k := range m {
			if _, ok := a.get(k); !ok {
				out = append(out, k)
			}
		}
	}
	slices.Sort(out)
	return out
}

func diffMaps[V any](out []string, a, b map[string]*V) []string {
	for k, v := range a {
		if w, ok := b[k]; !ok || w != v {
			out = append(out, k)
		}
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			out = append(out, k)
		}
	}
	return out
}

// sameMap reports whether a and b are one map, not just equal.
func sameMap[V any](a, b map[string]*V) bool {
	return reflect.ValueOf(a).UnsafePointer() == reflect.ValueOf(b).UnsafePointer()
}
