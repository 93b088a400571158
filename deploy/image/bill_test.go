package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// TestBillNamesEveryModule reads what this very program is made of.
//
//ambit:feature security-bill
func TestBillNamesEveryModule(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, n := range []string{"one", "two"} {
		if err := os.Symlink(self, filepath.Join(dir, n)); err != nil {
			t.Fatal(err)
		}
	}
	first, err := bill(dir, "amd64", "v1", time.Unix(1000, 0))
	if err != nil {
		t.Fatal(err)
	}
	again, err := bill(dir, "amd64", "v1", time.Unix(1000, 0))
	if err != nil || string(again) != string(first) {
		t.Errorf("the same binaries give another bill (%v)", err)
	}
	var d document
	if err := json.Unmarshal(first, &d); err != nil {
		t.Fatal(err)
	}
	ids := map[string]material{}
	for _, p := range d.Packages {
		if _, twice := ids[p.ID]; twice {
			t.Errorf("%s twice", p.ID)
		}
		ids[p.ID] = p
	}
	i := slices.IndexFunc(d.Packages, func(p material) bool { return p.Name == "github.com/google/go-containerregistry" })
	if i < 0 || d.Packages[i].Version == "" || d.Packages[i].Comment == "" {
		t.Fatalf("a module is missing, or its version or checksum: %s", first)
	}
	if _, ok := ids["SPDXRef-binary-two"]; !ok || len(ids["SPDXRef-binary-two"].Checksums) != 1 {
		t.Error("a binary is missing, or its checksum")
	}
	for _, r := range d.Relationships {
		if _, ok := ids[r.To]; !ok {
			t.Errorf("%s %s %s, which is not described", r.From, r.Kind, r.To)
		}
	}
	for _, want := range []relationship{
		{"SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-image"}, {"SPDXRef-image", "CONTAINS", "SPDXRef-binary-one"},
		{"SPDXRef-binary-two", "DEPENDS_ON", d.Packages[i].ID},
	} {
		if !slices.Contains(d.Relationships, want) {
			t.Errorf("not said: %v", want)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "stranger"), []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := bill(dir, "amd64", "v1", time.Unix(1000, 0)); err == nil {
		t.Error("something whose parts are not known was passed over")
	}
}
