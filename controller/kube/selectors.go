package kube

// selectors finds the objects of one namespace whose selector may pick
// something, without asking each of them once there is much to ask for.
type selectors[T any] struct {
	all   []T
	of    func(T) map[string]string
	asked int
	by    map[label][]T // nil until it pays
}

// label is one key and value of a selector.
type label struct{ key, value string }

// payOff is how many things are looked up by asking every object. A single pod
// that changes is not worth an index.
const payOff = 16

func newSelectors[T any](all []T, of func(T) map[string]string) *selectors[T] {
	return &selectors[T]{all: all, of: of}
}

func (s *selectors[T]) picking(labels map[string]string) []T {
	if s.asked++; s.asked <= payOff {
		return s.all
	}
	if s.by == nil {
		s.index()
	}
	var out []T
	for k, v := range labels {
		out = append(out, s.by[label{k, v}]...)
	}
	return out
}

// index files each object under the rarest label of its selector: others,
// such as the one that a whole product carries, would find everything.
func (s *selectors[T]) index() {
	count := make(map[label]int)
	for _, o := range s.all {
		for k, v := range s.of(o) {
			count[label{k, v}]++
		}
	}
	s.by = make(map[label][]T)
	for _, o := range s.all {
		var rarest label
		least := 0
		for k, v := range s.of(o) {
			if n := count[label{k, v}]; least == 0 || n < least {
				rarest, least = label{k, v}, n
			}
		}
		if least > 0 { // without a selector it picks nobody
			s.by[rarest] = append(s.by[rarest], o)
		}
	}
}
