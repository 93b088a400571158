package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	gatewayclient "sigs.k8s.io/gateway-api/pkg/client/clientset/versioned"

	istioclient "istio.io/client-go/pkg/clientset/versioned"

	"github.com/ambitmesh/ambit/controller/translate"
)

// Names of what the controller writes.
const (
	LeaseName          = "ambit-controller-leader"
	RootConfigMap      = "ambit-ca-root-cert"
	IstioRootConfigMap = "istio-ca-root-cert"
	IstioCRLConfigMap  = "istio-ca-crl" // revocation lists alone, where there are any
	RootKey            = "root-cert.pem"
)

// Config of a Controller.
type Config struct {
	Client    kubernetes.Interface
	Istio     istioclient.Interface
	Gateway   gatewayclient.Interface
	Dynamic   dynamic.Interface // reads Istio's types, which its own clients read all or none of
	Translate translate.Config
	Enrolment translate.Enrolment

	Namespace string // where the Lease is
	Replica   string // this replica's name on the Lease
	// AllocateFrom is where hosts of ServiceEntries get addresses from, one of
	// each; none: they get none.
	AllocateFrom []netip.Prefix
	// Untaint is the key of a taint that comes off nodes whose node agent is
	// ready; "": none does.
	Untaint    string
	Roots      Roots    // trust anchors for the ConfigMaps
	ConfigMaps []string // names of the ConfigMaps that carry them and the revocation lists
	// Leading is run for as long as this replica holds the Lease; it returns
	// when the term ends. nil: nothing.
	Leading func(term context.Context)

	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Roots is where the trust anchors come from.
type Roots interface {
	Bundle() (pem []byte, hash string)
	// Revoked are revocation lists in PEM, for the same ConfigMaps: empty for
	// none, nil as long as nobody knows.
	Revoked() []byte
	// Changed is closed at the next change; call it before Bundle.
	Changed() <-chan struct{}
}

// Validate reports all problems at once.
func (c *Config) Validate() error {
	var errs []error
	need := func(ok bool, what string) {
		if !ok {
			errs = append(errs, errors.New(what))
		}
	}
	need(c.Client != nil && c.Istio != nil && c.Gateway != nil && c.Dynamic != nil, "API clients are missing")
	need(c.Translate.ClusterID != "", "cluster id is empty")
	need(c.Translate.ClusterDomain != "", "cluster domain is empty")
	need(c.Translate.TrustDomain != "", "trust domain is empty")
	need(c.Translate.RootNamespace != "", "root namespace is empty")
	need(c.Namespace != "", "own namespace is empty")
	need(c.Replica != "", "replica name is empty")
	need(c.Roots != nil, "root certificates are missing")
	need(c.Logger != nil && c.Registerer != nil, "logger or metrics registry is missing")
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("controller configuration: %w", err)
	}
	return nil
}
