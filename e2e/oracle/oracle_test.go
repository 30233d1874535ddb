// Tests of what decides whether a difference is seen: edits, normalization, comparison, verdict, the list's format.

package main

import (
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestEdits(t *testing.T) {
	object := map[string]any{"spec": map[string]any{"list": []any{"a", "b"}, "n": 1.0}}
	edit := Edit{Set: map[string]any{"/spec/list/-": "c", "/spec/new/deep": true, "/metadata/labels/a~1b": "x"}, Remove: []string{"/spec/list/0", "/spec/n"}}
	got, err := edit.apply(object)
	want := map[string]any{
		"spec":     map[string]any{"list": []any{"b", "c"}, "new": map[string]any{"deep": true}},
		"metadata": map[string]any{"labels": map[string]any{"a/b": "x"}},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
	if len(object["spec"].(map[string]any)["list"].([]any)) != 2 {
		t.Error("the original object changed")
	}
	for _, wrong := range []Edit{{Remove: []string{"/spec/none"}}, {Set: map[string]any{"/spec/list/7": 1}}, {Set: map[string]any{"/spec/n/x": 1}}} {
		if _, err := wrong.apply(object); err == nil {
			t.Errorf("%v is applied", wrong)
		}
	}
}

func normalizerFor(sent string) *normalizer {
	return &normalizer{kase: &Case{Name: "a/b/c"}, port: "6443", sent: sent}
}

func TestNormalizationReplacesOnlyWhatMustDiffer(t *testing.T) {
	now := time.Now().UTC().Format(time.RFC3339)
	n := normalizerFor("10.43.0.9 30111")
	for _, c := range []struct {
		key       string
		raw, want any
	}{
		{"resourceVersion", "123", "<revision>"},
		{"resourceVersion", "", ""},
		{"resourceVersion", "0", "0"},
		{"resourceVersion", "abc", "abc"},
		{"creationTimestamp", now, "<time>"},
		{"time", strings.TrimSuffix(now, "Z") + ".123456Z", "<time.6>"},
		{"time", "2020-01-01T00:00:00Z", "2020-01-01T00:00:00Z"},
		{"uid", "7d3f2c1a-0000-4000-8000-000000000001", "<uid>"},
		{"uid", "7d3f", "7d3f"},
		{"clusterIP", "10.43.0.10", "<cluster IP>"},
		{"clusterIP", "10.43.0.9", "10.43.0.9"},
		{"nodePort", 30112.0, "<node port>"},
		{"nodePort", 30111.0, 30111.0},
		{"nodePort", 29999.0, 29999.0},
		{"continue", "", ""},
	} {
		if got := n.value(c.key, c.raw); got != c.want {
			t.Errorf("%s %v: got %v, want %v", c.key, c.raw, got, c.want)
		}
	}
}

func TestGeneratedNamesKeepTheirForm(t *testing.T) {
	n := normalizerFor("")
	got := n.value("", map[string]any{"generateName": "x-", "name": "x-abcde"}).(map[string]any)
	if got["name"] != "x-<suffix>" {
		t.Error(got)
	}
	got = n.value("", map[string]any{"generateName": "x-", "name": "x-abc"}).(map[string]any)
	if got["name"] != "x-abc" {
		t.Error("a suffix of another length must stay visible")
	}
}

func answered(status int, body any) *answer {
	return &answer{status: status, header: http.Header{"Content-Type": {"application/json"}}, body: body}
}

func comparison(steps []Step, upstream, isopod []*answer) []Result {
	c := &client{access: &access{server: "https://127.0.0.1:1"}}
	return compare(&Case{Name: "a/b/c", Steps: steps}, &play{c: c, answers: upstream}, &play{c: c, answers: isopod})
}

func TestEachStepIsAResult(t *testing.T) {
	steps := []Step{{Do: "GET /a"}, {Do: "GET /b"}}
	results := comparison(steps,
		[]*answer{answered(200, map[string]any{"x": 1.0}), answered(200, map[string]any{"x": 1.0})},
		[]*answer{answered(200, map[string]any{"x": 1.0}), answered(200, map[string]any{"x": 2.0})})
	if len(results) != 2 || len(results[0].Diff) != 0 || len(results[1].Diff) == 0 || results[1].Name != "a/b/c#2" {
		t.Errorf("%+v", results)
	}
}

func TestUnexpectedUpstreamStatusBreaksTheCase(t *testing.T) {
	steps := []Step{{Do: "POST /a", Expect: 201, Quiet: true}, {Do: "GET /b"}}
	same := []*answer{answered(422, nil), answered(404, nil)}
	results := comparison(steps, same, same)
	if len(results) != 1 || results[0].Broken == "" {
		t.Errorf("%+v", results)
	}
}

func TestHeadersAndListsDiffer(t *testing.T) {
	u, o := answered(200, []any{"a", "b"}), answered(200, []any{"a"})
	o.header.Set("Warning", "299 - x")
	results := comparison([]Step{{Do: "GET /a"}}, []*answer{u}, []*answer{o})
	text := strings.Join(results[0].Diff, "\n")
	if !strings.Contains(text, "header Warning") || !strings.Contains(text, `upstream "b"`) {
		t.Error(text)
	}
}

func TestVerdict(t *testing.T) {
	known := map[string]string{"listed": "r", "fixed": "r", "gone": "r"}
	results := []Result{{Name: "same"}, {Name: "listed", Diff: []string{"x"}}, {Name: "fixed"}, {Name: "new", Diff: []string{"x"}}, {Name: "bad", Broken: "x"}}
	v := judge(results, known, true)
	if v.passed != 2 || v.known != 1 || len(v.unexpected) != 1 || len(v.fixed) != 2 || len(v.broken) != 1 || v.failed() != 4 {
		t.Errorf("%+v", v)
	}
	if v := judge(results, known, false); len(v.fixed) != 1 {
		t.Error("a part of the cases says nothing about the others")
	}
}

func TestListNeedsReasonsAndNoDoubles(t *testing.T) {
	known, err := parseDifferences([]byte(listHeader + "a/b/c#GET /x # why\n"))
	if err != nil || known["a/b/c#GET /x"] != "why" {
		t.Error(known, err)
	}
	for _, wrong := range []string{"a/b/c\n", "a/b/c # \n", "a # x\na # y\n"} {
		if _, err := parseDifferences([]byte(wrong)); err == nil {
			t.Errorf("%q is read", wrong)
		}
	}
}

// The committed corpus is whole: every case can be read and every listed difference belongs to one.
func TestCorpus(t *testing.T) {
	all, err := loadCorpus(".")
	if err != nil {
		t.Fatal(err)
	}
	names, ids := map[string]bool{}, map[string]string{}
	for _, c := range all.cases {
		names[c.Name] = true
		if other := ids[caseID(c.Name)]; other != "" {
			t.Errorf("%s and %s share a namespace", c.Name, other)
		}
		ids[caseID(c.Name)] = c.Name
	}
	known, err := readDifferences(".")
	if err != nil {
		t.Fatal(err)
	}
	for name := range known {
		if !names[caseOf(name)] {
			t.Errorf("differences.txt names %s, which is no case", name)
		}
	}
}
