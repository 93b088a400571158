package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// Secrets the signing key may come from, in order of precedence.
const (
	PluggedInSecret  = "cacerts"
	SelfSignedSecret = "ambit-ca-secret"
)

// SecretConfig of a CASecret.
type SecretConfig struct {
	Client     kubernetes.Interface
	Namespace  string
	Generate   func() (map[string][]byte, error) // contents of a new self-signed Secret
	Retry      time.Duration                     // between attempts; 0: a second
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// CASecret finds the CA's key in the cluster, makes it when there is none, and
// then watches that it stays as it was.
type CASecret struct {
	cfg     SecretConfig
	present *prometheus.GaugeVec
	// name and data are set by Load and immutable after.
	name string
	data map[string][]byte
}

// NewCASecret has no side effects but registering metrics.
func NewCASecret(cfg SecretConfig) *CASecret {
	if cfg.Retry <= 0 {
		cfg.Retry = time.Second
	}
	s := &CASecret{cfg: cfg, present: prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "ambit_ca_secret_intact",
		Help: "1 while the Secret the signing key was read from is there and unchanged.",
	}, []string{"secret"})}
	cfg.Registerer.MustRegister(s.present)
	return s
}

// Load returns the Secret's <namespace>/<name> and contents. Of several
// replicas that find none, the one whose create succeeds decides for all. It
// tries on until ctx ends: a program that ends because the API server is away
// is started again ever more slowly, and then late.
func (s *CASecret) Load(ctx context.Context) (string, map[string][]byte, error) {
	for logged := ""; ; {
		name, data, err := s.find(ctx)
		if err == nil {
			return name, data, nil
		}
		if text := err.Error(); text != logged {
			logged = text
			s.cfg.Logger.Error("no CA yet, trying on", "error", err)
		}
		if !pause(ctx, s.cfg.Retry) {
			return "", nil, err
		}
	}
}

// find is one attempt of Load.
func (s *CASecret) find(ctx context.Context) (string, map[string][]byte, error) {
	for _, name := range []string{PluggedInSecret, SelfSignedSecret} {
		secret, err := s.get(ctx, name)
		if err != nil {
			return "", nil, err
		}
		if secret != nil {
			return s.loaded(secret)
		}
	}
	if err := s.unused(ctx); err != nil {
		return "", nil, err
	}
	data, err := s.cfg.Generate()
	if err != nil {
		return "", nil, fmt.Errorf("make a self-signed CA: %w", err)
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
		s.cfg.Logger.Info("made a self-signed CA", "secret", s.cfg.Namespace+"/"+SelfSignedSecret)
	}
	if err != nil {
		return "", nil, fmt.Errorf("create Secret %s/%s: %w", s.cfg.Namespace, SelfSignedSecret, err)
	}
	return s.loaded(secret)
}

// unused refuses to begin with a new root while another one is in use: the
// Secret was deleted by mistake then. Replicas that still have the old key and
// this one would sign for meshes that do not trust each other.
func (s *CASecret) unused(ctx context.Context) error {
	root, err := s.cfg.Client.CoreV1().ConfigMaps(s.cfg.Namespace).Get(ctx, RootConfigMap, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("read ConfigMap %s/%s: %w", s.cfg.Namespace, RootConfigMap, err)
	case root.Data[RootKey] == "":
		return nil
	}
	return fmt.Errorf("secret %[1]s/%[2]s is missing, but ConfigMap %[1]s/%[3]s holds a root that is in use: restore the Secret; or, for a new root and an outage until every certificate is renewed, delete the ConfigMap and restart every ztunnel",
		s.cfg.Namespace, SelfSignedSecret, RootConfigMap)
}

// get is nil without an error when there is no such Secret.
func (s *CASecret) get(ctx context.Context, name string) (*corev1.Secret, error) {
	secret, err := s.cfg.Client.CoreV1().Secrets(s.cfg.Namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read Secret %s/%s: %w", s.cfg.Namespace, name, err)
	}
	return secret, nil
}

func (s *CASecret) loaded(secret *corev1.Secret) (string, map[string][]byte, error) {
	s.name, s.data = secret.Name, secret.Data
	s.present.WithLabelValues(s.name).Set(1)
	return secret.Namespace + "/" + secret.Name, secret.Data, nil
}

// Run watches the loaded Secret until ctx ends. Whatever happens to it, the
// key in memory goes on signing: losing it would end the mesh within a day.
func (s *CASecret) Run(ctx context.Context) error {
	f := informers.NewSharedInformerFactoryWithOptions(s.cfg.Client, 0, informers.WithNamespace(s.cfg.Namespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.FieldSelector = "metadata.name=" + s.name }))
	var mu sync.Mutex
	intact := true
	judge := func(now *corev1.Secret) {
		mu.Lock()
		defer mu.Unlock()
		was := intact
		intact = now != nil && maps.EqualFunc(now.Data, s.data, func(a, b []byte) bool { return string(a) == string(b) })
		object := "Secret " + s.cfg.Namespace + "/" + s.name
		switch {
		case intact && !was:
			s.present.WithLabelValues(s.name).Set(1)
			s.cfg.Logger.Info("the CA's Secret is back as it was", "object", object)
		case !intact && was:
			s.present.WithLabelValues(s.name).Set(0)
			s.cfg.Logger.Error("the CA's Secret is gone or changed; signing goes on with the key read at start", "object", object, "gone", now == nil)
		}
	}
	inf := f.Core().V1().Secrets().Informer()
	_, err := inf.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { judge(obj.(*corev1.Secret)) },
		UpdateFunc: func(_, now any) { judge(now.(*corev1.Secret)) },
		DeleteFunc: func(any) { judge(nil) },
	})
	if err != nil {
		return fmt.Errorf("watch Secret %s/%s: %w", s.cfg.Namespace, s.name, err)
	}
	f.Start(ctx.Done())
	defer f.Shutdown()
	if awaitSync(ctx, inf.HasSynced) == nil && len(inf.GetIndexer().ListKeys()) == 0 {
		judge(nil) // it went before the watch began
	}
	<-ctx.Done()
	return nil
}
