package identity

import (
	"context"
	"crypto/fips140"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// The child of TestFIPSMode.
func TestMain(m *testing.M) {
	if os.Getenv("TEST_FIPS_CHILD") != "" {
		if err := FIPS140.Approve(os.Environ()); err != nil {
			fmt.Println(err)
		}
		fmt.Println("fips", fips140.Enabled(), os.Getenv("GODEBUG"))
		return
	}
	os.Exit(m.Run())
}

// A process that is asked to keep to FIPS 140 starts itself again in the module's
// FIPS mode, once.
//
//ambit:feature certificates-compliance
func TestFIPSMode(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "GODEBUG=") }),
		"TEST_FIPS_CHILD=1", "GODEBUG=madvdontneed=1")
	out, err := cmd.CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "fips true madvdontneed=1,fips140=on" {
		t.Errorf("child: %v %s", err, out)
	}
	if got := fipsEnviron([]string{"A=1"}); !slices.Equal(got, []string{"GODEBUG=fips140=on", "A=1"}) {
		t.Errorf("environment %v", got)
	}
}
