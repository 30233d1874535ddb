// Writes what Isopod's CEL is compared with: the functions that upstream's environments declare (functions.txt), and what
// upstream makes of expressions (answers.jsonl: the type or the errors of each, the estimate of its cost, what it comes to
// and what that took). Facts only.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/types"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/apiserver/pkg/cel/environment"
)

func main() {
	out := flag.String("out", ".", "directory to write check/functions.txt and golden/answers.jsonl to")
	cases := flag.String("cases", ".", "directory with expressions.txt, schema.json and data.json")
	flag.Parse()
	set := environment.MustBaseEnvSet(version.MajorMinor(1, 36))
	worlds := worlds(set, *cases)
	write(filepath.Join(*out, "check", "functions.txt"), functions(worlds))
	write(filepath.Join(*out, "golden", "answers.jsonl"), answers(worlds, filepath.Join(*cases, "expressions.txt")))
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func write(path string, lines []string) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		panic(err)
	}
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
		panic(err)
	}
}

// functions: name, overload, g(lobal) or m(ember), the environments that have it, arguments, result.
func functions(worlds map[string]*world) []string {
	environments := []struct {
		mark string
		env  *cel.Env
	}{{"n", worlds["self"].fresh}, {"s", worlds["self"].stored}, {"p", worlds["patch"].fresh}, {"b", worlds["device"].fresh}}
	marks := map[string]string{}
	for _, e := range environments {
		for name, function := range e.env.Functions() {
			if function.IsDeclarationDisabled() {
				continue
			}
			for i, o := range function.OverloadDecls() {
				style := "g"
				if o.IsMemberFunction() {
					style = "m"
				}
				arguments := []string{}
				for _, a := range o.ArgTypes() {
					arguments = append(arguments, spelled(a))
				}
				row := fmt.Sprintf("%s\t%03d\t%s\t%s\t%s\t%s", name, i, o.ID(), style, strings.Join(arguments, ";"), spelled(o.ResultType()))
				marks[row] += e.mark
			}
		}
	}
	rows := []string{}
	for row, mark := range marks {
		rows = append(rows, row+"\t"+mark)
	}
	sort.Strings(rows)
	for i, row := range rows {
		parts := strings.Split(row, "\t")
		rows[i] = strings.Join(append(parts[:1], parts[2:]...), "\t")
	}
	return rows
}

// spelled writes a type so that opaque types and objects can be told apart.
func spelled(t *cel.Type) string {
	switch t.Kind() {
	case types.TypeParamKind:
		return t.TypeName()
	case types.TimestampKind:
		return "timestamp"
	case types.DurationKind:
		return "duration"
	case types.StructKind:
		return "@" + t.TypeName()
	}
	name := t.DeclaredTypeName()
	if len(t.Parameters()) == 0 {
		return name
	}
	parts := []string{}
	for _, p := range t.Parameters() {
		parts = append(parts, spelled(p))
	}
	return name + "(" + strings.Join(parts, ",") + ")"
}

type answer struct {
	World      string `json:"in"`
	Expression string `json:"e"`
	Errors     string `json:"errors,omitempty"`
	// What differs in the environment of expressions that were stored before.
	Stored   string     `json:"stored,omitempty"`
	Type     string     `json:"type,omitempty"`
	Estimate *[2]uint64 `json:"estimate,omitempty"`
	Value    string     `json:"value,omitempty"`
	Failure  string     `json:"failure,omitempty"`
	Cost     *uint64    `json:"cost,omitempty"`
}

func answers(worlds map[string]*world, path string) []string {
	file := must(os.Open(path))
	defer file.Close()
	lines := []string{}
	in := ""
	scanner := bufio.NewScanner(file)
	for scanner.Scan() {
		line := scanner.Text()
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, "== "):
			in = strings.TrimPrefix(line, "== ")
		default:
			var text strings.Builder
			encoder := json.NewEncoder(&text)
			encoder.SetEscapeHTML(false)
			if err := encoder.Encode(worlds[in].ask(in, strings.ReplaceAll(line, "␤", "\n"))); err != nil {
				panic(err)
			}
			lines = append(lines, strings.TrimSpace(text.String()))
		}
	}
	return lines
}
