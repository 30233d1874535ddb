// What must differ between two servers, made equal: uids, recent times, revisions, addresses, generated names, tokens.
// Only values that have the form of such a thing are replaced, so that a missing or misshapen one still differs.

package main

import (
	"fmt"
	"net/http"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"time"
)

var (
	uuid       = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)
	stamp      = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z`)
	goTime     = regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)? [+-]\d{4} \w+( m=[+-][\d.]+)?`)
	token      = regexp.MustCompile(`eyJ[\w-]+\.[\w-]+\.[\w-]+`)
	clusterIP  = regexp.MustCompile(`\b10\.43\.\d+\.\d+\b`)
	digits     = regexp.MustCompile(`^[1-9]\d*$`)
	age        = regexp.MustCompile(`^\d+(ms|s)$`)
	duration   = regexp.MustCompile(`\b\d+(\.\d+)?(ms|µs|s)\b`)
	revisionIn = regexp.MustCompile(`(?i)(resource ?version[^0-9]{1,24}|decodable revision=)(\d{2,})`)
	credential = regexp.MustCompile(`X509SHA256=[0-9a-f]{64}`)
	tokenMount = regexp.MustCompile(`\bkube-api-access-[a-z0-9]{5}\b`)
	nodePort   = regexp.MustCompile(`\b3[0-2]\d{3}/(TCP|UDP)`)
	nodePortIn = regexp.MustCompile(`([nN]odePort\\*":)3[0-2]\d{3}\b`)
	suffix     = regexp.MustCompile(`\b([gG]en[-_])[bcdfghjklmnpqrstvwxz2456789]{5}\b`)
	managedIn  = regexp.MustCompile(`,?\\*"managedFields\\*":\[[^\]]*\]`)
	openapiTag = regexp.MustCompile(`hash=[0-9A-F]{16,}`)
)

// normalizer is bound to a case: it knows what the case named by hand and may therefore be compared.
type normalizer struct {
	kase *Case
	port string // of the server, which other processes on this machine decide
	sent string // everything that the case says, to tell given addresses and ports from allocated ones
}

func (n *normalizer) answer(a *answer) *answer {
	body := n.value("", inlined(a.body))
	for _, p := range n.kase.Unordered {
		if there := getAt(body, pointer(p)); there != nil {
			body, _ = setAt(body, pointer(p), sorted(there))
		}
	}
	return &answer{status: a.status, header: a.header, body: body, err: a.err}
}

func (n *normalizer) value(key string, v any) any {
	switch v := v.(type) {
	case map[string]any:
		return n.object(v)
	case []any:
		out := make([]any, 0, len(v))
		for _, e := range v {
			if !fromController(e) {
				out = append(out, n.value(key, e))
			}
		}
		return out
	case string:
		return n.text(key, v)
	case float64:
		if (key == "nodePort" || key == "healthCheckNodePort") && v >= 30000 && v <= 32767 && !n.given(strconv.Itoa(int(v))) {
			return "<node port>"
		}
		if strings.EqualFold(key, "port") || key == "targetPort" {
			if strconv.Itoa(int(v)) == n.port {
				return "<port>"
			}
		}
	}
	return v
}

func (n *normalizer) given(text string) bool { return strings.Contains(n.sent, text) }

func (n *normalizer) object(o map[string]any) any {
	out := make(map[string]any, len(o))
	build := o["gitVersion"] != nil && o["goVersion"] != nil
	for k, v := range o {
		if _, ok := v.(string); ok && build && k != "major" && k != "minor" {
			v = "<" + k + ">"
		}
		if k == "managedFields" && !n.kase.keeps("managedFields") {
			continue
		}
		if _, prose := v.(string); prose && k == "description" && described(o) && !n.kase.keeps("descriptions") {
			continue
		}
		out[n.text("", k)] = n.value(k, v)
		if owners, ok := out[k].([]any); ok && k == "managedFields" {
			sort.SliceStable(owners, func(i, j int) bool { return owner(owners[i]) < owner(owners[j]) })
		}
	}
	if generate, ok := o["generateName"].(string); ok && generate != "" {
		if name, _ := o["name"].(string); strings.HasPrefix(name, generate) && len(name) == len(generate)+5 {
			out["name"] = generate + "<suffix>"
		}
	}
	return out
}

// owner names an entry of managedFields. They stand in the order of their seconds, and no two servers agree on these.
func owner(entry any) string {
	text := func(key string) string {
		s, _ := getAt(entry, []string{key}).(string)
		return s
	}
	return strings.Join([]string{text("operation"), text("manager"), text("subresource"), text("apiVersion")}, " ")
}

// described says whether an object is a schema, a parameter, a response or a column: their descriptions are prose, which
// Isopod does not copy.
func described(o map[string]any) bool {
	for _, k := range []string{"type", "$ref", "allOf", "schema", "content", "operationId", "properties", "additionalProperties", "x-kubernetes-group-version-kind", "in", "format"} {
		if _, ok := o[k]; ok {
			return true
		}
	}
	return len(o) == 1
}

// inlined puts a v2 document's shared parameters where they are referred to: how a document shares says nothing.
func inlined(body any) any {
	shared, _ := getAt(body, pointer("/parameters")).(map[string]any)
	if getAt(body, pointer("/swagger")) == nil || shared == nil {
		return body
	}
	var walk func(v any) any
	walk = func(v any) any {
		switch v := v.(type) {
		case map[string]any:
			ref, _ := v["$ref"].(string)
			if name, ok := strings.CutPrefix(ref, "#/parameters/"); ok && shared[name] != nil {
				return shared[name]
			}
			for k, e := range v {
				v[k] = walk(e)
			}
		case []any:
			for i, e := range v {
				v[i] = walk(e)
			}
		}
		return v
	}
	document := walk(body).(map[string]any)
	delete(document, "parameters")
	return document
}

// sorted returns a value with all lists in it in one order, for places where the order says nothing.
func sorted(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			out[k] = sorted(e)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = sorted(v[i])
		}
		sort.Slice(out, func(i, j int) bool { return short(out[i]) < short(out[j]) })
		return out
	}
	return v
}

// fromController recognizes what controllers put into every namespace; only one side has controllers.
func fromController(v any) bool {
	name, _ := getAt(v, pointer("/metadata/name")).(string)
	if name == "" {
		name, _ = getAt(v, pointer("/object/metadata/name")).(string)
	}
	return name == "kube-root-ca.crt"
}

func (n *normalizer) text(key, s string) string {
	switch {
	case key == "resourceVersion" && digits.MatchString(s):
		return "<revision>"
	case key == "continue" && s != "":
		return "<continue>"
	case key == "cells" && age.MatchString(s):
		return "<age>"
	}
	s = uuid.ReplaceAllStringFunc(s, func(u string) string {
		if n.given(u) {
			return u
		}
		return "<uid>"
	})
	s = stamp.ReplaceAllStringFunc(s, recent)
	s = goTime.ReplaceAllString(s, "<time>")
	s = token.ReplaceAllString(s, "<token>")
	s = clusterIP.ReplaceAllStringFunc(s, func(ip string) string {
		if n.given(ip) {
			return ip
		}
		return "<cluster IP>"
	})
	s = strings.ReplaceAll(s, "127.0.0.1:"+n.port, "<server>")
	s = strings.ReplaceAll(s, ":"+n.port, ":<port>")
	s = credential.ReplaceAllString(s, "X509SHA256=<hash>")
	s = tokenMount.ReplaceAllString(s, "kube-api-access-<suffix>")
	s = nodePort.ReplaceAllString(s, "<node port>/$1")
	s = nodePortIn.ReplaceAllString(s, "$1<node port>")
	s = suffix.ReplaceAllString(s, "$1<suffix>")
	if !n.kase.keeps("managedFields") {
		s = managedIn.ReplaceAllString(s, "")
	}
	s = openapiTag.ReplaceAllString(s, "hash=<hash>")
	return revisionIn.ReplaceAllString(s, "$1<revision>")
}

// recent replaces times of about now, keeping how exact they are.
func recent(s string) string {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil || time.Since(t).Abs() > 48*time.Hour {
		return s
	}
	if dot := strings.IndexByte(s, '.'); dot > 0 {
		return fmt.Sprintf("<time.%d>", len(s)-dot-2)
	}
	return "<time>"
}

// comparedHeaders are those that clients read. Of some only the presence can be compared.
var comparedHeaders = map[string]bool{
	"Content-Type": true, "Warning": true, "Cache-Control": true, "Location": true, "Www-Authenticate": true,
	"Retry-After": true, "Allow": true, "Vary": true, "Audit-Id": false, "Etag": false,
}

func (n *normalizer) headers(h http.Header) map[string]any {
	out := map[string]any{}
	take := func(name string, whole bool) {
		values := append([]string(nil), h.Values(name)...)
		if len(values) == 0 {
			return
		}
		sort.Strings(values)
		for i := range values {
			values[i] = n.text("", values[i])
		}
		if whole {
			out[name] = strings.Join(values, " | ")
		} else {
			out[name] = "<present>"
		}
	}
	for name, whole := range comparedHeaders {
		take(name, whole)
	}
	for _, name := range n.kase.Headers {
		// Fields of priority and fairness are uids.
		take(http.CanonicalHeaderKey(name), !strings.HasPrefix(http.CanonicalHeaderKey(name), "X-Kubernetes-Pf-"))
	}
	return out
}
