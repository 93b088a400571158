package claims

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

const document = `# Features

Text.

## Traffic

| Id | Behaviour | Tests | Difference |
|---|---|---|---|
| traffic-ping | it goes \| comes | ` + "`e2e/netns.TestPing` `e2e/kubelab/firstlight.TestFirstLight/a pod's first byte`" + ` | none |
| traffic-pigeons | letters by pigeon | – | they do not find home |

## Probes

| Id | Behaviour | Tests | Difference |
|---|---|---|---|
`

func write(t *testing.T, root, name, text string) {
	t.Helper()
	path := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestRead(t *testing.T) {
	root := t.TempDir()
	write(t, root, Threats, "# Threats\n\n## Controls\n\n| C | A | P | Tests |\n|---|---|---|---|\n| keys stay | app | keys | `hbone.FuzzFrames` |\n\n## Open\n\n| a | b | c | d |\n|---|---|---|---|\n| x | y | z | not there |\n")
	write(t, root, Features, document)
	got, err := Read(root)
	if err != nil {
		t.Fatal(err)
	}
	want := []Claim{
		{Document: Features, Section: "Traffic", ID: "traffic-ping", Tests: []Test{{"e2e/netns", "TestPing", ""}, {"e2e/kubelab/firstlight", "TestFirstLight", "a pod's first byte"}}},
		{Document: Features, Section: "Traffic", ID: "traffic-pigeons", LeftOut: "they do not find home"},
		{Document: Threats, Section: "Controls", ID: "keys stay", Tests: []Test{{"hbone", "FuzzFrames", ""}}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}

	for _, c := range []struct{ name, old, with, says string }{
		{"no test", "`e2e/netns.TestPing` `e2e/kubelab/firstlight.TestFirstLight/a pod's first byte`", "none yet", "names of tests"},
		{"more than tests", "`e2e/netns.TestPing`", "`e2e/netns.TestPing` mostly", "names of tests"},
		{"left out without a reason", "they do not find home", "–", "says why"},
		{"an empty cell", "| none |", "| |", "none of them empty"},
		{"too few cells", "| none |", "|", "3 cells"},
		{"an id in capitals", "traffic-ping", "Traffic ping", "an id is words"},
		{"an id twice", "## Probes", "| traffic-ping | a | `b.TestC` | d |\n\n## Probes", "two rows"},
	} {
		t.Run(c.name, func(t *testing.T) {
			write(t, root, Features, strings.Replace(document, c.old, c.with, 1))
			if _, err := Read(root); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestSources(t *testing.T) {
	root := t.TempDir()
	write(t, root, "a/a_test.go", `package a

// TestOne is one.
//
//ambit:feature a-one a-more
//ambit:feature b-other
func TestOne(t *testing.T) { t.Run("with a \"name\"", nil); t.Run("group", nil) }

//ambit:feature not-a-test
func helper() {}
`)
	write(t, root, "a/testdata/b_test.go", "not Go")
	write(t, root, "out/c_test.go", "not Go")
	got, err := Sources(root)
	if err != nil {
		t.Fatal(err)
	}
	a := got["a"]
	if len(got) != 1 || len(a.Functions) != 1 || strings.Join(a.Functions["TestOne"].Features, " ") != "a-one a-more b-other" {
		t.Fatalf("got %v", got)
	}
	for test, want := range map[Test]bool{
		{"a", "TestOne", ""}: true, {"a", "TestOn", ""}: false, {"a", "TestOne", `with a "name"`}: true,
		{"a", "TestOne", "with a"}: false, {"a", "TestOne", "group/with a \"name\""}: true, {"a", "TestOne", "group/other"}: false,
	} {
		if a.Has(test) != want {
			t.Errorf("%s: want %t", test, want)
		}
	}
	if got["b"].Has(Test{"b", "TestOne", ""}) {
		t.Error("a package without tests has one")
	}
}
