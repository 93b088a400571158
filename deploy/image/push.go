package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// push sends the archive's index to a registry, with the credentials of the
// user's own container tools.
func push(ctx context.Context, c config) error {
	ref, err := name.ParseReference(c.push)
	if err != nil {
		return fmt.Errorf("push to %q: %w", c.push, err)
	}
	dir, err := os.MkdirTemp(filepath.Dir(c.out), "push-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := unpack(c.out, dir); err != nil {
		return fmt.Errorf("read %s: %w", c.out, err)
	}
	root, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return err
	}
	im, err := root.IndexManifest()
	if err != nil {
		return err
	}
	if len(im.Manifests) != 1 {
		return fmt.Errorf("%s holds %d images, want one", c.out, len(im.Manifests))
	}
	index, err := root.ImageIndex(im.Manifests[0].Digest)
	if err != nil {
		return err
	}
	if err := remote.WriteIndex(ref, index, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain)); err != nil {
		return fmt.Errorf("push to %s: %w", ref, err)
	}
	fmt.Printf("%s@%s\n", ref, im.Manifests[0].Digest)
	return nil
}

// unpack writes the archive's files below dir.
func unpack(archive, dir string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := root.MkdirAll(filepath.Dir(h.Name), 0o755); err != nil {
			return err
		}
		w, err := root.Create(h.Name)
		if err != nil {
			return err
		}
		if _, err := io.Copy(w, r); err != nil {
			w.Close()
			return err
		}
		if err := w.Close(); err != nil {
			return err
		}
	}
}
