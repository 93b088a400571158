package redirect

import (
	"errors"
	"testing"

	"github.com/vishvananda/netlink"
)

// TestInterruptedListing: what was listed while something changed is listed
// again, but not for ever.
func TestInterruptedListing(t *testing.T) {
	calls := 0
	after := func(n int, err error) func() ([]int, error) {
		calls = 0
		return func() ([]int, error) {
			if calls++; calls <= n {
				return []int{1}, netlink.ErrDumpInterrupted
			}
			return []int{1, 2}, err
		}
	}
	if got, err := whole(after(3, nil)); len(got) != 2 || err != nil || calls != 4 {
		t.Errorf("%v, %v after %d calls", got, err, calls)
	}
	if _, err := whole(after(1, errors.ErrUnsupported)); !errors.Is(err, errors.ErrUnsupported) || calls != 2 {
		t.Errorf("%v after %d calls", err, calls)
	}
	if _, err := whole(after(1000, nil)); !errors.Is(err, netlink.ErrDumpInterrupted) {
		t.Errorf("%v after %d calls", err, calls)
	}
}
