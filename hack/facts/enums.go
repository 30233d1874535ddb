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
					readDeclaration(g, f, marked, values)
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

func readDeclaration(g *ast.GenDecl, file *ast.File, marked map[string]bool, values map[string][]string) {
	for _, s := range g.Specs {
		switch s := s.(type) {
		case *ast.TypeSpec:
			if isMarked(g.Doc) || isMarked(s.Doc) {
				marked[s.Name.Name] = true
			}
		case *ast.ValueSpec:
			if g.Tok != token.CONST {
				continue
			}
			for _, v := range s.Values {
				if name, text, ok := constant(s.Type, v, file); ok {
					values[name] = append(values[name], text)
				}
			}
		}
	}
}

// constant reads `const X T = "a"`, `const X = T("a")` and `const X = T(other.Y)`.
func constant(t, v ast.Expr, file *ast.File) (name, text string, ok bool) {
	if call, isCall := v.(*ast.CallExpr); isCall && len(call.Args) == 1 {
		t, v = call.Fun, call.Args[0]
	}
	ident, isIdent := t.(*ast.Ident)
	if !isIdent {
		return "", "", false
	}
	switch v := v.(type) {
	case *ast.BasicLit:
		if v.Kind == token.STRING {
			text, err := strconv.Unquote(v.Value)
			return ident.Name, text, err == nil
		}
	case *ast.SelectorExpr:
		text, found := imported(v, file)
		return ident.Name, text, found
	}
	return "", "", false
}

// imported is the value of another package's constant, whose declaration is literal.
func imported(s *ast.SelectorExpr, file *ast.File) (string, bool) {
	alias, ok := s.X.(*ast.Ident)
	if !ok {
		return "", false
	}
	for _, i := range file.Imports {
		path, err := strconv.Unquote(i.Path.Value)
		if err != nil || i.Name == nil || i.Name.Name != alias.Name {
			continue
		}
		dir, err := exec.Command("go", "list", "-f", "{{.Dir}}", path).Output()
		if err != nil {
			log.Fatalf("go list %s: %v", path, err)
		}
		parsed, err := parser.ParseDir(token.NewFileSet(), strings.TrimSpace(string(dir)), nil, 0)
		if err != nil {
			log.Fatal(err)
		}
		for _, p := range parsed {
			for _, f := range p.Files {
				if text, ok := literal(f, s.Sel.Name); ok {
					return text, true
				}
			}
		}
	}
	return "", false
}

func literal(file *ast.File, name string) (string, bool) {
	for _, d := range file.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.CONST {
			continue
		}
		for _, s := range g.Specs {
			v := s.(*ast.ValueSpec)
			for i, n := range v.Names {
				if n.Name != name || i >= len(v.Values) {
					continue
				}
				if lit, ok := v.Values[i].(*ast.BasicLit); ok && lit.Kind == token.STRING {
					text, err := strconv.Unquote(lit.Value)
					return text, err == nil
				}
			}
		}
	}
	return "", false
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
