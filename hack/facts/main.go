// Command facts writes the tables under pkg/schema/facts: what Go's types, upstream's OpenAPI documents and its discovery
// documents say about the kinds that Kubernetes serves by default. Texts only where nothing else at hand has them.
//
//	go run . -out ../../pkg/schema/facts
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
)

const upstream = "k8s.io/kubernetes@v1.37.0"

func main() {
	log.SetFlags(0)
	out := flag.String("out", "../../pkg/schema/facts", "directory to write to")
	dir := flag.String("kubernetes", "", "directory of "+upstream+" (default: from the module cache, downloaded if need be)")
	flag.Parse()
	if *dir == "" {
		*dir = moduleDir()
	}
	groups := readDiscovery(filepath.Join(*dir, "api/discovery"))
	spec := readOpenAPI(filepath.Join(*dir, "api/openapi-spec"))
	w := newWalker(spec)
	gvks := w.roots(groups)
	for {
		if !w.step() {
			break
		}
	}
	write(filepath.Join(*out, "types.tsv"), w.table())
	write(filepath.Join(*out, "gvks.tsv"), gvks)
	write(filepath.Join(*out, "kinds.tsv"), kindTable(groups, w))
	write(filepath.Join(*out, "descriptions.tsv"), descriptionTable(*dir))
	write(filepath.Join(*out, "enums.tsv"), enumTable(*dir, spec))
}

// moduleDir finds upstream's data files. They are not a requirement of go.mod: k8s.io/kubernetes cannot be imported.
func moduleDir() string {
	b, err := exec.Command("go", "mod", "download", "-json", upstream).Output()
	if err != nil {
		log.Fatalf("go mod download %s: %v", upstream, err)
	}
	var m struct{ Dir string }
	if err := json.Unmarshal(b, &m); err != nil {
		log.Fatal(err)
	}
	return m.Dir
}

func readJSON(path string, into any) {
	b, err := os.ReadFile(path)
	if err != nil {
		log.Fatal(err)
	}
	if err := json.Unmarshal(b, into); err != nil {
		log.Fatalf("%s: %v", path, err)
	}
}

func write(path string, table *bytes.Buffer) {
	if err := os.WriteFile(path, table.Bytes(), 0o644); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s: %d bytes\n", path, table.Len())
}
