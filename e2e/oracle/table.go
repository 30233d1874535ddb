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
` + "`e2e/oracle/differences.txt`" + ` with its reason and may only shrink. This table is written by ` + "`oracle table`" + `. A difference may be
a part of a case: a path or a definition of an OpenAPI document.

| area | cases | known differences |
| --- | ---: | ---: |
`
