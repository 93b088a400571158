package firstlight

import (
	"os"
	"testing"

	"github.com/ambitmesh/ambit/e2e/kubelab"
	"github.com/ambitmesh/ambit/e2e/kubelab/ambitlab"
)

func TestMain(m *testing.M) { os.Exit(ambitlab.Main(m)) }

// TestFirstLight shares one cluster. The first group leaves the mesh alone, so
// its tests run side by side, each in its own namespace; the others break
// something of the mesh and run one after the other.
//
//ambit:feature policy-older-destroyed policy-older-probes unenrol-drain probe-tcp probe-http probe-grpc probe-exec probe-sidecar probe-hooks probe-fails probe-kubelet-only probe-restart redirect-intent-damaged lifecycle-label lifecycle-rollout lifecycle-ztunnel-killed lifecycle-agent-gone lifecycle-controller-away lifecycle-reboot lifecycle-conflist
//ambit:feature traffic-node-port traffic-headless traffic-host-network traffic-api-server traffic-self security-mark security-sockets enrol-labels enrol-init enrol-completed
//ambit:feature dns-service-entry own-metrics
//ambit:feature identity-root-change identity-secret-damaged controller-ask
func TestFirstLight(t *testing.T) {
	l := ambitlab.Start(t, kubelab.Options{Nodes: 2, DNS: true, ShortTimers: true})
	t.Run("mesh", func(t *testing.T) {
		for name, test := range map[string]func(*testing.T, *ambitlab.Lab){
			"running pods are captured without a restart":        labelRunningPods,
			"a pod's first byte is encrypted":                    firstByte,
			"pods opt in and out by their own label":             ownLabel,
			"un-label breaks nothing":                            unlabel,
			"older connections run on":                           olderConnections,
			"meshed and un-meshed pods reach each other":         mixed,
			"a policy refuses with a reason":                     policyDenies,
			"STRICT refuses an un-meshed client":                 strict,
			"a policy that cannot be honoured says which field":  badPolicy,
			"probes of every kind":                               probesOfEveryKind,
			"names are resolved by the mesh and by the cluster":  names,
			"every kind of service reaches a meshed pod":         services,
			"a forged mark does not leave the mesh":              forgedMark,
			"the agent's socket is not for other pods":           foreignSocket,
			"ztunnel's metrics come through the mesh":            ownMetrics,
			"ambit version names every component":                cliVersion,
			"ambit status tells what is captured and what isn't": cliStatus,
			"ambit asks ztunnels and controllers":                cliAsks,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(t, l)
			})
		}
	})
	for _, c := range []struct {
		name string
		test func(*testing.T, *ambitlab.Lab)
	}{
		{"ztunnel killed", ztunnelKilled},
		{"node agent killed", agentKilled},
		{"ztunnel and node agent killed together", bothKilled},
		{"probes through restarts", probesThroughRestarts},
		{"intent file damaged", intentDamaged},
		{"components rolled out", rolledOut},
		{"controller away", controllerAway},
		{"CA Secret missing", secretMissing},
		{"CA root changed", rootChanged},
		{"conflist rewritten by another tool", conflistRewritten},
		{"agent away while pods start", agentAway},
		{"node reboot", reboot},
		{"uninstall leaves nothing", uninstall},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, l) })
	}
}
