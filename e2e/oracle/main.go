// A differential oracle: the same requests to upstream's kube-apiserver and to `isopod server`, and a comparison of
// what both answer. `oracle run` is `make oracle`; `oracle` alone lists the subcommands.

package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

const usage = `oracle run      run the cases (those whose name holds an argument) and compare
oracle update   run all cases and rewrite differences.txt, keeping its reasons
oracle up       run upstream's etcd and kube-apiserver until stdin ends or SIGTERM comes
oracle gen      write the generated cases anew, from upstream's discovery and the base objects
oracle table    write the table of cases and differences
oracle ratchet  fail if differences.txt grew for cases that were there before
`

// errDiffers ends a run whose last line has said already that cases failed.
var errDiffers = errors.New("cases failed")

// options are the flags of all subcommands.
type options struct {
	dir, upstream, isopod, report, reason, out string
	kubeconfig, pids                           string
	parallel, lines                            int
}

func main() {
	// What is started dies with the thread that started it: see start.
	runtime.LockOSThread()
	if len(os.Args) < 2 {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	if err := command(os.Args[1], os.Args[2:]); err != nil {
		if !errors.Is(err, errDiffers) {
			fmt.Fprintln(os.Stderr, "oracle:", err)
		}
		os.Exit(1)
	}
}

func command(name string, args []string) error {
	var o options
	f := flag.NewFlagSet(name, flag.ExitOnError)
	f.StringVar(&o.dir, "dir", ".", "directory of cases, objects and differences.txt")
	f.StringVar(&o.upstream, "upstream", "", "directory of upstream's etcd and kube-apiserver (upstream/build.sh prints it)")
	f.StringVar(&o.isopod, "isopod", "", "Isopod's binary; \"upstream\" compares upstream with itself, which must find nothing")
	f.StringVar(&o.report, "report", "", "also write all differences, by area, to this file")
	f.StringVar(&o.reason, "reason", "", "update: the reason of new lines; without it, what differs first")
	f.StringVar(&o.out, "out", "../../docs/oracle.md", "table: the file to write")
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "up: where to write the administrator's kubeconfig")
	f.StringVar(&o.pids, "pids", "", "up: where to write {\"etcd\": pid, \"kube-apiserver\": pid} once it is ready")
	f.IntVar(&o.parallel, "parallel", 8, "cases at a time")
	f.IntVar(&o.lines, "lines", 24, "lines of difference to show of a case; 0 shows all")
	_ = f.Parse(args)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	switch name {
	case "run":
		return run(ctx, o, f.Args())
	case "update":
		return update(ctx, o, f.Args())
	case "up":
		return up(ctx, o)
	case "gen":
		return generate(ctx, o)
	case "table":
		return writeTable(o)
	case "ratchet":
		grown, err := ratchet(o.dir)
		if err == nil && len(grown) > 0 {
			err = fmt.Errorf("differences.txt may only shrink; new for cases that were there:\n  %s", strings.Join(grown, "\n  "))
		}
		return err
	}
	fmt.Fprint(os.Stderr, usage)
	return fmt.Errorf("no subcommand %s", name)
}

func selected(all *corpus, filters []string) []*Case {
	var cases []*Case
	for _, c := range all.cases {
		if len(filters) == 0 {
			cases = append(cases, c)
		}
		for _, f := range filters {
			if strings.Contains(c.Name, caseOf(f)) {
				cases = append(cases, c)
				break
			}
		}
	}
	return cases
}

// results starts both sides, runs the selected cases and writes the report if one is asked for.
func results(ctx context.Context, o options, filters []string) ([]Result, map[string]string, error) {
	all, err := loadCorpus(o.dir)
	if err != nil {
		return nil, nil, err
	}
	known, err := readDifferences(o.dir)
	if err != nil {
		return nil, nil, err
	}
	if o.isopod == "upstream" {
		known = nil
	}
	cases := selected(all, filters)
	if len(cases) == 0 {
		return nil, nil, fmt.Errorf("no case's name holds %s", strings.Join(filters, " or "))
	}
	p, err := startPair(ctx, o.upstream, o.isopod)
	if err != nil {
		return nil, nil, err
	}
	defer p.close()
	began := time.Now()
	found, err := runCases(ctx, p, all, cases, o.parallel)
	if err != nil {
		return nil, nil, err
	}
	if ctx.Err() != nil {
		return nil, nil, fmt.Errorf("interrupted")
	}
	fmt.Printf("%d cases, %d comparisons in %.0f s\n", len(cases), len(found), time.Since(began).Seconds())
	if o.report != "" {
		header := fmt.Sprintf("Rerun one: go -C e2e/oracle run . run -upstream %s -isopod PATH CASE\n\n", o.upstream)
		if err := writeReport(o.report, header, found, known); err != nil {
			return nil, nil, err
		}
	}
	return found, known, nil
}

func run(ctx context.Context, o options, filters []string) error {
	found, known, err := results(ctx, o, filters)
	if err != nil {
		return err
	}
	v := judge(found, known, len(filters) == 0)
	v.print(os.Stdout, o.lines)
	if v.failed() > 0 {
		return errDiffers
	}
	return nil
}

// update rewrites the list: lines of cases that differ no longer go, new ones come with what differs as their reason.
func update(ctx context.Context, o options, filters []string) error {
	found, known, err := results(ctx, o, filters)
	if err != nil {
		return err
	}
	list, ran := map[string]string{}, map[string]bool{}
	for _, r := range found {
		ran[caseOf(r.Name)] = true
	}
	for name, reason := range known {
		if len(filters) > 0 && !ran[caseOf(name)] {
			list[name] = reason
		}
	}
	broken := 0
	for _, r := range found {
		reason := known[r.Name]
		switch {
		case r.Broken != "":
			broken++
			fmt.Printf("%s\n  broken case: %s\n", r.Name, r.Broken)
		case len(r.Diff) > 0 && reason != "":
			list[r.Name] = reason
		case len(r.Diff) > 0:
			list[r.Name] = o.reason
			if o.reason == "" {
				list[r.Name] = explain(r.Diff)
			}
		}
	}
	if broken > 0 {
		return fmt.Errorf("%d broken cases", broken)
	}
	return writeDifferences(o.dir, list)
}

// up serves as upstream's side of a benchmark: etcd is durable, as in production.
func up(ctx context.Context, o options) error {
	if o.kubeconfig == "" || o.pids == "" {
		return fmt.Errorf("up needs -kubeconfig and -pids")
	}
	dir, err := os.MkdirTemp("", "isopod-upstream-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	s, err := startUpstream(dir, o.upstream, true)
	if err != nil {
		return err
	}
	defer s.stop()
	if err := s.ready(ctx); err != nil {
		return err
	}
	config, err := os.ReadFile(filepath.Join(dir, "kubeconfig"))
	if err != nil {
		return err
	}
	if err := os.WriteFile(o.kubeconfig, config, 0o600); err != nil {
		return err
	}
	pids, _ := json.Marshal(map[string]int{"etcd": s.processes[0].cmd.Process.Pid, "kube-apiserver": s.processes[1].cmd.Process.Pid})
	if err := os.WriteFile(o.pids, append(pids, '\n'), 0o644); err != nil {
		return err
	}
	fmt.Println("ready", s.server)
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(ended)
	}()
	select {
	case <-ctx.Done():
	case <-ended:
	}
	return nil
}
