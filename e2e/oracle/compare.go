// The comparison of two plays of a case, and how a difference reads: one line a place, upstream's value, then Isopod's.

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
)

// Result is the outcome of a case, or of one part of a case.
type Result struct {
	Name string
	// Broken says why the case itself is wrong; it then compares nothing.
	Broken string
	// Diff is empty where both sides agree.
	Diff []string
}

// compare returns the case's result, and one for each part that its steps name.
func compare(kase *Case, upstream, isopod *play) []Result {
	text, _ := json.Marshal(kase)
	base, _ := json.Marshal(upstream.objects[kase.Base])
	n := &normalizer{kase: kase, id: upstream.id, sent: string(text) + string(base)}
	whole := Result{Name: kase.Name}
	var parts []Result
	for i := range kase.Steps {
		s := &kase.Steps[i]
		u, o := upstream.answers[i], isopod.answers[i]
		if s.Expect != 0 && u.status != s.Expect {
			broken := fmt.Sprintf("step %d (%s): upstream answers %d, not %d: %s %v", i+1, s.Do, u.status, s.Expect, short(u.body), u.err)
			return []Result{{Name: kase.Name, Broken: broken}}
		}
		if s.Quiet {
			continue
		}
		uBody, oBody := n.value("", u.body), n.value("", o.body)
		for _, p := range s.Parts {
			parts = append(parts, compareParts(kase.Name, p, uBody, oBody)...)
			uBody, oBody = without(uBody, pointer(p)), without(oBody, pointer(p))
		}
		for p := range kase.Ignore {
			uBody, oBody = without(uBody, pointer(p)), without(oBody, pointer(p))
		}
		var lines []string
		if u.status != o.status {
			lines = append(lines, line("status", float64(u.status), float64(o.status)))
		}
		if (u.err == nil) != (o.err == nil) {
			lines = append(lines, fmt.Sprintf("error: upstream %v | isopod %v", u.err, o.err))
		}
		lines = append(lines, diff("header ", mapOrNil(n.headers(u.header)), mapOrNil(n.headers(o.header)))...)
		lines = append(lines, diff("", uBody, oBody)...)
		if len(lines) > 0 {
			whole.Diff = append(whole.Diff, fmt.Sprintf("step %d: %s", i+1, s.Do))
			whole.Diff = append(whole.Diff, lines...)
		}
	}
	return append([]Result{whole}, parts...)
}

func mapOrNil(m map[string]any) any { return m }

// compareParts compares each entry below a pointer by itself; lists are taken as maps by name.
func compareParts(name, at string, upstream, isopod any) []Result {
	u, o := entries(getAt(upstream, pointer(at))), entries(getAt(isopod, pointer(at)))
	keys := map[string]bool{}
	for k := range u {
		keys[k] = true
	}
	for k := range o {
		keys[k] = true
	}
	var results []Result
	for _, k := range sortedKeys(keys) {
		results = append(results, Result{Name: name + "#" + k, Diff: diff("", u[k], o[k])})
	}
	return results
}

func entries(v any) map[string]any {
	switch v := v.(type) {
	case map[string]any:
		return v
	case []any:
		m := map[string]any{}
		for i, e := range v {
			m[itemName(i, e)] = e
		}
		return m
	}
	return nil
}

// itemName finds by what an element of a list is known.
func itemName(i int, e any) string {
	for _, at := range []string{"/metadata/name", "/object/metadata/name", "/name", "/groupVersion", "/resource"} {
		if s, ok := getAt(e, pointer(at)).(string); ok && s != "" {
			return s
		}
	}
	return fmt.Sprint(i)
}

func without(v any, keys []string) any {
	if len(keys) == 0 {
		return nil
	}
	switch node := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(node))
		for k, e := range node {
			switch {
			case keys[0] != "*" && keys[0] != k:
				out[k] = e
			case len(keys) > 1:
				out[k] = without(e, keys[1:])
			}
		}
		return out
	case []any:
		out := make([]any, 0, len(node))
		for i, e := range node {
			switch {
			case keys[0] != "*" && keys[0] != fmt.Sprint(i):
				out = append(out, e)
			case len(keys) > 1:
				out = append(out, without(e, keys[1:]))
			}
		}
		return out
	}
	return v
}

type absent struct{}

// diff lists the places where two JSON values differ.
func diff(at string, u, o any) []string {
	if reflect.DeepEqual(u, o) {
		return nil
	}
	um, uIsMap := u.(map[string]any)
	om, oIsMap := o.(map[string]any)
	if uIsMap && oIsMap {
		keys := map[string]bool{}
		for k := range um {
			keys[k] = true
		}
		for k := range om {
			keys[k] = true
		}
		var lines []string
		for _, k := range sortedKeys(keys) {
			lines = append(lines, diff(join(at, k), valueOr(um, k), valueOr(om, k))...)
		}
		return lines
	}
	ul, uIsList := u.([]any)
	ol, oIsList := o.([]any)
	if uIsList && oIsList {
		return diffLists(at, ul, ol)
	}
	return []string{line(at, u, o)}
}

func diffLists(at string, u, o []any) []string {
	if len(u) == len(o) {
		var lines []string
		for i := range u {
			lines = append(lines, diff(fmt.Sprintf("%s[%d]", at, i), u[i], o[i])...)
		}
		return lines
	}
	var lines []string
	for i, extra := range subtract(u, o) {
		_ = i
		lines = append(lines, line(at+"[]", extra, absent{}))
	}
	for _, extra := range subtract(o, u) {
		lines = append(lines, line(at+"[]", absent{}, extra))
	}
	return lines
}

func subtract(from, what []any) []any {
	var left []any
	used := make([]bool, len(what))
next:
	for _, e := range from {
		for i, w := range what {
			if !used[i] && reflect.DeepEqual(e, w) {
				used[i] = true
				continue next
			}
		}
		left = append(left, e)
	}
	return left
}

func join(at, key string) string {
	if at == "" || strings.HasSuffix(at, " ") {
		return at + key
	}
	return at + "." + key
}

func valueOr(m map[string]any, k string) any {
	if v, ok := m[k]; ok {
		return v
	}
	return absent{}
}

func line(at string, u, o any) string {
	if at == "" {
		at = "body"
	}
	return fmt.Sprintf("%s\n    upstream %s\n    isopod   %s", at, short(u), short(o))
}

// short is a value on one line, cut where nobody would read on.
func short(v any) string {
	if _, ok := v.(absent); ok {
		return "-"
	}
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(v)
	runes := []rune(strings.TrimSpace(text.String()))
	if len(runes) > 600 {
		return string(runes[:600]) + "…"
	}
	return string(runes)
}
