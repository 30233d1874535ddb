// Controllers and scheduler of Isopod run inside its server. Where it cannot be started without them they lose their
// rights instead, so that nothing but the requests compared writes.

package main

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"
)

const (
	bindings   = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
	reviews    = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
	controller = `{"spec":{"user":"system:serviceaccount:kube-system:deployment-controller","resourceAttributes":` +
		`{"group":"apps","resource":"deployments","subresource":"status","verb":"update","namespace":"default"}}}`
)

// silence takes the controllers' bindings away and waits until the authorizer knows.
func (p *pair) silence(ctx context.Context, c *client) error {
	if !p.isopod.controllers {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	play := &play{c: c}
	list := play.send(ctx, "GET", bindings, nil, nil, c.admin)
	items, ok := getAt(list.body, pointer("/items")).([]any)
	if !ok {
		return fmt.Errorf("GET %s: %d %v", bindings, list.status, list.err)
	}
	for _, item := range items {
		name, _ := getAt(item, pointer("/metadata/name")).(string)
		if strings.HasPrefix(name, "system:controller:") || name == "system:kube-scheduler" || name == "system:volume-scheduler" {
			if a := play.send(ctx, "DELETE", bindings+"/"+name, nil, nil, c.admin); a.err != nil || a.status != http.StatusOK {
				return fmt.Errorf("DELETE %s: %d %v", name, a.status, a.err)
			}
		}
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		a := play.send(ctx, "POST", reviews, []byte(controller), http.Header{"Content-Type": {"application/json"}}, c.admin)
		if allowed, _ := getAt(a.body, pointer("/status/allowed")).(bool); a.err == nil && a.status == http.StatusCreated && !allowed {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the controllers keep their rights: %d %v", a.status, a.body)
		case <-tick.C:
		}
	}
}
