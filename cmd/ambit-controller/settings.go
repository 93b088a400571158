package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambitmesh/ambit/controller/translate"
	"github.com/ambitmesh/ambit/hbone/identity"
)

// istioSystem is the root namespace unless another control plane has it.
const istioSystem = "istio-system"

// revisionErrors are what does not fit together about --revision.
func (c *config) revisionErrors() error {
	var errs []error
	named := c.revision != "" && c.revision != "default"
	if c.besideIstio && !named {
		errs = append(errs, errors.New("--beside-istio needs a --revision of our own: without, the objects of the two control planes cannot be told apart"))
	}
	if c.besideIstio && c.istioNames {
		errs = append(errs, errors.New("--beside-istio excludes --istio-names: the names are another's"))
	}
	if c.besideIstio && c.rootNamespace == istioSystem {
		errs = append(errs, errors.New("--beside-istio excludes --root-namespace="+istioSystem+": the settings and policies there are another's"))
	}
	return errors.Join(errs...)
}

// resolveNamespaces fills in the root namespace where nothing was said.
func (c *config) resolveNamespaces() {
	if c.rootNamespace != "" {
		return
	}
	c.rootNamespace = istioSystem
	if c.besideIstio {
		c.rootNamespace = c.namespace
	}
}

// settleTrustDomain decides the trust domain, before anything is signed: the
// command line's, else that of the mesh's settings. It is not changed while the
// controller runs: every identity would change at once.
//
// While nobody can tell, because the API server does not answer or the settings
// cannot be read, it waits. Identities of a wrong trust domain would be refused
// by everybody who has others.
func (c *controller) settleTrustDomain(ctx context.Context) error {
	if c.cfg.trustDomain != "" {
		return nil
	}
	for logged := ""; ; {
		domain, err := c.meshTrustDomain(ctx)
		if err == nil {
			c.cfg.trustDomain = cmp.Or(domain, identity.DefaultTrustDomain)
			return nil
		}
		if logged != err.Error() {
			logged = err.Error()
			c.log.Error("the trust domain cannot be told, waiting; --trust-domain decides without", "error", err)
		}
		timer := time.NewTimer(time.Second)
		select {
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("trust domain: %w", context.Cause(ctx))
		case <-timer.C:
		}
	}
}

func (c *controller) meshTrustDomain(ctx context.Context) (string, error) {
	cm, err := c.client.CoreV1().ConfigMaps(c.cfg.rootNamespace).Get(ctx, translate.MeshConfigMap, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read the mesh's settings: %w", err)
	}
	return translate.MeshTrustDomain(cm)
}
