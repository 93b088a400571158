package claims

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
)

// Function is a test as its source has it.
type Function struct {
	Features []string // ids of its //ambit:feature lines
}

// Source is what the tests of one package are.
type Source struct {
	Functions map[string]Function
	// Strings are all string constants of the tests: a subtest has its name
	// from one of them.
	Strings map[string]bool
}

const directive = "//ambit:feature "

// Sources reads the test files below root, by package.
func Sources(root string) (map[string]*Source, error) {
	out := map[string]*Source{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if rel == "out" || d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".") && rel != "." {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(rel, "_test.go") {
			return nil
		}
		pkg := filepath.ToSlash(filepath.Dir(rel))
		if out[pkg] == nil {
			out[pkg] = &Source{map[string]Function{}, map[string]bool{}}
		}
		return out[pkg].read(path)
	})
	return out, err
}

func (s *Source) read(path string) error {
	f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	for _, d := range f.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || fn.Recv != nil || !strings.HasPrefix(fn.Name.Name, "Test") && !strings.HasPrefix(fn.Name.Name, "Fuzz") {
			continue
		}
		var ids []string
		if fn.Doc != nil {
			for _, c := range fn.Doc.List {
				if text, ok := strings.CutPrefix(c.Text, directive); ok {
					ids = append(ids, strings.Fields(text)...)
				}
			}
		}
		s.Functions[fn.Name.Name] = Function{ids}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			if text, err := strconv.Unquote(lit.Value); err == nil {
				s.Strings[text] = true
			}
		}
		return true
	})
	return nil
}

// Has says whether a test exists; of a subtest of a subtest each name must.
func (s *Source) Has(t Test) bool {
	if s == nil {
		return false
	}
	if _, ok := s.Functions[t.Function]; !ok {
		return false
	}
	if t.Sub == "" || s.Strings[t.Sub] {
		return true
	}
	for name := range strings.SplitSeq(t.Sub, "/") {
		if !s.Strings[name] {
			return false
		}
	}
	return true
}
