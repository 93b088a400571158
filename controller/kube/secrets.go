package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/ambitmesh/ambit/controller/ca"
	"github.com/ambitmesh/ambit/controller/ca/rotation"
)

// Secrets in which somebody says which key is wanted; the first has precedence.
// What is in force is in rotation.StateSecret.
const (
	PluggedInSecret  = "cacerts"
	SelfSignedSecret = "ambit-ca-secret"
)

// SecretConfig of a CASecrets.
type SecretConfig struct {
	Client    kubernetes.Interface
	Namespace string
	Generate  func() (map[string][]byte, error) // contents of a new self-signed Secret
	TTL       time.Duration                     // longest life of what is signed
	Retry     time.Duration                     // between attempts; 0: a second
	Logger    *slog.Logger
}

// CASecrets finds the CA's key in the cluster, and makes it when there is none.
type CASecrets struct{ cfg SecretConfig }

// NewCASecrets has no side effects.
func NewCASecrets(cfg SecretConfig) *CASecrets {
	if cfg.Retry <= 0 {
		cfg.Retry = time.Second
	}
	if cfg.TTL <= 0 || cfg.TTL > ca.MaxTTL {
		cfg.TTL = ca.MaxTTL
	}
	return &CASecrets{cfg}
}

// Load returns what is in force. Of several replicas that find nothing, the one
// whose create succeeds decides for all. It tries on until ctx ends: a program
// that ends because the API server is away, or a Secret cannot be used, is
// started again ever more slowly, and then late.
func (s *CASecrets) Load(ctx context.Context) (*ca.Record, error) {
	for logged := ""; ; {
		r, err := s.find(ctx)
		if err == nil {
			return r, nil
		}
		if text := err.Error(); text != logged {
			logged = text
			s.cfg.Logger.Error("no CA yet, trying on", "error", err)
		}
		if !pause(ctx, s.cfg.Retry) {
			return nil, err
		}
	}
}

// find is one attempt of Load.
func (s *CASecrets) find(ctx context.Context) (*ca.Record, error) {
	state, err := s.get(ctx, rotation.StateSecret)
	if err != nil {
		return nil, err
	}
	if state != nil {
		r, err := ca.LoadRecord(s.name(rotation.StateSecret), state.Data)
		if !errors.Is(err, ca.ErrExpired) {
			return r, err
		}
		// Nothing works any more with what was in force: what is wanted is.
	}
	wanted, err := s.wanted(ctx)
	if err != nil {
		return nil, err
	}
	if state != nil {
		state.Data = wanted
		_, err = s.cfg.Client.CoreV1().Secrets(s.cfg.Namespace).Update(ctx, state, metav1.UpdateOptions{FieldManager: fieldManager})
	} else {
		_, err = s.cfg.Client.CoreV1().Secrets(s.cfg.Namespace).Create(ctx, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: rotation.StateSecret, Namespace: s.cfg.Namespace}, Type: "ambitmesh.io/ca-state", Data: wanted,
		}, metav1.CreateOptions{FieldManager: fieldManager})
	}
	if err != nil && !apierrors.IsAlreadyExists(err) && !apierrors.IsConflict(err) {
		return nil, fmt.Errorf("write Secret %s: %w", s.name(rotation.StateSecret), err)
	}
	if state, err = s.get(ctx, rotation.StateSecret); err == nil && state == nil {
		err = fmt.Errorf("secret %s: deleted while it was being created", s.name(rotation.StateSecret))
	}
	if err != nil {
		return nil, err
	}
	return ca.LoadRecord(s.name(rotation.StateSecret), state.Data)
}

// wanted is the content of a state Secret in which the wanted signer is in
// force.
func (s *CASecrets) wanted(ctx context.Context) (map[string][]byte, error) {
	for _, name := range []string{PluggedInSecret, SelfSignedSecret} {
		secret, err := s.get(ctx, name)
		if err != nil {
			return nil, err
		}
		if secret != nil {
			return s.inForce(secret)
		}
	}
	if err := s.unused(ctx); err != nil {
		return nil, err
	}
	data, err := s.cfg.Generate()
	if err != nil {
		return nil, fmt.Errorf("make a self-signed CA: %w", err)
	}
	secret, err := s.cfg.Client.CoreV1().Secrets(s.cfg.Namespace).Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: SelfSignedSecret, Namespace: s.cfg.Namespace},
		Type:       "istio.io/ca-root",
		Data:       data,
	}, metav1.CreateOptions{FieldManager: fieldManager})
	if apierrors.IsAlreadyExists(err) {
		secret, err = s.get(ctx, SelfSignedSecret)
		if err == nil && secret == nil {
			err = errors.New("deleted while it was being created")
		}
	} else if err == nil {
		s.cfg.Logger.Info("made a self-signed CA", "secret", s.name(SelfSignedSecret))
	}
	if err != nil {
		return nil, fmt.Errorf("create Secret %s: %w", s.name(SelfSignedSecret), err)
	}
	return s.inForce(secret)
}

func (s *CASecrets) inForce(secret *corev1.Secret) (map[string][]byte, error) {
	a, err := ca.Load(s.name(secret.Name), secret.Data)
	if err != nil {
		return nil, err
	}
	r := &ca.Record{Source: secret.Name, Signer: a, Longest: s.cfg.TTL}
	return r.SecretData()
}

// unused refuses to begin with a new root while another one is in use: the
// Secrets were deleted by mistake then.
func (s *CASecrets) unused(ctx context.Context) error {
	root, err := s.cfg.Client.CoreV1().ConfigMaps(s.cfg.Namespace).Get(ctx, RootConfigMap, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("read ConfigMap %s/%s: %w", s.cfg.Namespace, RootConfigMap, err)
	case root.Data[RootKey] == "":
		return nil
	}
	return fmt.Errorf("secrets %[1]s/%[2]s and %[1]s/%[4]s are missing, but ConfigMap %[1]s/%[3]s holds a root that is in use: restore one of the Secrets; or, for a new root and an outage until every certificate is renewed, delete the ConfigMap and restart every ztunnel",
		s.cfg.Namespace, SelfSignedSecret, RootConfigMap, rotation.StateSecret)
}

// get is nil without an error when there is no such Secret.
func (s *CASecrets) get(ctx context.Context, name string) (*corev1.Secret, error) {
	secret, err := s.cfg.Client.CoreV1().Secrets(s.cfg.Namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read Secret %s: %w", s.name(name), err)
	}
	return secret, nil
}

func (s *CASecrets) name(secret string) string { return s.cfg.Namespace + "/" + secret }
