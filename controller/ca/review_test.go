package ca

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	authentication "k8s.io/api/authentication/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// apiServer answers token reviews over real HTTP.
func apiServer(t *testing.T, answer func(token string) authentication.TokenReviewStatus) (kubernetes.Interface, *atomic.Int32) {
	t.Helper()
	var calls atomic.Int32
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		var review authentication.TokenReview
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil || len(review.Spec.Audiences) != 1 || review.Spec.Audiences[0] != "istio-ca" {
			http.Error(w, "bad review", http.StatusBadRequest)
			return
		}
		if review.Spec.Token == "api-down" {
			http.Error(w, "away", http.StatusServiceUnavailable)
			return
		}
		review.Status = answer(review.Spec.Token)
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(&review)
	}))
	t.Cleanup(h.Close)
	client, err := kubernetes.NewForConfig(&rest.Config{Host: h.URL, ContentConfig: rest.ContentConfig{ContentType: "application/json"}})
	if err != nil {
		t.Fatal(err)
	}
	return client, &calls
}

func good() authentication.TokenReviewStatus {
	return authentication.TokenReviewStatus{
		Authenticated: true,
		Audiences:     []string{"istio-ca"},
		User: authentication.UserInfo{
			Username: "system:serviceaccount:ambit-system:ztunnel",
			Groups:   []string{"system:serviceaccounts", "system:authenticated"},
			Extra: map[string]authentication.ExtraValue{
				"authentication.kubernetes.io/pod-name": {"ztunnel-1"},
				"authentication.kubernetes.io/pod-uid":  {"u1"},
			},
		},
	}
}

func node1(c Caller) (string, bool) {
	return "node-1", c == Caller{Namespace: "ambit-system", ServiceAccount: "ztunnel", PodName: "ztunnel-1", PodUID: "u1"}
}

func with(header string) context.Context {
	return metadata.NewIncomingContext(context.Background(), metadata.Pairs("authorization", header))
}

func TestReviewNamesPodAndNode(t *testing.T) {
	client, calls := apiServer(t, func(string) authentication.TokenReviewStatus { return good() })
	r := NewReviewer(client, node1)
	want := Caller{Namespace: "ambit-system", ServiceAccount: "ztunnel", PodName: "ztunnel-1", PodUID: "u1", Node: "node-1"}
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if c, err := r.Authenticate(with("Bearer t")); err != nil || c != want {
				t.Errorf("%+v, %v", c, err)
			}
		})
	}
	all.Wait()
	if n := calls.Load(); n != 1 {
		t.Errorf("%d reviews for one token", n)
	}
}

//ambit:feature identity-token-review
func TestReviewRefuses(t *testing.T) {
	cases := []struct {
		name, header string
		change       func(*authentication.TokenReviewStatus)
		want         string
	}{
		{"no token", "", nil, "no bearer token"},
		{"basic", "Basic abc", nil, "no bearer token"},
		{"empty", "Bearer ", nil, "no bearer token"},
		{"huge", "Bearer " + strings.Repeat("x", maxToken+1), nil, "too long"},
		{"not authenticated", "Bearer t", func(s *authentication.TokenReviewStatus) { s.Authenticated = false }, "not authenticated"},
		{"API server's words", "Bearer t", func(s *authentication.TokenReviewStatus) { s.Error = "token has expired" }, "token has expired"},
		{"other audience", "Bearer t", func(s *authentication.TokenReviewStatus) { s.Audiences = []string{"vault"} }, "audience istio-ca"},
		{"audiences unknown", "Bearer t", func(s *authentication.TokenReviewStatus) { s.Audiences = nil }, "audience istio-ca"},
		{"a person", "Bearer t", func(s *authentication.TokenReviewStatus) { s.User.Username = "jane" }, "not a service account"},
		{"no group", "Bearer t", func(s *authentication.TokenReviewStatus) { s.User.Groups = nil }, "not a service account"},
		{"API server away", "Bearer api-down", nil, "token review"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			client, _ := apiServer(t, func(string) authentication.TokenReviewStatus {
				s := good()
				if c.change != nil {
					c.change(&s)
				}
				return s
			})
			_, err := NewReviewer(client, node1).Authenticate(with(c.header))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %v, want %q", err, c.want)
			}
		})
	}
}

func TestReviewDoesNotRememberAnAPIServerThatIsAway(t *testing.T) {
	client, calls := apiServer(t, func(string) authentication.TokenReviewStatus { return good() })
	r := NewReviewer(client, node1)
	for range 2 {
		if _, err := r.Authenticate(with("Bearer api-down")); !errors.Is(err, ErrReview) || Code(err) != codes.Unavailable {
			t.Fatalf("error %v with code %v", err, Code(err))
		}
	}
	if n := calls.Load(); n < 2 {
		t.Errorf("asked %d times", n)
	}
}

// A review counts for a minute, a pod only as long as it is there.
//
//ambit:feature identity-token-review
func TestReviewEndsWithThePod(t *testing.T) {
	client, calls := apiServer(t, func(string) authentication.TokenReviewStatus { return good() })
	known := false
	r := NewReviewer(client, func(Caller) (string, bool) { return "node-1", known })
	for _, known = range []bool{false, true, false} {
		c, err := r.Authenticate(with("Bearer t"))
		switch {
		case known && (err != nil || c.Node != "node-1"):
			t.Errorf("known: %+v, %v", c, err)
		case !known && (err == nil || c != Caller{} || !strings.Contains(err.Error(), "pod ambit-system/ztunnel-1 with UID u1 is not known or has ended")):
			t.Errorf("unknown: %+v, %v", c, err)
		}
	}
	if n := calls.Load(); n != 1 {
		t.Errorf("%d reviews", n)
	}
}

// TestReviewCountsForAMinute, and a refusal for a few seconds.
//
//ambit:feature identity-token-review
func TestReviewCountsForAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		var refused error
		r := NewReviewer(nil, node1)
		r.ask = func(context.Context, string) (Caller, bool, error) {
			asked++
			c, _ := callerOf(new(good()))
			return c, true, refused
		}
		for _, c := range []struct {
			after   time.Duration
			refused error
			asked   int
		}{
			{0, nil, 1}, {59 * time.Second, nil, 1},
			{2 * time.Second, errors.New("revoked"), 2}, // the minute is over: the API server's word counts again
			{4 * time.Second, nil, 2}, {2 * time.Second, nil, 3},
		} {
			time.Sleep(c.after)
			refused = c.refused
			_, _ = r.Authenticate(with("Bearer t"))
			if asked != c.asked {
				t.Fatalf("after %v: asked %d times, want %d", c.after, asked, c.asked)
			}
		}
	})
}
