// Package firstlight owns the tests of Ambit as a user meets it: a real
// two-node Kubernetes, Ambit installed on it from deploy/, namespaces labelled
// with kubectl, and every packet between the nodes recorded.
package firstlight
