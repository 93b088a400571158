package main

import (
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

//go:embed app.yaml
var appYAML string

//go:embed policy.yaml
var policyYAML string

// Names in the manifests above.
const (
	namespace = "shop"
	clientID  = "spiffe://cluster.local/ns/shop/sa/client"
	serverID  = "spiffe://cluster.local/ns/shop/sa/server"
	imageName = "ambit.local/ambit:dev"
)

// soon is how long what takes a second may take on a machine that is slow and
// busy: CI runs the demo too.
const soon = 2 * time.Minute

func up(ctx context.Context, c config) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("needs root: it makes network namespaces, mounts and cgroups")
	}
	if c.out, err = filepath.Abs(c.out); err != nil {
		return err
	}
	if err := os.MkdirAll(c.out, 0o755); err != nil {
		return err
	}
	l := &lab{config: c, begin: time.Now()}
	if err := l.build(ctx); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			l.diagnose()
		}
	}()
	if err := l.start(ctx); err != nil {
		return err
	}
	rec, err := l.record(ctx)
	if err != nil {
		return err
	}
	meshed, err := l.story(ctx, rec)
	if err := errors.Join(err, rec.stop()); err != nil {
		return err
	}
	// Once more, now that every packet is in the file.
	if err := mustNotContain(rec, meshed); err != nil {
		return err
	}
	return l.finish(ctx, rec)
}

// build compiles what the demo needs; only Kubernetes takes long, and once.
func (l *lab) build(ctx context.Context) error {
	l.say("Building the lab: Kubernetes, kubectl and CoreDNS from source (once, about five minutes on two cores)")
	if _, err := get(ctx, "", "go", "build", "-C", "e2e/kubelab", "-o", l.bin("kubelab"), "./cmd/kubelab"); err != nil {
		return err
	}
	if err := l.show(ctx, l.bin("kubelab"), "build"); err != nil {
		return err
	}
	l.say("Building Ambit: the image with all its programs, and the CLI")
	if err := l.show(ctx, "go", "run", "./deploy/image", "-version", "demo", "-name", imageName,
		"-platforms", "linux/"+runtime.GOARCH, "-o", l.bin("ambit.tar")); err != nil {
		return err
	}
	_, err := get(ctx, "", "go", "build", "-trimpath", "-ldflags", "-s -w -X main.version=demo", "-o", l.bin("ambit"), "./cmd/ambit")
	return err
}

// start brings the cluster up and installs Ambit the way a user would.
func (l *lab) start(ctx context.Context) error {
	l.say("Starting Kubernetes with two nodes")
	if err := l.show(ctx, l.kubelab("down")...); err != nil {
		return err
	}
	if err := l.show(ctx, l.kubelab("up", "--nodes", "2")...); err != nil {
		return err
	}
	if err := l.show(ctx, l.kubelab("load-image", l.bin("ambit.tar"))...); err != nil {
		return err
	}
	out, err := l.kubectl(ctx, "get", "nodes")
	if err != nil {
		return err
	}
	l.detail("%s", out)

	l.say("Installing Ambit: kubectl apply --server-side -k deploy/crds; kubectl apply -k deploy/ambit")
	if _, err := l.kubectl(ctx, "apply", "--server-side", "-k", "deploy/crds"); err != nil {
		return err
	}
	if out, err = l.kubectl(ctx, "apply", "-k", "deploy/ambit"); err != nil {
		return err
	}
	l.detail("%d objects applied", strings.Count(out, "\n"))
	if out, err = l.ambit(ctx, "status", "--wait", "--timeout", "8m"); err != nil {
		return fmt.Errorf("ambit did not become healthy:\n%s%w", out, err)
	}
	l.detail("%s", out)
	return nil
}

// story is the demo proper; it runs with every link recorded, and returns the
// token of the call that must not be in the recording.
func (l *lab) story(ctx context.Context, rec *recording) (after string, err error) {
	l.say("Starting a client on node1 and a server on node2; nothing about them mentions Ambit")
	l.detail("from here on every packet on every link between the machines is recorded")
	if err := l.apply(ctx, appYAML); err != nil {
		return "", err
	}
	if _, err := l.kubectl(ctx, "wait", "-n", namespace, "--for=condition=Ready", "pod", "--all", "--timeout=4m"); err != nil {
		return "", err
	}

	// Ready pods are not yet in every node's service table.
	if err := until(ctx, soon, func(ctx context.Context) error { return l.try(ctx, "") }); err != nil {
		return "", err
	}
	before := token("before")
	l.say("The client calls the server")
	if err := l.call(ctx, before); err != nil {
		return "", err
	}
	if err := until(ctx, soon, func(context.Context) error { return mustContain(rec, before) }); err != nil {
		return "", err
	}
	l.detail("PLAINTEXT: %s was read off the link between the nodes", before)

	l.say("kubectl label namespace %s istio.io/dataplane-mode=ambient", namespace)
	if err := l.label(ctx, "istio.io/dataplane-mode=ambient"); err != nil {
		return "", err
	}
	out, err := l.ambit(ctx, "status", "-n", namespace, "--wait", "--timeout", "4m")
	if err != nil {
		return "", fmt.Errorf("the namespace was not meshed:\n%s%w", out, err)
	}
	l.detail("%s", pods(out))
	restarts, err := l.kubectl(ctx, "get", "pods", "-n", namespace, "-o", "wide")
	if err != nil {
		return "", err
	}
	l.detail("the same pods, not restarted:\n%s", restarts)
	if err := l.meshed(ctx); err != nil {
		return "", err
	}

	before, err = l.find(ctx, bothIdentities) // the last line so far
	if err != nil {
		return "", err
	}
	after = token("after")
	l.say("The client makes the same call")
	if err := l.call(ctx, after); err != nil {
		return "", err
	}
	line, err := l.logged(ctx, func(line string) bool { return bothIdentities(line) && line != before })
	if err != nil {
		return "", err
	}
	if err := mustNotContain(rec, after); err != nil {
		return "", err
	}
	l.detail("ENCRYPTED: %s is on no link; the server's ztunnel says who called whom:", after)
	l.detail("%s", line)

	if err := l.policy(ctx); err != nil {
		return "", err
	}
	return after, l.leave(ctx, rec, after)
}

// policy refuses the client, and lets it in again.
func (l *lab) policy(ctx context.Context) error {
	l.say("An AuthorizationPolicy refuses the client's identity")
	l.detail("%s", policyYAML)
	if err := l.apply(ctx, policyYAML); err != nil {
		return err
	}
	applied := time.Now()
	var refused error
	if err := until(ctx, soon, func(ctx context.Context) error {
		if refused = l.try(ctx, token("refused")); refused == nil {
			return errors.New("the call still succeeds")
		}
		return nil
	}); err != nil {
		return err
	}
	l.detail("REFUSED, %.1fs after the policy was applied; the client sees: %s", time.Since(applied).Seconds(), clientError(refused))
	line, err := l.logged(ctx, func(line string) bool {
		return strings.Contains(line, clientID) && strings.Contains(line, namespace+"/no-client")
	})
	if err != nil {
		return err
	}
	l.detail("the server's ztunnel says why:\n%s", line)

	l.say("The policy is deleted")
	if _, err := l.kubectl(ctx, "delete", "authorizationpolicy", "-n", namespace, "no-client"); err != nil {
		return err
	}
	if err := until(ctx, soon, func(ctx context.Context) error { return l.try(ctx, token("again")) }); err != nil {
		return err
	}
	l.detail("the call succeeds again")
	return nil
}

// leave takes the namespace out of the mesh; the recording's order proves that
// everything before is in the file.
func (l *lab) leave(ctx context.Context, rec *recording, meshed string) error {
	l.say("kubectl label namespace %s istio.io/dataplane-mode-", namespace)
	if err := l.label(ctx, "istio.io/dataplane-mode-"); err != nil {
		return err
	}
	if err := until(ctx, soon, func(ctx context.Context) error {
		counts, err := l.counts(ctx)
		if err == nil && counts["captured"]+counts["leaving"] > 0 {
			err = fmt.Errorf("still %d captured, %d leaving", counts["captured"], counts["leaving"])
		}
		return err
	}); err != nil {
		return err
	}
	// Peers hear of it first, so the first calls may still be carried; and a
	// packet is in the file a moment after it was on the link.
	var sent []string
	seen := ""
	if err := until(ctx, soon, func(ctx context.Context) error {
		sent = append(sent, token("left"))
		if err := l.try(ctx, sent[len(sent)-1]); err != nil {
			return fmt.Errorf("a call failed after the namespace left the mesh: %w", err)
		}
		for _, seen = range sent {
			if mustContain(rec, seen) == nil {
				return nil
			}
		}
		return errors.New("no call since then is in the recording")
	}); err != nil {
		return err
	}
	l.detail("PLAINTEXT again: %s was read off the link", seen)
	return mustNotContain(rec, meshed)
}

// finish checks the whole recording once more and says how to go on.
func (l *lab) finish(ctx context.Context, rec *recording) error {
	kubeconfig, err := l.kubeconfig(ctx)
	if err != nil {
		return err
	}
	l.say("Done. Recorded: %s (%s)", rec.path, rec.summary())
	if l.down {
		return down(ctx, l.config)
	}
	l.detail("the cluster stays up:\n\n  export KUBECONFIG=%s\n  %s kubectl get pods -A\n  %s status\n\nmake demo-down takes it away", kubeconfig, l.bin("kubelab"), l.bin("ambit"))
	return nil
}

// token makes a word that occurs nowhere else.
func token(word string) string { return word + "-" + strings.ToLower(rand.Text()[:16]) }

// try makes one call that carries the token in its path.
func (l *lab) try(ctx context.Context, token string) error {
	_, err := l.kubectl(ctx, "exec", "-n", namespace, "client", "--", "testapp", "get", "-timeout", "5s", "http://server/"+token)
	return err
}

// call is try with its answer shown.
func (l *lab) call(ctx context.Context, token string) error {
	out, err := l.kubectl(ctx, "exec", "-n", namespace, "client", "--", "testapp", "get", "-timeout", "60s", "http://server/"+token)
	if err != nil {
		return err
	}
	l.detail("GET http://server/%s\n-> %s", token, out)
	return nil
}

func (l *lab) label(ctx context.Context, change string) error {
	_, err := l.kubectl(ctx, "label", "namespace", namespace, "--overwrite", change)
	return err
}

// meshed waits until both nodes' ztunnels know both pods: the promise is about
// connections opened from then on. Calls without a token tell.
func (l *lab) meshed(ctx context.Context) error {
	begin := time.Now()
	if err := until(ctx, soon, func(ctx context.Context) error {
		if err := l.try(ctx, ""); err != nil {
			return err
		}
		_, err := l.find(ctx, bothIdentities)
		return err
	}); err != nil {
		return fmt.Errorf("no call was carried over mTLS: %w", err)
	}
	l.detail("both nodes know both pods %.1fs later", time.Since(begin).Seconds())
	return nil
}

// pods is the line about pods in the output of ambit status.
func pods(status string) string {
	for line := range strings.Lines(status) {
		if strings.HasPrefix(line, "pods ") {
			return "ambit status: " + line
		}
	}
	return status
}

func bothIdentities(line string) bool {
	return strings.Contains(line, clientID) && strings.Contains(line, serverID)
}

// logged waits for a line of the server's node's access log.
func (l *lab) logged(ctx context.Context, ok func(string) bool) (line string, err error) {
	err = until(ctx, soon, func(ctx context.Context) error {
		line, err = l.find(ctx, ok)
		return err
	})
	return line, err
}

// find returns the last inbound line of node2's ztunnel that ok accepts.
func (l *lab) find(ctx context.Context, ok func(string) bool) (string, error) {
	pod, err := l.kubectl(ctx, "get", "pods", "-n", "ambit-system", "-l", "app=ztunnel",
		"--field-selector", "spec.nodeName=node2", "-o", "name")
	if err != nil {
		return "", err
	}
	out, err := l.kubectl(ctx, "logs", "-n", "ambit-system", "--tail=200", strings.TrimSpace(pod))
	if err != nil {
		return "", err
	}
	found := ""
	for line := range strings.Lines(out) {
		if line = strings.TrimSpace(line); strings.Contains(line, "inbound") && ok(line) {
			found = line
		}
	}
	if found == "" {
		return "", errors.New("no such line in the access log of node2's ztunnel")
	}
	return found, nil
}

// counts asks the CLI how many pods are in which state. Unhealthy is an answer.
func (l *lab) counts(ctx context.Context) (map[string]int, error) {
	out, askErr := l.ambit(ctx, "status", "-n", namespace, "-o", "json")
	var r struct{ Counts map[string]int }
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		return nil, errors.Join(askErr, err)
	}
	return r.Counts, nil
}

func mustContain(rec *recording, token string) error {
	found, err := rec.contains(token)
	if err == nil && !found {
		err = fmt.Errorf("%s is not in the recording", token)
	}
	return err
}

func mustNotContain(rec *recording, token string) error {
	found, err := rec.contains(token)
	if err == nil && found {
		err = fmt.Errorf("%s crossed a link in plaintext: see %s", token, rec.path)
	}
	return err
}

// clientError is what the program in the client pod said, without what
// kubectl adds.
func clientError(err error) string {
	for line := range strings.Lines(err.Error()) {
		if _, said, ok := strings.Cut(line, "testapp: "); ok {
			return strings.TrimSpace(said)
		}
	}
	return err.Error()
}

// diagnose keeps what somebody will want to read, and shows the end of it.
func (l *lab) diagnose() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var b strings.Builder
	for _, args := range [][]string{
		{"get", "pods", "-A", "-o", "wide"},
		{"get", "events", "-A", "--sort-by=.lastTimestamp"},
		{"describe", "pods", "-n", "ambit-system"},
		{"describe", "pods", "-n", namespace},
		{"logs", "-n", "ambit-system", "--prefix", "--tail=300", "-l", "app=ambit-controller"},
		{"logs", "-n", "ambit-system", "--prefix", "--tail=300", "-l", "app=ambit-cni-node"},
		{"logs", "-n", "ambit-system", "--prefix", "--tail=300", "-l", "app=ztunnel"},
	} {
		out, err := l.kubectl(ctx, args...)
		fmt.Fprintf(&b, "\n### kubectl %s\n%s", strings.Join(args, " "), out)
		if err != nil {
			fmt.Fprintf(&b, "%v\n", err)
		}
	}
	if out, err := l.ambit(ctx, "status"); out != "" || err == nil {
		fmt.Fprintf(&b, "\n### ambit status\n%s", out)
		l.detail("%s", out)
	}
	path := filepath.Join(l.out, "diagnosis.txt")
	if err := os.WriteFile(path, []byte(b.String()), 0o644); err == nil {
		fmt.Printf("\nThe cluster stays up for a look; logs and events are in %s\n", path)
	}
}

func down(ctx context.Context, c config) error {
	abs, err := filepath.Abs(c.out)
	if err != nil {
		return err
	}
	l := &lab{config: c, begin: time.Now()}
	l.out = abs
	if _, err := os.Stat(l.bin("kubelab")); errors.Is(err, os.ErrNotExist) {
		fmt.Println("no demo was started from here")
		return nil
	}
	if err := l.show(ctx, l.kubelab("down")...); err != nil {
		return err
	}
	return os.RemoveAll(l.out)
}
