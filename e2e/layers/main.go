// Command layers runs every test this machine can run, one layer after the
// other, and ends with what passed, what failed, what was skipped and why, and
// which rows of docs/features.md and docs/threat-model.md that leaves unproven.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/ambitmesh/ambit/e2e/claims"
)

func main() {
	var only string
	flag.StringVar(&only, "only", "", "comma-separated layers (default: all): "+strings.Join(names(), ", "))
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ok, err := run(ctx, only)
	if err != nil {
		fmt.Fprintln(os.Stderr, "layers:", err)
		os.Exit(2)
	}
	if !ok {
		os.Exit(1)
	}
}

// run runs the layers and prints the closing lines.
func run(ctx context.Context, only string) (bool, error) {
	wanted, err := choose(only)
	if err != nil {
		return false, err
	}
	var done []result
	for _, l := range wanted {
		r := result{layer: l.name}
		if why := l.cannot(); why != "" {
			r.left = why
			fmt.Printf("--- %s: left out: %s\n", l.name, why)
		} else {
			fmt.Printf("--- %s: %s\n", l.name, l.what)
			begin := time.Now()
			if err := l.run(ctx, &r.tally); err != nil {
				return false, fmt.Errorf("layer %s: %w", l.name, err)
			}
			r.took = time.Since(begin)
		}
		done = append(done, r)
	}
	rows, err := claims.Read(".")
	if err != nil {
		return false, err
	}
	passed := summarize(os.Stdout, done)
	proven := prove(os.Stdout, rows, done, only != "", os.Getenv("CI") == "true")
	if passed && proven {
		fmt.Println("PASS")
	} else {
		fmt.Println("FAIL")
	}
	return passed && proven, ctx.Err()
}
