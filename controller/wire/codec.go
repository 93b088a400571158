package wire

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/ambitmesh/ambit/controller/mesh"
	"github.com/ambitmesh/ambit/controller/wire/securityapi"
	"github.com/ambitmesh/ambit/controller/wire/workloadapi"
)

// Type URLs of the two resource types a node proxy subscribes to.
const (
	TypeAddress       = "type.googleapis.com/istio.workload.Address"
	TypeAuthorization = "type.googleapis.com/istio.security.Authorization"
)

// Deterministic, because versions are hashes of these bytes and two replicas
// must agree on them.
var marshal = proto.MarshalOptions{Deterministic: true}

// MarshalWorkload encodes w as an istio.workload.Address.
func MarshalWorkload(w *mesh.Workload) ([]byte, error) {
	m := &workloadapi.Address{Type: &workloadapi.Address_Workload{Workload: encodeWorkload(w)}}
	b, err := marshal.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("workload %s: %w", w.UID, err)
	}
	return b, nil
}

// MarshalService encodes v as an istio.workload.Address.
func MarshalService(v *mesh.Service) ([]byte, error) {
	m := &workloadapi.Address{Type: &workloadapi.Address_Service{Service: encodeService(v)}}
	b, err := marshal.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("service %s: %w", v.Key(), err)
	}
	return b, nil
}

// MarshalPolicy encodes p as an istio.security.Authorization.
func MarshalPolicy(p *mesh.Policy) ([]byte, error) {
	b, err := marshal.Marshal(encodePolicy(p))
	if err != nil {
		return nil, fmt.Errorf("policy %s: %w", p.Key(), err)
	}
	return b, nil
}

// UnmarshalAddress decodes an istio.workload.Address; exactly one of the
// results is set when there is no error.
func UnmarshalAddress(b []byte) (*mesh.Workload, *mesh.Service, error) {
	var m workloadapi.Address
	if err := proto.Unmarshal(b, &m); err != nil {
		return nil, nil, fmt.Errorf("address of %d bytes: %w", len(b), err)
	}
	switch t := m.Type.(type) {
	case *workloadapi.Address_Workload:
		w, err := decodeWorkload(t.Workload)
		if err != nil {
			return nil, nil, fmt.Errorf("workload %s: %w", t.Workload.GetUid(), err)
		}
		return w, nil, nil
	case *workloadapi.Address_Service:
		v, err := decodeService(t.Service)
		if err != nil {
			return nil, nil, fmt.Errorf("service %s/%s: %w", t.Service.GetNamespace(), t.Service.GetHostname(), err)
		}
		return nil, v, nil
	}
	return nil, nil, errors.New("address: type is neither workload nor service")
}

// UnmarshalPolicy decodes an istio.security.Authorization.
func UnmarshalPolicy(b []byte) (*mesh.Policy, error) {
	var m securityapi.Authorization
	if err := proto.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("authorization of %d bytes: %w", len(b), err)
	}
	p, err := decodePolicy(&m)
	if err != nil {
		return nil, fmt.Errorf("authorization %s/%s: %w", m.GetNamespace(), m.GetName(), err)
	}
	return p, nil
}
