package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// binDir is where every binary is, in every image.
const binDir = "usr/local/bin/"

// reference is the full name containerd knows an image by.
func reference(s string) (string, error) {
	r, err := name.NewTag(s, name.WeakValidation)
	if err != nil {
		return "", fmt.Errorf("image name %q: %w", s, err)
	}
	// Without a tag it would be "latest", which makes every kubelet pull.
	if !strings.HasSuffix(s, ":"+r.TagStr()) {
		return "", fmt.Errorf("image name %q: no tag", s)
	}
	// The library spells Docker's registry the way its API is addressed,
	// containerd and the kubelet the way users write it.
	return strings.Replace(r.Name(), "index.docker.io/", "docker.io/", 1), nil
}

// build compiles all binaries for every platform and writes the archive.
func build(ctx context.Context, c config) error {
	ref, err := reference(c.name)
	if err != nil {
		return err
	}
	created, err := commitTime(ctx)
	if err != nil {
		return err
	}
	var adds []mutate.IndexAddendum
	for _, p := range c.platforms {
		arch := strings.TrimPrefix(p, "linux/")
		dir := filepath.Join(filepath.Dir(c.out), "bin", arch)
		if err := compile(ctx, c, arch, dir); err != nil {
			return err
		}
		parts, err := bill(dir, arch, c.version, created)
		if err != nil {
			return fmt.Errorf("bill of materials for %s: %w", p, err)
		}
		if err := os.WriteFile(strings.TrimSuffix(c.out, ".tar")+"-"+arch+".spdx.json", parts, 0o644); err != nil {
			return err
		}
		img, err := assemble(dir, arch, c.version, created, parts)
		if err != nil {
			return fmt.Errorf("image for %s: %w", p, err)
		}
		adds = append(adds, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{
			MediaType: types.OCIManifestSchema1,
			Platform:  &v1.Platform{OS: "linux", Architecture: arch},
		}})
	}
	index := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex), adds...)
	if err := writeArchive(c.out, ref, index); err != nil {
		return fmt.Errorf("write %s: %w", c.out, err)
	}
	digest, err := index.Digest()
	if err != nil {
		return err
	}
	fmt.Printf("%s\n%s@%s\n", c.out, ref, digest)
	return nil
}

// commitTime dates the image by the commit it is built from, so that building
// it again gives the same bytes. A tree without history gets the epoch.
func commitTime(ctx context.Context) (time.Time, error) {
	out, err := exec.CommandContext(ctx, "git", "log", "-1", "--format=%ct").Output()
	if err != nil {
		return time.Unix(0, 0).UTC(), nil
	}
	sec, err := strconv.ParseInt(string(bytes.TrimSpace(out)), 10, 64)
	return time.Unix(sec, 0).UTC(), err
}

func compile(ctx context.Context, c config, arch, dir string) error {
	// A binary of a program that has since been removed must not be shipped.
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false",
		"-ldflags", "-s -w -buildid= -X main.version="+c.version+" -X main.release="+c.version, "-o", dir+"/", "./cmd/...")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("compile for linux/%s: %w", arch, err)
	}
	return nil
}

// assemble makes one image: a layer with the few files a program expects, then
// one layer for each binary, so that a release that changes one binary is
// pulled as that binary alone, and last what they are made of.
func assemble(dir, arch, version string, created time.Time, parts []byte) (v1.Image, error) {
	base, err := layer(
		file{"etc/", 0o755, nil},
		file{"etc/group", 0o644, []byte("root:x:0:\nambit:x:65532:\n")},
		file{"etc/passwd", 0o644, []byte("root:x:0:0:root:/:/sbin/nologin\nambit:x:65532:65532:ambit:/:/sbin/nologin\n")},
		file{"tmp/", 0o1777, nil},
	)
	if err != nil {
		return nil, err
	}
	adds := []mutate.Addendum{addendum(base, "files", created)}
	bins, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, b := range bins {
		data, err := os.ReadFile(filepath.Join(dir, b.Name()))
		if err != nil {
			return nil, err
		}
		l, err := layer(file{"usr/", 0o755, nil}, file{"usr/local/", 0o755, nil}, file{binDir, 0o755, nil},
			file{binDir + b.Name(), 0o755, data})
		if err != nil {
			return nil, err
		}
		adds = append(adds, addendum(l, b.Name(), created))
	}
	l, err := layer(file{"usr/", 0o755, nil}, file{"usr/share/", 0o755, nil}, file{"usr/share/ambit/", 0o755, nil},
		file{billPath, 0o644, parts})
	if err != nil {
		return nil, err
	}
	adds = append(adds, addendum(l, "bill of materials", created))
	img, err := mutate.Append(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON), adds...)
	if err != nil {
		return nil, err
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = "linux", arch
	cf.Created = v1.Time{Time: created}
	cf.Config = v1.Config{
		Entrypoint: []string{"/" + binDir + "ambit"},
		Env:        []string{"PATH=/" + strings.TrimSuffix(binDir, "/")},
		WorkingDir: "/",
		Labels: map[string]string{
			"org.opencontainers.image.title":    "ambit",
			"org.opencontainers.image.version":  version,
			"org.opencontainers.image.licenses": "Apache-2.0",
		},
	}
	return mutate.ConfigFile(img, cf)
}

func addendum(l v1.Layer, what string, created time.Time) mutate.Addendum {
	return mutate.Addendum{Layer: l, MediaType: types.OCILayer,
		History: v1.History{CreatedBy: what, Created: v1.Time{Time: created}}}
}

// file is one entry of a layer; a name that ends in / is a folder.
type file struct {
	name string
	mode int64
	data []byte
}

// layer packs files with no owner, time or order of their own.
func layer(files ...file) (v1.Layer, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.data)), Typeflag: tar.TypeReg, Format: tar.FormatPAX}
		if strings.HasSuffix(f.name, "/") {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(buf.Bytes())), nil
	}, tarball.WithCompressedCaching)
}

// writeArchive writes an OCI layout as a tar: what `ctr images import` reads.
func writeArchive(path, ref string, index v1.ImageIndex) error {
	blobs := map[string][]byte{}
	manifest, err := index.RawManifest()
	if err != nil {
		return err
	}
	digest, err := index.Digest()
	if err != nil {
		return err
	}
	blobs[digest.Hex] = manifest
	im, err := index.IndexManifest()
	if err != nil {
		return err
	}
	for _, d := range im.Manifests {
		img, err := index.Image(d.Digest)
		if err != nil {
			return err
		}
		if err := collect(img, blobs); err != nil {
			return err
		}
	}
	// containerd takes the image's name from its own annotation; other tools
	// read the standard one, which holds the tag alone.
	root, err := json.Marshal(v1.IndexManifest{
		SchemaVersion: 2,
		MediaType:     types.OCIImageIndex,
		Manifests: []v1.Descriptor{{
			MediaType: types.OCIImageIndex, Digest: digest, Size: int64(len(manifest)),
			Annotations: map[string]string{
				"io.containerd.image.name":          ref,
				"org.opencontainers.image.ref.name": ref[strings.LastIndex(ref, ":")+1:],
			},
		}},
	})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w := tar.NewWriter(f)
	put := func(name string, data []byte) error {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data)), Typeflag: tar.TypeReg, Format: tar.FormatPAX}); err != nil {
			return err
		}
		_, err := w.Write(data)
		return err
	}
	if err := put("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return err
	}
	if err := put("index.json", root); err != nil {
		return err
	}
	for _, hex := range slices.Sorted(maps.Keys(blobs)) {
		if err := put("blobs/sha256/"+hex, blobs[hex]); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	return f.Close()
}

// collect adds everything an image refers to.
func collect(img v1.Image, blobs map[string][]byte) error {
	manifest, err := img.RawManifest()
	if err != nil {
		return err
	}
	digest, err := img.Digest()
	if err != nil {
		return err
	}
	blobs[digest.Hex] = manifest
	cf, err := img.RawConfigFile()
	if err != nil {
		return err
	}
	if digest, err = img.ConfigName(); err != nil {
		return err
	}
	blobs[digest.Hex] = cf
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	for _, l := range layers {
		digest, err := l.Digest()
		if err != nil {
			return err
		}
		r, err := l.Compressed()
		if err != nil {
			return err
		}
		data, err := io.ReadAll(r)
		r.Close()
		if err != nil {
			return err
		}
		blobs[digest.Hex] = data
	}
	return nil
}
