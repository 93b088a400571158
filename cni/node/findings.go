package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambitmesh/ambit/cni/redirect"
)

// annotationFindings is on the agent's own pod: what holds for the whole node
// and limits what the mesh can promise there, as a JSON list of Finding.
const annotationFindings = "ambitmesh.io/node-findings"

// Finding is one such thing. Code stays the same between releases.
type Finding struct {
	Code string `json:"finding"`
	Text string `json:"text"`
}

// Codes of findings.
const (
	findingSocketLB  = "socket-lb"      // service addresses are replaced before capture
	findingClsact    = "clsact"         // no tcx: a pod with CAP_NET_ADMIN can end its capture
	findingMark      = "forgeable-mark" // proxies are not told by their cgroup
	findingNoRuntime = "no-runtime"     // running pods cannot be found
	findingProbes    = "open-probes"    // the kubelet is not told by its cgroup
	findingForeign   = "other-ztunnel"  // the ztunnel makes its own listeners
)

const (
	findingsEvery = time.Minute // each look takes milliseconds
	findingsAgain = 5 * time.Second
)

// watchFindings looks again and again, and says what it found where ambit
// status and ambit precheck read it.
func (a *Agent) watchFindings(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var known []Finding
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		found := a.find(ctx)
		if ctx.Err() != nil {
			return nil
		}
		for _, f := range found {
			if !slices.Contains(known, f) {
				a.log.Warn("this node limits what the mesh can promise", "finding", f.Code, "text", f.Text)
			}
		}
		known = found
		a.metrics.found(found)
		again := findingsEvery
		if err := a.sayFindings(ctx, found); err != nil && ctx.Err() == nil {
			a.log.Warn("findings about the node cannot be written on the agent's pod", "err", err)
			again = findingsAgain
		}
		timer.Reset(again)
	}
}

// find looks once.
func (a *Agent) find(ctx context.Context) []Finding {
	var out []Finding
	say := func(code, format string, args ...any) { out = append(out, Finding{code, fmt.Sprintf(format, args...)}) }
	if a.cfg.Service.IsValid() {
		ctx, cancel := context.WithTimeout(ctx, proofWait)
		why, err := redirect.TryService(ctx, a.cfg.Service)
		cancel()
		switch {
		case err != nil:
			a.log.Warn("whether services are balanced in sockets is not known", "err", err)
		case why != "":
			say(findingSocketLB, "a connection to the service %s %s before capture sees it (%s): the mesh takes it for a connection to an endpoint", a.cfg.Service, why, a.connectPrograms())
		}
	}
	if a.cfg.Clsact {
		say(findingClsact, "capture is attached by clsact (a kernel without tcx, Linux 6.6, or --clsact): a pod with CAP_NET_ADMIN can take it off for up to %s, and probes are told by address", a.cfg.DriftEvery)
	}
	if !a.proxies.checking() {
		say(findingMark, "the proxy's mark alone tells its connections: a process with CAP_NET_RAW can forge it and leave the mesh (cgroup v2 is not in use for containers)")
	}
	if why := a.kubelet.open(); why != "" {
		say(findingProbes, "every process of the node can reach the probe ports of captured pods: %s", why)
	}
	if a.foreign() {
		say(findingForeign, "the ztunnel of this node is not Ambit's: pods' DNS queries are not captured, and a process of a pod that runs as ztunnel's user can share the ports on which ztunnel takes what others dial to that pod")
	}
	if err := a.askRuntime(ctx); err != nil && ctx.Err() == nil {
		say(findingNoRuntime, "pods that run already cannot be captured, only those that start: %v", err)
	}
	return out
}

// askRuntime finds out whether the container runtime answers.
func (a *Agent) askRuntime(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, proofWait)
	defer cancel()
	rt, err := a.runtime()
	if err != nil {
		return err
	}
	defer rt.Close()
	_, err = rt.Sandboxes(ctx)
	return err
}

// connectPrograms names what every connect() of the agent runs through.
func (a *Agent) connectPrograms() string {
	f, err := a.cfg.HostRoot.cgroupFolder(os.Getpid())
	if err != nil {
		return "by an unknown program: " + err.Error()
	}
	defer f.Close()
	names, err := redirect.ConnectPrograms(f)
	if err != nil || len(names) == 0 {
		return "by an unknown program"
	}
	slices.Sort(names)
	return "programs " + strings.Join(slices.Compact(names), ", ")
}

// cgroupFolder opens the cgroup v2 folder of a process; that of one in the root,
// which cgroupDir gives no folder, too.
func (r HostRoot) cgroupFolder(pid int) (*os.File, error) {
	own, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return nil, err
	}
	mounts, err := os.ReadFile(r.mountinfo())
	if err != nil {
		return nil, err
	}
	dir, err := cgroupDir(strings.Replace(string(own), "0::/\n", "0::/.\n", 1), string(mounts))
	if err != nil {
		return nil, err
	}
	return r.Open(path.Clean(dir), unix.O_RDONLY|unix.O_DIRECTORY)
}

func (a *Agent) sayFindings(ctx context.Context, found []Finding) error {
	if a.cfg.Pod == "" {
		return nil
	}
	p := a.kube.named(a.cfg.Rules.OwnNamespace, a.cfg.Pod)
	if p == nil {
		return errors.New("the agent's pod is not known on this node")
	}
	text := ""
	if len(found) > 0 {
		b, err := json.Marshal(found)
		if err != nil {
			return err
		}
		text = string(b)
	}
	return a.kube.annotate(ctx, p, map[string]string{annotationFindings: text})
}

// ServiceAddr reads where the API server's service is, as the kubelet tells
// every container.
func ServiceAddr(host, port string) netip.AddrPort {
	a, err := netip.ParseAddr(host)
	if err != nil {
		return netip.AddrPort{}
	}
	p, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(a, uint16(p))
}
