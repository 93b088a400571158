package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/transport/spdy"
)

// answerLimit is how much of a component's answer is read: the dump of a mesh
// of a hundred thousand pods is a few hundred MB.
const answerLimit = 1 << 30

// errForward says that the caller may not, which another pod would not change.
var errForward = errors.New("forbidden")

// askPod makes one request to a port of a pod's own loopback, through the API
// server. That is where the components answer those who look closely, and the
// only account needed is the caller's own.
func (c *cluster) askPod(ctx context.Context, pod string, port int, method, path string) ([]byte, error) {
	where := fmt.Sprintf("pod %s/%s port %d", c.system, pod, port)
	conn, err := c.forward(ctx, pod, port)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", where, err)
	}
	defer conn.Close()
	// A stream knows no deadlines: the connection is what ends with ctx.
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	body, err := exchange(ctx, conn, method, path)
	switch {
	case err == nil:
		return body, nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s: no answer to %s %s: %w", where, method, path, context.Cause(ctx))
	}
	// What the kubelet says of the pod's side is the cause, the broken answer
	// what came of it.
	if reason := conn.reason(); reason != "" {
		return nil, fmt.Errorf("%s: %s: is the component up? kubectl logs -n %s %s", where, reason, c.system, pod)
	}
	return nil, fmt.Errorf("%s: %s %s: %w", where, method, path, err)
}

// exchange is one HTTP request on a connection that serves no second one.
func exchange(ctx context.Context, conn io.ReadWriter, method, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://localhost"+path, nil)
	if err != nil {
		return nil, err
	}
	req.Close = true
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, answerLimit+1))
	if err != nil {
		return nil, err
	}
	if len(body) > answerLimit {
		return nil, fmt.Errorf("the answer is longer than %d bytes", answerLimit)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("refused with %s: %s", resp.Status, plain(strings.TrimSpace(string(body[:min(len(body), 500)]))))
	}
	return body, nil
}

// stream is one direction pair of a forwarding connection.
type stream interface {
	io.ReadWriteCloser
	Reset() error
}

// forwarded is a connection to a port of a pod.
type forwarded struct {
	data  stream
	end   func() error
	close sync.Once
	// failed is closed when the kubelet's stream of errors has ended; text is
	// what it said, set before.
	failed chan struct{}
	text   string
}

func (f *forwarded) Read(p []byte) (int, error)  { return f.data.Read(p) }
func (f *forwarded) Write(p []byte) (int, error) { return f.data.Write(p) }

// Close also ends the reader of the stream of errors.
func (f *forwarded) Close() error {
	f.close.Do(func() {
		_ = f.data.Reset() // what has not been read is not wanted
		_ = f.end()
	})
	<-f.failed
	return nil
}

// reason waits for the kubelet's word, which follows the end of the data.
func (f *forwarded) reason() string {
	select {
	case <-f.failed:
	case <-time.After(5 * time.Second):
		f.Close()
	}
	return plain(strings.TrimSpace(f.text))
}

// forward opens a connection as kubectl port-forward does, but without a
// listener on this machine that others could use. SPDY/3.1 is the one way that
// each supported API server has.
func (c *cluster) forward(ctx context.Context, pod string, port int) (*forwarded, error) {
	transport, upgrader, err := spdy.RoundTripperFor(c.rest)
	if err != nil {
		return nil, err
	}
	url := c.core.RESTClient().Post().Namespace(c.system).Resource("pods").Name(pod).SubResource("portforward").URL()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url.String(), nil)
	if err != nil {
		return nil, err
	}
	const protocol, header = "portforward.k8s.io", "X-Stream-Protocol-Version"
	req.Header.Set(header, protocol)
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return nil, fmt.Errorf("port-forward: %w", err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		defer resp.Body.Close()
		return nil, c.refusal(resp)
	}
	conn, err := upgrader.NewConnection(resp)
	if err != nil {
		return nil, fmt.Errorf("port-forward: %w", err)
	}
	if got := resp.Header.Get(header); got != protocol {
		conn.Close()
		return nil, fmt.Errorf("port-forward: the API server speaks %q, want %q", got, protocol)
	}
	h := http.Header{}
	h.Set(corev1.PortHeader, strconv.Itoa(port))
	h.Set(corev1.PortForwardRequestIDHeader, "0")
	h.Set(corev1.StreamType, corev1.StreamTypeError)
	errs, err := conn.CreateStream(h)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("port-forward: %w", err)
	}
	_ = errs.Close() // nothing is said to it
	h.Set(corev1.StreamType, corev1.StreamTypeData)
	data, err := conn.CreateStream(h)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("port-forward: %w", err)
	}
	f := &forwarded{data: data, end: conn.Close, failed: make(chan struct{})}
	go func() { // Close waits for it
		defer close(f.failed)
		text, err := io.ReadAll(io.LimitReader(errs, 4<<10))
		if err == nil {
			f.text = string(text)
		}
	}()
	return f, nil
}

// refusal is what the API server says instead of forwarding.
func (c *cluster) refusal(resp *http.Response) error {
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	text := strings.TrimSpace(string(body))
	var s metav1.Status
	if json.Unmarshal(body, &s) == nil && s.Message != "" {
		text = s.Message
	}
	if resp.StatusCode == http.StatusForbidden {
		return fmt.Errorf("%w: this account needs create on pods/portforward in namespace %s: %s", errForward, c.system, text)
	}
	return fmt.Errorf("port-forward refused with %s: %s", resp.Status, text)
}
