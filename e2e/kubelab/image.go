package kubelab

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// An image is an OCI layout in a tar: oci-layout, index.json and blobs. The
// name containerd gives it is an annotation of the index entry.
const (
	imageNameAnnotation = "io.containerd.image.name"
	typeIndex           = "application/vnd.oci.image.index.v1+json"
	typeManifest        = "application/vnd.oci.image.manifest.v1+json"
	typeConfig          = "application/vnd.oci.image.config.v1+json"
	typeLayer           = "application/vnd.oci.image.layer.v1.tar"
)

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Platform    *platform         `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

type index struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType,omitempty"`
	Manifests     []descriptor `json:"manifests"`
}

type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        descriptor   `json:"config"`
	Layers        []descriptor `json:"layers"`
}

// imageFile is one file of an image's only layer; Link makes it a symbolic link.
type imageFile struct {
	Path string
	Mode int64
	Data []byte
	Link string
}

// writeImage makes an image of this machine's architecture.
func writeImage(path, name string, entrypoint []string, files []imageFile) error {
	var layer bytes.Buffer
	tw := tar.NewWriter(&layer)
	for _, d := range []struct {
		name string
		mode int64
	}{{"bin/", 0o755}, {"etc/", 0o755}, {"usr/", 0o755}, {"usr/bin/", 0o755}, {"proc/", 0o755}, {"sys/", 0o755}, {"dev/", 0o755}, {"run/", 0o755}, {"var/", 0o755}, {"tmp/", 0o1777}} {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d.name, Mode: d.mode}); err != nil {
			return err
		}
	}
	for _, f := range files {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: f.Path, Mode: f.Mode, Size: int64(len(f.Data))}
		if f.Link != "" {
			h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.Link, 0o777
		}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		if _, err := tw.Write(f.Data); err != nil {
			return err
		}
	}
	if err := tw.Close(); err != nil {
		return err
	}
	here := &platform{Architecture: runtime.GOARCH, OS: "linux"}
	layerDesc := describe(typeLayer, layer.Bytes())
	config, err := json.Marshal(map[string]any{
		"architecture": here.Architecture, "os": here.OS,
		"config": map[string]any{"Entrypoint": entrypoint, "Env": []string{"PATH=/bin:/usr/bin"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{layerDesc.Digest}},
	})
	if err != nil {
		return err
	}
	man, err := json.Marshal(manifest{SchemaVersion: 2, MediaType: typeManifest, Config: describe(typeConfig, config), Layers: []descriptor{layerDesc}})
	if err != nil {
		return err
	}
	d := describe(typeManifest, man)
	d.Platform = here
	d.Annotations = map[string]string{imageNameAnnotation: name}
	idx, err := json.Marshal(index{SchemaVersion: 2, MediaType: typeIndex, Manifests: []descriptor{d}})
	if err != nil {
		return err
	}
	out, err := os.Create(path + ".new")
	if err != nil {
		return err
	}
	ow := tar.NewWriter(out)
	for _, f := range []imageFile{
		{Path: "oci-layout", Data: []byte(layoutFile)},
		{Path: "index.json", Data: idx},
		{Path: blobPath(d.Digest), Data: man},
		{Path: blobPath(describe("", config).Digest), Data: config},
		{Path: blobPath(layerDesc.Digest), Data: layer.Bytes()},
	} {
		if err := errors.Join(ow.WriteHeader(fileHeader(f.Path, int64(len(f.Data)))), write(ow, f.Data)); err != nil {
			return errors.Join(err, out.Close())
		}
	}
	if err := errors.Join(ow.Close(), out.Close()); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

const layoutFile = `{"imageLayoutVersion":"1.0.0"}`

func describe(mediaType string, b []byte) descriptor {
	return descriptor{MediaType: mediaType, Digest: fmt.Sprintf("sha256:%x", sha256.Sum256(b)), Size: int64(len(b))}
}

func blobPath(digest string) string { return "blobs/" + strings.Replace(digest, ":", "/", 1) }

func fileHeader(name string, size int64) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size}
}

func write(w io.Writer, b []byte) error { _, err := w.Write(b); return err }

// layout is an OCI layout tar opened for random access.
type layout struct {
	file  io.ReaderAt
	blobs map[string]*io.SectionReader // by path in the tar
}

// openLayout indexes the tar; ok is false when it is no OCI layout.
func openLayout(f io.ReaderAt, size int64) (l *layout, ok bool, err error) {
	l = &layout{file: f, blobs: map[string]*io.SectionReader{}}
	r := &countingReader{r: io.NewSectionReader(f, 0, size)}
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, false, fmt.Errorf("read tar: %w", err)
		}
		if h.Typeflag == tar.TypeReg {
			l.blobs[filepath.Clean(h.Name)] = io.NewSectionReader(f, r.n, h.Size)
		}
	}
	_, ok = l.blobs["index.json"]
	return l, ok, nil
}

// countingReader hides Seek, so that archive/tar reads through what it skips and
// n is the offset of a file's content right after its header.
type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += int64(n)
	return n, err
}

func (l *layout) json(path string, v any) error {
	s, ok := l.blobs[path]
	if !ok {
		return fmt.Errorf("%s is missing", path)
	}
	if s.Size() > 4<<20 {
		return fmt.Errorf("%s is %d bytes long", path, s.Size())
	}
	b, err := io.ReadAll(io.NewSectionReader(s, 0, s.Size()))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// manifests walks the index, nested ones included, and returns what fits this
// machine. An entry without a platform fits; a name is inherited from above.
func (l *layout) manifests(ds []descriptor, name string, depth int) ([]descriptor, error) {
	if depth > 3 {
		return nil, errors.New("indexes are nested too deep")
	}
	var out []descriptor
	for _, d := range ds {
		n := name
		if own := d.Annotations[imageNameAnnotation]; own != "" {
			n = own
		}
		if strings.HasSuffix(d.MediaType, "image.index.v1+json") || strings.HasSuffix(d.MediaType, "manifest.list.v2+json") {
			var idx index
			if err := l.json(blobPath(d.Digest), &idx); err != nil {
				return nil, err
			}
			more, err := l.manifests(idx.Manifests, n, depth+1)
			if err != nil {
				return nil, err
			}
			out = append(out, more...)
			continue
		}
		if d.Platform != nil && (d.Platform.Architecture != runtime.GOARCH || d.Platform.OS != "linux") {
			continue
		}
		if n == "" {
			return nil, fmt.Errorf("%s has no annotation %s: it would get no name", d.Digest, imageNameAnnotation)
		}
		d.Annotations = map[string]string{imageNameAnnotation: n}
		out = append(out, d)
	}
	return out, nil
}

// forPlatform reduces an OCI layout tar of many architectures to this machine's:
// containerd would take the last manifest of a name, whatever its platform, and
// half the bytes are never used. Other image archives pass as they are.
func forPlatform(f *os.File) (io.Reader, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	l, ok, err := openLayout(f, st.Size())
	if err != nil {
		return nil, err
	}
	if !ok {
		return f, nil
	}
	var idx index
	if err := l.json("index.json", &idx); err != nil {
		return nil, err
	}
	keep, err := l.manifests(idx.Manifests, "", 0)
	if err != nil {
		return nil, err
	}
	if len(keep) == 0 {
		return nil, fmt.Errorf("no image for linux/%s in it", runtime.GOARCH)
	}
	paths := map[string]bool{}
	for _, d := range keep {
		var m manifest
		if err := l.json(blobPath(d.Digest), &m); err != nil {
			return nil, err
		}
		for _, b := range append([]descriptor{d, m.Config}, m.Layers...) {
			if _, ok := l.blobs[blobPath(b.Digest)]; !ok {
				return nil, fmt.Errorf("%s is missing", blobPath(b.Digest))
			}
			paths[blobPath(b.Digest)] = true
		}
	}
	newIndex, err := json.Marshal(index{SchemaVersion: 2, MediaType: typeIndex, Manifests: keep})
	if err != nil {
		return nil, err
	}
	var parts []io.Reader
	add := func(name string, size int64, content io.Reader) error {
		var head bytes.Buffer
		if err := tar.NewWriter(&head).WriteHeader(fileHeader(name, size)); err != nil {
			return err
		}
		pad := make([]byte, (512-size%512)%512)
		parts = append(parts, &head, content, bytes.NewReader(pad))
		return nil
	}
	if err := errors.Join(
		add("oci-layout", int64(len(layoutFile)), strings.NewReader(layoutFile)),
		add("index.json", int64(len(newIndex)), bytes.NewReader(newIndex)),
	); err != nil {
		return nil, err
	}
	for p := range paths {
		s := l.blobs[p]
		if err := add(p, s.Size(), io.NewSectionReader(s, 0, s.Size())); err != nil {
			return nil, err
		}
	}
	parts = append(parts, bytes.NewReader(make([]byte, 1024)))
	return io.MultiReader(parts...), nil
}
