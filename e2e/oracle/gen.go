// Generated cases: what every built-in kind has in common, made from upstream's discovery and the base objects. They
// are written as files like the others, so that a run needs no generator and a reader sees what is sent.

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

const generatedMark = "# Written by `oracle gen`; edit the generator instead.\n"

// kind is one resource that has base objects.
type kind struct {
	group, resource string // of the object files: apps, deployments
	apiVersion      string
	namespaced      bool
	subresources    map[string]bool
	verbs           map[string]bool
	minimal, full   any
	// volatile kinds get their status from controllers inside upstream's server: it is not compared, and revisions that
	// a client read may be old at once.
	volatile bool
}

var volatileKinds = map[string]bool{
	"customresourcedefinitions": true, "apiservices": true, "servicecidrs": true, "flowschemas": true,
	"prioritylevelconfigurations": true, "nodes": true, "namespaces": true, "ipaddresses": true,
}

// volatileCells are the columns that show volatile status.
var volatileCells = map[string]string{"flowschemas": "5", "apiservices": "2", "customresourcedefinitions": "7"}

func (k *kind) id() string {
	if strings.Contains(k.group, "-") || k.resource == "events" && k.group != "core" {
		return k.group + "." + k.resource
	}
	return k.resource
}

func (k *kind) base(variant string) string { return k.group + "/" + k.resource + "." + variant }

func (k *kind) object(variant string) any {
	if variant == "minimal" {
		return k.minimal
	}
	return k.full
}

func (k *kind) collection() string {
	path := "/apis/" + k.apiVersion
	if !strings.Contains(k.apiVersion, "/") {
		path = "/api/" + k.apiVersion
	}
	if k.namespaced {
		path += "/namespaces/{ns}"
	}
	return path + "/" + k.resource
}

func (k *kind) item(variant string) string {
	name, _ := getAt(k.object(variant), pointer("/metadata/name")).(string)
	return k.collection() + "/" + name
}

// kinds joins the base objects with upstream's discovery.
func kinds(objects map[string]any, c *client) ([]*kind, error) {
	var all []*kind
	lists := map[string]map[string]map[string]any{}
	for _, name := range sortedKeys(objects) {
		stem, ok := strings.CutSuffix(name, ".minimal")
		if !ok {
			continue
		}
		group, resource, _ := strings.Cut(stem, "/")
		k := &kind{group: group, resource: resource, minimal: objects[name], full: objects[stem+".full"], volatile: volatileKinds[resource]}
		if k.full == nil {
			return nil, fmt.Errorf("%s has no full object", stem)
		}
		k.apiVersion, _ = getAt(k.minimal, pointer("/apiVersion")).(string)
		if lists[k.apiVersion] == nil {
			var err error
			if lists[k.apiVersion], err = resources(c, k.apiVersion); err != nil {
				return nil, err
			}
		}
		row := lists[k.apiVersion][resource]
		if row == nil {
			fmt.Printf("upstream serves no %s %s\n", k.apiVersion, resource)
			continue
		}
		k.namespaced, _ = row["namespaced"].(bool)
		k.verbs, k.subresources = map[string]bool{}, map[string]bool{}
		for _, v := range row["verbs"].([]any) {
			k.verbs[v.(string)] = true
		}
		for name := range lists[k.apiVersion] {
			if sub, ok := strings.CutPrefix(name, resource+"/"); ok {
				k.subresources[sub] = true
			}
		}
		all = append(all, k)
	}
	return all, nil
}

// resources are the rows of a group version's discovery by name.
func resources(c *client, groupVersion string) (map[string]map[string]any, error) {
	path := "/apis/" + groupVersion
	if !strings.Contains(groupVersion, "/") {
		path = "/api/" + groupVersion
	}
	a := (&play{c: c}).send(context.Background(), "GET", path, nil, nil, c.admin)
	rows, ok := getAt(a.body, pointer("/resources")).([]any)
	if !ok {
		return nil, fmt.Errorf("GET %s: %d %v %v", path, a.status, a.body, a.err)
	}
	out := map[string]map[string]any{}
	for _, r := range rows {
		row := r.(map[string]any)
		out[row["name"].(string)] = row
	}
	return out, nil
}

// generator collects cases before any is written, so that a failure leaves the corpus as it was.
type generator struct {
	objects map[string]any
	cases   []*Case
}

// Where options are read and errors are worded is the same for all kinds: these few stand for them.
var representative = map[string]bool{
	"configmaps": true, "pods": true, "services": true, "nodes": true, "deployments": true, "jobs": true, "leases": true,
	"clusterroles": true, "customresourcedefinitions": true, "horizontalpodautoscalers": true, "events": true,
}

// addGeneral adds a case for the representative kinds alone.
func (g *generator) addGeneral(area string, k *kind, name string, c Case) {
	if representative[k.resource] && k.group != "autoscaling-v1" {
		g.add(area, k, name, c)
	}
}

func (g *generator) add(area string, k *kind, name string, c Case) {
	c.Name = area + "/" + k.id() + "/" + name
	if k.volatile {
		c.Ignore = map[string]string{}
		for _, p := range []string{"/status", "/items/*/status", "/metadata/generation"} {
			c.Ignore[p] = "written by controllers inside upstream's server"
		}
		if area == "table" {
			c.Ignore["/rows/*/object/status"] = "written by controllers inside upstream's server"
		}
		if cell, ok := volatileCells[k.resource]; ok {
			c.Ignore["/rows/*/cells/"+cell] = "shows a condition that a controller inside upstream's server writes"
		}
		c.Keep = nil
	}
	// Upstream gives services addresses out of any ServiceCIDR.
	c.Serial = k.resource == "servicecidrs"
	g.cases = append(g.cases, &c)
}

func generate(ctx context.Context, o options) error {
	objects, err := loadObjects(o.dir)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "isopod-oracle-gen-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	s, err := startUpstream(dir, o.upstream, false)
	if err != nil {
		return err
	}
	defer s.stop()
	if err := s.ready(ctx); err != nil {
		return err
	}
	c := newClient(s.access)
	all, err := kinds(objects, c)
	if err != nil {
		return err
	}
	g := &generator{objects: objects}
	for _, k := range all {
		g.lifecycle(k)
		g.validation(k)
		g.updates(k)
		g.patches(k)
		g.deletes(k)
		g.reads(k)
	}
	if err := g.openapi(c); err != nil {
		return err
	}
	return g.write(o.dir)
}

// write replaces all generated files.
func (g *generator) write(dir string) error {
	root := filepath.Join(dir, "cases")
	err := eachYAML(root, func(name string, text []byte) error {
		if strings.HasPrefix(string(text), generatedMark) {
			return os.Remove(filepath.Join(root, name+".yaml"))
		}
		return nil
	})
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	for _, c := range g.cases {
		if err := c.check(g.objects); err != nil {
			return fmt.Errorf("%s: %w", c.Name, err)
		}
		path := filepath.Join(root, c.Name+".yaml")
		if _, err := os.Stat(path); err == nil {
			return fmt.Errorf("%s is there already, generated twice or written by hand", path)
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, c.text(), 0o644); err != nil {
			return err
		}
	}
	fmt.Printf("%d cases\n", len(g.cases))
	return nil
}

// text is the file of a case: its keys in the order in which one reads them.
func (c *Case) text() []byte {
	var out strings.Builder
	out.WriteString(generatedMark)
	write := func(v any) {
		text, err := yaml.Marshal(v)
		if err != nil {
			panic(err) // a case is plain data
		}
		out.Write(text)
	}
	write(map[string]any{"why": c.Why})
	if c.Base != "" {
		write(map[string]any{"base": c.Base})
	}
	head := *c
	head.Why, head.Base, head.Steps = "", "", nil
	text, _ := yaml.Marshal(head)
	for _, l := range strings.SplitAfter(string(text), "\n") {
		if l != "steps: null\n" && l != "why: \"\"\n" {
			out.WriteString(l)
		}
	}
	out.WriteString("steps:\n")
	for _, s := range c.Steps {
		rest := s
		rest.Do = ""
		fmt.Fprintf(&out, "- do: %s\n", s.Do)
		text, _ := yaml.Marshal(rest)
		for _, l := range strings.SplitAfter(string(text), "\n") {
			if l != "" && l != "do: \"\"\n" {
				out.WriteString("  " + l)
			}
		}
	}
	return []byte(out.String())
}
