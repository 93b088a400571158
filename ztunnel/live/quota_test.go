package live

import (
	"errors"
	"math/rand/v2"
	"testing"
)

// TestAdmit reads like the rule.
//
//ambit:feature hbone-quota-connections
func TestAdmit(t *testing.T) {
	l := Limits{Node: 1000, Pod: 500}
	for _, tc := range []struct {
		name               string
		own, used, pods, n int
		want               Reason
	}{
		{"the first", 0, 16, 1, 1, ""},
		{"up to the pod's limit", 499, 600, 2, 1, ""},
		{"beyond it", 500, 600, 2, 1, QuotaPod},
		{"an HBONE connection beyond it", 497, 600, 2, 4, QuotaPod},
		{"much of what is free", 400, 749, 2, 1, ""},
		{"of the last quarter nothing for who has much", 400, 750, 2, 1, QuotaNode},
		{"of the last quarter up to an equal part", 11, 750, 20, 1, ""},
		{"of the last quarter beyond an equal part", 12, 750, 20, 1, QuotaNode},
		{"an HBONE connection across the line", 200, 748, 20, 4, QuotaNode},
		{"all used", 0, 1000, 20, 1, QuotaNode},
	} {
		if got := admit(l, tc.own, tc.used, tc.pods, tc.n); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

// TestNobodyIsKeptOut has all pods but one take whatever they can get, in any
// order; the one still gets its part of the last quarter.
func TestNobodyIsKeptOut(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 200 {
		l := Limits{Node: 500 + rnd.IntN(5000), Pod: 10 + rnd.IntN(3000)}
		pods := 2 + rnd.IntN(20)
		q := NewQuota(l, nil)
		var shares []*Share
		for range pods {
			shares = append(shares, q.Share())
		}
		for misses := 0; misses < 20*pods; {
			if shares[1+rnd.IntN(pods-1)].Take(1+rnd.IntN(4)) != nil {
				misses++
			}
		}
		fair := min(l.Pod, (l.Node-pods*costPod)/4/pods)
		got := 0
		for shares[0].Take(1) == nil {
			got++
		}
		if got < fair {
			t.Fatalf("limits %+v, %d pods: the last one gets %d, its share is %d", l, pods, got, fair)
		}
		if q.used > l.Node {
			t.Fatalf("%d used of %d", q.used, l.Node)
		}
	}
}

// TestSharesAreGivenBack: what is taken and given leaves nothing behind, and a
// refusal takes nothing.
func TestSharesAreGivenBack(t *testing.T) {
	q := NewQuota(Limits{Node: 100, Pod: 10}, nil)
	s := q.Share()
	for range 10 {
		if err := s.Take(1); err != nil {
			t.Fatal(err)
		}
	}
	var e *Error
	if err := s.Take(1); !errors.As(err, &e) || e.Reason != QuotaPod {
		t.Errorf("an eleventh: %v", err)
	}
	s.Give(4)
	if err := s.Take(4); err != nil {
		t.Error(err)
	}
	s.Close()
	s.Give(10)
	if q.used != 0 || q.pods != 0 || s.used != 0 {
		t.Errorf("left: %d units, %d pods, %d of the pod", q.used, q.pods, s.used)
	}
	var none *Quota
	if s := none.Share(); s.Take(1000) != nil {
		t.Error("no quota refuses")
	} else {
		s.Give(1000)
		s.Close()
	}
}
