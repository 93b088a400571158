// Command layers runs every test this machine can run, one layer after the
// other, and ends with what passed, what failed and what was skipped and why.
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
	return summarize(os.Stdout, done), ctx.Err()
}
