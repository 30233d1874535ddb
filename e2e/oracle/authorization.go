// The chain of authorizers that both sides are started with, and the webhooks at its end. What they answer is said by the name
// of the user that they are asked about.

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

// Users named "hook:…" are asked about; of those named "hook:resource:…" only where they ask for a resource, and the
// question whether that is a secret fails for all others. Users named "strict:…" are asked about by a webhook without
// which they may do nothing.
func authorization(kubeconfig string) map[string]any {
	hook := func(name, version, policy string, conditions ...string) map[string]any {
		match := []any{}
		for _, c := range conditions {
			match = append(match, map[string]any{"expression": c})
		}
		return map[string]any{"type": "Webhook", "name": name, "webhook": map[string]any{
			"timeout": "3s", "authorizedTTL": "1s", "unauthorizedTTL": "1s", "failurePolicy": policy,
			"subjectAccessReviewVersion": version, "matchConditionSubjectAccessReviewVersion": "v1", "matchConditions": match,
			"connectionInfo": map[string]any{"type": "KubeConfigFile", "kubeConfigFile": kubeconfig},
		}}
	}
	return map[string]any{
		"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthorizationConfiguration",
		"authorizers": []any{
			map[string]any{"type": "Node", "name": "node"}, map[string]any{"type": "RBAC", "name": "rbac"},
			hook("hook", "v1", "NoOpinion", "request.user.startsWith('hook:')",
				"!request.user.startsWith('hook:resource:') || request.resourceAttributes.resource != 'secrets'"),
			hook("strict", "v1beta1", "Deny", "request.user.startsWith('strict:')",
				"!request.user.startsWith('strict:resource:') || request.resourceAttributes.resource != 'secrets'"),
		},
	}
}

func writeAuthorization(dir string) error {
	kubeconfig := filepath.Join(dir, "webhook.kubeconfig")
	at := webhook()
	files := map[string]any{
		kubeconfig: map[string]any{
			"apiVersion": "v1", "kind": "Config", "current-context": "hook",
			"clusters": []any{map[string]any{"name": "hook", "cluster": map[string]any{
				"server": at["webhook"] + "/authorize", "certificate-authority-data": at["ca"]}}},
			"users":    []any{map[string]any{"name": "me", "user": map[string]any{"token": "let-me-in"}}},
			"contexts": []any{map[string]any{"name": "hook", "context": map[string]any{"cluster": "hook", "user": "me"}}},
		},
		filepath.Join(dir, "authorization.yaml"): authorization(kubeconfig),
	}
	for path, content := range files {
		text, err := yaml.Marshal(content)
		if err != nil {
			return err
		}
		if err := os.WriteFile(path, text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func serveAuthorization(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var asked map[string]any
	if err := json.Unmarshal(body, &asked); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	spec, _ := asked["spec"].(map[string]any)
	user, _ := spec["user"].(string)
	var status map[string]any
	switch how := user[strings.LastIndex(user, ":")+1:]; how {
	case "allowed":
		status = map[string]any{"allowed": true, "reason": "as asked"}
	case "denied":
		status = map[string]any{"allowed": false, "denied": true, "reason": "as asked"}
	case "both":
		status = map[string]any{"allowed": true, "denied": true}
	case "echo":
		// The question itself, and how it was asked.
		said := fmt.Sprintf("%s %s %s %s %s", r.Method, r.URL.RequestURI(), r.Header.Get("Content-Type"), r.Header.Get("Authorization"), body)
		status = map[string]any{"allowed": true, "reason": said}
	case "text":
		http.Error(w, "not today", http.StatusBadRequest)
		return
	case "forbidden":
		http.Error(w, "not you", http.StatusForbidden)
		return
	case "gone":
		http.NotFound(w, r)
		return
	case "broken":
		http.Error(w, "out of order", http.StatusInternalServerError)
		return
	case "away":
		http.Error(w, "out to lunch", http.StatusServiceUnavailable)
		return
	case "status":
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusConflict)
		_, _ = io.WriteString(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","message":"said so","reason":"Conflict","code":409}`)
		return
	case "other":
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"kind":"Pod","apiVersion":"v1"}`)
		return
	case "nonsense":
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, "nonsense")
		return
	case "empty":
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, "{}")
		return
	default:
		status = map[string]any{"allowed": false, "reason": "no opinion"}
	}
	w.Header().Set("Content-Type", "application/json")
	// A client that is gone needs no answer.
	_ = json.NewEncoder(w).Encode(map[string]any{"apiVersion": asked["apiVersion"], "kind": asked["kind"], "status": status})
}
