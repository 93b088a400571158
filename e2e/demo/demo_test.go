package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestTokensAreUnique(t *testing.T) {
	a, b := token("x"), token("x")
	if a == b || !strings.HasPrefix(a, "x-") || len(a) < 18 {
		t.Errorf("tokens %q, %q", a, b)
	}
}

func TestRecordingIsSearched(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte("\x00\x01GET /before-abc HTTP/1.1"), 0o600); err != nil {
		t.Fatal(err)
	}
	rec := &recording{path: path}
	if err := mustContain(rec, "before-abc"); err != nil {
		t.Error(err)
	}
	if err := mustNotContain(rec, "before-abc"); err == nil {
		t.Error("plaintext went unnoticed")
	}
	if err := mustContain(rec, "after-abc"); err == nil {
		t.Error("found what is not there")
	}
	// A recording that cannot be read proves nothing, neither way.
	gone := &recording{path: path + ".gone"}
	if mustContain(gone, "x") == nil || mustNotContain(gone, "x") == nil {
		t.Error("a missing recording was taken for an empty one")
	}
}

func TestUntilKeepsTheLastError(t *testing.T) {
	want := errors.New("still not")
	if err := until(t.Context(), time.Millisecond, func(context.Context) error { return want }); !errors.Is(err, want) {
		t.Errorf("got %v", err)
	}
	n := 0
	if err := until(t.Context(), time.Minute, func(context.Context) error {
		if n++; n < 2 {
			return want
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

func TestLogLineHasBothIdentities(t *testing.T) {
	line := `src.identity="` + clientID + `" dst.identity="` + serverID + `" direction="inbound"`
	if !bothIdentities(line) || bothIdentities(strings.ReplaceAll(line, clientID, "")) {
		t.Error("identities misread")
	}
}

func TestClientError(t *testing.T) {
	err := errors.New("kubectl exec: exit status 1: testapp: Get \"http://server/x\": EOF\ncommand terminated with exit code 1")
	if got := clientError(err); got != `Get "http://server/x": EOF` {
		t.Errorf("got %q", got)
	}
}

func TestPodsLine(t *testing.T) {
	if got := pods("Ambit is healthy.\n\npods         2 of 2 captured   \n"); !strings.Contains(got, "2 of 2 captured") || strings.Contains(got, "healthy") {
		t.Errorf("got %q", got)
	}
}
