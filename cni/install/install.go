// Package install owns the two things Ambit puts on a node's disk for the
// container runtime: the plugin's binary and our entry in the CNI network
// configuration. Both are wanted state: a pass makes them so, whatever is
// there, and Run repeats the pass when somebody else has changed them.
package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Binary is the plugin's name: of its file and of its type in the chain.
const Binary = "ambit-cni"

// Config is what the installer needs.
type Config struct {
	Source  string // the plugin's binary
	BinDir  string // where the runtime looks for plugins
	ConfDir string // where the runtime looks for network configurations
	Entry   Entry
	Logger  *slog.Logger
}

// Entry is our part of the network configuration, apart from the type.
type Entry struct {
	Socket            string   `json:"socket,omitempty"`
	Intent            string   `json:"intent,omitempty"`
	ExcludeNamespaces []string `json:"excludeNamespaces,omitempty"`
	TimeoutSeconds    int      `json:"timeoutSeconds,omitempty"`
}

// Installer keeps binary and configuration in place.
type Installer struct {
	cfg   Config
	ready atomic.Bool

	// owned by Run
	passes int
	last   string // error last logged
}

// New prepares an installer; it touches nothing.
func New(cfg Config) *Installer { return &Installer{cfg: cfg} }

// Ready says whether the last pass left everything in place.
func (i *Installer) Ready() bool { return i.ready.Load() }

const (
	// settle lets a tool finish a file that it writes in several steps.
	settle = 200 * time.Millisecond
	// again is when a pass is made without a reason: for changes the kernel
	// did not tell of, such as a directory that was replaced.
	again = 30 * time.Second
	// quarrel is how many repairs in a row, less than calm apart, look like
	// another tool that undoes ours.
	quarrel = 5
	calm    = 10 * time.Second
)

// Run installs and repairs until ctx ends. What it installed stays: running
// and future pods need it while the agent is being replaced.
func (i *Installer) Run(ctx context.Context) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch CNI directories: %w", err)
	}
	defer w.Close()
	defer i.ready.Store(false)
	watched := false
	timer := time.NewTimer(0)
	defer timer.Stop()
	var repaired time.Time
	row := 0
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-w.Errors:
			i.cfg.Logger.Warn("CNI directories are watched with gaps", "err", err)
			timer.Reset(settle)
			continue
		case e := <-w.Events:
			if !ours(e.Name) {
				timer.Reset(settle)
			}
			continue
		case <-timer.C:
		}
		if !watched {
			watched = w.Add(i.cfg.ConfDir) == nil && w.Add(i.cfg.BinDir) == nil
		}
		changed := i.pass()
		if changed && i.passes > 1 {
			if row++; time.Since(repaired) > calm {
				row = 1
			}
			repaired = time.Now()
			if row == quarrel {
				i.cfg.Logger.Warn("the CNI configuration is rewritten by another program again and again; with Cilium set cni.exclusive=false", "dir", i.cfg.ConfDir, "repairs", row)
			}
		}
		next := again
		if !i.ready.Load() {
			next = 2 * time.Second
		}
		if row >= quarrel && time.Since(repaired) < calm {
			next = calm // no faster than this, whoever else writes
			timer.Reset(next)
			if !pause(ctx, calm) {
				return nil
			}
		}
		timer.Reset(next)
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// pass makes one pass, logs what it did and reports whether it changed anything.
func (i *Installer) pass() bool {
	i.passes++
	changes, err := i.Install()
	i.ready.Store(err == nil)
	for _, c := range changes {
		if i.passes == 1 {
			i.cfg.Logger.Info("installed", "what", c)
		} else {
			i.cfg.Logger.Warn("repaired after somebody else's change", "what", c)
		}
	}
	switch {
	case err == nil:
		i.last = ""
	case err.Error() != i.last:
		i.last = err.Error()
		i.cfg.Logger.Error("CNI installation is not complete", "err", err)
	}
	return len(changes) > 0
}

// Install makes one pass: binary, then configuration. It returns what it
// changed. A file it cannot read is left alone and named in the error.
func (i *Installer) Install() (changes []string, err error) {
	changed, err := i.installBinary()
	if err != nil {
		return nil, err
	}
	if changed {
		changes = append(changes, filepath.Join(i.cfg.BinDir, Binary))
	}
	path, err := i.installConf()
	if path != "" {
		changes = append(changes, path)
	}
	return changes, err
}

// Uninstall takes our entry out of every configuration and removes the binary.
// What the entry had been added to is as it was before.
func (i *Installer) Uninstall() error {
	names, err := i.list()
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var errs []error
	for _, name := range names {
		path := filepath.Join(i.cfg.ConfDir, name)
		b, mode, err := readFile(path)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if !strings.Contains(string(b), `"`+Binary+`"`) {
			continue
		}
		out, original, err := unchain(b)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("%s: %w", path, err))
		case out == nil:
		case original != "" && original != name && filepath.Base(original) == original:
			// The new file first: without any configuration no pod starts.
			if err := writeFile(filepath.Join(i.cfg.ConfDir, original), out, mode); err != nil {
				errs = append(errs, err)
			} else {
				errs = append(errs, os.Remove(path))
			}
		default:
			errs = append(errs, writeFile(path, out, mode))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err // the binary stays while something may still run it
	}
	if err := os.Remove(filepath.Join(i.cfg.BinDir, Binary)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove plugin: %w", err)
	}
	return nil
}

func (i *Installer) installBinary() (changed bool, err error) {
	want, err := os.ReadFile(i.cfg.Source)
	if err != nil {
		return false, fmt.Errorf("plugin binary: %w", err)
	}
	if err := os.MkdirAll(i.cfg.BinDir, 0o755); err != nil {
		return false, fmt.Errorf("plugin directory: %w", err)
	}
	path := filepath.Join(i.cfg.BinDir, Binary)
	have, mode, err := readFile(path)
	if err == nil && bytes.Equal(have, want) && mode.Perm() == 0o755 {
		return false, nil
	}
	// By rename: a plugin that is running keeps its file, and the runtime
	// never finds half of one.
	return true, writeFile(path, want, 0o755)
}

// installConf chains us into the configuration the runtime uses: the first
// valid one in lexical order. It returns the path it has changed.
func (i *Installer) installConf() (string, error) {
	names, err := i.list()
	if err != nil {
		return "", err
	}
	var broken []error
	for _, name := range names {
		path := filepath.Join(i.cfg.ConfDir, name)
		b, mode, err := readFile(path)
		if err != nil {
			broken = append(broken, err)
			continue
		}
		out, as, err := chain(b, name, i.cfg.Entry)
		if err != nil {
			broken = append(broken, fmt.Errorf("%s: %w", path, err))
			continue
		}
		if as == name && bytes.Equal(out, b) {
			return "", errors.Join(broken...)
		}
		to := filepath.Join(i.cfg.ConfDir, as)
		if err := writeFile(to, out, mode); err != nil {
			return "", errors.Join(append(broken, err)...)
		}
		if as != name {
			if err := os.Remove(path); err != nil {
				return to, errors.Join(append(broken, err)...)
			}
		}
		return to, errors.Join(broken...)
	}
	return "", errors.Join(append(broken, fmt.Errorf("%s: no valid CNI network configuration to be chained into", i.cfg.ConfDir))...)
}

// list returns the configuration files in the runtime's order.
func (i *Installer) list() ([]string, error) {
	entries, err := os.ReadDir(i.cfg.ConfDir)
	if err != nil {
		return nil, fmt.Errorf("CNI configuration: %w", err)
	}
	var names []string
	for _, e := range entries {
		switch filepath.Ext(e.Name()) {
		case ".conf", ".conflist", ".json":
			if !e.IsDir() {
				names = append(names, e.Name())
			}
		}
	}
	slices.Sort(names)
	return names, nil
}

// ours recognises our own temporary files, whose events say nothing.
func ours(path string) bool { return strings.HasPrefix(filepath.Base(path), temporary) }

const temporary = ".ambit-"

func readFile(path string) ([]byte, fs.FileMode, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, 0, err
	}
	b, err := os.ReadFile(path)
	return b, st.Mode(), err
}

// writeFile replaces path as a whole. The temporary name has no extension the
// runtime would read.
func writeFile(path string, b []byte, mode fs.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), temporary+"*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if _, err := f.Write(b); err != nil {
		return err
	}
	if err := f.Chmod(mode.Perm()); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
