package kubelab

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"sync/atomic"
	"time"
)

// versionFlags stamp the components. Without them they answer
// v0.0.0-master+$Format, and clients that compare versions fail.
const versionFlags = "-s -w" +
	" -X k8s.io/component-base/version.gitVersion=" + Version +
	" -X k8s.io/component-base/version.gitMajor=1" +
	" -X k8s.io/component-base/version.gitMinor=36" +
	" -X k8s.io/component-base/version.gitTreeState=clean" +
	" -X k8s.io/client-go/pkg/version.gitVersion=" + Version

// Build compiles the components and the images into cache, where they are kept
// until their sources change. source is this module's folder. What happens is
// told to out, a line at a time.
func Build(ctx context.Context, source, cache string, out io.Writer) error {
	if err := os.MkdirAll(filepath.Join(cache, "images"), 0o755); err != nil {
		return err
	}
	lock, err := lockFile(filepath.Join(cache, "lock"))
	if err != nil {
		return err
	}
	defer lock.Close()
	began := time.Now()
	stamp, err := sourceHash(source, "go.mod", "go.sum", "cmd/kube", "cmd/coredns")
	if err != nil {
		return err
	}
	stampFile := filepath.Join(cache, "stamp")
	if have, _ := os.ReadFile(stampFile); string(have) != stamp {
		fmt.Fprintf(out, "building Kubernetes %s and CoreDNS into %s (about 5 minutes the first time, on two cores)\n", Version, cache)
		for _, name := range []string{"kube", "coredns"} {
			if err := compile(ctx, source, cache, name, out, began); err != nil {
				return err
			}
		}
		if err := os.WriteFile(stampFile, []byte(stamp), 0o644); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(out, "Kubernetes %s is up to date in %s\n", Version, cache)
	}
	if err := compile(ctx, source, cache, "testapp", out, began); err != nil {
		return err
	}
	if err := images(cache); err != nil {
		return err
	}
	fmt.Fprintf(out, "done in %v\n", time.Since(began).Round(time.Second))
	return nil
}

func compile(ctx context.Context, source, cache, name string, out io.Writer, began time.Time) error {
	env := append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=-mod=readonly -buildvcs=false")
	list := exec.CommandContext(ctx, "go", "list", "-deps", "./cmd/"+name)
	list.Dir, list.Env = source, env
	deps, err := list.Output()
	if err != nil {
		return fmt.Errorf("list packages of %s: %w", name, err)
	}
	total := bytes.Count(deps, []byte("\n"))
	// -trimpath always: with and without it are two sets of cache entries.
	cmd := exec.CommandContext(ctx, "go", "build", "-v", "-trimpath", "-ldflags", versionFlags,
		"-o", filepath.Join(cache, name+".new"), "./cmd/"+name)
	cmd.Dir, cmd.Env = source, env
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	var compiled atomic.Int64
	var tail []string
	read := make(chan struct{})
	go func() {
		defer close(read)
		for s := bufio.NewScanner(stderr); s.Scan(); {
			compiled.Add(1)
			tail = append(tail[max(0, len(tail)-19):], s.Text())
		}
	}()
	tell := time.NewTicker(10 * time.Second)
	defer tell.Stop()
	for done := false; !done; {
		select {
		case <-read:
			done = true
		case <-tell.C:
			fmt.Fprintf(out, "  %s: %d packages compiled, %d in all counting those of the cache; %v elapsed\n",
				name, compiled.Load(), total, time.Since(began).Round(time.Second))
		}
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", name, err, strings.Join(tail, "\n"))
	}
	return os.Rename(filepath.Join(cache, name+".new"), filepath.Join(cache, name))
}

func images(cache string) error {
	app, err := os.ReadFile(filepath.Join(cache, "testapp"))
	if err != nil {
		return err
	}
	dns, err := os.ReadFile(filepath.Join(cache, "coredns"))
	if err != nil {
		return err
	}
	base := []imageFile{
		{Path: "etc/passwd", Mode: 0o644, Data: []byte("root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")},
		{Path: "etc/group", Mode: 0o644, Data: []byte("root:x:0:\nnobody:x:65534:\n")},
		{Path: "etc/nsswitch.conf", Mode: 0o644, Data: []byte("hosts: files dns\n")},
	}
	appFiles := append(base, imageFile{Path: "bin/testapp", Mode: 0o755, Data: app})
	// busybox gives the image a shell and the usual tools; its names are links.
	busybox, err := os.ReadFile("/usr/bin/busybox")
	switch {
	case err == nil:
		appFiles = append(appFiles, imageFile{Path: "bin/busybox", Mode: 0o755, Data: busybox})
		for _, l := range []string{"sh", "ls", "cat", "sleep", "wget", "nc", "nslookup", "ip", "ps", "env", "ping", "grep", "head", "tail", "date", "touch", "rm", "id", "hostname", "netstat", "vi", "sed", "awk", "printf", "test", "kill", "true", "false", "mkdir", "echo", "traceroute", "dd", "cut", "wc", "seq", "timeout"} {
			appFiles = append(appFiles, imageFile{Path: "bin/" + l, Link: "busybox"})
		}
	case !errors.Is(err, os.ErrNotExist):
		return err
	}
	at := func(n string) string { return filepath.Join(cache, "images", n) }
	return errors.Join(
		writeImage(at("pause.tar"), "kubelab.local/pause:1", []string{"/bin/testapp", "pause"}, append(base, imageFile{Path: "bin/testapp", Mode: 0o755, Data: app})),
		writeImage(at("app.tar"), "kubelab.local/app:1", []string{"/bin/testapp"}, appFiles),
		writeImage(at("coredns.tar"), "kubelab.local/coredns:1", []string{"/bin/coredns"}, append(base, imageFile{Path: "bin/coredns", Mode: 0o755, Data: dns})),
	)
}

// sourceHash covers files and the Go files of folders, by name and content.
func sourceHash(dir string, names ...string) (string, error) {
	h := sha256.New()
	for _, n := range names {
		files := []string{n}
		if st, err := os.Stat(filepath.Join(dir, n)); err != nil {
			return "", err
		} else if st.IsDir() {
			found, err := filepath.Glob(filepath.Join(dir, n, "*.go"))
			if err != nil {
				return "", err
			}
			files = files[:0]
			for _, f := range found {
				files = append(files, filepath.Join(n, filepath.Base(f)))
			}
			sort.Strings(files)
		}
		for _, f := range files {
			b, err := os.ReadFile(filepath.Join(dir, f))
			if err != nil {
				return "", err
			}
			fmt.Fprintf(h, "%s %d\n", f, len(b))
			h.Write(b)
		}
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}
