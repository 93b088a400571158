package main

import (
	"cmp"
	"fmt"
	"io"
	"math/big"
	"net"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
)

// names resolves addresses and gateways by all of a dump, also by what a
// filter left out.
type names struct {
	services  map[string]string // by namespace/hostname and network/ip: the name
	addresses map[string]string // by IP: name.namespace, or a hostname
}

func namesOf(d *configDump) names {
	n := names{map[string]string{}, map[string]string{}}
	for i := range d.Services {
		s := &d.Services[i].is
		n.services[s.Namespace+"/"+s.Hostname] = s.Name
		for _, vip := range s.VIPs {
			n.services[vip] = s.Name
			n.addresses[bare(vip)] = s.Hostname
		}
	}
	for i := range d.Workloads {
		w := &d.Workloads[i].is
		for _, a := range w.Addresses {
			n.addresses[a] = w.Name + "." + w.Namespace
		}
	}
	return n
}

// bare takes the network off "network/ip".
func bare(address string) string {
	_, ip, ok := strings.Cut(address, "/")
	if !ok {
		return address
	}
	return ip
}

// waypoint is None without one, and NA when the dump does not have what is
// named: then traffic for it fails.
func (n names) waypoint(g *dumpGateway) string {
	if g == nil || g.Destination == "" {
		return "None"
	}
	return cmp.Or(n.services[g.Destination], n.addresses[bare(g.Destination)], "NA")
}

// endpoint is ip:port with the name of what has the address.
func (n names) endpoint(s string, raw bool) string {
	host, port, err := net.SplitHostPort(s)
	if raw || err != nil {
		return s
	}
	if name := n.addresses[host]; name != "" {
		return name + ":" + port
	}
	return s
}

// table writes rows below their titles.
func table(w io.Writer, titles string, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 4, 3, ' ', 0)
	fmt.Fprintln(tw, titles)
	for _, r := range rows {
		for i := range r {
			r[i] = plain(r[i])
		}
		fmt.Fprintln(tw, strings.Join(r, "\t"))
	}
	return tw.Flush()
}

// plain keeps what a component or a file says from moving the cursor of who
// reads it, and from looking like another row.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s)
}

func workloadTable(w io.Writer, d *configDump, n names) error {
	var rows [][]string
	for i := range d.Workloads {
		v := &d.Workloads[i].is
		rows = append(rows, []string{v.Namespace, v.Name, strings.Join(v.Addresses, ","), v.Node, n.waypoint(v.Waypoint), v.Protocol})
	}
	slices.SortStableFunc(rows, slices.Compare)
	return table(w, "NAMESPACE\tPOD NAME\tADDRESS\tNODE\tWAYPOINT\tPROTOCOL", rows)
}

func serviceTable(w io.Writer, d *configDump, n names) error {
	var rows [][]string
	for i := range d.Services {
		s := &d.Services[i].is
		var vips []string
		for _, v := range s.VIPs {
			vips = append(vips, bare(v))
		}
		for _, c := range s.CIDRVIPs {
			vips = append(vips, c.CIDR)
		}
		healthy := 0
		for _, e := range s.Endpoints {
			// A ztunnel that does not say is not one that says Unhealthy.
			if e.Status == "Healthy" || e.Status == "" {
				healthy++
			}
		}
		rows = append(rows, []string{s.Namespace, s.Name, strings.Join(vips, ","), n.waypoint(s.Waypoint), fmt.Sprintf("%d/%d", healthy, len(s.Endpoints))})
	}
	slices.SortStableFunc(rows, slices.Compare)
	return table(w, "NAMESPACE\tSERVICE NAME\tSERVICE VIP\tWAYPOINT\tENDPOINTS", rows)
}

func policyTable(w io.Writer, d *configDump) error {
	var rows [][]string
	for i := range d.Policies {
		p := &d.Policies[i].is
		rows = append(rows, []string{p.Namespace, p.Name, p.Action, p.Scope})
	}
	slices.SortStableFunc(rows, slices.Compare)
	return table(w, "NAMESPACE\tPOLICY NAME\tACTION\tSCOPE", rows)
}

func certificateTable(w io.Writer, d *configDump, now time.Time) error {
	var rows [][]string
	for i := range d.Certificates {
		c := &d.Certificates[i].is
		if len(c.CertChain) == 0 {
			rows = append(rows, []string{c.Identity, "NA", c.State, "false", "NA", "NA", "NA"})
			continue
		}
		add := func(kind string, v dumpCert) {
			rows = append(rows, []string{c.Identity, kind, c.State, fmt.Sprint(valid(v, now)), serial(v.SerialNumber),
				cmp.Or(v.ExpirationTime, "NA"), cmp.Or(v.ValidFrom, "NA")})
		}
		for j, v := range c.CertChain {
			if j == 0 {
				add("Leaf", v)
			} else {
				add("Intermediate", v)
			}
		}
		for _, v := range c.RootCerts {
			add("Root", v)
		}
	}
	return table(w, "CERTIFICATE NAME\tTYPE\tSTATUS\tVALID CERT\tSERIAL NUMBER\tNOT AFTER\tNOT BEFORE", rows)
}

// valid is by this machine's clock.
func valid(c dumpCert, now time.Time) bool {
	from, err1 := time.Parse(time.RFC3339, c.ValidFrom)
	to, err2 := time.Parse(time.RFC3339, c.ExpirationTime)
	return err1 == nil && err2 == nil && !now.Before(from) && now.Before(to)
}

// serial is in hexadecimal, as openssl and the controller's log have it.
func serial(decimal string) string {
	n, ok := new(big.Int).SetString(decimal, 10)
	if !ok {
		return "NA"
	}
	return n.Text(16)
}

func connectionTable(w io.Writer, d *configDump, n names, direction string, raw bool) error {
	var rows [][]string
	for _, s := range d.WorkloadState {
		who := s.is.Info.Name + "." + s.is.Info.Namespace
		add := func(direction, local, remote, target, protocol string) {
			rows = append(rows, []string{who, direction, n.endpoint(local, raw), n.endpoint(remote, raw), n.endpoint(target, raw), protocol})
		}
		if direction != "outbound" {
			for _, c := range s.is.Connections.Inbound {
				add("Inbound", c.ActualDst, c.Src, c.OriginalDst, c.Protocol)
			}
		}
		if direction != "inbound" {
			for _, c := range s.is.Connections.Outbound {
				add("Outbound", c.Src, c.ActualDst, c.OriginalDst, c.Protocol)
			}
		}
	}
	slices.SortStableFunc(rows, slices.Compare)
	return table(w, "WORKLOAD\tDIRECTION\tLOCAL\tREMOTE\tREMOTE TARGET\tPROTOCOL", rows)
}
