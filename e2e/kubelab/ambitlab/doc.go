// Package ambitlab owns a Kubernetes cluster with Ambit on it for a test: the
// installation as the README says it, a recording of every packet between the
// machines, and the pods that talk across the mesh.
//
// A package that uses it has a TestMain of one line, and starts one cluster
// that its tests share:
//
//	func TestMain(m *testing.M) { os.Exit(ambitlab.Main(m)) }
//
//	l := ambitlab.Start(t, kubelab.Options{Nodes: 2, DNS: true})
//	s := l.Space(t, ambitlab.Ambient) // the namespace of one test
//	s.Pair()
//	s.Meshed("client", "server")
package ambitlab
