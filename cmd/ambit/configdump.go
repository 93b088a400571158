package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// configDump is what a ztunnel answers to /config_dump. Only what is shown or
// filtered by is read; everything else passes to -o json as it came.
type configDump struct {
	Workloads     items[dumpWorkload]            `json:"workloads"`
	Services      items[dumpService]             `json:"services"`
	Policies      items[dumpPolicy]              `json:"policies"`
	Certificates  items[dumpCertificate]         `json:"certificates"`
	WorkloadState map[string]item[dumpConnected] `json:"workloadState"`
}

type dumpGateway struct {
	Destination string `json:"destination"`
}

type dumpWorkload struct {
	UID            string       `json:"uid"`
	Name           string       `json:"name"`
	Namespace      string       `json:"namespace"`
	TrustDomain    string       `json:"trustDomain"`
	ServiceAccount string       `json:"serviceAccount"`
	Addresses      []string     `json:"workloadIps"`
	Node           string       `json:"node"`
	Waypoint       *dumpGateway `json:"waypoint"`
	Protocol       string       `json:"protocol"`
	Policies       []string     `json:"authorizationPolicies"`
}

type dumpEndpoint struct {
	WorkloadUID string `json:"workloadUid"`
	Status      string `json:"status"`
}

type dumpCIDR struct {
	CIDR string `json:"cidr"`
}

type dumpService struct {
	Name      string                  `json:"name"`
	Namespace string                  `json:"namespace"`
	Hostname  string                  `json:"hostname"`
	VIPs      []string                `json:"vips"`
	CIDRVIPs  []dumpCIDR              `json:"cidrVips"`
	Waypoint  *dumpGateway            `json:"waypoint"`
	Endpoints map[string]dumpEndpoint `json:"endpoints"`
}

type dumpPolicy struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
	Scope     string `json:"scope"`
	Action    string `json:"action"`
}

type dumpCert struct {
	SerialNumber   string `json:"serialNumber"`
	ValidFrom      string `json:"validFrom"`
	ExpirationTime string `json:"expirationTime"`
}

type dumpCertificate struct {
	Identity  string     `json:"identity"`
	State     string     `json:"state"`
	CertChain []dumpCert `json:"certChain"`
	RootCerts []dumpCert `json:"rootCerts"`
}

type dumpConnection struct {
	Src         string `json:"src"`
	OriginalDst string `json:"originalDst"`
	ActualDst   string `json:"actualDst"`
	Protocol    string `json:"protocol"`
}

type dumpConnected struct {
	Connections struct {
		Inbound  []dumpConnection `json:"inbound"`
		Outbound []dumpConnection `json:"outbound"`
	} `json:"connections"`
	Info struct {
		Name      string `json:"name"`
		Namespace string `json:"namespace"`
	} `json:"info"`
}

// item is one object of a dump and the JSON it came as.
type item[T any] struct {
	is  T
	raw json.RawMessage
}

func (i *item[T]) UnmarshalJSON(b []byte) error {
	i.raw = bytes.Clone(b)
	return json.Unmarshal(b, &i.is)
}

func (i item[T]) MarshalJSON() ([]byte, error) { return i.raw, nil }

// items are objects in an array, or in a map as older ztunnels had them.
type items[T any] []item[T]

func (l *items[T]) UnmarshalJSON(b []byte) error {
	if !bytes.HasPrefix(bytes.TrimSpace(b), []byte("{")) {
		return json.Unmarshal(b, (*[]item[T])(l))
	}
	var m map[string]item[T]
	if err := json.Unmarshal(b, &m); err != nil {
		return err
	}
	for _, key := range slices.Sorted(maps.Keys(m)) {
		*l = append(*l, m[key])
	}
	return nil
}

// keep is the objects for which ok holds; never nil, so that JSON has an array.
func (l items[T]) keep(ok func(*T) bool) items[T] {
	out := items[T]{}
	for i := range l {
		if ok(&l[i].is) {
			out = append(out, l[i])
		}
	}
	return out
}

func parseDump(b []byte) (*configDump, error) {
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(b, &keys); err != nil {
		return nil, fmt.Errorf("not a config_dump of ztunnel: %w", err)
	}
	if keys["workloads"] == nil || keys["services"] == nil {
		return nil, errors.New("not a config_dump of ztunnel: it has no workloads and services")
	}
	d := &configDump{}
	if err := json.Unmarshal(b, d); err != nil {
		return nil, fmt.Errorf("not a config_dump of ztunnel: %w", err)
	}
	return d, nil
}

// podName is a pod in the mesh.
type podName struct{ namespace, name string }

// dumpFilter is what is asked of a dump; empty fields ask nothing.
type dumpFilter struct {
	pod                podName // only what concerns it
	address            string
	workloadNamespace  string
	workloadNode       string
	serviceNamespace   string
	policyNamespace    string
	direction          string
	workload, svc, pol string // by name
}

// knows reports whether pod is in the dump; nothing asked for always is.
func (d *configDump) knows(pod podName) bool {
	if (pod == podName{}) {
		return true
	}
	for i := range d.Workloads {
		if w := &d.Workloads[i].is; (podName{w.Namespace, w.Name}) == pod {
			return true
		}
	}
	for _, s := range d.WorkloadState {
		if (podName{s.is.Info.Namespace, s.is.Info.Name}) == pod {
			return true
		}
	}
	return false
}

func asked(want, have string) bool { return want == "" || want == have }

// filter is the part of a dump that f asks for. What concerns one pod is: it,
// the services it is an endpoint of, the policies that bind it, its
// certificate and its connections.
func (d *configDump) filter(f dumpFilter) *configDump {
	var self *dumpWorkload
	for i := range d.Workloads {
		if w := &d.Workloads[i].is; (podName{w.Namespace, w.Name}) == f.pod {
			self = w
		}
	}
	ofPod := func(concerns func() bool) bool { return f.pod == podName{} || self != nil && concerns() }
	out := &configDump{WorkloadState: map[string]item[dumpConnected]{}}
	out.Workloads = d.Workloads.keep(func(w *dumpWorkload) bool {
		return ofPod(func() bool { return w.UID == self.UID && w.Name == self.Name }) &&
			asked(f.workloadNamespace, w.Namespace) && asked(f.workloadNode, w.Node) && asked(f.workload, w.Name) &&
			(f.address == "" || slices.Contains(w.Addresses, f.address))
	})
	out.Services = d.Services.keep(func(s *dumpService) bool {
		return ofPod(func() bool { _, ok := s.Endpoints[self.UID]; return ok }) &&
			asked(f.serviceNamespace, s.Namespace) && asked(f.svc, s.Name)
	})
	out.Policies = d.Policies.keep(func(p *dumpPolicy) bool {
		return ofPod(func() bool {
			return p.Scope == "Global" || p.Scope == "Namespace" && p.Namespace == self.Namespace ||
				slices.Contains(self.Policies, p.Namespace+"/"+p.Name)
		}) && asked(f.policyNamespace, p.Namespace) && asked(f.pol, p.Name)
	})
	out.Certificates = d.Certificates.keep(func(c *dumpCertificate) bool {
		return ofPod(func() bool {
			return strings.HasSuffix(c.Identity, "/ns/"+self.Namespace+"/sa/"+self.ServiceAccount)
		})
	})
	for uid, s := range d.WorkloadState {
		info := s.is.Info
		if (f.pod == podName{} || f.pod == podName{info.Namespace, info.Name}) && asked(f.workloadNamespace, info.Namespace) {
			out.WorkloadState[uid] = s
		}
	}
	return out
}
