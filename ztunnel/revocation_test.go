package ztunnel

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/ambitmesh/ambit/hbone"
	"github.com/ambitmesh/ambit/hbone/hbonetest"
	"github.com/ambitmesh/ambit/hbone/identity"
	"github.com/ambitmesh/ambit/ztunnel/live"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// One connection with a stream open, and each side in turn learns that the other
// is revoked: the stream ends with that reason on the side that knows, and what
// is dialled afterwards is refused.
//
//ambit:feature certificates-crl
func TestRevocationEndsConnections(t *testing.T) {
	for _, side := range []live.Reporter{live.Source, live.Destination} {
		t.Run(side.String(), func(t *testing.T) {
			ca := hbonetest.NewCA(t)
			client, server := hbonetest.ID("client"), hbonetest.ID("server")
			certs := map[identity.ID]*tls.Certificate{}
			for _, id := range []identity.ID{client, server} {
				c := ca.Issue(id, hbonetest.IssueOptions{})
				certs[id] = &c
			}
			lists := map[live.Reporter]*identity.Revocations{live.Source: {}, live.Destination: {}}
			sources := map[live.Reporter]hbonetest.Source{}
			watches := map[live.Reporter]*revocation{}
			registries := map[live.Reporter]*prometheus.Registry{live.Source: prometheus.NewRegistry(), live.Destination: prometheus.NewRegistry()}
			for r, l := range lists {
				sources[r] = hbonetest.Source{Trust: ca.Roots(), Certs: certs, Asks: &identity.Terms{Revoked: l}}
				watches[r] = newRevocation(sources[r], registries[r])
			}
			ended := make(chan error, 1)
			refused := make(chan error, 1)
			srv := hbone.Server{
				TLS: identity.ServerConfig(sources[live.Destination], server), Config: hbone.Config{Watch: watches[live.Destination].watch},
				Handler: func(in *hbone.Incoming) {
					s, err := in.Accept()
					if err == nil {
						_, err = io.Copy(io.Discard, s)
						s.Close()
					}
					ended <- err
				},
				OnHandshakeError: func(_ netip.AddrPort, err error) { refused <- err },
			}
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			dial := func() (*hbone.Conn, error) {
				nc, err := net.Dial("tcp", ln.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				accepted, err := ln.Accept()
				if err != nil {
					t.Fatal(err)
				}
				go func() { _ = srv.Serve(context.Background(), accepted) }()
				return hbone.NewClient(t.Context(), nc, identity.ClientConfig(sources[live.Source], client, []identity.ID{server}),
					hbone.Config{Watch: watches[live.Source].watch})
			}
			conn, err := dial()
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			stream, err := conn.Open(t.Context(), hbone.Request{Authority: "10.0.0.1:80"})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := stream.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			peer := certs[server]
			if side == live.Destination {
				peer = certs[client]
			}
			der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour),
				RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: peer.Leaf.SerialNumber, RevocationTime: time.Now()}}}, ca.Certificate(), ca.Key())
			if err != nil {
				t.Fatal(err)
			}
			list, err := identity.ParseRevocations(der)
			if err != nil {
				t.Fatal(err)
			}
			lists[side].Set(list)
			var why error
			if side == live.Source {
				_, why = stream.Read(make([]byte, 1))
				<-ended
			} else {
				_, other := stream.Read(make([]byte, 1))
				if other == nil {
					t.Error("the client's stream goes on")
				}
				why = <-ended
			}
			var known *live.Error
			if !errors.As(why, &known) || known.Reason != live.CertificateRevoked {
				t.Errorf("the stream ended with %v", why)
			}
			if n := value(t, watches[side].cut[side]); n != 1 {
				t.Errorf("%v connections ended", n)
			}
			_, err = dial()
			if side == live.Destination {
				err = <-refused
			}
			if live.HandshakeReason(err) != live.CertificateRevoked {
				t.Errorf("a new connection: %v", err)
			}
			if n := value(t, watches[side].rejected[side]); n != 1 {
				t.Errorf("%v connections refused", n)
			}
			if got := standing(t, registries[side]); got["accepted"] != 1 || got["refused"] != 0 || got["unmet"] != 0 || len(got) != 3 {
				t.Errorf("lists by state: %v", got)
			}
		})
	}
}

// standing are the values of ambit_crl_lists by state.
func standing(t *testing.T, r *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		if f.GetName() == "ambit_crl_lists" {
			for _, m := range f.Metric {
				got[m.Label[0].GetValue()] = m.GetGauge().GetValue()
			}
		}
	}
	return got
}

func value(t *testing.T, c prometheus.Counter) float64 {
	t.Helper()
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}
