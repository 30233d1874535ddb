// Running the corpus: some cases at a time, serial ones after all others, results in the order of their names.

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"
	"sync"
	"time"
)

const caseTimeout = 90 * time.Second

// runCases returns the results of all cases, sorted by name.
func runCases(ctx context.Context, p *pair, all *corpus, cases []*Case, parallel int) ([]Result, error) {
	upstream, isopod := newClient(p.upstream.access), newClient(p.isopod.access)
	var mu sync.Mutex
	var results []Result
	one := func(kase *Case) {
		r := runCase(ctx, upstream, isopod, kase, all.objects)
		mu.Lock()
		defer mu.Unlock()
		results = append(results, r...)
	}
	queue := func(workers int, which func(*Case) bool) {
		waiting := make(chan *Case)
		var group sync.WaitGroup
		for range workers {
			group.Go(func() {
				for kase := range waiting {
					one(kase)
				}
			})
		}
		for _, kase := range cases {
			if which(kase) {
				waiting <- kase
			}
		}
		close(waiting)
		group.Wait()
	}
	queue(parallel, func(c *Case) bool { return c.First })
	if err := p.silence(ctx, isopod); err != nil {
		return nil, err
	}
	queue(parallel, func(c *Case) bool { return !c.First && !c.Serial })
	queue(1, func(c *Case) bool { return c.Serial })
	sort.Slice(results, func(i, j int) bool { return results[i].Name < results[j].Name })
	for i := 1; i < len(results); i++ {
		if results[i].Name == results[i-1].Name {
			results[i].Broken = "two comparisons have this name"
		}
	}
	return results, nil
}

func runCase(ctx context.Context, upstream, isopod *client, kase *Case, objects map[string]any) []Result {
	ctx, cancel := context.WithTimeout(ctx, caseTimeout)
	defer cancel()
	plays := []*play{newPlay(upstream, kase, objects), newPlay(isopod, kase, objects)}
	errs := make([]error, len(plays))
	var both sync.WaitGroup
	for i, p := range plays {
		both.Go(func() { errs[i] = p.run(ctx) })
	}
	both.Wait()
	if errs[0] != nil {
		return []Result{{Name: kase.Name, Broken: fmt.Sprintf("upstream: %v", errs[0])}}
	}
	if errs[1] != nil {
		return []Result{{Name: kase.Name, Diff: []string{fmt.Sprintf("isopod: %v", errs[1])}}}
	}
	return compare(kase, plays[0], plays[1])
}

// verdict sorts the results by what the list of known differences says.
type verdict struct {
	passed, known             int
	broken, unexpected, fixed []Result
}

// judge holds results against the list; `whole` says that every case ran, so that a listed name without a result is
// stale.
func judge(results []Result, known map[string]string, whole bool) verdict {
	var v verdict
	seen := map[string]bool{}
	for _, r := range results {
		seen[r.Name] = true
		listed := known[r.Name] != ""
		switch {
		case r.Broken != "":
			v.broken = append(v.broken, r)
		case len(r.Diff) > 0 && listed:
			v.known++
			v.passed++
		case len(r.Diff) > 0:
			v.unexpected = append(v.unexpected, r)
		case listed:
			v.fixed = append(v.fixed, r)
		default:
			v.passed++
		}
	}
	if whole {
		for _, name := range sortedKeys(known) {
			if !seen[name] {
				v.fixed = append(v.fixed, Result{Name: name})
			}
		}
	}
	return v
}

func (v verdict) failed() int { return len(v.broken) + len(v.unexpected) + len(v.fixed) }

func (v verdict) print(out io.Writer, lines int) {
	for _, r := range v.unexpected {
		printResult(out, r, lines)
	}
	for _, r := range v.fixed {
		fmt.Fprintf(out, "%s\n  differs no longer: remove it from differences.txt (oracle update)\n", r.Name)
	}
	for _, r := range v.broken {
		fmt.Fprintf(out, "%s\n  broken case: %s\n", r.Name, r.Broken)
	}
	fmt.Fprintf(out, "%d of the passed differ as listed in differences.txt\n", v.known)
	fmt.Fprintf(out, "%d passed, %d failed\n", v.passed, v.failed())
}

func printResult(out io.Writer, r Result, lines int) {
	fmt.Fprintln(out, r.Name)
	shown := r.Diff
	if lines > 0 && len(shown) > lines {
		shown = shown[:lines]
	}
	for _, l := range shown {
		fmt.Fprintf(out, "  %s\n", l)
	}
	if len(shown) < len(r.Diff) {
		fmt.Fprintf(out, "  … and %d more lines (-lines 0 shows all)\n", len(r.Diff)-len(shown))
	}
}

// writeReport writes every difference, listed or not, grouped by area.
func writeReport(path, header string, results []Result, known map[string]string) error {
	var out strings.Builder
	out.WriteString(header)
	total, differ := map[string]int{}, map[string]int{}
	for _, r := range results {
		area := strings.SplitN(r.Name, "/", 2)[0]
		total[area]++
		if len(r.Diff) > 0 || r.Broken != "" {
			differ[area]++
		}
	}
	for _, a := range sortedKeys(total) {
		fmt.Fprintf(&out, "%-16s %5d results, %5d differ\n", a, total[a], differ[a])
	}
	for _, r := range results {
		if r.Broken != "" {
			fmt.Fprintf(&out, "\n%s\n  broken case: %s\n", r.Name, r.Broken)
		} else if len(r.Diff) > 0 {
			out.WriteString("\n")
			if reason := known[r.Name]; reason != "" {
				fmt.Fprintf(&out, "# %s\n", reason)
			}
			printResult(&out, r, 40)
		}
	}
	return os.WriteFile(path, []byte(out.String()), 0o644)
}
