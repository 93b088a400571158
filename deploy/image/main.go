// Command image builds the one OCI image of Ambit, from scratch and the same
// to the byte wherever it is built, and pushes it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
)

type config struct {
	out       string
	name      string
	version   string
	platforms []string
	push      string
}

func (c config) validate() error {
	var errs []error
	if c.out == "" {
		errs = append(errs, errors.New("-o is empty: where should the archive go?"))
	}
	if c.push != "" {
		if strings.HasPrefix(c.push, ":") {
			errs = append(errs, errors.New("REPO is empty: make push REPO=registry.example.com/mesh/ambit TAG=v0.1.0"))
		}
		return errors.Join(errs...)
	}
	if _, err := reference(c.name); err != nil {
		errs = append(errs, err)
	}
	for _, p := range c.platforms {
		if os, arch, ok := strings.Cut(p, "/"); !ok || os != "linux" || arch == "" {
			errs = append(errs, fmt.Errorf("platform %q: want linux/<architecture>", p))
		}
	}
	return errors.Join(errs...)
}

func main() {
	var c config
	var platforms string
	flag.StringVar(&c.out, "o", "out/image/ambit.tar", "the archive, an OCI layout in a tar")
	flag.StringVar(&c.name, "name", "ambit.local/ambit:dev", "name and tag written into the archive")
	flag.StringVar(&c.version, "version", "unknown", "version the binaries report")
	flag.StringVar(&platforms, "platforms", "linux/amd64,linux/arm64", "comma-separated platforms")
	flag.StringVar(&c.push, "push", "", "push the archive to this name instead of building")
	flag.Parse()
	c.platforms = strings.Split(platforms, ",")

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	err := c.validate()
	if err == nil {
		if c.push != "" {
			err = push(ctx, c)
		} else {
			err = build(ctx, c)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}
