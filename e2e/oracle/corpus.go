// The corpus: one YAML file a case, and the base objects that cases share. A case is data; everything in it is checked
// when it is read, so that a misspelt key is an error and not a comparison that never happens.

package main

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"
)

// Case is one comparison: the same steps against both servers.
type Case struct {
	Name string `json:"-"`
	// Why the case exists, in a sentence.
	Why string `json:"why"`
	// Base is an object file's name without its ending, such as apps/deployment.minimal.
	Base string `json:"base,omitempty"`
	Edit
	// Serial cases run alone, after all others: they change what others would see.
	Serial bool `json:"serial,omitempty"`
	// First cases run before all others, and before Isopod's controllers are silenced: they look at bootstrapped roles.
	First bool `json:"first,omitempty"`
	// Keep lists what is otherwise left out of the comparison: managedFields, and descriptions in OpenAPI and tables.
	Keep []string `json:"keep,omitempty"`
	// Headers are response headers to compare beyond the usual ones.
	Headers []string `json:"headers,omitempty"`
	// Ignore lists JSON pointers (* is any key) that are not compared, with the reason.
	Ignore map[string]string `json:"ignore,omitempty"`
	// Unordered lists JSON pointers below which the order of lists says nothing.
	Unordered []string `json:"unordered,omitempty"`
	Steps     []Step   `json:"steps"`
}

// Edit changes an object: values by JSON pointer, then removals.
type Edit struct {
	Set    map[string]any `json:"set,omitempty"`
	Remove []string       `json:"remove,omitempty"`
}

// Step is one request.
type Step struct {
	// Do is the method and the path: GET /api/v1/namespaces/{ns}/pods. WATCH opens a watch that later steps feed.
	Do string `json:"do"`
	// Send says which object is the body: base, last (the answer to the step before) or first (that to the first step).
	Send string `json:"send,omitempty"`
	// Body is the body itself, Raw the same as text.
	Body any     `json:"body,omitempty"`
	Raw  *string `json:"raw,omitempty"`
	Edit
	Type    string            `json:"type,omitempty"`
	Accept  string            `json:"accept,omitempty"`
	Headers map[string]string `json:"headers,omitempty"`
	// As is anonymous or empty, which means the administrator.
	As string `json:"as,omitempty"`
	// Expect is the status with which upstream must answer; another one means that the case is broken.
	Expect int `json:"expect,omitempty"`
	// Until is a status: the step is repeated until it is the answer's, for what upstream's controllers do in their time.
	Until int `json:"until,omitempty"`
	// Has is a JSON pointer: a step with until is repeated also until the answer has something there.
	Has string `json:"has,omitempty"`
	// Events is how many events a WATCH step waits for; 0 means until the server ends the stream.
	Events int `json:"events,omitempty"`
	// Parts are JSON pointers: each entry below them is a comparison of its own, named case#entry.
	Parts []string `json:"parts,omitempty"`
	// Quiet steps prepare: they are not compared.
	Quiet bool `json:"quiet,omitempty"`
}

func (c *Case) keeps(what string) bool { return slices.Contains(c.Keep, what) }

// namespaced says whether the case wants a namespace of its own.
func (c *Case) namespaced() bool {
	for _, s := range c.Steps {
		if strings.Contains(s.Do, "{ns}") {
			return true
		}
	}
	return false
}

func (c *Case) stepsWithParts() int {
	n := 0
	for _, s := range c.Steps {
		if len(s.Parts) > 0 {
			n++
		}
	}
	return n
}

func (c *Case) area() string { return c.Name[:strings.IndexByte(c.Name+"/", '/')] }

func (c *Case) check(objects map[string]any) error {
	if c.Why == "" || len(c.Steps) == 0 {
		return fmt.Errorf("needs why and steps")
	}
	if c.Base != "" && objects[c.Base] == nil {
		return fmt.Errorf("no object %s", c.Base)
	}
	for _, k := range c.Keep {
		if k != "managedFields" && k != "descriptions" {
			return fmt.Errorf("keep: %s is not known", k)
		}
	}
	for i, s := range c.Steps {
		method, path, ok := strings.Cut(s.Do, " ")
		if !ok || !strings.HasPrefix(path, "/") || method != strings.ToUpper(method) {
			return fmt.Errorf("step %d: do is METHOD /path, not %q", i+1, s.Do)
		}
		if !slices.Contains([]string{"", "base", "last", "first"}, s.Send) {
			return fmt.Errorf("step %d: send is base, last or first, not %q", i+1, s.Send)
		}
		if (s.Send == "base") && c.Base == "" {
			return fmt.Errorf("step %d sends the base and there is none", i+1)
		}
		if s.As != "" && s.As != "anonymous" {
			return fmt.Errorf("step %d: as is anonymous or empty, not %q", i+1, s.As)
		}
	}
	return nil
}

// corpus is every case and base object below a directory.
type corpus struct {
	cases   []*Case
	objects map[string]any
}

func loadObjects(dir string) (map[string]any, error) {
	objects := map[string]any{}
	err := eachYAML(filepath.Join(dir, "objects"), func(name string, text []byte) error {
		var o any
		if err := yaml.Unmarshal(text, &o); err != nil {
			return err
		}
		objects[name] = o
		return nil
	})
	return objects, err
}

func loadCorpus(dir string) (*corpus, error) {
	objects, err := loadObjects(dir)
	if err != nil {
		return nil, err
	}
	all := &corpus{objects: objects}
	err = eachYAML(filepath.Join(dir, "cases"), func(name string, text []byte) error {
		c := &Case{}
		if err := yaml.UnmarshalStrict(text, c); err != nil {
			return err
		}
		c.Name = name
		all.cases = append(all.cases, c)
		return c.check(objects)
	})
	return all, err
}

// eachYAML calls `take` with each file's name below `dir`, without its ending, in order.
func eachYAML(dir string, take func(name string, text []byte) error) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".yaml") {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, strings.TrimSuffix(path, ".yaml"))
		if err != nil {
			return err
		}
		if err := take(filepath.ToSlash(name), text); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		return nil
	})
}

// apply returns a changed copy of the object.
func (e Edit) apply(object any) (any, error) {
	object = clone(object)
	for _, p := range sortedKeys(e.Set) {
		var err error
		if object, err = setAt(object, pointer(p), clone(e.Set[p])); err != nil {
			return nil, fmt.Errorf("set %s: %w", p, err)
		}
	}
	for _, p := range e.Remove {
		if object = removeAt(object, pointer(p)); object == nil {
			return nil, fmt.Errorf("remove %s: nothing is there", p)
		}
	}
	return object, nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

func clone(v any) any {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err) // it came out of JSON
	}
	var out any
	if err := json.Unmarshal(text, &out); err != nil {
		panic(err)
	}
	return out
}

// pointer splits a JSON pointer (RFC 6901) into its keys.
func pointer(p string) []string {
	if p == "" {
		return nil
	}
	keys := strings.Split(strings.TrimPrefix(p, "/"), "/")
	for i, k := range keys {
		keys[i] = strings.NewReplacer("~1", "/", "~0", "~").Replace(k)
	}
	return keys
}

// setAt replaces or adds the value at a pointer; objects on the way are made, "-" appends to a list.
func setAt(at any, keys []string, value any) (any, error) {
	if len(keys) == 0 {
		return value, nil
	}
	switch node := at.(type) {
	case nil:
		child, err := setAt(nil, keys[1:], value)
		return map[string]any{keys[0]: child}, err
	case map[string]any:
		child, err := setAt(node[keys[0]], keys[1:], value)
		node[keys[0]] = child
		return node, err
	case []any:
		if keys[0] == "-" {
			child, err := setAt(nil, keys[1:], value)
			return append(node, child), err
		}
		i, err := strconv.Atoi(keys[0])
		if err != nil || i < 0 || i >= len(node) {
			return nil, fmt.Errorf("no element %q", keys[0])
		}
		node[i], err = setAt(node[i], keys[1:], value)
		return node, err
	}
	return nil, fmt.Errorf("%q is below a scalar", keys[0])
}

// removeAt takes away what is at a pointer; nil means that nothing was there.
func removeAt(at any, keys []string) any {
	switch node := at.(type) {
	case map[string]any:
		child, ok := node[keys[0]]
		if !ok {
			return nil
		}
		if len(keys) == 1 {
			delete(node, keys[0])
			return node
		}
		if child = removeAt(child, keys[1:]); child == nil {
			return nil
		}
		node[keys[0]] = child
		return node
	case []any:
		i, err := strconv.Atoi(keys[0])
		if err != nil || i < 0 || i >= len(node) {
			return nil
		}
		if len(keys) == 1 {
			return slices.Delete(node, i, i+1)
		}
		if node[i] = removeAt(node[i], keys[1:]); node[i] == nil {
			return nil
		}
		return node
	}
	return nil
}

// getAt finds what is at a pointer.
func getAt(at any, keys []string) any {
	for _, k := range keys {
		switch node := at.(type) {
		case map[string]any:
			at = node[k]
		case []any:
			i, err := strconv.Atoi(k)
			if err != nil || i < 0 || i >= len(node) {
				return nil
			}
			at = node[i]
		default:
			return nil
		}
	}
	return at
}
