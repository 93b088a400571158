package kube

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/ambitmesh/ambit/controller/ca"
)

// CRLKey is the key of a root ConfigMap that has the revocation lists. It is there
// once there have been some; empty means that there are none any more.
const CRLKey = "ca-crl.pem"

// followCRL hands on the revocation lists of the Secret cacerts. Of lists that
// cannot be used, and of a Secret that is gone, the last good ones stay: a
// certificate that was revoked must not come back by an accident.
func (r *Rotation) followCRL() {
	secret := get[*corev1.Secret](r.secrets[PluggedInSecret], r.cfg.Namespace+"/"+PluggedInSecret)
	if secret == nil || secret.ResourceVersion == r.crlSeen {
		return
	}
	r.crlSeen = secret.ResourceVersion
	text := secret.Data[ca.KeyCRL]
	if err := ca.CheckCRL(text); err != nil {
		r.cfg.Logger.Error("revocation lists cannot be used, the last good ones count", "secret", r.cfg.Namespace+"/"+PluggedInSecret, "key", ca.KeyCRL, "error", err)
		return
	}
	r.cfg.Ring.SetRevoked(text)
}

// rootData is what the ConfigMap of that name should have and have lacks; nil for
// nothing. Istio's ztunnel mounts the lists from a ConfigMap of their own.
// Without a word about revocation lists, which is no list, those that are there
// stay: the Secret may not have been read yet, or be gone since an earlier run.
func rootData(name string, have map[string]string, bundle string, revoked []byte) map[string]string {
	want := map[string]string{}
	if name != IstioCRLConfigMap && have[RootKey] != bundle {
		want[RootKey] = bundle
	}
	if revoked != nil && have[CRLKey] != string(revoked) {
		want[CRLKey] = string(revoked)
	}
	if len(want) == 0 {
		return nil
	}
	return want
}
