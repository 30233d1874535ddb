package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"
)

// A command run in the pod, and all that must come of it.
type command struct {
	name, script string
	// Nil: no stdin is asked for.
	input    *string
	out, bad string
	code     int
}

func commands() []command {
	long, none := strings.Repeat("0123456789abcdef", 16<<10), ""
	return []command{
		{"an echo", "cat; echo oops >&2; exit 7", &long, long, "oops\n", 7},
		{"both outputs at once", "tee /dev/stderr", &long, long, long, 0},
		{"an empty input", "wc -c; exit 3", &none, "0\n", "", 3},
		{"much output", "yes 0123456789abcde | head -c 1048576", nil, strings.Repeat("0123456789abcde\n", 64<<10), "", 0},
		{"an end at once", "exit 5", &long, "", "", 5},
		{"an output that ends early", "echo first; exec >&-; cat >/dev/null; echo last >&2; exit 4", &long, "first\n", "last\n", 4},
		{"a child that says more", "(sleep 3; echo late) & echo now", nil, "now\nlate\n", "", 0},
	}
}

// Runs each command over each transport, several times at once: whatever runs beside it, all output comes before the status.
func (w *world) execute(pod string, times int) error {
	var group sync.WaitGroup
	failed := make(chan error, 1)
	for range times {
		for _, c := range commands() {
			for _, transport := range []string{"WebSocket", "SPDY"} {
				group.Add(1)
				go func() {
					defer group.Done()
					if err := w.runs(pod, transport, c); err != nil {
						select {
						case failed <- fmt.Errorf("%s over %s: %w", c.name, transport, err):
						default:
						}
					}
				}()
			}
		}
	}
	group.Wait()
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}

func (w *world) executor(pod, transport string, c command) (remotecommand.Executor, error) {
	request := w.typed.CoreV1().RESTClient().Post().Resource("pods").Namespace(w.namespace).Name(pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{
			Container: "main", Command: []string{"sh", "-c", c.script}, Stdin: c.input != nil, Stdout: true, Stderr: true,
		}, scheme.ParameterCodec)
	if transport == "SPDY" {
		return remotecommand.NewSPDYExecutor(w.config, http.MethodPost, request.URL())
	}
	return remotecommand.NewWebSocketExecutor(w.config, http.MethodGet, request.URL().String())
}

func (w *world) runs(pod, transport string, c command) error {
	executor, err := w.executor(pod, transport, c)
	if err != nil {
		return err
	}
	var out, bad bytes.Buffer
	streams := remotecommand.StreamOptions{Stdout: &out, Stderr: &bad}
	if c.input != nil {
		streams.Stdin = io.Reader(strings.NewReader(*c.input))
	}
	begin := time.Now()
	code := 0
	var exit exec.CodeExitError
	switch err := executor.StreamWithContext(w.ctx, streams); {
	case errors.As(err, &exit):
		code = exit.Code
	case err != nil:
		return fmt.Errorf("it failed after %s: %w", time.Since(begin), err)
	}
	if code != c.code || out.String() != c.out || bad.String() != c.bad {
		return fmt.Errorf("it ended with %d instead of %d after %s; %d bytes of %d came, and %d of %d", code, c.code, time.Since(begin), out.Len(), len(c.out), bad.Len(), len(c.bad))
	}
	return nil
}
