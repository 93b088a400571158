package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/tools/cache"
)

// typed is an informer for objects of Istio's API that are decoded one by one.
// Its own clients decode a list as a whole: one object with a field that the
// schema admits and the Go type does not (port "007", a status by somebody else)
// would hide all others of its kind for as long as it exists, and anybody who
// may write one could keep a controller from starting.
func typed[T any](f dynamicinformer.DynamicSharedInformerFactory, resource schema.GroupVersionResource, log *slog.Logger) (cache.SharedIndexInformer, error) {
	inf := f.ForResource(resource).Informer()
	return inf, inf.SetTransform(decoding[T](log))
}

func decoding[T any](log *slog.Logger) cache.TransformFunc {
	return func(obj any) (any, error) {
		u, ok := obj.(*unstructured.Unstructured)
		if !ok { // a tombstone: what it holds has been here before
			return obj, nil
		}
		o, err := decode[T](u.Object)
		if err != nil {
			log.Warn("object cannot be read whole", "kind", u.GetKind(), "object", u.GetNamespace()+"/"+u.GetName(), "error", err)
		}
		if o == nil { // nothing that came over the wire
			return nil, err
		}
		return trim(o)
	}
}

// decode makes a T of an object. What stands in the way of the rest is left out:
// first the status, which is no part of what is wanted, then what is known not
// to decode. Without any of its spec a policy allows nobody. The last resort is
// what the object is: a list with one that is refused would never be taken in.
func decode[T any](object map[string]any) (*T, error) {
	var errs []error
	for _, mend := range []func(map[string]any){nil, dropStatus, plainPorts, dropSpec, bareMetadata} {
		if mend != nil {
			mend(object)
		}
		text, err := json.Marshal(object)
		if err != nil {
			return nil, err // no JSON came over the wire
		}
		o := new(T)
		if err = json.Unmarshal(text, o); err == nil {
			return o, errors.Join(errs...)
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

func dropStatus(object map[string]any) { delete(object, "status") }

func dropSpec(object map[string]any) { delete(object, "spec") }

// bareMetadata keeps of the metadata what names an object, and the labels that
// say whose it is.
func bareMetadata(object map[string]any) {
	all, _ := object["metadata"].(map[string]any)
	bare := make(map[string]any)
	for _, k := range []string{"name", "namespace", "uid", "resourceVersion"} {
		if text, ok := all[k].(string); ok {
			bare[k] = text
		}
	}
	labels := make(map[string]any)
	set, _ := all["labels"].(map[string]any)
	for k, v := range set {
		if text, ok := v.(string); ok {
			labels[k] = text
		}
	}
	bare["labels"] = labels
	object["metadata"] = bare
}

// plainPorts writes the ports of a PeerAuthentication as numbers are written:
// the schema's rule takes "007" and "+80" too. Of several that are one port the
// plain one counts, else the first: every replica has to read the same.
func plainPorts(object map[string]any) {
	spec, _ := object["spec"].(map[string]any)
	ports, _ := spec["portLevelMtls"].(map[string]any)
	for _, k := range slices.Sorted(maps.Keys(ports)) {
		mode := ports[k]
		n, err := strconv.ParseInt(k, 10, 64)
		plain := fmt.Sprint(n)
		switch {
		case err != nil:
			delete(ports, k)
		case plain != k:
			delete(ports, k)
			if _, twice := ports[plain]; !twice {
				ports[plain] = mode
			}
		}
	}
}
