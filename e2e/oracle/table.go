// The table of cases and differences by area, for the documentation.

package main

import (
	"fmt"
	"os"
	"strings"
)

func writeTable(o options) error {
	all, err := loadCorpus(o.dir)
	if err != nil {
		return err
	}
	known, err := readDifferences(o.dir)
	if err != nil {
		return err
	}
	cases, differ, reasons := map[string]int{}, map[string]int{}, map[string]map[string]int{}
	for _, c := range all.cases {
		cases[c.area()]++
	}
	for name, reason := range known {
		area, _, _ := strings.Cut(name, "/")
		differ[area]++
		if reasons[area] == nil {
			reasons[area] = map[string]int{}
		}
		reasons[area][reason]++
	}
	var out strings.Builder
	out.WriteString(tableText)
	for _, a := range sortedKeys(cases) {
		fmt.Fprintf(&out, "| %s | %d | %d |\n", a, cases[a], differ[a])
	}
	fmt.Fprintf(&out, "| all | %d | %d |\n", len(all.cases), len(known))
	out.WriteString("\nWhat differs most, by area:\n\n")
	for _, a := range sortedKeys(reasons) {
		fmt.Fprintf(&out, "- **%s**: %s\n", a, strings.Join(most(reasons[a], 5), "; "))
	}
	return os.WriteFile(o.out, []byte(out.String()), 0o644)
}

// most are the commonest reasons with their counts.
func most(counts map[string]int, n int) []string {
	var out []string
	for range n {
		best := ""
		for _, r := range sortedKeys(counts) {
			if best == "" || counts[r] > counts[best] {
				best = r
			}
		}
		if best == "" {
			break
		}
		out = append(out, fmt.Sprintf("%s (%d)", best, counts[best]))
		delete(counts, best)
	}
	return out
}

const tableText = `# Compared with upstream

` + "`make oracle`" + ` sends the same requests to upstream's kube-apiserver v1.37.2 on etcd and to ` + "`isopod server`" + `, and compares
status, headers, bodies and watch events. The cases are data in ` + "`e2e/oracle/cases`" + `; what is known to differ stands in
` + "`e2e/oracle/differences.txt`" + ` with its reason and may only shrink. This table is written by ` + "`oracle table`" + `. A difference is
a step of a case (` + "`case#2`" + `) or a part of an answer, such as a path or a definition of an OpenAPI document (` + "`case#/apis/`" + `).

From ` + "`e2e/oracle`" + `, with ` + "`up=$(upstream/build.sh ~/.cache/isopod/upstream)`" + `:

| command | what it does |
| --- | --- |
| ` + "`go run . run -upstream $up -isopod PATH CASE`" + ` | the cases whose name holds CASE, with all that differs unexpectedly |
| ` + "`go run . run -upstream $up -isopod upstream`" + ` | upstream against itself: whatever differs is a fault of the oracle |
| ` + "`go run . update -upstream $up -isopod PATH`" + ` | rewrites differences.txt; reasons that are there stay, ` + "`-reason TEXT`" + ` gives new lines theirs |
| ` + "`go run . gen -upstream $up`" + ` | writes the generated cases anew; those without its mark are written by hand |

A case names a base object (` + "`e2e/oracle/objects`" + `), edits it by JSON pointer, and lists steps. ` + "`expect`" + ` is upstream's status: where
upstream answers otherwise the case is broken, and fails whatever Isopod answers. Not compared are managedFields and descriptions
(unless a case keeps them), and values that must differ: uids, revisions, times of now, allocated addresses and ports, generated
suffixes, tokens, build information. Isopod's controllers and scheduler do not write during a run.

| area | cases | known differences |
| --- | ---: | ---: |
`
