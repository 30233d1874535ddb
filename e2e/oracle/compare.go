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

// compare returns one result for each step, named case#step, or plain case where only one step is compared; and one for
// each part that a step names. A step of its own in the list of differences keeps the others of its case from hiding.
func compare(kase *Case, upstream, isopod *play) []Result {
	text, _ := json.Marshal(kase)
	base, _ := json.Marshal(upstream.objects[kase.Base])
	sent := string(text) + string(base)
	n := &normalizer{kase: kase, port: portOf(upstream), sent: sent}
	m := &normalizer{kase: kase, port: portOf(isopod), sent: sent}
	compared := 0
	for i, s := range kase.Steps {
		if u := upstream.answers[i]; s.Expect != 0 && u.status != s.Expect {
			broken := fmt.Sprintf("step %d (%s): upstream answers %d, not %d: %s %v", i+1, s.Do, u.status, s.Expect, short(u.body), u.err)
			return []Result{{Name: kase.Name, Broken: broken}}
		}
		if !s.Quiet {
			compared++
		}
	}
	var results []Result
	for i := range kase.Steps {
		if s := &kase.Steps[i]; !s.Quiet {
			name := kase.Name
			if compared > 1 {
				name = fmt.Sprintf("%s#%d", kase.Name, i+1)
			}
			results = append(results, compareStep(n, m, s, name, upstream.answers[i], isopod.answers[i])...)
		} else if upstream.answers[i].status != isopod.answers[i].status {
			// What follows cannot be compared.
			return []Result{{Name: kase.Name, Diff: append([]string{"preparing " + s.Do}, diffStep(n, m, n.answer(upstream.answers[i]), m.answer(isopod.answers[i]))...)}}
		}
	}
	return results
}

func compareStep(n, m *normalizer, s *Step, name string, u, o *answer) []Result {
	u, o = n.answer(u), m.answer(o)
	var parts []Result
	prefix := n.kase.Name + "#"
	if n.kase.stepsWithParts() > 1 {
		prefix = name + ":"
	}
	for _, p := range s.Parts {
		parts = append(parts, compareParts(prefix, p, u.body, o.body)...)
		u.body, o.body = without(u.body, pointer(p)), without(o.body, pointer(p))
	}
	r := Result{Name: name, Diff: diffStep(n, m, u, o)}
	if len(r.Diff) > 0 {
		r.Diff = append([]string{s.Do}, r.Diff...)
	}
	return append([]Result{r}, parts...)
}

// diffStep compares two normalized answers. Where the statuses differ the bodies do too, and only what they say is shown.
func diffStep(n, m *normalizer, u, o *answer) []string {
	if (u.err == nil) != (o.err == nil) {
		return []string{fmt.Sprintf("error\n    upstream %v\n    isopod   %v", u.err, o.err)}
	}
	if u.status != o.status {
		return []string{line("status", said(u), said(o))}
	}
	for _, p := range sortedKeys(n.kase.Ignore) {
		u.body, o.body = without(u.body, pointer(p)), without(o.body, pointer(p))
	}
	lines := diff("header ", any(n.headers(u.header)), any(m.headers(o.header)))
	return append(lines, diff("", u.body, o.body)...)
}

func portOf(p *play) string { return p.c.server[strings.LastIndexByte(p.c.server, ':')+1:] }

// said is an answer's status with its message.
func said(a *answer) any {
	text := fmt.Sprint(a.status)
	if message, _ := getAt(a.body, pointer("/message")).(string); message != "" {
		text += " " + message
	}
	return text
}

// compareParts compares each entry below a pointer by itself; lists are taken as maps by name.
func compareParts(prefix, at string, upstream, isopod any) []Result {
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
		results = append(results, Result{Name: prefix + k, Diff: diff("", u[k], o[k])})
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
	if i == 0 && getAt(e, pointer("/versions")) != nil {
		return "core" // the group without a name
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
	for _, extra := range subtract(u, o) {
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
