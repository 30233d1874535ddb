// Tests of the ratchet in a repository of its own.

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

type repository struct {
	t   *testing.T
	dir string
}

func newRepository(t *testing.T) repository {
	r := repository{t, t.TempDir()}
	r.git("init", "-q", "-b", "main")
	return r
}

func (r repository) git(args ...string) {
	r.t.Helper()
	args = append([]string{"-c", "user.name=t", "-c", "user.email=t@example.com"}, args...)
	cmd := exec.Command("git", args...)
	cmd.Dir = r.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		r.t.Fatalf("git %v: %s", args, out)
	}
}

// commit writes files (contents by path) and commits them.
func (r repository) commit(files map[string]string) {
	r.t.Helper()
	for name, text := range files {
		path := filepath.Join(r.dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			r.t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			r.t.Fatal(err)
		}
	}
	r.git("add", "-A")
	r.git("commit", "-q", "-m", "x")
}

func (r repository) grown() string {
	r.t.Helper()
	grown, err := ratchet(r.dir)
	if err != nil {
		r.t.Fatal(err)
	}
	return strings.Join(grown, " ")
}

func TestRatchet(t *testing.T) {
	r := newRepository(t)
	r.commit(map[string]string{"cases/a/b/old.yaml": "x", "differences.txt": "a/b/old#1 # r\n"})
	if got := r.grown(); got != "" {
		t.Error("a list that came with the first commit may not count as growth:", got)
	}
	r.git("checkout", "-q", "-b", "work")
	r.commit(map[string]string{"cases/a/b/new.yaml": "x", "differences.txt": "a/b/new # r\na/b/old#1 # r\n"})
	if got := r.grown(); got != "" {
		t.Error("a new case may be listed:", got)
	}
	r.commit(map[string]string{"differences.txt": "a/b/new # r\na/b/old#1 # r\na/b/old#2 # r\n"})
	if got := r.grown(); got != "a/b/old#2" {
		t.Error("growth on a branch is not seen:", got)
	}
	r.git("checkout", "-q", "main")
	r.git("merge", "-q", "--ff-only", "work")
	if got := r.grown(); got != "a/b/old#2" {
		t.Error("growth on main is not seen:", got)
	}
	r.commit(map[string]string{"differences.txt": "a/b/new # r\n"})
	if got := r.grown(); got != "" {
		t.Error("shrinking is growth:", got)
	}
}

func TestRatchetWithoutAList(t *testing.T) {
	r := newRepository(t)
	r.commit(map[string]string{"cases/a/b/old.yaml": "x"})
	r.commit(map[string]string{"differences.txt": "a/b/old # r\n"})
	if got := r.grown(); got != "" {
		t.Error("the first list may hold anything:", got)
	}
}
