// One case against one server: its requests in order, its watches beside them. What differs between servers by nature
// (revisions, uids) reaches a request only through the placeholders {ns}, {name}, {rv}, {uid},
// {continue}, {octets}, {webhook} and {ca}. What is long is written {text*1000}.

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"
)

const (
	requestTimeout = 30 * time.Second
	// How long a watch may stay silent before what it has is compared.
	watchPatience = 5 * time.Second
	// How long, and how often, a step is repeated until it is answered as it says.
	untilPatience = 15 * time.Second
	untilPause    = 100 * time.Millisecond
)

type client struct {
	*access
	admin, anonymous *http.Client
}

func newClient(a *access) *client {
	make := func(anonymous bool) *http.Client {
		tls := a.admin
		if anonymous {
			tls = a.anonymous
		}
		transport := &http.Transport{TLSClientConfig: tls.Clone(), ForceAttemptHTTP2: true, DisableCompression: true}
		noRedirect := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		return &http.Client{Transport: transport, CheckRedirect: noRedirect}
	}
	return &client{a, make(false), make(true)}
}

// answer is what one step brought.
type answer struct {
	status int
	header http.Header
	body   any
	err    error
	events chan any // of a watch, until it is closed
}

// play is a case's state at one server.
type play struct {
	c       *client
	kase    *Case
	objects map[string]any
	id      string
	// vars are the placeholders' values.
	vars    map[string]string
	answers []*answer
	// made are paths of cluster-scoped objects to take away afterwards.
	made []string
}

// caseID is short, a DNS label, and the same at both servers.
func caseID(name string) string {
	sum := sha256.Sum256([]byte(name))
	return "o" + hex.EncodeToString(sum[:5])
}

func newPlay(c *client, kase *Case, objects map[string]any) *play {
	id := caseID(kase.Name)
	sum := sha256.Sum256([]byte(kase.Name))
	vars := map[string]string{"ns": id, "name": id, "octets": fmt.Sprintf("%d.%d", sum[0], sum[1])}
	for name, value := range webhook() {
		vars[name] = value
	}
	return &play{c: c, kase: kase, objects: objects, id: id, vars: vars}
}

func (p *play) run(ctx context.Context) error {
	if p.kase.namespaced() {
		if err := p.prepareNamespace(ctx); err != nil {
			return err
		}
	}
	defer p.cleanUp()
	for i := range p.kase.Steps {
		a, err := p.step(ctx, &p.kase.Steps[i])
		if err != nil {
			return fmt.Errorf("step %d: %w", i+1, err)
		}
		p.answers = append(p.answers, a)
	}
	for i, a := range p.answers {
		if a.events != nil {
			a.body = collect(a.events)
			p.answers[i] = a
		}
	}
	return nil
}

// prepareNamespace also makes what upstream's controllers would: pods need their service account.
func (p *play) prepareNamespace(ctx context.Context) error {
	if err := p.ensure(ctx, "/api/v1/namespaces", `{"metadata":{"name":"`+p.id+`"}}`); err != nil {
		return err
	}
	return p.ensure(ctx, "/api/v1/namespaces/"+p.id+"/serviceaccounts", `{"metadata":{"name":"default"}}`)
}

func (p *play) ensure(ctx context.Context, path, body string) error {
	a := p.send(ctx, "POST", path, []byte(body), http.Header{"Content-Type": {"application/json"}}, p.c.admin)
	if a.err != nil || a.status != http.StatusCreated && a.status != http.StatusConflict {
		return fmt.Errorf("prepare %s: %d %v %v", path, a.status, a.body, a.err)
	}
	return nil
}

// cleanUp deletes cluster-scoped objects. Namespaces stay: nothing looks beyond its own, and they go with the server.
func (p *play) cleanUp() {
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	header := http.Header{"Content-Type": {"application/json"}}
	for i := len(p.made) - 1; i >= 0; i-- {
		a := p.send(ctx, "DELETE", p.made[i], []byte(`{"gracePeriodSeconds":0}`), header, p.c.admin)
		if a.err == nil && a.status < 300 && getAt(a.body, pointer("/metadata/finalizers")) != nil {
			merge := http.Header{"Content-Type": {"application/merge-patch+json"}}
			p.send(ctx, "PATCH", p.made[i], []byte(`{"metadata":{"finalizers":null}}`), merge, p.c.admin)
		}
	}
}

func (p *play) step(ctx context.Context, s *Step) (*answer, error) {
	method, path, _ := strings.Cut(p.fill(s.Do), " ")
	body, err := p.body(s)
	if err != nil {
		return nil, err
	}
	header := http.Header{}
	if body != nil {
		header.Set("Content-Type", "application/json")
	}
	if s.Type != "" {
		header.Set("Content-Type", s.Type)
	}
	if s.Accept != "" {
		header.Set("Accept", s.Accept)
	}
	for k, v := range s.Headers {
		header.Set(k, p.fill(v))
	}
	http := p.c.admin
	if s.As == "anonymous" {
		http = p.c.anonymous
	}
	if method == "WATCH" {
		return p.watch(ctx, path, header, s.Events, http), nil
	}
	a := p.send(ctx, method, path, body, header, http)
	arrived := func() bool {
		return s.Until == 0 || a.status == s.Until && (s.Has == "" || getAt(a.body, pointer(s.Has)) != nil)
	}
	for end := time.Now().Add(untilPatience); !arrived() && time.Now().Before(end); {
		time.Sleep(untilPause)
		a = p.send(ctx, method, path, body, header, http)
	}
	p.remember(method, path, a)
	return a, nil
}

// body is the step's, with placeholders filled; nil means none.
func (p *play) body(s *Step) ([]byte, error) {
	if s.Raw != nil {
		return []byte(p.fill(*s.Raw)), nil
	}
	object := s.Body
	switch s.Send {
	case "base":
		base, err := p.kase.Edit.apply(p.objects[p.kase.Base])
		if err != nil {
			return nil, err
		}
		object = base
	case "last", "first":
		if len(p.answers) == 0 {
			return nil, fmt.Errorf("no answer to send yet")
		}
		object = p.answers[len(p.answers)-1].body
		if s.Send == "first" {
			object = p.answers[0].body
		}
	}
	if object == nil {
		return nil, nil
	}
	object, err := s.Edit.apply(object)
	if err != nil {
		// What is edited may be an answer that lacks the place: send it as it is, the answers differ already.
		if s.Send == "base" || s.Body != nil {
			return nil, err
		}
		object = p.answers[len(p.answers)-1].body
	}
	text, err := json.Marshal(object)
	if err != nil {
		return nil, err
	}
	text = []byte(p.fill(string(text)))
	if strings.HasPrefix(s.Type, protobufType) {
		return encodeProtobuf(text)
	}
	return text, nil
}

// A text that is to be repeated: it has no braces.
var repeated = regexp.MustCompile(`\{([^{}]*)\*(\d+)\}`)

func (p *play) fill(text string) string {
	for k, v := range p.vars {
		text = strings.ReplaceAll(text, "{"+k+"}", v)
	}
	return repeated.ReplaceAllStringFunc(text, func(found string) string {
		parts := repeated.FindStringSubmatch(found)
		times, err := strconv.Atoi(parts[2])
		if err != nil {
			return found
		}
		return strings.Repeat(parts[1], times)
	})
}

// remember keeps what later steps may refer to, and what is to be cleaned up.
func (p *play) remember(method, path string, a *answer) {
	text := func(at string) string { s, _ := getAt(a.body, pointer(at)).(string); return s }
	for name, at := range map[string]string{"rv": "/metadata/resourceVersion", "uid": "/metadata/uid", "continue": "/metadata/continue"} {
		if v := text(at); v != "" {
			p.vars[name] = v
		}
	}
	path, query, _ := strings.Cut(path, "?")
	if a.status != http.StatusCreated || strings.Contains(path, "/namespaces/") || strings.Contains(query, "dryRun") {
		return
	}
	name := text("/metadata/name")
	if name == "" {
		return
	}
	if method == "POST" {
		path += "/" + name
	}
	p.made = append(p.made, path)
}

func (p *play) request(ctx context.Context, method, path string, body []byte, header http.Header) (*http.Request, error) {
	var reader io.Reader
	if body != nil {
		reader = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, p.c.server+path, reader)
	if err != nil {
		return nil, err
	}
	req.Header = header
	return req, nil
}

func (p *play) send(ctx context.Context, method, path string, body []byte, header http.Header, c *http.Client) *answer {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	req, err := p.request(ctx, method, path, body, header)
	if err != nil {
		return &answer{err: err}
	}
	resp, err := c.Do(req)
	if err != nil {
		return &answer{err: err}
	}
	defer resp.Body.Close()
	content, err := io.ReadAll(resp.Body)
	return &answer{status: resp.StatusCode, header: resp.Header, body: decode(resp.Header, content), err: err}
}

// watch opens a watch; its events arrive on the answer's channel, which is closed after `events` of them, at the end of
// the stream, or after watchPatience without one.
func (p *play) watch(ctx context.Context, path string, header http.Header, events int, c *http.Client) *answer {
	ctx, cancel := context.WithCancel(ctx)
	req, err := p.request(ctx, "GET", path, nil, header)
	if err != nil {
		cancel()
		return &answer{err: err}
	}
	resp, err := c.Do(req)
	if err != nil {
		cancel()
		return &answer{err: err}
	}
	a := &answer{status: resp.StatusCode, header: resp.Header}
	if resp.StatusCode != http.StatusOK {
		defer cancel()
		defer resp.Body.Close()
		content, err := io.ReadAll(resp.Body)
		a.body, a.err = decode(resp.Header, content), err
		return a
	}
	a.events = make(chan any, 256)
	go func() {
		defer close(a.events)
		defer cancel()
		defer resp.Body.Close()
		decoder := json.NewDecoder(resp.Body)
		idle := time.AfterFunc(watchPatience, cancel)
		defer idle.Stop()
		for n := 0; events == 0 || n < events; n++ {
			var event any
			if err := decoder.Decode(&event); err != nil {
				a.events <- streamEnd(ctx, err)
				return
			}
			idle.Reset(watchPatience)
			a.events <- event
		}
	}()
	return a
}

func streamEnd(ctx context.Context, err error) string {
	switch {
	case ctx.Err() != nil:
		return "<no further event in time>"
	case err == io.EOF:
		return "<end of stream>"
	}
	return "<broken stream>"
}

func collect(events chan any) any {
	list := []any{}
	for e := range events {
		list = append(list, e)
	}
	return list
}
