package kube

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/ambitmesh/ambit/controller/translate"
)

// Names of the indices of gateways.
const (
	byGateway = "gateway" // pods: namespace/Gateway they are labelled as
	byNetwork = "network" // services with the label of a network, all under ""
)

func podGateway(obj any) ([]string, error) {
	if pod, ok := obj.(*corev1.Pod); ok && pod.Labels[translate.GatewayNameLabel] != "" {
		return []string{pod.Namespace + "/" + pod.Labels[translate.GatewayNameLabel]}, nil
	}
	return nil, nil
}

func networkService(obj any) ([]string, error) {
	if svc, ok := obj.(*corev1.Service); ok && svc.Labels[translate.NetworkLabel] != "" {
		return []string{""}, nil
	}
	return nil, nil
}

// GatewayPods implements translate.Objects.
func (v *view) GatewayPods(namespace, gateway string) []*corev1.Pod {
	return list[*corev1.Pod](v.caches.pods, byGateway, namespace+"/"+gateway)
}

// NetworkServices implements translate.Objects.
func (v *view) NetworkServices() []*corev1.Service {
	return list[*corev1.Service](v.caches.services, byNetwork, "")
}
