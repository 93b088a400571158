package node

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// apiServer speaks as much of the Kubernetes API as the agent asks for.
type apiServer struct {
	*httptest.Server
	mu       sync.Mutex
	version  int                          // guarded by mu
	objects  map[string]map[string]object // guarded by mu: by resource and namespace/name
	watchers map[chan []byte]string       // guarded by mu: the resource
	patches  int                          // guarded by mu
	held     []func()                     // guarded by mu: events kept back while holding
	holding  bool                         // guarded by mu
}

type object = map[string]any

func newAPIServer(t testing.TB) *apiServer {
	s := &apiServer{objects: map[string]map[string]object{"pods": {}, "namespaces": {}}, watchers: map[chan []byte]string{}}
	s.Server = httptest.NewServer(s)
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

func (s *apiServer) client(t testing.TB) kubernetes.Interface {
	c, err := kubernetes.NewForConfig(&rest.Config{Host: s.URL, QPS: 1000, Burst: 1000})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/") // api/v1/...
	if len(parts) == 3 {
		s.list(w, r, parts[2])
		return
	}
	if len(parts) == 5 && parts[3] == "runtimeclasses" { // apis/node.k8s.io/v1/...
		reply(w, object{"kind": "RuntimeClass", "apiVersion": "node.k8s.io/v1", "metadata": object{"name": parts[4]}, "handler": "runsc"})
		return
	}
	// api/v1/namespaces/NS/pods/NAME[/status]
	if len(parts) < 6 || parts[4] != "pods" {
		http.NotFound(w, r)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	o, ok := s.objects["pods"][parts[3]+"/"+parts[5]]
	if !ok {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}`)
		return
	}
	if r.Method == http.MethodPatch {
		var patch struct {
			Metadata struct{ Annotations map[string]*string }
		}
		if err := json.NewDecoder(r.Body).Decode(&patch); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		s.patches++
		o = clone(o)
		meta := o["metadata"].(object)
		notes, _ := meta["annotations"].(object)
		if notes == nil {
			notes = object{}
		}
		for k, v := range patch.Metadata.Annotations {
			if v == nil {
				delete(notes, k)
			} else {
				notes[k] = *v
			}
		}
		meta["annotations"] = notes
		s.store("pods", "MODIFIED", o)
	}
	reply(w, o)
}

func (s *apiServer) list(w http.ResponseWriter, r *http.Request, resource string) {
	q := r.URL.Query()
	s.mu.Lock()
	var items []object
	for _, o := range s.objects[resource] {
		items = append(items, o)
	}
	if q.Get("watch") == "" {
		defer s.mu.Unlock()
		kind := map[string]string{"pods": "PodList", "namespaces": "NamespaceList"}[resource]
		reply(w, object{"kind": kind, "apiVersion": "v1", "metadata": object{"resourceVersion": fmt.Sprint(s.version)}, "items": items})
		return
	}
	events := make(chan []byte, 1000)
	if q.Get("sendInitialEvents") == "true" {
		for _, o := range items {
			events <- encode(object{"type": "ADDED", "object": o})
		}
		kind := map[string]string{"pods": "Pod", "namespaces": "Namespace"}[resource]
		events <- encode(object{"type": "BOOKMARK", "object": object{"kind": kind, "apiVersion": "v1", "metadata": object{
			"resourceVersion": fmt.Sprint(s.version), "annotations": object{"k8s.io/initial-events-end": "true"}}}})
	}
	s.watchers[events] = resource
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.watchers, events)
		s.mu.Unlock()
	}()
	w.Header().Set("Content-Type", "application/json")
	flush := w.(http.Flusher)
	flush.Flush()
	for {
		select {
		case <-r.Context().Done():
			return
		case e := <-events:
			_, _ = w.Write(e)
			flush.Flush()
		}
	}
}

func encode(o object) []byte {
	b, err := json.Marshal(o)
	if err != nil {
		panic(err)
	}
	return append(b, '\n')
}

func clone(o object) object {
	var out object
	if err := json.Unmarshal(encode(o), &out); err != nil {
		panic(err)
	}
	return out
}

func reply(w http.ResponseWriter, o object) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(encode(o))
}

// store keeps o and tells the watchers; mu is held.
func (s *apiServer) store(resource, event string, o object) {
	s.version++
	meta := o["metadata"].(object)
	meta["resourceVersion"] = fmt.Sprint(s.version)
	key := fmt.Sprint(meta["namespace"], "/", meta["name"])
	if event == "DELETED" {
		delete(s.objects[resource], key)
	} else {
		s.objects[resource][key] = o
	}
	b := encode(object{"type": event, "object": o})
	tell := func() {
		for ch, of := range s.watchers {
			if of == resource {
				ch <- b
			}
		}
	}
	if s.holding {
		s.held = append(s.held, tell)
		return
	}
	tell()
}

// hold keeps events back, as a busy API server does, until it is called again.
func (s *apiServer) hold(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holding = on
	if !on {
		for _, tell := range s.held {
			tell()
		}
		s.held = nil
	}
}

func (s *apiServer) put(resource string, v metav1.Object) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	var o object
	if err := json.Unmarshal(b, &o); err != nil {
		panic(err)
	}
	o["apiVersion"], o["kind"] = "v1", map[string]string{"pods": "Pod", "namespaces": "Namespace"}[resource]
	s.mu.Lock()
	defer s.mu.Unlock()
	event := "ADDED"
	if _, ok := s.objects[resource][v.GetNamespace()+"/"+v.GetName()]; ok {
		event = "MODIFIED"
	} else if _, ok := s.objects[resource][fmt.Sprint(nil, "/", v.GetName())]; ok {
		event = "MODIFIED"
	}
	s.store(resource, event, o)
}

func (s *apiServer) namespace(name, mode string) {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}}}
	if mode != "" {
		ns.Labels[labelMode] = mode
	}
	s.put("namespaces", ns)
}

func (s *apiServer) remove(namespace, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o, ok := s.objects["pods"][namespace+"/"+name]; ok {
		s.store("pods", "DELETED", clone(o))
	}
}

// annotations of a pod, as everybody sees them.
func (s *apiServer) annotations(namespace, name string) map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]string{}
	if o, ok := s.objects["pods"][namespace+"/"+name]; ok {
		notes, _ := o["metadata"].(object)["annotations"].(object)
		for k, v := range notes {
			out[k] = v.(string)
		}
	}
	return out
}
