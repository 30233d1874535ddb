package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
)

// property is what OpenAPI says about a field beyond Go's types.
type property struct {
	ListType string          `json:"x-kubernetes-list-type"`
	MapKeys  []string        `json:"x-kubernetes-list-map-keys"`
	MapType  string          `json:"x-kubernetes-map-type"`
	Default  json.RawMessage `json:"default"`
}

// definition is what OpenAPI says about a struct beyond Go's types.
type definition struct {
	Required   []string            `json:"required"`
	MapType    string              `json:"x-kubernetes-map-type"`
	Unions     json.RawMessage     `json:"x-kubernetes-unions"`
	Properties map[string]property `json:"properties"`
	defaults   map[string]json.RawMessage
}

// readOpenAPI reads v2 for everything but defaults, which only v3 has.
func readOpenAPI(dir string) map[string]*definition {
	var v2 struct{ Definitions map[string]*definition }
	readJSON(filepath.Join(dir, "swagger.json"), &v2)
	entries, err := os.ReadDir(filepath.Join(dir, "v3"))
	if err != nil {
		panic(err)
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".json") {
			continue
		}
		var v3 struct {
			Components struct {
				Schemas map[string]*definition
			}
		}
		readJSON(filepath.Join(dir, "v3", e.Name()), &v3)
		for name, d := range v3.Components.Schemas {
			known := v2.Definitions[name]
			if known == nil {
				v2.Definitions[name] = d
				known = d
			}
			if known.defaults == nil {
				known.defaults = map[string]json.RawMessage{}
			}
			for p, s := range d.Properties {
				if len(s.Default) > 0 {
					known.defaults[p] = s.Default
				}
			}
		}
	}
	return v2.Definitions
}
