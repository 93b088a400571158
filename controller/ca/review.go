package ca

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/metadata"
	authentication "k8s.io/api/authentication/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// Audience a token must be made for.
const Audience = "istio-ca"

const (
	reviewTTL  = 60 * time.Second // how long a good review counts
	refusalTTL = 5 * time.Second  // how long a refusal counts: long enough to blunt a retry loop
	maxReviews = 16384            // cached reviews; beyond it the cache starts over
	maxToken   = 32 << 10
)

// ErrReview marks a token that could not be reviewed, as opposed to one that
// was refused: it may be asked for again.
var ErrReview = errors.New("token review")

// Caller is who a verified token belongs to. Node is "" when the token is not
// bound to a pod.
type Caller struct{ Namespace, ServiceAccount, PodName, PodUID, Node string }

// Account is <namespace>/<service account>.
func (c Caller) Account() string { return c.Namespace + "/" + c.ServiceAccount }

// Reviewer verifies service account tokens with the Kubernetes API.
type Reviewer struct {
	client  kubernetes.Interface
	podNode func(Caller) (node string, ok bool)
	// ask reviews a token; a field so that tests have their own time.
	ask func(ctx context.Context, token string) (c Caller, conclusive bool, err error)

	mu    sync.Mutex
	known map[[sha256.Size]byte]*review // guarded by mu
}

// review is the answer for one token, by hash: tokens are not kept.
type review struct {
	done    chan struct{} // closed when the rest is set
	caller  Caller
	err     error
	expires time.Time
}

// NewReviewer asks client; podNode finds the node of a caller's pod as long as
// that has not ended.
func NewReviewer(client kubernetes.Interface, podNode func(Caller) (node string, ok bool)) *Reviewer {
	r := &Reviewer{client: client, podNode: podNode, known: make(map[[sha256.Size]byte]*review)}
	r.ask = r.askAPI
	return r
}

// Authenticate says whom the bearer token in ctx's incoming gRPC metadata
// belongs to. The error is safe to tell the caller.
func (r *Reviewer) Authenticate(ctx context.Context) (Caller, error) {
	token, err := bearer(ctx)
	if err != nil {
		return Caller{}, err
	}
	c, err := r.cached(ctx, token)
	if err != nil {
		return Caller{}, err
	}
	// Not cached: a pod may become known a moment after its token, and a token
	// must not outlive its pod by the time a review counts.
	if c.PodName != "" {
		node, ok := r.podNode(c)
		if !ok {
			return Caller{}, fmt.Errorf("token refused: its pod %s/%s with UID %s is not known or has ended", c.Namespace, c.PodName, c.PodUID)
		}
		c.Node = node
	}
	return c, nil
}

func bearer(ctx context.Context) (string, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	for _, v := range md.Get("authorization") {
		token, ok := strings.CutPrefix(v, "Bearer ")
		if !ok || token == "" {
			continue
		}
		if len(token) > maxToken {
			return "", fmt.Errorf("bearer token of %d bytes is too long", len(token))
		}
		return token, nil
	}
	return "", errors.New("no bearer token in the request")
}

// cached reviews a token once however many callers present it.
func (r *Reviewer) cached(ctx context.Context, token string) (Caller, error) {
	key := sha256.Sum256([]byte(token))
	r.mu.Lock()
	v := r.known[key]
	if v != nil {
		select {
		case <-v.done:
			if time.Now().After(v.expires) {
				v = nil
			}
		default:
		}
	}
	if v != nil {
		r.mu.Unlock()
		select {
		case <-v.done:
			return v.caller, v.err
		case <-ctx.Done():
			return Caller{}, fmt.Errorf("%w: %w", ErrReview, ctx.Err())
		}
	}
	if len(r.known) >= maxReviews {
		clear(r.known) // reviews under way still reach those who wait for them
	}
	v = &review{done: make(chan struct{})}
	r.known[key] = v
	r.mu.Unlock()

	// Others wait for this review: the first caller's end must not end it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	var conclusive bool
	v.caller, conclusive, v.err = r.ask(ctx, token)
	switch {
	case v.err == nil:
		v.expires = time.Now().Add(reviewTTL)
	case conclusive:
		v.expires = time.Now().Add(refusalTTL)
	}
	close(v.done)
	return v.caller, v.err
}

// askAPI reviews a token; conclusive says that the API server answered.
func (r *Reviewer) askAPI(ctx context.Context, token string) (c Caller, conclusive bool, err error) {
	answer, err := r.client.AuthenticationV1().TokenReviews().Create(ctx, &authentication.TokenReview{
		Spec: authentication.TokenReviewSpec{Token: token, Audiences: []string{Audience}},
	}, meta.CreateOptions{})
	if err != nil {
		return Caller{}, false, fmt.Errorf("%w: %w", ErrReview, err)
	}
	c, err = callerOf(&answer.Status)
	return c, true, err
}

// callerOf reads a review's answer.
func callerOf(s *authentication.TokenReviewStatus) (Caller, error) {
	if s.Error != "" {
		return Caller{}, fmt.Errorf("token refused: %s", s.Error)
	}
	if !s.Authenticated {
		return Caller{}, errors.New("token refused: not authenticated")
	}
	// An API server that does not know audiences leaves the list empty; such
	// an answer says nothing about whom the token was made for.
	if !slices.Contains(s.Audiences, Audience) {
		return Caller{}, fmt.Errorf("token refused: not made for audience %s", Audience)
	}
	if !slices.Contains(s.User.Groups, "system:serviceaccounts") {
		return Caller{}, fmt.Errorf("token refused: user %q is not a service account", s.User.Username)
	}
	p := strings.Split(s.User.Username, ":")
	if len(p) != 4 || p[0] != "system" || p[1] != "serviceaccount" || p[2] == "" || p[3] == "" {
		return Caller{}, fmt.Errorf("token refused: user %q is not a service account", s.User.Username)
	}
	first := func(key string) string {
		if v := s.User.Extra[key]; len(v) > 0 {
			return v[0]
		}
		return ""
	}
	return Caller{
		Namespace:      p[2],
		ServiceAccount: p[3],
		PodName:        first("authentication.kubernetes.io/pod-name"),
		PodUID:         first("authentication.kubernetes.io/pod-uid"),
	}, nil
}
