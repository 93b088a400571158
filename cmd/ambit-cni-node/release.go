package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/ambitmesh/ambit/cni/enroll"
	"github.com/ambitmesh/ambit/cni/install"
	"github.com/ambitmesh/ambit/cni/node"
	"github.com/ambitmesh/ambit/cni/redirect"
)

// releaseNode takes Ambit off a node on which no agent runs any more, because
// it was away when Ambit was deleted: the plugin and its entry, then capture of
// every pod that the last agent left captured. Everything is the host's, found
// through its root: no mount of this container is needed.
func releaseNode(o options, installer *install.Installer, log *slog.Logger) error {
	errs := []error{installer.Uninstall()}
	pins := filepath.Join(o.hostRoot, o.pinRoot)
	if _, err := os.Stat(pins); errors.Is(err, os.ErrNotExist) {
		return errors.Join(errs...)
	}
	capture, err := redirect.New(redirect.Options{PinRoot: pins, Clsact: o.clsact, Logger: log.With("part", "capture")})
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	intent := filepath.Join(o.hostRoot, o.node.Intent)
	in, err := enroll.ReadIntent(intent)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		// The pins say which pods; only what is inside their namespaces stays.
		log.Warn("the intent file cannot be read", "path", intent, "err", err)
	}
	for _, p := range in.Pods {
		errs = append(errs, releasePod(o.node.HostRoot, capture, p))
		log.Info("pod released", "pod", p.Namespace+"/"+p.Name, "container", p.ContainerID)
	}
	_, err = capture.Collect(func(string) bool { return false })
	errs = append(errs, err)
	if err := os.Remove(intent); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func releasePod(root node.HostRoot, capture *redirect.Redirector, p enroll.IntendedPod) error {
	ns, err := root.Netns(p.Netns)
	if err != nil {
		return nil // gone, and everything in it
	}
	defer ns.Close()
	if cookie, err := ns.Cookie(); err != nil || cookie != p.Cookie {
		return err // another sandbox has that path now
	}
	if err := capture.Clear(p.ContainerID, ns); err != nil {
		return fmt.Errorf("pod %s/%s: %w", p.Namespace, p.Name, err)
	}
	return nil
}
