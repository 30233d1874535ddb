package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"log"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
)

// described is what a document says in words about a definition and its fields.
type described struct {
	Description string `json:"description"`
	Properties  map[string]struct {
		Description string `json:"description"`
	} `json:"properties"`
}

type parameter struct {
	Ref         string `json:"$ref"`
	Name        string `json:"name"`
	In          string `json:"in"`
	Description string `json:"description"`
}

type operation struct {
	Action     string      `json:"x-kubernetes-action"`
	Parameters []parameter `json:"parameters"`
	GVK        struct {
		Kind string `json:"kind"`
	} `json:"x-kubernetes-group-version-kind"`
}

type prose struct {
	Definitions map[string]described                  `json:"definitions"`
	Parameters  map[string]parameter                  `json:"parameters"`
	Paths       map[string]map[string]json.RawMessage `json:"paths"`
}

// shared are the fields that every definition of a kind describes in the same words.
var shared = map[string]bool{"apiVersion": true, "kind": true}

// descriptionTable writes what pkg/openapi cannot take from the source of k8s-openapi, which has neither lists nor parameters: a
// line for each definition and below it, indented by a tab, one for each field. Parameters stand as fields of `parameters`,
// those of an options kind or an action behind its name.
func descriptionTable(dir string) *bytes.Buffer {
	var p prose
	readJSON(filepath.Join(dir, "api/openapi-spec/swagger.json"), &p)
	out := new(bytes.Buffer)
	for _, name := range sortedKeys(p.Definitions) {
		d := p.Definitions[name]
		_, items := d.Properties["items"]
		if !(items && strings.HasSuffix(name, "List")) && !strings.HasSuffix(name, ".WatchEvent") {
			continue
		}
		fmt.Fprintf(out, "%s\t%s\n", name, escaped(d.Description))
		for _, field := range sortedKeys(d.Properties) {
			if text := d.Properties[field].Description; text != "" && !shared[field] {
				fmt.Fprintf(out, "\t%s\t%s\n", field, escaped(text))
			}
		}
	}
	fmt.Fprintf(out, "parameters\t\n")
	texts := p.parameters()
	for _, name := range sortedKeys(texts) {
		fmt.Fprintf(out, "\t%s\t%s\n", name, escaped(texts[name]))
	}
	return out
}

// parameters collects the texts of parameters. A name alone stands for the text that most operations have.
func (p *prose) parameters() map[string]string {
	counts, of := map[string]map[string]int{}, map[string]map[string]string{}
	add := func(q parameter, owners []string) {
		if shared, ok := strings.CutPrefix(q.Ref, "#/parameters/"); ok {
			q = p.Parameters[shared]
		}
		// Names of objects follow a pattern.
		if q.Description == "" || (q.In == "path" && q.Name == "name") {
			return
		}
		if counts[q.Name] == nil {
			counts[q.Name], of[q.Name] = map[string]int{}, map[string]string{}
		}
		counts[q.Name][q.Description]++
		for _, owner := range owners {
			of[q.Name][owner] = q.Description
		}
	}
	for _, path := range sortedKeys(p.Paths) {
		var owners []string
		for _, method := range sortedKeys(p.Paths[path]) {
			if method == "parameters" {
				continue
			}
			var o operation
			unmarshal(p.Paths[path][method], &o)
			owner := owner(o, path)
			owners = append(owners, owner)
			for _, q := range o.Parameters {
				add(q, []string{owner})
			}
		}
		var common []parameter
		if raw, ok := p.Paths[path]["parameters"]; ok {
			unmarshal(raw, &common)
		}
		for _, q := range common {
			add(q, owners)
		}
	}
	out := map[string]string{}
	for name, texts := range counts {
		most := ""
		for _, text := range sortedKeys(texts) {
			if most == "" || texts[text] > texts[most] {
				most = text
			}
		}
		out[name] = most
		for owner, text := range of[name] {
			if text != most {
				out[owner+"."+name] = text
			}
		}
	}
	return out
}

// owner says whose parameters an operation has: those of its action, or of the options that its path takes.
func owner(o operation, path string) string {
	switch {
	case strings.HasSuffix(o.GVK.Kind, "Options"):
		return o.GVK.Kind
	case strings.HasSuffix(path, "/log"):
		return "PodLogOptions"
	}
	return o.Action
}

// enumTable writes what served documents add to the descriptions of fields that are enums, which the committed ones leave out: a
// line for each text and below it, indented by a tab, the fields that end with it, each behind its definition's name.
func enumTable(dir string, definitions map[string]*definition) *bytes.Buffer {
	names := map[string]string{}
	for name := range definitions {
		names[flat(name)] = name
	}
	file := filepath.Join(dir, "pkg/generated/openapi/zz_generated.openapi.go")
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
	if err != nil {
		log.Fatal(err)
	}
	fields := map[string][]string{}
	for _, d := range parsed.Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok || !strings.HasPrefix(f.Name.Name, "schema_") {
			continue
		}
		name, known := names[strings.TrimPrefix(f.Name.Name, "schema_")]
		for field, text := range enumTexts(f) {
			if known {
				fields[text] = append(fields[text], name+"\t"+field)
			}
		}
	}
	out := new(bytes.Buffer)
	for _, text := range sortedKeys(fields) {
		fmt.Fprintf(out, "%s\n", escaped(text))
		sort.Strings(fields[text])
		for _, field := range fields[text] {
			fmt.Fprintf(out, "\t%s\n", field)
		}
	}
	return out
}

// flat is a definition's name as it stands in the names of generated functions: the type and four steps of its package's path.
func flat(definition string) string {
	if rest, ok := strings.CutPrefix(definition, "io.k8s."); ok {
		definition = "k8sio." + rest
	}
	steps := strings.Split(definition, ".")
	steps = steps[max(0, len(steps)-5):]
	return strings.ReplaceAll(strings.Join(steps, "_"), "-", "_")
}

const enumsBegin = "\n\nPossible enum values:\n"

// enumTexts finds the fields whose descriptions tell the values of an enum, and how these end.
func enumTexts(f *ast.FuncDecl) map[string]string {
	out := map[string]string{}
	ast.Inspect(f, func(n ast.Node) bool {
		field, ok := n.(*ast.KeyValueExpr)
		if !ok {
			return true
		}
		key, ok := field.Key.(*ast.BasicLit)
		if !ok || key.Kind != token.STRING {
			return true
		}
		if text := description(field.Value); strings.Contains(text, enumsBegin) {
			name, _ := strconv.Unquote(key.Value)
			// Blank lines before it are not there where nothing follows.
			own := strings.TrimRight(text[:strings.Index(text, enumsBegin)], "\n")
			out[name] = text[len(own):]
		}
		return true
	})
	return out
}

// description is that of a field's own schema: `{SchemaProps: spec.SchemaProps{Description: "..."}}`.
func description(schema ast.Expr) string {
	for _, key := range []string{"SchemaProps", "Description"} {
		literal, ok := schema.(*ast.CompositeLit)
		if !ok {
			return ""
		}
		schema = nil
		for _, e := range literal.Elts {
			if kv, ok := e.(*ast.KeyValueExpr); ok {
				if ident, ok := kv.Key.(*ast.Ident); ok && ident.Name == key {
					schema = kv.Value
				}
			}
		}
	}
	if text, ok := schema.(*ast.BasicLit); ok {
		unquoted, _ := strconv.Unquote(text.Value)
		return unquoted
	}
	return ""
}

func unmarshal(raw json.RawMessage, into any) {
	if err := json.Unmarshal(raw, into); err != nil {
		log.Fatal(err)
	}
}

func escaped(text string) string {
	return strings.NewReplacer("\\", "\\\\", "\n", "\\n", "\t", "\\t").Replace(text)
}
