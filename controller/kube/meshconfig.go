package kube

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"k8s.io/client-go/tools/cache"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/translate"
)

// scope is what decides whether objects of a namespace are read.
type scope struct {
	looks    bool
	revision string
}

// settle takes in a change of the mesh's settings, and of namespaces that begin
// or cease to be looked at. What was decided before is to be decided again
// then: t.whole says so to expand, and changed gets all policies for judge.
func (t *translator) settle(v *view, changed map[key]struct{}) {
	first := t.scopes == nil
	if first {
		t.scopes = make(map[string]scope)
		t.readMeshConfig(v)
	}
	for k := range changed {
		if k.kind == kindMeshConfig && !first && k.name == translate.MeshConfigMap {
			t.readMeshConfig(v)
		}
	}
	if t.whole { // by other settings
		clear(t.scopes)
		for _, ns := range t.caches.namespaces.GetIndexer().ListKeys() {
			t.scopes[ns] = t.scopeOf(v, ns)
		}
	}
	for k := range changed {
		if k.kind != kindNamespace {
			continue
		}
		before, ok := t.scopes[k.name]
		if !ok { // as of a namespace without labels
			before.looks = k.name == t.cfg.Translate.RootNamespace || t.cfg.Translate.Mesh.Discovers(nil)
		}
		now := t.scopeOf(v, k.name)
		if t.scopes[k.name] = now; v.Namespace(k.name) == nil {
			delete(t.scopes, k.name)
		}
		t.whole = t.whole || now != before && t.holds(k.name)
	}
	if t.whole {
		for _, o := range t.caches.policies.GetIndexer().ListKeys() {
			changed[named2key(kindPolicy, o)] = struct{}{}
		}
		for _, o := range t.caches.peers.GetIndexer().ListKeys() {
			changed[named2key(kindPeer, o)] = struct{}{}
		}
	}
}

// holds reports whether anything has been decided by the scope of a namespace.
// One that comes has nothing yet, one that goes nothing any more.
func (t *translator) holds(namespace string) bool {
	c := t.caches
	for _, inf := range []cache.SharedIndexInformer{
		c.pods, c.services, c.slices, c.policies, c.peers, c.serviceEntries, c.workloadEntries, c.gateways,
	} {
		if keys, err := inf.GetIndexer().IndexKeys(cache.NamespaceIndex, namespace); err != nil || len(keys) > 0 {
			return true
		}
	}
	return false
}

func (t *translator) scopeOf(v *view, namespace string) scope {
	s := scope{looks: t.cfg.Translate.Looks(namespace, v)}
	if ns := v.Namespace(namespace); ns != nil && t.cfg.Translate.Beside { // else nobody asks
		s.revision = ns.Labels[translate.RevisionLabel]
	}
	return s
}

// named2key is the key of a namespaced object's name in its cache.
func named2key(k kind, cached string) key {
	namespace, name, _ := strings.Cut(cached, "/")
	return key{k, namespace, name}
}

// readMeshConfig reads the mesh's settings. Settings that cannot be read leave
// the last good ones in force.
func (t *translator) readMeshConfig(v *view) {
	c := &t.cfg.Translate
	k := key{kindMeshConfig, c.RootNamespace, translate.MeshConfigMap}
	now, report, err := translate.ParseMeshConfig(v.MeshConfig())
	t.report(k, err)
	t.metrics.meshConfig(err == nil, len(report.Unknown), len(report.Ignored))
	if err != nil {
		t.cfg.Logger.Error("the mesh's settings cannot be read, the last good ones stay in force", "configmap", k.namespace+"/"+k.name)
		return
	}
	if !slices.Equal(report.Unknown, t.meshReport.Unknown) || !slices.Equal(report.Ignored, t.meshReport.Ignored) {
		t.meshReport = report
		t.cfg.Logger.Warn("fields of the mesh's settings without effect", "configmap", k.namespace+"/"+k.name,
			"unknown", strings.Join(report.Unknown, " "), "not_of_this_mesh", strings.Join(report.Ignored, " "))
	}
	t.contradicts(k, "trustDomain", now.TrustDomain, c.TrustDomain, "--trust-domain; identities change only when the controller starts with another one")
	t.contradicts(k, "rootNamespace", now.RootNamespace, c.RootNamespace, "--root-namespace, which counts")
	if !reflect.DeepEqual(now, c.Mesh) {
		c.Mesh, t.whole = now, true
		t.cfg.Logger.Info("settings of the mesh", "configmap", k.namespace+"/"+k.name, "registry_only", now.RegistryOnly,
			"trust_domain_aliases", now.TrustDomainAliases, "discovery_selectors", len(now.DiscoverySelectors))
	}
	t.settings = &mesh.Settings{RegistryOnly: now.RegistryOnly, TrustDomainAliases: now.TrustDomainAliases}
}

// unreadable says why the mesh's settings cannot be read; nil if they can, or if
// there are none. It may be asked before run.
func (t *translator) unreadable() error {
	_, report, err := translate.ParseMeshConfig(newView(t.caches, &t.good, &t.cfg.Translate).MeshConfig())
	t.metrics.meshConfig(err == nil, len(report.Unknown), len(report.Ignored))
	return err
}

// awaitSettings waits until the mesh's settings can be read. A controller that has
// just started has no last good ones, and the defaults are looser than what
// somebody may have wanted: nothing is served instead, data planes keep what they
// have.
func (c *Controller) awaitSettings(ctx context.Context, unreadable func() error) error {
	logged := ""
	for {
		err := unreadable()
		if err == nil {
			return nil
		}
		if text := err.Error(); text != logged {
			logged = text
			c.cfg.Logger.Error("the mesh's settings cannot be read and there are no earlier ones, waiting", "error", strings.ReplaceAll(text, "\n", "; "))
		}
		if !pause(ctx, time.Second) {
			return fmt.Errorf("settings of the mesh: %w", context.Cause(ctx))
		}
	}
}

// contradicts says that a setting is not what the command line says.
func (t *translator) contradicts(k key, field, want, have, flag string) {
	if want != "" && want != have {
		t.cfg.Logger.Warn("the mesh's settings say otherwise than the command line", "configmap", k.namespace+"/"+k.name,
			"field", field, "value", want, "in_force", have, "flag", flag)
	}
}
