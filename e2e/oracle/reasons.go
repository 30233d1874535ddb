// Reasons of differences, as `update` writes them for new lines: the known gaps by name, otherwise what differs.

package main

import (
	"regexp"
	"strings"
)

// place is one line of a diff: where, and both values.
type place struct{ at, upstream, isopod string }

var (
	indices   = regexp.MustCompile(`\[\d*\]`)
	caseNames = regexp.MustCompile(`\bo[0-9a-f]{10}\b`)
)

func placesOf(diff []string) []place {
	var out []place
	for _, d := range diff {
		parts := strings.Split(d, "\n")
		if len(parts) != 3 {
			continue
		}
		out = append(out, place{
			at:       indices.ReplaceAllString(parts[0], "[]"),
			upstream: strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(parts[1]), "upstream")),
			isopod:   strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(parts[2]), "isopod")),
		})
	}
	return out
}

// gaps are differences that have one cause: each holds if all places of a difference are of its kind.
var gaps = []struct {
	at     *regexp.Regexp
	reason string
}{
	{regexp.MustCompile(`^items\[\]\.(apiVersion|kind)$|^(apiVersion|kind)$`), "objects in lists carry apiVersion and kind"},
	{regexp.MustCompile(`^header Warning$`), "a warning is missing or differs"},
	{regexp.MustCompile(`^header X-Kubernetes-Pf-`), "priority and fairness is not served yet"},
	{regexp.MustCompile(`responseKind\.(group|version)$`), "aggregated discovery names the group and version of each response kind"},
	{regexp.MustCompile(`metadata\.finalizers`), "the finalizer that protects storage in use is not added"},
	{regexp.MustCompile(`metadata\.generation$`), "metadata.generation is counted otherwise"},
	{regexp.MustCompile(`^(details\.causes\[\]\.message|message|header Warning)$`), "the same error in other words"},
	{regexp.MustCompile(`^header Vary$`), "the Vary header differs"},
	{regexp.MustCompile(`description$`), "descriptions are not served: they are upstream's prose"},
	{regexp.MustCompile(`^header X-Content-Type-Options$`), "the X-Content-Type-Options header differs"},
}

// explain says in one line why a case differs.
func explain(diff []string) string {
	places := placesOf(diff)
	if len(places) == 0 {
		return cut(strings.Join(diff, " "), 160)
	}
	if places[0].at == "status" {
		return explainStatus(places[0])
	}
	for _, g := range gaps {
		all := true
		for _, p := range places {
			all = all && g.at.MatchString(p.at)
		}
		if all {
			if g.at.MatchString("message") {
				return cut(g.reason+": "+first(places, "message").upstream, 200)
			}
			return g.reason
		}
	}
	var at []string
	seen := map[string]bool{}
	for _, p := range places {
		if !seen[p.at] {
			seen[p.at] = true
			at = append(at, p.at)
		}
	}
	if len(at) == 1 {
		return cut(at[0]+" is "+value(places[0].isopod)+", upstream "+value(places[0].upstream), 200)
	}
	return cut("differs in "+strings.Join(at, ", "), 200)
}

func first(places []place, at string) place {
	for _, p := range places {
		if p.at == at {
			return p
		}
	}
	return places[0]
}

func value(v string) string {
	if v == "-" {
		return "absent"
	}
	return cut(v, 80)
}

func explainStatus(p place) string {
	upstream, isopod := strings.Trim(p.upstream, `"`), strings.Trim(p.isopod, `"`)
	switch {
	case strings.HasPrefix(isopod, "415") && strings.Contains(isopod, "application/json-patch+json") && !strings.HasPrefix(upstream, "415"):
		return "server-side apply is not served yet"
	case strings.HasPrefix(upstream, "422") && strings.HasPrefix(isopod, "20"):
		_, what, ok := strings.Cut(upstream, "is invalid: ")
		if !ok {
			what = upstream
		}
		return cut("not validated: "+what, 200)
	}
	return cut("answers "+isopod+", upstream "+upstream, 220)
}

// cut shortens a reason, and takes the names of the run's own objects out of it.
func cut(s string, n int) string {
	s = strings.Join(strings.Fields(caseNames.ReplaceAllString(s, "{name}")), " ")
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}
