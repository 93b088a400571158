package kube

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"maps"
	"math/big"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/ambitmesh/ambit/controller/ca"
)

// What is written into the ConfigMaps that ztunnels mount.
//
//ambit:feature certificates-crl-distributed
func TestRootData(t *testing.T) {
	none := []byte{}
	for _, c := range []struct {
		name    string
		of      string // ConfigMap; "" the roots'
		have    map[string]string
		revoked []byte
		want    map[string]string
	}{
		{"all there", "", map[string]string{RootKey: "roots"}, none, nil},
		{"no roots", "", map[string]string{}, none, map[string]string{RootKey: "roots"}},
		{"no ConfigMap", "", nil, []byte("list"), map[string]string{RootKey: "roots", CRLKey: "list"}},
		{"other roots", "", map[string]string{RootKey: "old", CRLKey: "list"}, []byte("list"), map[string]string{RootKey: "roots"}},
		{"the first list", "", map[string]string{RootKey: "roots"}, []byte("list"), map[string]string{CRLKey: "list"}},
		{"another list", "", map[string]string{RootKey: "roots", CRLKey: "old"}, []byte("list"), map[string]string{CRLKey: "list"}},
		{"the last list taken away", "", map[string]string{RootKey: "roots", CRLKey: "old"}, none, map[string]string{CRLKey: ""}},
		{"none any more", "", map[string]string{RootKey: "roots", CRLKey: ""}, none, nil},
		{"not known yet", "", map[string]string{RootKey: "roots", CRLKey: "old"}, nil, nil},
		{"not known, other roots", "", map[string]string{RootKey: "old", CRLKey: "old"}, nil, map[string]string{RootKey: "roots"}},
		{"Istio's, lists", IstioCRLConfigMap, nil, []byte("list"), map[string]string{CRLKey: "list"}},
		{"Istio's, no lists", IstioCRLConfigMap, nil, none, nil},
		{"Istio's, the last list taken away", IstioCRLConfigMap, map[string]string{CRLKey: "old"}, none, map[string]string{CRLKey: ""}},
		{"Istio's, not known yet", IstioCRLConfigMap, map[string]string{CRLKey: "old"}, nil, nil},
	} {
		if got := rootData(c.of, c.have, "roots", c.revoked); !maps.Equal(got, c.want) || (got == nil) != (c.want == nil) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// The lists of the Secret become the ring's, unless they are no good.
//
//ambit:feature certificates-crl-distributed
func TestFollowCRL(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	issuer := &x509.Certificate{KeyUsage: x509.KeyUsageCRLSign, SubjectKeyId: []byte{1}}
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)}, issuer, key)
	if err != nil {
		t.Fatal(err)
	}
	list := pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
	inf := cache.NewSharedIndexInformer(&cache.ListWatch{}, &corev1.Secret{}, 0, cache.Indexers{})
	var log bytes.Buffer
	ring := ca.NewKeyring(0)
	r := &Rotation{cfg: RotationConfig{Namespace: "ns", Ring: ring, Logger: slog.New(slog.NewTextHandler(&log, nil))},
		secrets: map[string]cache.SharedIndexInformer{PluggedInSecret: inf}}
	version := 0
	put := func(data []byte) {
		t.Helper()
		version++
		s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: PluggedInSecret, ResourceVersion: strings.Repeat("x", version)}}
		if data != nil {
			s.Data = map[string][]byte{ca.KeyCRL: data}
		}
		if err := inf.GetIndexer().Add(s); err != nil {
			t.Fatal(err)
		}
		r.followCRL()
	}
	if r.followCRL(); ring.Revoked() != nil {
		t.Error("without the Secret, known to be none")
	}
	if put(list[:len(list)/2]); ring.Revoked() != nil {
		t.Error("with lists that cannot be read, known to be none")
	}
	changed := ring.Changed()
	put(list)
	if !bytes.Equal(ring.Revoked(), list) {
		t.Fatal("not taken up")
	}
	select {
	case <-changed:
	default:
		t.Error("nobody is told")
	}
	for _, bad := range [][]byte{[]byte("words"), list[:len(list)/2], bytes.Repeat(list, 1+(1<<20)/len(list)), der} {
		if put(bad); !bytes.Equal(ring.Revoked(), list) {
			t.Errorf("%.20q was taken up", bad)
		}
	}
	if n := strings.Count(log.String(), "cannot be used"); n != 5 {
		t.Errorf("said %d times:\n%s", n, &log)
	}
	if err := inf.GetIndexer().Delete(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: PluggedInSecret}}); err != nil {
		t.Fatal(err)
	}
	if r.followCRL(); !bytes.Equal(ring.Revoked(), list) {
		t.Error("lost with the Secret")
	}
	if put(nil); ring.Revoked() == nil || len(ring.Revoked()) != 0 {
		t.Error("not taken back")
	}
}
