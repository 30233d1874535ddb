package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"log"
	"os/exec"
	"reflect"
	"sort"
	"strconv"
	"strings"
)

// enums finds the values of Go's string types that are marked `+enum`. The documents that upstream commits leave them out,
// those that it serves have them.
type enums struct {
	// packages maps an import path to its types and their values, sorted.
	packages map[string]map[string][]string
}

func newEnums() *enums { return &enums{packages: map[string]map[string][]string{}} }

// of gives the values of t, or of its elements where it is a list or a map; none if they are no enum.
func (e *enums) of(t reflect.Type) []string {
	for t.Kind() == reflect.Slice || t.Kind() == reflect.Map || t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() != reflect.String || t.PkgPath() == "" {
		return nil
	}
	values, ok := e.packages[t.PkgPath()]
	if !ok {
		values = readEnums(t.PkgPath())
		e.packages[t.PkgPath()] = values
	}
	return values[t.Name()]
}

func readEnums(pkg string) map[string][]string {
	dir, err := exec.Command("go", "list", "-f", "{{.Dir}}", pkg).Output()
	if err != nil {
		log.Fatalf("go list %s: %v", pkg, err)
	}
	parsed, err := parser.ParseDir(token.NewFileSet(), strings.TrimSpace(string(dir)), nil, parser.ParseComments)
	if err != nil {
		log.Fatal(err)
	}
	marked, values := map[string]bool{}, map[string][]string{}
	for _, p := range parsed {
		for _, f := range p.Files {
			for _, d := range f.Decls {
				if g, ok := d.(*ast.GenDecl); ok {
					readDeclaration(g, marked, values)
				}
			}
		}
	}
	out := map[string][]string{}
	for name := range marked {
		sort.Strings(values[name])
		out[name] = values[name]
	}
	return out
}

func readDeclaration(g *ast.GenDecl, marked map[string]bool, values map[string][]string) {
	for _, s := range g.Specs {
		switch s := s.(type) {
		case *ast.TypeSpec:
			if isMarked(g.Doc) || isMarked(s.Doc) {
				marked[s.Name.Name] = true
			}
		case *ast.ValueSpec:
			name, ok := s.Type.(*ast.Ident)
			if g.Tok != token.CONST || !ok {
				continue
			}
			for _, v := range s.Values {
				if lit, ok := v.(*ast.BasicLit); ok && lit.Kind == token.STRING {
					text, err := strconv.Unquote(lit.Value)
					if err != nil {
						log.Fatal(err)
					}
					values[name.Name] = append(values[name.Name], text)
				}
			}
		}
	}
}

func isMarked(doc *ast.CommentGroup) bool {
	if doc == nil {
		return false
	}
	for _, c := range doc.List {
		if strings.TrimSpace(strings.TrimPrefix(c.Text, "//")) == "+enum" {
			return true
		}
	}
	return false
}
