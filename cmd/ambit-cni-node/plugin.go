package main

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/ambitmesh/ambit/cni/install"
	"github.com/ambitmesh/ambit/cni/node"
)

// keepPlugin has the plugin in place while there is an agent it can ask, and
// takes it away when no agent will come any more. While Ambit is replaced the
// plugin stays: it makes pods wait for the next agent.
func keepPlugin(ctx context.Context, agent *node.Agent, installer *install.Installer, log *slog.Logger) {
	select {
	case <-agent.Started():
	case <-ctx.Done():
		return
	}
	// An agent that was asked to leave before it began installs nothing.
	if agent.Leaving() == "" {
		watched, stop := context.WithCancel(ctx)
		var wg sync.WaitGroup
		wg.Go(func() {
			select {
			case <-agent.Left():
			case <-watched.Done():
			}
			stop()
		})
		if err := installer.Run(watched); err != nil {
			log.Error("the plugin's installation is not watched", "err", err)
		}
		wg.Wait()
	}
	select {
	case <-agent.Left():
		if removePlugin(ctx, installer, log) {
			agent.SayReleased(ctx)
		}
	case <-ctx.Done():
	}
	<-ctx.Done()
	if agent.Uninstalled() {
		if err := installer.Uninstall(); err != nil {
			log.Error("the plugin is left on this node", "err", err)
			return
		}
		log.Info("Ambit is being uninstalled: the plugin and its entry are gone from this node")
	}
}

// removePlugin tries until it succeeds or ctx ends.
func removePlugin(ctx context.Context, installer *install.Installer, log *slog.Logger) bool {
	for {
		err := installer.Uninstall()
		if err == nil {
			return true
		}
		log.Error("the plugin is not removed yet", "err", err)
		select {
		case <-ctx.Done():
			return false
		case <-time.After(2 * time.Second):
		}
	}
}
