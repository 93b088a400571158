package kubelab

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// manyArchitectures makes a layout as image tools do: one name on a nested
// index, a foreign architecture last. Its layers are those of the app image.
func manyArchitectures(t testing.TB, name string) string {
	t.Helper()
	files := map[string][]byte{"oci-layout": []byte(layoutFile)}
	put := func(mediaType string, b []byte) descriptor {
		d := describe(mediaType, b)
		files[blobPath(d.Digest)] = b
		return d
	}
	app := []byte("no program")
	if b, err := os.ReadFile(filepath.Join(cache(), "testapp")); err == nil {
		app = b
	}
	one := func(arch string, program []byte) descriptor {
		var layer bytes.Buffer
		tw := tar.NewWriter(&layer)
		if err := errors.Join(tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "testapp", Mode: 0o755, Size: int64(len(program))}), write(tw, program), tw.Close()); err != nil {
			t.Fatal(err)
		}
		l := put(typeLayer, layer.Bytes())
		config, err := json.Marshal(map[string]any{"architecture": arch, "os": "linux",
			"config": map[string]any{"Entrypoint": []string{"/testapp"}, "Env": []string{"PATH=/"}},
			"rootfs": map[string]any{"type": "layers", "diff_ids": []string{l.Digest}}})
		if err != nil {
			t.Fatal(err)
		}
		man, err := json.Marshal(manifest{SchemaVersion: 2, MediaType: typeManifest, Config: put(typeConfig, config), Layers: []descriptor{l}})
		if err != nil {
			t.Fatal(err)
		}
		d := put(typeManifest, man)
		d.Platform = &platform{Architecture: arch, OS: "linux"}
		return d
	}
	nested, err := json.Marshal(index{SchemaVersion: 2, MediaType: typeIndex, Manifests: []descriptor{one(runtime.GOARCH, app), one("s390x", []byte("foreign"))}})
	if err != nil {
		t.Fatal(err)
	}
	d := put(typeIndex, nested)
	d.Annotations = map[string]string{imageNameAnnotation: name}
	top, err := json.Marshal(index{SchemaVersion: 2, Manifests: []descriptor{d}})
	if err != nil {
		t.Fatal(err)
	}
	files["index.json"] = top
	path := filepath.Join(t.TempDir(), "many.tar")
	if err := os.WriteFile(path, tarOf(t, files), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func tarOf(t testing.TB, files map[string][]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for n, c := range files {
		if err := errors.Join(tw.WriteHeader(fileHeader(n, int64(len(c)))), write(tw, c)); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestForPlatformReduces(t *testing.T) {
	f, err := os.Open(manyArchitectures(t, "example/many:1"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := forPlatform(f)
	if err != nil {
		t.Fatal(err)
	}
	reduced, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(reduced, []byte("foreign")) {
		t.Error("the foreign architecture's layer is still there")
	}
	l, ok, err := openLayout(bytes.NewReader(reduced), int64(len(reduced)))
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	var idx index
	if err := l.json("index.json", &idx); err != nil {
		t.Fatal(err)
	}
	if len(idx.Manifests) != 1 || idx.Manifests[0].Annotations[imageNameAnnotation] != "example/many:1" {
		t.Errorf("index %+v", idx)
	}
	for path, s := range l.blobs {
		digest, isBlob := strings.CutPrefix(path, "blobs/sha256/")
		if !isBlob {
			continue
		}
		b, err := io.ReadAll(io.NewSectionReader(s, 0, s.Size()))
		if err != nil {
			t.Fatal(err)
		}
		if got := describe("", b).Digest; got != "sha256:"+digest {
			t.Errorf("%s holds %s: offsets are wrong", path, got)
		}
	}
	if got := len(l.blobs); got != 5 { // layout, index, manifest, config, layer
		t.Errorf("%d files", got)
	}
}

func TestForPlatformRefuses(t *testing.T) {
	foreign, _ := json.Marshal(index{Manifests: []descriptor{{MediaType: typeManifest, Digest: "sha256:00", Platform: &platform{Architecture: "s390x", OS: "linux"}, Annotations: map[string]string{imageNameAnnotation: "x"}}}})
	unnamed, _ := json.Marshal(index{Manifests: []descriptor{{MediaType: typeManifest, Digest: "sha256:00"}}})
	dangling, _ := json.Marshal(index{Manifests: []descriptor{{MediaType: typeManifest, Digest: "sha256:00", Annotations: map[string]string{imageNameAnnotation: "x"}}}})
	for name, tc := range map[string]struct{ index, want string }{
		"foreign":  {string(foreign), "no image for linux/"},
		"unnamed":  {string(unnamed), "no annotation"},
		"dangling": {string(dangling), "is missing"},
		"garbage":  {"{", "index.json"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "x.tar")
			if err := os.WriteFile(path, tarOf(t, map[string][]byte{"index.json": []byte(tc.index)}), 0o644); err != nil {
				t.Fatal(err)
			}
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := forPlatform(f); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
}

func FuzzLayout(f *testing.F) {
	path := manyArchitectures(f, "example/many:1")
	if b, err := os.ReadFile(path); err == nil && len(b) < 1<<20 {
		f.Add(b)
	}
	f.Add(tarOf(f, map[string][]byte{"index.json": []byte(`{"manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"sha256:aa"}]}`), "blobs/sha256/aa": []byte(`{"manifests":[{}]}`)}))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, ok, err := openLayout(bytes.NewReader(b), int64(len(b)))
		if err != nil || !ok {
			return
		}
		var idx index
		if l.json("index.json", &idx) != nil {
			return
		}
		ds, err := l.manifests(idx.Manifests, "", 0)
		if err != nil {
			return
		}
		for _, d := range ds {
			if d.Annotations[imageNameAnnotation] == "" {
				t.Error("a manifest without a name")
			}
		}
	})
}

func TestWriteImageIsReadable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "i.tar")
	if err := writeImage(path, "a/b:1", []string{"/bin/x"}, []imageFile{{Path: "bin/x", Mode: 0o755, Data: []byte("x")}, {Path: "bin/y", Link: "x"}}); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := forPlatform(f); err != nil {
		t.Error(err)
	}
}

// countPackets walks a pcap file and fails on one that is cut short.
func countPackets(t *testing.T, b []byte) int {
	t.Helper()
	if len(b) < 24 || binary.LittleEndian.Uint32(b) != 0xa1b2c3d4 || binary.LittleEndian.Uint32(b[20:]) != 1 {
		t.Fatal("no pcap file of Ethernet frames")
	}
	n := 0
	for b = b[24:]; len(b) > 0; n++ {
		if len(b) < 16 || len(b) < 16+int(binary.LittleEndian.Uint32(b[8:])) {
			t.Fatalf("packet %d is cut short", n)
		}
		b = b[16+binary.LittleEndian.Uint32(b[8:]):]
	}
	return n
}

func TestWritePacket(t *testing.T) {
	var b bytes.Buffer
	b.Write(slices.Concat([]byte{0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0}, make([]byte, 8), []byte{0, 0, 4, 0, 1, 0, 0, 0}))
	for _, p := range []string{"", "a", strings.Repeat("x", 70000)} {
		if err := writePacket(&b, []byte(p), len(p)+1); err != nil {
			t.Fatal(err)
		}
	}
	if got := countPackets(t, b.Bytes()); got != 3 {
		t.Errorf("%d packets", got)
	}
}
