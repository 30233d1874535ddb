package main

import (
	"bytes"
	"fmt"
	"path/filepath"
	"regexp"
	"sort"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// groupVersion is one served group version in discovery's order.
type groupVersion struct {
	gv        schema.GroupVersion
	resources []metav1.APIResource
}

// stable says whether a version is served by default: pkg/controlplane/instance.go lists only stable versions as such
// ("Don't put alpha or beta versions in the list").
var stable = regexp.MustCompile(`^v[0-9]+$`)

func readDiscovery(dir string) []groupVersion {
	var groups metav1.APIGroupList
	readJSON(filepath.Join(dir, "apis.json"), &groups)
	out := []groupVersion{resourcesOf(dir, schema.GroupVersion{Version: "v1"})}
	for _, g := range groups.Groups {
		for _, v := range g.Versions {
			if stable.MatchString(v.Version) {
				out = append(out, resourcesOf(dir, schema.GroupVersion{Group: g.Name, Version: v.Version}))
			}
		}
	}
	return out
}

func resourcesOf(dir string, gv schema.GroupVersion) groupVersion {
	name := fmt.Sprintf("apis__%s__%s.json", gv.Group, gv.Version)
	if gv.Group == "" {
		name = "api__v1.json"
	}
	var list metav1.APIResourceList
	readJSON(filepath.Join(dir, name), &list)
	return groupVersion{gv, list.APIResources}
}

// kindTable has a line for each resource, followed by indented lines for its subresources.
func kindTable(groups []groupVersion, w *walker) *bytes.Buffer {
	b := &bytes.Buffer{}
	b.WriteString("# group/version\tresource\tkind\tsingular\tscope\tlist kind\tverbs\tshort names\tcategories\tdefinition\n")
	b.WriteString("#\tsubresource\tgroup/version\tkind\tverbs\n")
	for _, g := range groups {
		subs := map[string][]metav1.APIResource{}
		for _, r := range g.resources {
			if parent, _, ok := strings.Cut(r.Name, "/"); ok {
				subs[parent] = append(subs[parent], r)
			}
		}
		for _, r := range g.resources {
			if strings.Contains(r.Name, "/") {
				continue
			}
			scope := "Cluster"
			if r.Namespaced {
				scope = "Namespaced"
			}
			list := r.Kind + "List"
			if !w.known(g.gv.WithKind(list)) {
				list = ""
			}
			row := []string{g.gv.String(), r.Name, r.Kind, r.SingularName, scope, list, join(r.Verbs), join(r.ShortNames), join(r.Categories), w.name(g.gv.WithKind(r.Kind))}
			fmt.Fprintln(b, strings.Join(row, "\t"))
			for _, s := range subs[r.Name] {
				_, name, _ := strings.Cut(s.Name, "/")
				gv, kind := "", ""
				if s.Kind != r.Kind || s.Group != "" {
					sgv := g.gv
					if s.Version != "" {
						sgv = schema.GroupVersion{Group: s.Group, Version: s.Version}
					}
					gv, kind = sgv.String(), s.Kind
					w.name(sgv.WithKind(kind))
				}
				fmt.Fprintln(b, strings.Join([]string{"", name, gv, kind, join(s.Verbs)}, "\t"))
			}
		}
	}
	return b
}

func join(s []string) string {
	s = append([]string(nil), s...)
	return strings.Join(s, ",")
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
