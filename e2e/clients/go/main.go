// A Go program as people write them: typed clients and informers over protobuf, the dynamic and the metadata client, discovery with a
// REST mapper, server-side apply, scale, leader election, events, logs, exec. Each step fails with what it saw.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	apiextensions "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// What every step is given.
type world struct {
	ctx       context.Context
	config    *rest.Config
	namespace string
	image     string
	typed     kubernetes.Interface
	dynamic   dynamic.Interface
	metadata  metadata.Interface
	crds      apiextensions.Interface
}

type step struct {
	name string
	run  func(*world) error
}

var steps = []step{
	{"informers", informers},
	{"watch list", watchList},
	{"pages", pages},
	{"conflicts", conflicts},
	{"apply", apply},
	{"scale", scale},
	{"events", events},
	{"discovery", discover},
	{"dynamic", custom},
	{"metadata", partial},
	{"election", election},
	{"pods", pods},
	{"reviews", reviews},
}

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: clients KUBECONFIG NAMESPACE IMAGE")
		os.Exit(2)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	w, err := connect(ctx, os.Args[1], os.Args[2], os.Args[3])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for _, s := range steps {
		started := time.Now()
		if err := s.run(w); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", s.name, err)
			os.Exit(1)
		}
		fmt.Printf("ok %s (%.1f s)\n", s.name, time.Since(started).Seconds())
	}
}

// The typed clients ask for protobuf, as those of upstream's components do; the others speak JSON.
func connect(ctx context.Context, kubeconfig, namespace, image string) (*world, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, err
	}
	config.QPS, config.Burst = 1000, 1000
	binary := rest.CopyConfig(config)
	binary.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	binary.ContentType = "application/vnd.kubernetes.protobuf"
	w := &world{ctx: ctx, config: config, namespace: namespace, image: image}
	if w.typed, err = kubernetes.NewForConfig(binary); err != nil {
		return nil, err
	}
	if w.dynamic, err = dynamic.NewForConfig(config); err != nil {
		return nil, err
	}
	if w.metadata, err = metadata.NewForConfig(config); err != nil {
		return nil, err
	}
	w.crds, err = apiextensions.NewForConfig(config)
	return w, err
}

// Waits until the condition holds; it is asked again at each tick.
func (w *world) until(what string, condition func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(w.ctx, 30*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		done, err := condition()
		if done {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited 30 s for %s; last error: %v", what, err)
		case <-tick.C:
		}
	}
}
