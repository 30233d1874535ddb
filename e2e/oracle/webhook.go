// Webhooks of both sides. One converts, for cases whose custom resources have several versions: {webhook} is its address, {ca} its
// certificate; what stands below /convert/ in a case's URL says how it converts, and what is wrong with its answer. The other
// one, at /authorize, is asked about users whose names begin with "hook:" (see authorization.go).

package main

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
)

// The fields that v1 and v2 of a thing call by different names.
var fields = map[string]string{"v1": "color", "v2": "paint"}

var webhook = sync.OnceValue(func() map[string]string {
	mux := http.NewServeMux()
	mux.HandleFunc("/convert/", serveConversion)
	mux.HandleFunc("/authorize", serveAuthorization)
	server := httptest.NewTLSServer(mux)
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	return map[string]string{"webhook": server.URL, "ca": base64.StdEncoding.EncodeToString(block)}
})

type review struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Request    struct {
		UID     string           `json:"uid"`
		Desired string           `json:"desiredAPIVersion"`
		Objects []map[string]any `json:"objects"`
	} `json:"request"`
}

func serveConversion(w http.ResponseWriter, r *http.Request) {
	how := strings.TrimPrefix(r.URL.Path, "/convert/")
	var asked review
	if err := json.NewDecoder(r.Body).Decode(&asked); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if how == "breaks" {
		http.Error(w, "out of order", http.StatusInternalServerError)
		return
	}
	converted := []any{}
	for _, object := range asked.Request.Objects {
		convert(object, asked.Request.Desired, how)
		converted = append(converted, object)
	}
	result := map[string]any{"status": "Success"}
	uid := asked.Request.UID
	switch how {
	case "refuses":
		result = map[string]any{"status": "Failure", "message": "no such colour"}
	case "fails":
		result = map[string]any{"status": "Failure"}
	case "drops":
		converted = converted[:0]
	case "confuses":
		uid = "other"
	}
	response := map[string]any{"uid": uid, "result": result, "convertedObjects": converted}
	if how == "silent" {
		response = nil
	}
	w.Header().Set("Content-Type", "application/json")
	// A client that is gone needs no answer.
	_ = json.NewEncoder(w).Encode(map[string]any{"apiVersion": asked.APIVersion, "kind": asked.Kind, "response": response})
}

func convert(object map[string]any, desired, how string) {
	from, _ := object["apiVersion"].(string)
	before, after := fields[from[strings.LastIndex(from, "/")+1:]], fields[desired[strings.LastIndex(desired, "/")+1:]]
	object["apiVersion"] = desired
	if spec, _ := object["spec"].(map[string]any); spec != nil {
		if value, ok := spec[before]; ok && before != after {
			delete(spec, before)
			spec[after] = value
		}
		if how == "adds" {
			// No schema knows it.
			spec["extra"] = "pruned"
		}
	}
	meta, _ := object["metadata"].(map[string]any)
	switch how {
	case "renames":
		meta["name"] = "other"
	case "moves":
		meta["namespace"] = "other"
	case "replaces":
		meta["uid"] = "other"
	case "retypes":
		object["kind"] = "Other"
	case "untypes":
		delete(object, "kind")
	case "stays":
		object["apiVersion"] = from
	case "strips":
		delete(object, "metadata")
	case "labels":
		meta["labels"] = map[string]any{"of": after}
		meta["annotations"] = map[string]any{"example.com/of": after}
		meta["generation"] = 7
		meta["finalizers"] = []any{"example.com/never"}
	case "mislabels":
		meta["labels"] = map[string]any{"of": "not a label"}
	case "misannotates":
		meta["annotations"] = map[string]any{"not an annotation": ""}
	case "unlabels":
		meta["labels"] = map[string]any{"of": 1}
	}
}
