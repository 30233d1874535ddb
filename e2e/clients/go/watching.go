package main

import (
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	shared "k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/retry"
)

const many = 200

func configMap(name string, data map[string]string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"made-by": "clients"}}, Data: data}
}

// What the handlers of an informer were told.
type told struct {
	sync.Mutex
	added, updated, deleted int
}

func (t *told) handlers() cache.ResourceEventHandlerFuncs {
	count := func(n *int) {
		t.Lock()
		*n++
		t.Unlock()
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { count(&t.added) },
		UpdateFunc: func(before, after any) {
			// A resync repeats what is known: it is no change.
			if before.(*corev1.ConfigMap).ResourceVersion != after.(*corev1.ConfigMap).ResourceVersion {
				count(&t.updated)
			}
		},
		DeleteFunc: func(any) { count(&t.deleted) },
	}
}

// Exactly so many, and no more: an event that came twice would be seen.
func (w *world) told(t *told, added, updated, deleted int) error {
	want := fmt.Sprintf("%d added, %d updated, %d deleted", added, updated, deleted)
	return w.until(want, func() (bool, error) {
		t.Lock()
		defer t.Unlock()
		have := fmt.Sprintf("%d added, %d updated, %d deleted", t.added, t.updated, t.deleted)
		return have == want, fmt.Errorf("%s", have)
	})
}

// A shared informer sees what is there, what comes, changes and goes, once each.
func informers(w *world) error {
	maps := w.typed.CoreV1().ConfigMaps(w.namespace)
	for i := range many / 2 {
		if _, err := maps.Create(w.ctx, configMap(fmt.Sprintf("m%03d", i), nil), metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	factory := shared.NewSharedInformerFactoryWithOptions(w.typed, 0, shared.WithNamespace(w.namespace),
		shared.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = "made-by=clients" }))
	informer, seen := factory.Core().V1().ConfigMaps(), &told{}
	if _, err := informer.Informer().AddEventHandler(seen.handlers()); err != nil {
		return err
	}
	factory.Start(w.ctx.Done())
	factory.WaitForCacheSync(w.ctx.Done())
	if err := w.told(seen, many/2, 0, 0); err != nil {
		return err
	}
	for i := many / 2; i < many; i++ {
		if _, err := maps.Create(w.ctx, configMap(fmt.Sprintf("m%03d", i), nil), metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	patch := []byte(`{"data":{"changed":"yes"}}`)
	for i := range 10 {
		if _, err := maps.Patch(w.ctx, fmt.Sprintf("m%03d", i), types.StrategicMergePatchType, patch, metav1.PatchOptions{}); err != nil {
			return err
		}
	}
	// One that leaves the selector is one that goes.
	unlabel := []byte(`[{"op":"remove","path":"/metadata/labels/made-by"}]`)
	if _, err := maps.Patch(w.ctx, "m000", types.JSONPatchType, unlabel, metav1.PatchOptions{}); err != nil {
		return err
	}
	if err := maps.Delete(w.ctx, "m001", metav1.DeleteOptions{}); err != nil {
		return err
	}
	if err := w.told(seen, many, 10, 2); err != nil {
		return err
	}
	all, err := informer.Lister().ConfigMaps(w.namespace).List(labels.Everything())
	if err == nil && len(all) != many-2 {
		err = fmt.Errorf("the lister has %d objects, not %d", len(all), many-2)
	}
	return err
}

// A list as a stream of a watch: what is there, a bookmark that says so, then what happens.
func watchList(w *world) error {
	maps, yes := w.typed.CoreV1().ConfigMaps(w.namespace), true
	stream, err := maps.Watch(w.ctx, metav1.ListOptions{
		LabelSelector: "made-by=clients", SendInitialEvents: &yes, AllowWatchBookmarks: true,
		ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan,
	})
	if err != nil {
		return err
	}
	defer stream.Stop()
	initial := 0
	for event := range stream.ResultChan() {
		object, err := apiObject(event)
		if err != nil {
			return err
		}
		if event.Type == watch.Bookmark {
			if object.Annotations[metav1.InitialEventsAnnotationKey] != "true" {
				continue
			}
			break
		}
		initial++
	}
	if initial != many-2 {
		return fmt.Errorf("%d objects before the bookmark, not %d", initial, many-2)
	}
	if _, err := maps.Create(w.ctx, configMap("late", nil), metav1.CreateOptions{}); err != nil {
		return err
	}
	for event := range stream.ResultChan() {
		object, err := apiObject(event)
		if err != nil {
			return err
		}
		if event.Type == watch.Added && object.Name == "late" {
			return maps.Delete(w.ctx, "late", metav1.DeleteOptions{})
		}
	}
	return fmt.Errorf("the watch ended: %v", w.ctx.Err())
}

func apiObject(event watch.Event) (*corev1.ConfigMap, error) {
	if object, ok := event.Object.(*corev1.ConfigMap); ok {
		return object, nil
	}
	return nil, fmt.Errorf("the watch brought %s %T: %v", event.Type, event.Object, apierrors.FromObject(event.Object))
}

// Pages of one list show one moment, whatever is written meanwhile.
func pages(w *world) error {
	maps := w.typed.CoreV1().ConfigMaps(w.namespace)
	names, options, versions := map[string]bool{}, metav1.ListOptions{LabelSelector: "made-by=clients", Limit: 30}, map[string]bool{}
	for page := 0; ; page++ {
		list, err := maps.List(w.ctx, options)
		if err != nil {
			return err
		}
		versions[list.ResourceVersion] = true
		for _, item := range list.Items {
			names[item.Name] = true
		}
		if page == 0 {
			left := many - 2 - 30
			if list.RemainingItemCount != nil && *list.RemainingItemCount != int64(left) {
				return fmt.Errorf("%d items remain, not %d", *list.RemainingItemCount, left)
			}
			if _, err := maps.Create(w.ctx, configMap("m999", nil), metav1.CreateOptions{}); err != nil {
				return err
			}
		}
		if options.Continue = list.Continue; options.Continue == "" {
			break
		}
	}
	if len(names) != many-2 || names["m999"] || len(versions) != 1 {
		return fmt.Errorf("the pages hold %d names (m999: %v) of %d moments", len(names), names["m999"], len(versions))
	}
	return maps.Delete(w.ctx, "m999", metav1.DeleteOptions{})
}

// Optimistic concurrency: 8 writers count to 8 together.
func conflicts(w *world) error {
	maps := w.typed.CoreV1().ConfigMaps(w.namespace)
	counter, err := maps.Create(w.ctx, configMap("counter", map[string]string{"n": ""}), metav1.CreateOptions{})
	if err != nil {
		return err
	}
	stale := counter.DeepCopy()
	backoff := retry.DefaultBackoff
	backoff.Steps = 100
	var group sync.WaitGroup
	failures := make(chan error, 8)
	for range 8 {
		group.Go(func() {
			err := retry.RetryOnConflict(backoff, func() error {
				now, err := maps.Get(w.ctx, "counter", metav1.GetOptions{})
				if err != nil {
					return err
				}
				now.Data["n"] += "x"
				_, err = maps.Update(w.ctx, now, metav1.UpdateOptions{})
				return err
			})
			if err != nil {
				failures <- err
			}
		})
	}
	group.Wait()
	close(failures)
	for err := range failures {
		return err
	}
	now, err := maps.Get(w.ctx, "counter", metav1.GetOptions{})
	if err != nil {
		return err
	}
	if len(now.Data["n"]) != 8 {
		return fmt.Errorf("8 writers counted to %d", len(now.Data["n"]))
	}
	if _, err := maps.Update(w.ctx, stale, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
		return fmt.Errorf("a stale update: %v", err)
	}
	uid := types.UID("00000000-0000-0000-0000-000000000000")
	err = maps.Delete(w.ctx, "counter", metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
	if !apierrors.IsConflict(err) {
		return fmt.Errorf("a delete of another object of that name: %v", err)
	}
	return nil
}
