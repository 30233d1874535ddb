// The list of known differences, differences.txt: `case # reason`, one a line, sorted. It may only shrink, except by
// lines for cases that are new: ratchet compares it with where the branch left main.

package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
)

const separator = " # "

const listHeader = "# Where Isopod is known to answer otherwise than upstream: `case # reason`. It may only shrink (oracle ratchet).\n"

// parseDifferences reads the list: reasons by case.
func parseDifferences(text []byte) (map[string]string, error) {
	known := map[string]string{}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		l := strings.TrimSpace(lines.Text())
		if l == "" || strings.HasPrefix(l, "# ") {
			continue
		}
		name, reason, ok := strings.Cut(l, separator)
		if !ok || strings.TrimSpace(reason) == "" {
			return nil, fmt.Errorf("line %d has no reason: %s", n, l)
		}
		if known[name] != "" {
			return nil, fmt.Errorf("line %d: %s is there twice", n, name)
		}
		known[name] = strings.TrimSpace(reason)
	}
	return known, lines.Err()
}

func readDifferences(dir string) (map[string]string, error) {
	path := filepath.Join(dir, "differences.txt")
	text, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return map[string]string{}, nil
	}
	if err != nil {
		return nil, err
	}
	known, err := parseDifferences(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return known, nil
}

func writeDifferences(dir string, known map[string]string) error {
	var out strings.Builder
	out.WriteString(listHeader)
	for _, name := range sortedKeys(known) {
		out.WriteString(name + separator + known[name] + "\n")
	}
	return os.WriteFile(filepath.Join(dir, "differences.txt"), []byte(out.String()), 0o644)
}

// caseOf strips the part from a result's name.
func caseOf(result string) string {
	name, _, _ := strings.Cut(result, "#")
	return name
}

func git(dir string, args ...string) (string, error) {
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	out, err := cmd.Output()
	return strings.TrimSpace(string(out)), err
}

// ratchetBase is the commit that the list is held against: where this branch left main, or, on main itself, the newest
// earlier commit that has another list.
func ratchetBase(dir string) (string, error) {
	head, err := git(dir, "rev-parse", "HEAD")
	if err != nil {
		return "", fmt.Errorf("git rev-parse HEAD: %w", err)
	}
	for _, main := range []string{"origin/main", "main"} {
		if base, err := git(dir, "merge-base", "HEAD", main); err == nil && base != head {
			return base, nil
		}
	}
	changed, err := git(dir, "log", "-1", "--first-parent", "--format=%H", "--", "differences.txt")
	if err != nil || changed == "" {
		return "", err
	}
	base, err := git(dir, "rev-parse", "--verify", "--quiet", changed+"^")
	if err != nil {
		return "", nil // the list came with the first commit
	}
	return base, nil
}

// ratchet returns what has been added to the list for cases that existed before.
func ratchet(dir string) ([]string, error) {
	now, err := readDifferences(dir)
	if err != nil {
		return nil, err
	}
	base, err := ratchetBase(dir)
	if err != nil || base == "" {
		return nil, err
	}
	text, err := git(dir, "show", base+":./differences.txt")
	if err != nil {
		return nil, nil // no list there yet
	}
	before, err := parseDifferences([]byte(text))
	if err != nil {
		return nil, fmt.Errorf("differences.txt at %s: %w", base, err)
	}
	tree, err := git(dir, "ls-tree", "-r", "--name-only", base, "cases/")
	if err != nil {
		return nil, fmt.Errorf("git ls-tree %s: %w", base, err)
	}
	existed := map[string]bool{}
	for _, f := range strings.Split(tree, "\n") {
		existed[strings.TrimSuffix(strings.TrimPrefix(f, "cases/"), ".yaml")] = true
	}
	var grown []string
	for name := range now {
		if before[name] == "" && existed[caseOf(name)] {
			grown = append(grown, name)
		}
	}
	sort.Strings(grown)
	return grown, nil
}
