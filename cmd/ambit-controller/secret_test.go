package main

import (
	"context"
	"log/slog"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambitmesh/ambit/controller/ca"
	"github.com/ambitmesh/ambit/controller/kube"
)

// testSecretRace: replicas that all find no CA end up with the same one.
func (l *lab) testSecretRace(t *testing.T) {
	l.namespace(t, "race", nil)
	const replicas = 4
	var wg sync.WaitGroup
	found := make([]map[string][]byte, replicas)
	for i := range found {
		wg.Go(func() {
			s := kube.NewCASecret(kube.SecretConfig{
				Client: l.client, Namespace: "race", Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
				Generate: func() (map[string][]byte, error) {
					a, err := ca.NewSelfSigned("cluster.local", time.Hour)
					if err != nil {
						return nil, err
					}
					return a.SecretData(), nil
				},
			})
			name, data, err := s.Load(t.Context())
			if err != nil || name != "race/"+kube.SelfSignedSecret {
				t.Errorf("replica %d: %q, %v", i, name, err)
			}
			found[i] = data
		})
	}
	wg.Wait()
	for i := range found {
		if !reflect.DeepEqual(found[i], found[0]) {
			t.Errorf("replica %d has another CA than replica 0", i)
		}
	}
}

// testMalformedSecret: a plugged-in CA comes first, and one that cannot be
// used stops the start with the Secret's and the key's name.
func (l *lab) testMalformedSecret(t *testing.T) {
	l.namespace(t, "plugged", nil)
	good, err := ca.NewSelfSigned("cluster.local", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	data := good.SecretData()
	data["ca-key.pem"] = []byte("not a key")
	must(l.client.CoreV1().Secrets("plugged").Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: kube.PluggedInSecret}, Data: data,
	}, metav1.CreateOptions{}))(t)
	cfg := must(parse([]string{"--kubeconfig", l.kubeconfig, "--replica", "x", "--namespace", "plugged", "--address", "127.0.0.1:0", "--monitoring-address", "127.0.0.1:0"},
		func(string) (string, bool) { return "", false }, t.Output()))(t)
	c := must(newController(cfg, slog.New(slog.DiscardHandler)))(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err = c.run(ctx); err == nil || !strings.Contains(err.Error(), "plugged/cacerts") || !strings.Contains(err.Error(), "ca-key.pem") {
		t.Errorf("error %v does not name Secret plugged/cacerts and key ca-key.pem", err)
	}
}
