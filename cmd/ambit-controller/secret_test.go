package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

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
			s := kube.NewCASecrets(kube.SecretConfig{
				Client: l.client, Namespace: "race", Logger: slog.New(slog.DiscardHandler),
				Generate: func() (map[string][]byte, error) {
					a, err := ca.NewSelfSigned("cluster.local", time.Hour)
					if err != nil {
						return nil, err
					}
					return a.SecretData(), nil
				},
			})
			r, err := s.Load(t.Context())
			if err != nil || r.Source != kube.SelfSignedSecret {
				t.Errorf("replica %d: %+v, %v", i, r, err)
				return
			}
			found[i] = r.Signer.SecretData()
		})
	}
	wg.Wait()
	for i := range found {
		if !reflect.DeepEqual(found[i], found[0]) {
			t.Errorf("replica %d has another CA than replica 0", i)
		}
	}
}

// testMalformedSecret: a plugged-in CA comes first; one that cannot be used is
// named, with its key, and taken up when it is mended.
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
	var log logBuffer
	c := must(newController(cfg, slog.New(slog.NewTextHandler(&log, nil))))(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("controller: %v", err)
		}
	}()
	eventually(t, func() error {
		if text := log.String(); !strings.Contains(text, "plugged/cacerts") || !strings.Contains(text, "ca-key.pem") {
			return fmt.Errorf("the log does not name Secret plugged/cacerts and key ca-key.pem: %s", text)
		}
		return nil
	})
	must(l.client.CoreV1().Secrets("plugged").Update(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: kube.PluggedInSecret}, Data: good.SecretData(),
	}, metav1.UpdateOptions{}))(t)
	eventually(t, func() error {
		if text := log.String(); !strings.Contains(text, "certificates are signed with") {
			return errors.New("the mended Secret is not taken up")
		}
		return nil
	})
}
