// Generated cases of reads: lists, watches, tables, partial metadata, encodings, and the OpenAPI documents.

package main

import (
	"context"
	"fmt"
	"net/url"
	"strings"
)

const (
	tableType   = "application/json;as=Table;v=v1;g=meta.k8s.io"
	partialType = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io"
	partialList = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
)

// only is a query that keeps a list of cluster-scoped objects to the case's own.
func only(k *kind, variant string) string {
	name, _ := getAt(k.object(variant), pointer("/metadata/name")).(string)
	return "fieldSelector=" + strings.ReplaceAll(url.QueryEscape("metadata.name="), "+", "%20") + name
}

func (g *generator) reads(k *kind) {
	list := k.collection() + "?" + only(k, "full")
	g.add("table", k, "columns", Case{
		Why: "Printer columns of the full object, as kubectl get asks for them.", Base: k.base("full"),
		Steps: []Step{
			prepare(k),
			{Do: "GET " + k.item("full"), Accept: tableType},
			{Do: "GET " + list, Accept: tableType},
			{Do: "GET " + list + "&includeObject=None", Accept: tableType},
			{Do: "GET " + list + "&includeObject=Object", Accept: tableType},
			{Do: "GET " + list + "&includeObject=Everything", Accept: tableType},
		},
	})
	g.add("table", k, "minimal", Case{
		Why: "Printer columns where little is set.", Base: k.base("minimal"),
		Steps: []Step{prepare(k), {Do: "GET " + k.item("minimal"), Accept: tableType}},
	})
	g.add("table", k, "partial", Case{
		Why: "Metadata alone, of an object and of a list.", Base: k.base("full"),
		Steps: []Step{
			prepare(k),
			{Do: "GET " + k.item("full"), Accept: partialType},
			{Do: "GET " + list, Accept: partialList},
			{Do: "GET " + list, Accept: partialType},
			{Do: "DELETE " + k.item("full") + "?dryRun=All", Accept: partialType},
		},
	})
	g.encodings(k, list)
	g.lists(k)
	if !k.volatile {
		g.watches(k)
	}
}

func (g *generator) encodings(k *kind, list string) {
	steps := []Step{
		prepare(k),
		{Do: "GET " + k.item("full"), Accept: "application/yaml"},
		{Do: "GET " + list, Accept: "application/yaml"},
		{Do: "GET " + k.item("full"), Accept: "application/vnd.kubernetes.protobuf,application/json"},
		{Do: "GET " + list, Accept: protobufType},
	}
	g.add("encoding", k, "read", Case{Why: "YAML and protobuf say the same as JSON.", Base: k.base("full"), Steps: steps})
	// Aggregation and extension types are in no client scheme.
	if k.group == "apiextensions" || k.group == "apiregistration" {
		return
	}
	g.add("encoding", k, "write", Case{
		Why: "A protobuf and a YAML body are read as a JSON one.", Base: k.base("full"),
		Steps: []Step{
			{Do: "POST " + k.collection() + "?dryRun=All", Type: protobufType, Send: "base", Expect: 201},
			{Do: "POST " + k.collection() + "?dryRun=All", Type: "application/yaml", Send: "base", Expect: 201},
		},
	})
}

func (g *generator) lists(k *kind) {
	c := k.collection()
	own := only(k, "minimal")
	namespace := "none"
	if k.namespaced {
		namespace = "{ns}"
	}
	g.add("list", k, "selectors", Case{
		Why: "Label and field selectors, also ones that the kind does not have.", Base: k.base("minimal"), Edit: edit("/metadata/labels", map[string]any{"l": "{name}"}),
		Steps: []Step{
			prepare(k),
			{Do: "GET " + c + "?labelSelector=l%3D{name}"},
			{Do: "GET " + c + "?labelSelector=l%20in%20(%20{name},b)"},
			{Do: "GET " + c + "?labelSelector=l%3D{name},!none"},
			{Do: "GET " + c + "?labelSelector=a%3D%3D%3Db"},
			{Do: "GET " + c + "?labelSelector=a%20near%20b"},
			{Do: "GET " + c + "?" + own},
			{Do: "GET " + c + "?fieldSelector=metadata.name%3Dnone"},
			{Do: "GET " + c + "?fieldSelector=spec.nothing%3Dx"},
			{Do: "GET " + c + "?fieldSelector=metadata.name"},
			{Do: "GET " + c + "?fieldSelector=status.phase%3DRunning&labelSelector=l%3D{name}"},
			{Do: "GET " + c + "?fieldSelector=metadata.namespace%3D" + namespace + "&labelSelector=l%3D{name}"},
		},
	})
	g.addGeneral("list", k, "versions", Case{
		Why: "resourceVersion and resourceVersionMatch, alone and together.", Base: k.base("minimal"),
		Steps: []Step{
			prepare(k),
			// First, so that the watch cache has the object.
			{Do: "GET " + c + "?" + own + "&resourceVersion={rv}&resourceVersionMatch=NotOlderThan"},
			{Do: "GET " + c + "?" + own + "&resourceVersion={rv}&resourceVersionMatch=Exact"},
			{Do: "GET " + c + "?" + own + "&resourceVersion=0&limit=0"},
			{Do: "GET " + c + "?" + own + "&resourceVersionMatch=Exact"},
			{Do: "GET " + c + "?" + own + "&resourceVersion=0&resourceVersionMatch=Exact"},
			{Do: "GET " + c + "?" + own + "&resourceVersion=x"},
			{Do: "GET " + c + "?" + own + "&resourceVersion=1&resourceVersionMatch=Sometimes"},
			{Do: "GET " + c + "?" + own + "&limit=-1"},
			{Do: "GET " + c + "?" + own + "&limit=x"},
			{Do: "GET " + c + "?" + own + "&continue=nonsense"},
		},
	})
	if !k.namespaced {
		return
	}
	more := []Step{}
	for _, suffix := range []string{"a", "b", "c"} {
		s := prepare(k)
		s.Edit = edit("/metadata/name", "{name}-"+suffix)
		more = append(more, s)
	}
	labels := ""
	if k.resource == "serviceaccounts" || k.resource == "configmaps" {
		// Every namespace has one of its own, sooner or later.
		for i := range more {
			more[i].Edit.Set["/metadata/labels"] = map[string]any{"own": "yes"}
		}
		labels = "&labelSelector=own%3Dyes"
	}
	g.add("list", k, "pages", Case{
		Why: "Pages by limit and continue.", Base: k.base("minimal"),
		Steps: append(more,
			Step{Do: "GET " + c + "?limit=1" + labels},
			Step{Do: "GET " + c + "?limit=1&continue={continue}" + labels},
			Step{Do: "GET " + c + "?limit=5&continue={continue}" + labels},
			Step{Do: "GET " + c + "?limit=2&resourceVersion=0" + labels},
			Step{Do: "GET " + c + "?limit=1&continue={continue}&resourceVersion=1" + labels},
		),
	})
}

func (g *generator) watches(k *kind) {
	item, w := k.item("minimal"), "WATCH "+k.collection()+"?watch=1&"+only(k, "minimal")
	g.add("watch", k, "events", Case{
		Why: "The events of a life: added, modified, deleted.", Base: k.base("minimal"),
		Steps: []Step{
			{Do: w, Events: 3},
			prepare(k),
			{Do: "PATCH " + item, Type: mergePatch, Body: meta("labels", map[string]any{"a": "b"}), Quiet: true},
			{Do: "DELETE " + item + "?gracePeriodSeconds=0", Quiet: true},
		},
	})
	g.add("watch", k, "replay", Case{
		Why: "A watch from a revision replays what came after it; selectors turn changes into additions and deletions.", Base: k.base("minimal"),
		Steps: []Step{
			prepare(k),
			{Do: "WATCH " + k.collection() + "?watch=1&resourceVersion={rv}&labelSelector=a%3Db&" + only(k, "minimal"), Events: 2},
			{Do: "PATCH " + item, Type: mergePatch, Body: meta("labels", map[string]any{"a": "b"}), Quiet: true},
			{Do: "PATCH " + item, Type: mergePatch, Body: meta("labels", map[string]any{"a": "c"}), Quiet: true},
		},
	})
	g.add("watch", k, "table", Case{
		Why: "Watched as a table and as metadata alone.", Base: k.base("minimal"),
		Steps: []Step{
			prepare(k),
			{Do: w, Accept: tableType, Events: 1},
			{Do: w, Accept: partialType, Events: 1},
		},
	})
	g.addGeneral("watch", k, "initial", Case{
		Why: "A streamed list: the objects, then the bookmark that ends them.", Base: k.base("minimal"),
		Steps: []Step{
			prepare(k),
			{Do: w + "&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan", Events: 2},
			{Do: w + "&sendInitialEvents=true"},
			{Do: w + "&sendInitialEvents=true&resourceVersionMatch=Exact"},
			{Do: w + "&resourceVersionMatch=NotOlderThan"},
			{Do: "GET " + k.collection() + "?sendInitialEvents=true"},
		},
	})
}

// openapi: one case a document, whose paths and definitions are compared one by one.
func (g *generator) openapi(c *client) error {
	a := (&play{c: c}).send(context.Background(), "GET", "/openapi/v3", nil, nil, c.admin)
	paths, ok := getAt(a.body, pointer("/paths")).(map[string]any)
	if !ok {
		return fmt.Errorf("GET /openapi/v3: %d %v", a.status, a.err)
	}
	for _, p := range sortedKeys(paths) {
		name := strings.ReplaceAll(strings.Trim(p, "/"), "/", ".")
		g.cases = append(g.cases, &Case{
			Name: "openapi/v3/" + name, Why: "The v3 document of /" + p + ", by path and by definition.",
			Steps: []Step{{Do: "GET /openapi/v3/" + p, Parts: []string{"/paths", "/components/schemas"}, Expect: 200}},
		})
	}
	return nil
}
