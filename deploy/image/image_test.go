package main

import (
	"archive/tar"
	"encoding/json"
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// testIndex assembles two platforms from two small "binaries".
func testIndex(t *testing.T) v1.ImageIndex {
	t.Helper()
	dir := t.TempDir()
	for _, n := range []string{"ambit", "ambit-ztunnel"} {
		if err := os.WriteFile(filepath.Join(dir, n), []byte("binary "+n), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, arch := range []string{"amd64", "arm64"} {
		img, err := assemble(dir, arch, "v1", time.Unix(1000, 0).UTC(), []byte("parts"))
		if err != nil {
			t.Fatal(err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img,
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	return index
}

//ambit:feature security-image
func TestSameInputSameDigest(t *testing.T) {
	a, err := testIndex(t).Digest()
	if err != nil {
		t.Fatal(err)
	}
	b, err := testIndex(t).Digest()
	if err != nil {
		t.Fatal(err)
	}
	if a != b {
		t.Errorf("two builds differ: %s, %s", a, b)
	}
}

func TestArchiveNamesItsImage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sub", "a.tar")
	if err := writeArchive(path, "ambit.local/ambit:dev", testIndex(t)); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err != nil {
			t.Fatal("no index.json in the archive")
		}
		if h.Name != "index.json" {
			continue
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		var im v1.IndexManifest
		if err := json.Unmarshal(b, &im); err != nil {
			t.Fatal(err)
		}
		if got := im.Manifests[0].Annotations["io.containerd.image.name"]; got != "ambit.local/ambit:dev" {
			t.Errorf("name %q", got)
		}
		return
	}
}

func TestPush(t *testing.T) {
	srv := httptest.NewServer(registry.New())
	defer srv.Close()
	path := filepath.Join(t.TempDir(), "a.tar")
	index := testIndex(t)
	if err := writeArchive(path, "ambit.local/ambit:dev", index); err != nil {
		t.Fatal(err)
	}
	to := strings.TrimPrefix(srv.URL, "http://") + "/mesh/ambit:v1"
	if err := push(t.Context(), config{out: path, push: to}); err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(to)
	if err != nil {
		t.Fatal(err)
	}
	got, err := remote.Index(ref)
	if err != nil {
		t.Fatal(err)
	}
	want, _ := index.Digest()
	if d, _ := got.Digest(); d != want {
		t.Errorf("pushed %s, want %s", d, want)
	}
	im, err := got.IndexManifest()
	if err != nil || len(im.Manifests) != 2 {
		t.Fatalf("pushed index %v, %v", im, err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "push-*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestReference(t *testing.T) {
	for in, want := range map[string]string{
		"ambit:dev":              "docker.io/library/ambit:dev",
		"ambit.local/ambit:dev":  "ambit.local/ambit:dev",
		"localhost:5000/a/b:v1":  "localhost:5000/a/b:v1",
		"ambit.local/ambit":      "",
		"Ambit.local/AMBIT:dev":  "",
		"ambit.local/ambit:a:bc": "",
	} {
		got, err := reference(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("reference(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
}

func TestValidateSaysEverything(t *testing.T) {
	err := config{name: "bad name", platforms: []string{"windows/amd64", "linux"}}.validate()
	for _, want := range []string{"-o is empty", "image name", "windows/amd64", `"linux"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not mention %s", err, want)
		}
	}
	if err := (config{out: "x", push: ":dev"}).validate(); err == nil || !strings.Contains(err.Error(), "REPO") {
		t.Errorf("push without a repository: %v", err)
	}
}
