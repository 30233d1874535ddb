// Generated cases of writes: life cycle, updates, patches, deletes.

package main

import "fmt"

const (
	jsonPatch      = "application/json-patch+json"
	mergePatch     = "application/merge-patch+json"
	strategicPatch = "application/strategic-merge-patch+json"
	applyPatch     = "application/apply-patch+yaml"
)

func create(k *kind) Step { return Step{Do: "POST " + k.collection(), Send: "base", Expect: 201} }

// prepare creates the base object without comparing: the life cycle does that.
func prepare(k *kind) Step {
	s := create(k)
	s.Quiet = true
	return s
}

// lifecycle: defaults on create, what get returns, an update that changes nothing, a delete.
func (g *generator) lifecycle(k *kind) {
	for _, v := range []string{"minimal", "full"} {
		steps := []Step{create(k), {Do: "GET " + k.item(v)}}
		if !k.volatile {
			steps = append(steps, Step{Do: "PUT " + k.item(v), Send: "last"})
		}
		if k.resource != "namespaces" {
			steps = append(steps, Step{Do: "DELETE " + k.item(v)})
		}
		g.add("lifecycle", k, v, Case{
			Why:  fmt.Sprintf("The %s object: its defaults, an update that changes nothing, its end.", v),
			Base: k.base(v), Steps: steps,
		})
		g.add("lifecycle", k, v+"-dry-run", Case{
			Why:  "A dry run answers as the create would, and leaves nothing.",
			Base: k.base(v),
			Steps: []Step{
				{Do: "POST " + k.collection() + "?dryRun=All", Send: "base", Expect: 201},
				{Do: "GET " + k.item(v), Expect: 404},
			},
		})
	}
	g.add("lifecycle", k, "twice", Case{
		Why: "A second create conflicts.", Base: k.base("minimal"),
		Steps: []Step{prepare(k), {Do: "POST " + k.collection(), Send: "base", Expect: 409}},
	})
}

// places are the fields of an object below apiVersion, kind and metadata, to a depth, as pointers.
func places(object any, depth int) []string {
	var out []string
	m, _ := object.(map[string]any)
	for _, key := range sortedKeys(m) {
		if key != "apiVersion" && key != "kind" && key != "metadata" {
			out = append(out, below("/"+escape(key), m[key], depth-1)...)
		}
	}
	return out
}

func below(at string, v any, depth int) []string {
	out := []string{at}
	if depth == 0 {
		return out
	}
	switch v := v.(type) {
	case map[string]any:
		for _, key := range sortedKeys(v) {
			out = append(out, below(at+"/"+escape(key), v[key], depth-1)...)
		}
	case []any:
		if len(v) > 0 {
			for i := range v[:min(len(v), 2)] {
				out = append(out, below(fmt.Sprintf("%s/%d", at, i), v[i], depth-1)...)
			}
		}
	}
	return out
}

// changed is a value near to v that is not v.
func changed(v any) any {
	switch v := v.(type) {
	case string:
		return v + "x"
	case float64:
		return v + 1
	case bool:
		return !v
	case []any:
		return []any{}
	}
	return map[string]any{}
}

// updates: each field changed by a PUT (is it immutable?), the metadata's rules, the separation of status.
func (g *generator) updates(k *kind) {
	for _, at := range places(k.full, 2) {
		value := getAt(k.full, pointer(at))
		g.add("update", k, "change"+fileName(at), Case{
			Why: "Is " + at + " immutable, and what follows from a change?", Base: k.base("full"),
			Steps: []Step{
				prepare(k),
				{Do: "PUT " + k.item("full") + "?dryRun=All", Send: "base", Edit: Edit{Set: map[string]any{at: changed(value)}}},
				{Do: "PUT " + k.item("full") + "?dryRun=All", Send: "base", Edit: Edit{Remove: []string{at}}},
			},
		})
	}
	item := k.item("minimal")
	g.add("update", k, "metadata", Case{
		Why: "What an update may not change in the metadata.", Base: k.base("minimal"),
		Steps: []Step{
			prepare(k),
			{Do: "PUT " + item, Send: "base", Edit: edit("/metadata/resourceVersion", "1")},
			{Do: "PUT " + item, Send: "base", Edit: edit("/metadata/resourceVersion", "x")},
			{Do: "PUT " + item, Send: "base", Edit: edit("/metadata/uid", "7d3f2c1a-0000-4000-8000-000000000001")},
			{Do: "PUT " + item, Send: "base", Edit: edit("/metadata/name", "other")},
			{Do: "PUT " + item, Send: "base", Edit: edit("/kind", "Other")},
			{Do: "PUT " + item, Send: "base", Edit: edit("/apiVersion", "v9")},
			{Do: "PUT " + item, Send: "base", Edit: edit("/metadata/creationTimestamp", "2020-01-01T00:00:00Z")},
			{Do: "PUT " + item, Send: "base", Edit: edit("/metadata/deletionTimestamp", "2020-01-01T00:00:00Z")},
			{Do: "PUT " + item, Send: "base", Edit: edit("/metadata/labels", map[string]any{"a b": "c"})},
		},
	})
	g.add("update", k, "absent", Case{
		Why: "An update of what is not there.", Base: k.base("minimal"),
		Steps: []Step{{Do: "PUT " + item, Send: "base"}, {Do: "PUT " + item, Send: "base", Edit: edit("/metadata/resourceVersion", "1")}},
	})
	if k.subresources["status"] {
		g.status(k)
	}
}

func (g *generator) status(k *kind) {
	item := k.item("full")
	g.add("update", k, "status", Case{
		Why: "The status subresource changes no label and no spec, and the main resource no status.", Base: k.base("full"),
		Steps: []Step{
			prepare(k),
			{Do: "GET " + item + "/status"},
			{Do: "PATCH " + item + "/status", Type: mergePatch, Body: map[string]any{"metadata": map[string]any{"labels": map[string]any{"from": "status"}}}},
			{Do: "PATCH " + item, Type: mergePatch, Body: map[string]any{"metadata": map[string]any{"labels": map[string]any{"from": "main"}}}},
			{Do: "PUT " + item + "/status", Send: "base"},
			{Do: "PATCH " + item + "/status", Type: mergePatch, Body: map[string]any{"status": map[string]any{"noSuchField": 1}}},
		},
	})
}

func edit(at string, value any) Edit { return Edit{Set: map[string]any{at: value}} }

func meta(key string, value any) map[string]any {
	return map[string]any{"metadata": map[string]any{key: value}}
}

// patches: each type, with its own errors.
func (g *generator) patches(k *kind) {
	item := k.item("full")
	patch := func(kind string, body any) Step { return Step{Do: "PATCH " + item, Type: kind, Body: body} }
	op := func(fields ...any) any {
		o := map[string]any{}
		for i := 0; i < len(fields); i += 2 {
			o[fields[i].(string)] = fields[i+1]
		}
		return o
	}
	wrong := patch(jsonPatch, []any{op("op", "add", "path", "/metadata/labels", "value", 7)})
	strict := Step{Do: "PATCH " + item + "?fieldValidation=Strict", Type: mergePatch, Body: meta("noSuchField", "x")}
	if k.volatile {
		// The message quotes the whole object, with what controllers wrote.
		wrong, strict = Step{Do: "GET " + item}, Step{Do: "GET " + item}
	}
	g.add("patch", k, "json", Case{
		Why: "JSON patches: what they do and how they fail.", Base: k.base("full"),
		Steps: []Step{
			prepare(k),
			patch(jsonPatch, []any{op("op", "add", "path", "/metadata/annotations", "value", op("a", "b"))}),
			patch(jsonPatch, []any{op("op", "test", "path", "/metadata/annotations/a", "value", "c")}),
			patch(jsonPatch, []any{op("op", "remove", "path", "/metadata/nothing")}),
			patch(jsonPatch, []any{op("op", "replace", "path", "/metadata/name", "value", "other")}),
			wrong,
			patch(jsonPatch, op("op", "add")),
			patch(jsonPatch, []any{op("op", "move", "from", "/metadata/annotations/a", "path", "/metadata/annotations/c")}),
		},
	})
	g.add("patch", k, "merge", Case{
		Why: "Merge patches: null removes, unknown fields follow fieldValidation.", Base: k.base("full"),
		Steps: []Step{
			prepare(k),
			patch(mergePatch, meta("labels", op("app", nil, "new", "x"))),
			patch(mergePatch, meta("resourceVersion", "1")),
			patch(mergePatch, meta("noSuchField", "x")),
			strict,
			patch(mergePatch, meta("labels", op("bad value", "x y"))),
			patch(mergePatch, map[string]any{}),
			{Do: "PATCH " + item + "?dryRun=All", Type: mergePatch, Body: meta("annotations", op("a", "b"))},
			patch(mergePatch, []any{}),
		},
	})
	g.add("patch", k, "strategic", Case{
		Why: "Strategic merge patches of the metadata, where lists merge by key.", Base: k.base("full"),
		Steps: []Step{
			prepare(k),
			patch(strategicPatch, meta("labels", op("$patch", "replace", "only", "x"))),
			patch(strategicPatch, meta("finalizers", []any{"example.com/a"})),
			patch(strategicPatch, meta("finalizers", []any{"example.com/b"})),
			patch(strategicPatch, meta("$deleteFromPrimitiveList/finalizers", []any{"example.com/a", "example.com/b"})),
			patch(strategicPatch, meta("labels", op("$patch", "nonsense"))),
			patch(strategicPatch, meta("noSuchField", 1)),
		},
	})
	g.apply(k)
	g.addGeneral("patch", k, "errors", Case{
		Why: "Patches of an unknown type, of nothing, and with bad options.", Base: k.base("full"),
		Steps: []Step{
			{Do: "PATCH " + item, Type: mergePatch, Body: meta("labels", op("a", "b"))},
			{Do: "PATCH " + item, Type: "application/json", Body: meta("labels", op("a", "b"))},
			{Do: "PATCH " + item + "?dryRun=Some", Type: mergePatch, Body: meta("labels", op("a", "b"))},
			{Do: "PATCH " + item + "?fieldManager=a%0Ab", Type: mergePatch, Body: meta("labels", op("a", "b"))},
			{Do: "PATCH " + item + "?force=true", Type: mergePatch, Body: meta("labels", op("a", "b"))},
		},
	})
}

// apply: server-side apply, where managedFields are part of the answer.
func (g *generator) apply(k *kind) {
	op := func(fields ...string) any {
		labels := map[string]any{}
		for i := 0; i < len(fields); i += 2 {
			labels[fields[i]] = fields[i+1]
		}
		return labels
	}
	g.add("patch", k, "apply", Case{
		Why: "Server-side apply creates, changes, and takes away what its manager owned.", Base: k.base("minimal"),
		Keep: []string{"managedFields"},
		Steps: []Step{
			{Do: "PATCH " + k.item("minimal") + "?fieldManager=one", Type: applyPatch, Send: "base", Edit: edit("/metadata/labels", op("a", "1", "b", "2")), Expect: 201},
			{Do: "PATCH " + k.item("minimal") + "?fieldManager=one", Type: applyPatch, Send: "base", Edit: edit("/metadata/labels", op("a", "1"))},
			{Do: "PATCH " + k.item("minimal") + "?fieldManager=two", Type: applyPatch, Send: "base", Edit: edit("/metadata/labels", op("a", "2"))},
			{Do: "PATCH " + k.item("minimal") + "?fieldManager=two&force=true", Type: applyPatch, Send: "base", Edit: edit("/metadata/labels", op("a", "2"))},
			{Do: "PATCH " + k.item("minimal"), Type: applyPatch, Send: "base"},
		},
	})
}

// deletes: preconditions, finalizers, options, collections.
func (g *generator) deletes(k *kind) {
	if k.resource == "namespaces" {
		return
	}
	item := k.item("minimal")
	options := func(fields map[string]any) Step { return Step{Do: "DELETE " + item, Body: fields} }
	steps := []Step{
		prepare(k),
		options(map[string]any{"preconditions": map[string]any{"uid": "7d3f2c1a-0000-4000-8000-000000000001"}}),
		options(map[string]any{"preconditions": map[string]any{"resourceVersion": "1"}}),
		options(map[string]any{"propagationPolicy": "Sometimes"}),
		options(map[string]any{"propagationPolicy": "Orphan", "orphanDependents": true}),
		options(map[string]any{"gracePeriodSeconds": "x"}),
		options(map[string]any{"dryRun": []any{"All"}}),
		options(map[string]any{"dryRun": []any{"Some"}}),
		options(map[string]any{"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": map[string]any{"uid": "{uid}"}, "gracePeriodSeconds": 0}),
	}
	// Upstream's own finalizer of definitions comes and goes while one looks.
	definition := k.resource == "customresourcedefinitions"
	if !definition {
		steps = append(steps, options(map[string]any{}))
	}
	g.add("delete", k, "options", Case{
		Why: "Preconditions that fail, options that are wrong, a dry run; then the delete, twice.", Base: k.base("minimal"), Steps: steps,
	})
	if definition {
		return
	}
	g.add("delete", k, "finalizers", Case{
		Why: "A finalizer holds the object until it is taken away.", Base: k.base("minimal"), Edit: edit("/metadata/finalizers", []any{"example.com/hold"}),
		Steps: []Step{
			prepare(k),
			{Do: "DELETE " + item, Body: map[string]any{"gracePeriodSeconds": 0}},
			{Do: "GET " + item},
			{Do: "PATCH " + item, Type: mergePatch, Body: meta("finalizers", []any{"example.com/hold", "example.com/more"})},
			{Do: "PATCH " + item, Type: mergePatch, Body: meta("finalizers", nil)},
			{Do: "GET " + item, Expect: 404},
		},
	})
	if k.namespaced && k.verbs["deletecollection"] {
		g.add("delete", k, "collection", Case{
			Why: "A collection is deleted by label; what does not match stays.", Base: k.base("minimal"),
			Steps: []Step{
				{Do: "POST " + k.collection(), Send: "base", Edit: edit("/metadata/labels", map[string]any{"go": "yes"}), Expect: 201, Quiet: true},
				{Do: "POST " + k.collection(), Send: "base", Edit: edit("/metadata/name", "{name}-b"), Expect: 201, Quiet: true},
				{Do: "DELETE " + k.collection() + "?labelSelector=go%3Dyes&gracePeriodSeconds=0"},
				{Do: "GET " + item},
				{Do: "DELETE " + k.collection() + "?labelSelector=a%20b"},
				{Do: "DELETE " + k.collection() + "?fieldSelector=no.such%3Dx"},
				{Do: "GET " + item + "-b"},
			},
		})
	}
}
