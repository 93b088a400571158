package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// billPath is where an image says what it is made of.
const billPath = "usr/share/ambit/sbom.spdx.json"

// The part of SPDX 2.3 that is used.
type document struct {
	Version       string         `json:"spdxVersion"`
	License       string         `json:"dataLicense"`
	ID            string         `json:"SPDXID"`
	Name          string         `json:"name"`
	Namespace     string         `json:"documentNamespace"`
	Creation      creation       `json:"creationInfo"`
	Packages      []material     `json:"packages"`
	Relationships []relationship `json:"relationships"`
}

type creation struct {
	Created  string   `json:"created"`
	Creators []string `json:"creators"`
}

type material struct {
	ID        string     `json:"SPDXID"`
	Name      string     `json:"name"`
	Version   string     `json:"versionInfo,omitempty"`
	From      string     `json:"downloadLocation"`
	Analyzed  bool       `json:"filesAnalyzed"`
	License   string     `json:"licenseDeclared"`
	Copyright string     `json:"copyrightText"`
	Checksums []checksum `json:"checksums,omitempty"`
	Refs      []locator  `json:"externalRefs,omitempty"`
	Comment   string     `json:"comment,omitempty"`
}

type checksum struct {
	Algorithm string `json:"algorithm"`
	Value     string `json:"checksumValue"`
}

type locator struct {
	Category string `json:"referenceCategory"`
	Type     string `json:"referenceType"`
	Locator  string `json:"referenceLocator"`
}

type relationship struct {
	From string `json:"spdxElementId"`
	Kind string `json:"relationshipType"`
	To   string `json:"relatedSpdxElement"`
}

const unknown = "NOASSERTION"

// bill lists what is in the binaries of a folder, as they themselves say: the
// linker writes every module with its checksum into them.
func bill(dir, arch, version string, created time.Time) ([]byte, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	image := material{ID: "SPDXRef-image", Name: "ambit", Version: version, From: unknown, License: "Apache-2.0", Copyright: unknown}
	d := document{Version: "SPDX-2.3", License: "CC0-1.0", ID: "SPDXRef-DOCUMENT", Name: "ambit-" + version + "-" + arch,
		Creation:      creation{created.UTC().Format(time.RFC3339), []string{"Tool: ambit-deploy-image"}},
		Relationships: []relationship{{"SPDXRef-DOCUMENT", "DESCRIBES", image.ID}}}
	modules := map[string]material{}
	all := sha256.New()
	var binaries []material
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		info, err := buildinfo.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("what is in %s: %w", e.Name(), err)
		}
		sum, err := fileSum(path)
		if err != nil {
			return nil, err
		}
		fmt.Fprintln(all, e.Name(), sum)
		b := material{ID: spdxID("binary", e.Name()), Name: e.Name(), Version: version, From: unknown, License: "Apache-2.0",
			Copyright: unknown, Checksums: []checksum{{"SHA256", sum}}, Comment: "/" + binDir + e.Name()}
		binaries = append(binaries, b)
		d.Relationships = append(d.Relationships, relationship{image.ID, "CONTAINS", b.ID})
		for _, m := range append(slices.Clone(info.Deps), &debug.Module{Path: "stdlib", Version: strings.TrimPrefix(info.GoVersion, "go")}) {
			if m.Replace != nil {
				m = m.Replace
			}
			one := material{ID: spdxID("module", m.Path+"-"+m.Version), Name: m.Path, Version: m.Version, From: unknown,
				License: unknown, Copyright: unknown,
				Refs: []locator{{"PACKAGE-MANAGER", "purl", "pkg:golang/" + m.Path + "@" + m.Version}}}
			if m.Sum != "" {
				one.Comment = "go.sum " + m.Sum
			}
			modules[one.ID] = one
			d.Relationships = append(d.Relationships, relationship{b.ID, "DEPENDS_ON", one.ID})
		}
	}
	d.Packages = append(append(d.Packages, image), binaries...)
	for _, id := range slices.Sorted(maps.Keys(modules)) {
		d.Packages = append(d.Packages, modules[id])
	}
	d.Namespace = "https://ambitmesh.io/spdx/" + d.Name + "-" + hex.EncodeToString(all.Sum(nil))
	return json.MarshalIndent(d, "", " ")
}

var notInID = regexp.MustCompile(`[^A-Za-z0-9.-]+`)

func spdxID(kind, name string) string {
	return "SPDXRef-" + kind + "-" + notInID.ReplaceAllString(name, "-")
}

func fileSum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
