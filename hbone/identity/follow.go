package identity

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"sync/atomic"
	"time"
)

// lookEvery is how often a followed file is looked at. That is a stat of the
// path, through whatever links there are: Kubernetes replaces the directory a
// file of a ConfigMap is in by turning a link, which a watch of the file itself would
// not see, and a watch of the directory may be lost with it.
const lookEvery = time.Second

// File keeps Revocations as a file has them.
type File struct {
	Path        string
	Revocations *Revocations
	Logger      *slog.Logger

	last     file // owned by whoever calls Look
	failures atomic.Uint64
	loaded   atomic.Int64 // unix seconds
}

// Failures counts versions of the file that could not be used, and Loaded is when
// the last good one was read.
func (f *File) Failures() uint64  { return f.failures.Load() }
func (f *File) Loaded() time.Time { return time.Unix(f.loaded.Load(), 0) }

// Run looks every second until ctx ends. Of a file that cannot be read or understood the last good
// lists stay; one that is not there yet is waited for.
func (f *File) Run(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		f.Look()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// file is one version of a file.
type file struct {
	info    fs.FileInfo
	content []byte // nil: it could not be used
	said    bool   // that it is not there
}

func (v file) same(info fs.FileInfo) bool {
	return v.info != nil && os.SameFile(v.info, info) && v.info.ModTime().Equal(info.ModTime()) && v.info.Size() == info.Size()
}

// Look reads the file if it is another version than last time. It is for before
// Run, so that the first connection meets the lists already.
func (f *File) Look() { f.last = f.look(f.last) }

func (f *File) look(last file) file {
	info, err := os.Stat(f.Path)
	if errors.Is(err, fs.ErrNotExist) {
		if !last.said {
			f.Logger.Info("no revocation list yet", "path", f.Path)
		}
		return file{content: last.content, said: true}
	}
	if err != nil || last.same(info) {
		if err != nil && !last.said {
			f.Logger.Error("revocation list", "path", f.Path, "error", err)
		}
		last.said = err != nil
		return last
	}
	now := file{info: info, content: last.content}
	content, err := os.ReadFile(f.Path)
	if err == nil && last.content != nil && bytes.Equal(content, last.content) {
		return now // touched, or another copy of the same
	}
	if err == nil {
		lists, perr := ParseRevocations(content)
		if err = perr; err == nil {
			f.Revocations.Set(lists)
			f.loaded.Store(time.Now().Unix())
			n, certificates := f.Revocations.Len()
			f.Logger.Info("revocation lists read", "path", f.Path, "lists", n, "certificates", certificates, "issuers", f.Revocations.String())
			now.content = append([]byte{}, content...)
			return now
		}
	}
	f.failures.Add(1)
	n, certificates := f.Revocations.Len()
	f.Logger.Error("revocation list cannot be used, the last good one counts", "path", f.Path, "error", err, "lists", n, "certificates", certificates)
	return now
}
