// Generated cases of validation: every field of the full object missing, empty, badly formed, out of range, twice, or
// of the wrong JSON type. All are dry runs, so that one object's name serves for many requests.

package main

import (
	"fmt"
	"strings"
)

func escape(key string) string { return strings.NewReplacer("~", "~0", "/", "~1").Replace(key) }

// fileName is a pointer as the end of a file's name.
func fileName(at string) string {
	return strings.NewReplacer("/", "-", "~1", ".", "~0", ".", " ", "_").Replace(at)
}

func (g *generator) validation(k *kind) {
	post := "POST " + k.collection() + "?dryRun=All"
	with := func(e Edit) Step { return Step{Do: post, Send: "base", Edit: e} }
	g.names(k, with)
	g.fieldValidation(k)
	for _, at := range places(k.minimal, 5) {
		g.add("validation", k, "without"+fileName(at), Case{
			Why: "Is " + at + " required?", Base: k.base("minimal"), Steps: []Step{with(Edit{Remove: []string{at}})},
		})
	}
	types := map[string]int{}
	for _, at := range places(k.full, 8) {
		value := getAt(k.full, pointer(at))
		steps := g.wrongValues(at, value, with)
		if len(steps) > 0 {
			g.add("validation", k, "value"+fileName(at), Case{Why: "Values that " + at + " may not have.", Base: k.base("full"), Steps: steps})
		}
		// Decoding is by type, the same for all fields: two fields of each type are enough.
		if wrong, name := wrongType(value); types[name] < 2 {
			types[name]++
			g.add("validation", k, "type"+fileName(at), Case{
				Why: fmt.Sprintf("A wrong JSON type where %s wants %s.", at, name), Base: k.base("full"), Steps: []Step{with(edit(at, wrong)), with(edit(at, nil))},
			})
		}
	}
}

func wrongType(v any) (any, string) {
	switch v.(type) {
	case string:
		return 7, "a string"
	case float64:
		return "x", "a number"
	case bool:
		return "yes", "a boolean"
	case []any:
		return map[string]any{"a": "b"}, "a list"
	}
	return []any{"a"}, "an object"
}

// wrongValues are the requests that a field's kind of value suggests.
func (g *generator) wrongValues(at string, v any, with func(Edit) Step) []Step {
	switch v := v.(type) {
	case string:
		return []Step{with(edit(at, "")), with(edit(at, "Not Valid!")), with(edit(at, "-"+strings.Repeat("x", 300)))}
	case float64:
		return []Step{with(edit(at, -1)), with(edit(at, 0)), with(edit(at, 2147483648)), with(edit(at, 1.5))}
	case []any:
		steps := []Step{with(edit(at, []any{}))}
		if len(v) > 0 {
			steps = append(steps, with(edit(at+"/-", v[0])))
		}
		return steps
	case map[string]any:
		return []Step{with(edit(at, map[string]any{}))}
	}
	return nil
}

func (g *generator) names(k *kind, with func(Edit) Step) {
	var characters []Step
	for _, name := range []string{"Upper", "under_score", "a.b", "a:b", "-a", "a b", "a/b", "..", "é"} {
		characters = append(characters, with(edit("/metadata/name", name)))
	}
	g.add("validation", k, "name-characters", Case{Why: "Characters of names.", Base: k.base("minimal"), Steps: characters})
	var lengths []Step
	for _, n := range []int{52, 63, 64, 253, 254} {
		lengths = append(lengths, with(edit("/metadata/name", strings.Repeat("a", n))))
	}
	g.add("validation", k, "name-length", Case{Why: "Lengths of names.", Base: k.base("minimal"), Steps: lengths})
	g.add("validation", k, "name-absent", Case{
		Why: "No name, an empty one, a generated one.", Base: k.base("minimal"),
		Steps: []Step{
			with(Edit{Remove: []string{"/metadata/name"}}),
			with(edit("/metadata/name", "")),
			with(Edit{Set: map[string]any{"/metadata/generateName": "gen-"}, Remove: []string{"/metadata/name"}}),
			with(Edit{Set: map[string]any{"/metadata/generateName": "Gen_"}, Remove: []string{"/metadata/name"}}),
			with(Edit{Remove: []string{"/metadata"}}),
			with(edit("/metadata", []any{})),
		},
	})
	g.add("validation", k, "metadata", Case{
		Why: "Labels, annotations, finalizers, owners, namespace and identity that are wrong.", Base: k.base("minimal"),
		Steps: []Step{
			with(edit("/metadata/labels", map[string]any{"a b": "c"})),
			with(edit("/metadata/labels", map[string]any{"a": "b c"})),
			with(edit("/metadata/labels", map[string]any{"a/b/c": ""})),
			with(edit("/metadata/labels", map[string]any{"": "x"})),
			with(edit("/metadata/labels", map[string]any{"a": strings.Repeat("x", 64)})),
			with(edit("/metadata/labels", map[string]any{"a": 1})),
			with(edit("/metadata/annotations", map[string]any{"B/a": "x"})),
			with(edit("/metadata/finalizers", []any{"nodomain"})),
			with(edit("/metadata/finalizers", []any{"a b/c"})),
			with(edit("/metadata/ownerReferences", []any{map[string]any{"kind": "Pod"}})),
			with(edit("/metadata/ownerReferences", []any{
				map[string]any{"apiVersion": "v1", "kind": "Pod", "name": "a", "uid": "1", "controller": true},
				map[string]any{"apiVersion": "v1", "kind": "Pod", "name": "b", "uid": "2", "controller": true},
			})),
			with(edit("/metadata/namespace", "elsewhere")),
			with(edit("/metadata/resourceVersion", "5")),
			with(edit("/metadata/uid", "x")),
			with(edit("/metadata/generation", 7)),
			with(edit("/metadata/deletionGracePeriodSeconds", 3)),
			with(edit("/metadata/selfLink", "/x")),
			with(edit("/metadata/managedFields", []any{map[string]any{"manager": "m", "operation": "Bad"}})),
		},
	})
	g.addGeneral("validation", k, "identity", Case{
		Why: "A wrong or missing kind or version, and no object at all.", Base: k.base("minimal"),
		Steps: []Step{
			with(edit("/kind", "Other")), with(edit("/apiVersion", "v9")), with(edit("/apiVersion", "a/b/c")),
			with(Edit{Remove: []string{"/kind"}}), with(Edit{Remove: []string{"/apiVersion"}}), with(Edit{Remove: []string{"/apiVersion", "/kind"}}),
			{Do: "POST " + k.collection(), Raw: text("")},
			{Do: "POST " + k.collection(), Raw: text("{")},
			{Do: "POST " + k.collection(), Raw: text("[]")},
			{Do: "POST " + k.collection(), Raw: text("null")},
		},
	})
}

func text(s string) *string { return &s }

func (g *generator) fieldValidation(k *kind) {
	post := "POST " + k.collection() + "?dryRun=All"
	var steps []Step
	for _, mode := range []string{"", "&fieldValidation=Strict", "&fieldValidation=Warn", "&fieldValidation=Ignore", "&fieldValidation=Maybe"} {
		steps = append(steps, Step{Do: post + mode, Send: "base", Edit: Edit{Set: map[string]any{"/noSuchField": 1, "/metadata/alsoNot": map[string]any{"x": 1}}}})
	}
	g.add("validation", k, "unknown-fields", Case{Why: "Unknown fields under each fieldValidation.", Base: k.base("full"), Steps: steps})
	double := `{"apiVersion":"` + k.apiVersion + `","kind":"` + fmt.Sprint(getAt(k.minimal, pointer("/kind"))) + `","metadata":{"name":"a","name":"{name}"},"metadata":{"name":"{name}"}}`
	steps = nil
	for _, mode := range []string{"", "&fieldValidation=Strict", "&fieldValidation=Ignore"} {
		steps = append(steps, Step{Do: post + mode, Raw: text(double)})
	}
	g.add("validation", k, "duplicate-fields", Case{Why: "A field that is there twice.", Steps: steps})
}
