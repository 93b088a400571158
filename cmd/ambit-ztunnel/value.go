package main

import (
	"cmp"
	"fmt"
	"math/bits"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A value is what a setting may be: said for people, and read into a config.
type value struct {
	domain string
	read   func(c *config, v string) error
}

func text(domain string, field func(*config) *string) value {
	return value{domain, func(c *config, v string) error { *field(c) = v; return nil }}
}

// boolean reads true and false, and nothing else.
func boolean(field func(*config) *bool) value {
	return value{"`true`, `false`", func(c *config, v string) error {
		if v != "true" && v != "false" {
			return fmt.Errorf("want true or false")
		}
		*field(c) = v == "true"
		return nil
	}}
}

// tristate tells unset from both.
func tristate(field func(*config) **bool) value {
	return value{"`true`, `false`", func(c *config, v string) error {
		var b bool
		*field(c) = &b
		return boolean(func(*config) *bool { return &b }).read(c, v)
	}}
}

// exactly is a switch that only one word turns on, as the reference has it for some.
func exactly(word string, field func(*config) *bool) value {
	return value{"`" + word + "` turns it on", func(c *config, v string) error { *field(c) = v == word; return nil }}
}

func oneOf(field func(*config) *string, words ...string) value {
	return value{"`" + strings.Join(words, "`, `") + "`", func(c *config, v string) error {
		if !slices.Contains(words, v) {
			return fmt.Errorf("want one of %s", strings.Join(words, ", "))
		}
		*field(c) = v
		return nil
	}}
}

type integer interface {
	~int | ~int32 | ~int64 | ~uint32 | ~uint64
}

func number[T integer](field func(*config) *T, low, high uint64) value {
	domain := fmt.Sprintf("%d to %d", low, high)
	if bits.OnesCount64(high+1) == 1 { // people know powers of two by their exponents
		domain = fmt.Sprintf("%d to 2^%d-1", low, bits.Len64(high))
	}
	return value{domain, func(c *config, v string) error {
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil || n < low || n > high {
			return fmt.Errorf("want a number, %s", domain)
		}
		*field(c) = T(n)
		return nil
	}}
}

func length(field func(*config) *time.Duration, longest time.Duration) value {
	domain := "duration such as `5s`, `10m`, `24h`"
	if longest > 0 {
		domain += ", at most `" + brief(longest) + "`"
	}
	return value{domain, func(c *config, v string) error {
		d, err := time.ParseDuration(v)
		if err != nil || d <= 0 {
			return fmt.Errorf("want a positive duration such as 5s, 10m, 24h")
		}
		if longest > 0 && d > longest {
			return fmt.Errorf("want at most %s", brief(longest))
		}
		*field(c) = d
		return nil
	}}
}

// brief is d without parts that are zero.
func brief(d time.Duration) string {
	s := d.String()
	for _, zero := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(s, zero) {
			s = s[:len(s)-2]
		}
	}
	return s
}

// listen is host:port; a host that may be wider than loopback is said by wide.
func listen(field func(*config) *string, wide bool) value {
	domain := "`host:port`"
	if !wide {
		domain += ", host a loopback address"
	}
	return value{domain, func(c *config, v string) error {
		host, port, err := net.SplitHostPort(v)
		if err != nil {
			return err
		}
		if _, err := strconv.ParseUint(port, 10, 16); err != nil {
			return fmt.Errorf("want a port number, not %q", port)
		}
		if !wide && host != "localhost" && !net.ParseIP(host).IsLoopback() {
			return fmt.Errorf("want a loopback address: the interface has no other protection")
		}
		*field(c) = v
		return nil
	}}
}

func server(field func(*config) *string) value {
	return value{"`https://host:port`, `http://host:port`, `host:port`", func(c *config, v string) error {
		if _, _, err := endpoint(v); err != nil {
			return err
		}
		*field(c) = v
		return nil
	}}
}

// cpus reads a Kubernetes quantity of CPUs: 2, 1.5, 500m; parts count as whole ones.
func cpus(field func(*config) *int) value {
	return value{"CPUs: `2`, `1.5`, `500m`", func(c *config, v string) error {
		number, milli := strings.CutSuffix(v, "m")
		f, err := strconv.ParseFloat(number, 64)
		if milli {
			f /= 1000
		}
		if err != nil || !(f > 0) || f > 1<<16 {
			return fmt.Errorf("want a number of CPUs such as 2, 1.5, 500m")
		}
		n := int(f)
		if float64(n) < f {
			n++
		}
		*field(c) = n
		return nil
	}}
}

// share is a number of something, 0 for all of it, or a percentage.
type share struct {
	set     bool
	n       int
	percent bool
}

// of n things; parts count as whole ones, and there is at least one.
func (s share) of(n int) int {
	switch {
	case s.percent:
		return max(1, (n*s.n+99)/100)
	case s.n == 0:
		return n
	}
	return s.n
}

func shares(field func(*config) *share) value {
	return value{"number, `0` for one for each CPU, or a percentage such as `25%`", func(c *config, v string) error {
		number, percent := strings.CutSuffix(v, "%")
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil || percent && (n == 0 || n > 100) {
			return fmt.Errorf("want a number, or 1%% to 100%%")
		}
		*field(c) = share{true, int(n), percent}
		return nil
	}}
}

// each collects the variables of a prefix into a map.
func each(field func(*config) *map[string]string) func(c *config, suffix, v string) error {
	return func(c *config, suffix, v string) error {
		m := field(c)
		if *m == nil {
			*m = map[string]string{}
		}
		(*m)[suffix] = v
		return nil
	}
}

// workers is how many threads run Go code at once, as the reference counts its
// own: what is set; else concurrency of the ProxyConfig; else what Kubernetes
// gives the container; else a quarter of the machine, but two.
func workers(c *config, host int) int {
	n := cmp.Or(c.CPULimit, c.CPUs, host)
	switch {
	case c.Workers.set:
		return c.Workers.of(n)
	case c.Concurrency.set:
		return c.Concurrency.of(n)
	case c.CPULimit > 0:
		return max(c.CPULimit, c.CPURequest)
	}
	return max(2, c.CPURequest, share{n: 25, percent: true}.of(n))
}
