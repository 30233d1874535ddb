// Writes what upstream's library makes of texts of YAML: one line of JSON for each text of a file that has one on each line.
// Facts only.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"os"

	"sigs.k8s.io/yaml"
)

// answer is what is read of a text, or why it is not; and what a strict reader says against it.
type answer struct {
	Text   string          `json:"text"`
	JSON   json.RawMessage `json:"json,omitempty"`
	Error  string          `json:"error,omitempty"`
	Strict string          `json:"strict,omitempty"`
}

func main() {
	texts := flag.String("texts", "texts.jsonl", "file with a string on each line")
	flag.Parse()
	file, err := os.Open(*texts)
	if err != nil {
		panic(err)
	}
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 16<<20)
	out := json.NewEncoder(os.Stdout)
	out.SetEscapeHTML(false)
	for lines.Scan() {
		var text string
		if err := json.Unmarshal(lines.Bytes(), &text); err != nil {
			panic(fmt.Errorf("%s: %w", lines.Text(), err))
		}
		if err := out.Encode(read(text)); err != nil {
			panic(err)
		}
	}
	if err := lines.Err(); err != nil {
		panic(err)
	}
}

func read(text string) answer {
	a := answer{Text: text}
	value, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		a.Error = err.Error()
		return a
	}
	a.JSON = value
	if _, err := yaml.YAMLToJSONStrict([]byte(text)); err != nil {
		a.Strict = err.Error()
	}
	return a
}
