package main

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	applycore "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/kubernetes/scheme"
	typedcore "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/retry"
)

// Server-side apply from Go's types: conflicts, force, and taking back one's own fields.
func apply(w *world) error {
	maps := w.typed.CoreV1().ConfigMaps(w.namespace)
	mine := applycore.ConfigMap("applied", w.namespace).WithData(map[string]string{"a": "1", "b": "1"})
	if _, err := maps.Apply(w.ctx, mine, metav1.ApplyOptions{FieldManager: "one"}); err != nil {
		return err
	}
	theirs := applycore.ConfigMap("applied", w.namespace).WithData(map[string]string{"b": "2"})
	if _, err := maps.Apply(w.ctx, theirs, metav1.ApplyOptions{FieldManager: "two"}); !apierrors.IsConflict(err) {
		return fmt.Errorf("two managers of one field: %v", err)
	}
	if _, err := maps.Apply(w.ctx, theirs, metav1.ApplyOptions{FieldManager: "two", Force: true}); err != nil {
		return err
	}
	live, err := maps.Get(w.ctx, "applied", metav1.GetOptions{})
	if err != nil {
		return err
	}
	extracted, err := applycore.ExtractConfigMap(live, "one")
	if err != nil {
		return err
	}
	if len(extracted.Data) != 1 || extracted.Data["a"] != "1" {
		return fmt.Errorf("the first manager has %v", extracted.Data)
	}
	delete(extracted.Data, "a")
	live, err = maps.Apply(w.ctx, extracted, metav1.ApplyOptions{FieldManager: "one"})
	if err == nil && (len(live.Data) != 1 || live.Data["b"] != "2") {
		err = fmt.Errorf("left after the first manager took its field back: %v", live.Data)
	}
	return err
}

// A deployment without replicas, scaled through the subresource.
func scale(w *world) error {
	none := int32(0)
	selector := map[string]string{"app": "scaled"}
	container := corev1.Container{Name: "main", Image: w.image}
	deployments := w.typed.AppsV1().Deployments(w.namespace)
	_, err := deployments.Create(w.ctx, &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "scaled"},
		Spec: appsv1.DeploymentSpec{
			Replicas: &none, Paused: true, Selector: &metav1.LabelSelector{MatchLabels: selector},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: selector}, Spec: corev1.PodSpec{Containers: []corev1.Container{container}},
			},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	// The controller writes the deployment's status meanwhile.
	err = retry.RetryOnConflict(retry.DefaultRetry, func() error {
		now, err := deployments.GetScale(w.ctx, "scaled", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if now.Status.Selector != labels.SelectorFromSet(selector).String() {
			return fmt.Errorf("the selector of the scale is %q", now.Status.Selector)
		}
		wanted := &autoscalingv1.Scale{ObjectMeta: now.ObjectMeta, Spec: autoscalingv1.ScaleSpec{Replicas: 3}}
		_, err = deployments.UpdateScale(w.ctx, "scaled", wanted, metav1.UpdateOptions{})
		return err
	})
	if err != nil {
		return err
	}
	deployment, err := deployments.Get(w.ctx, "scaled", metav1.GetOptions{})
	if err == nil && *deployment.Spec.Replicas != 3 {
		err = fmt.Errorf("%d replicas", *deployment.Spec.Replicas)
	}
	if err != nil {
		return err
	}
	foreground := metav1.DeletePropagationForeground
	return deployments.Delete(w.ctx, "scaled", metav1.DeleteOptions{PropagationPolicy: &foreground})
}

// Equal events become one that counts.
func events(w *world) error {
	about, err := w.typed.CoreV1().ConfigMaps(w.namespace).Get(w.ctx, "counter", metav1.GetOptions{})
	if err != nil {
		return err
	}
	broadcaster := record.NewBroadcaster()
	defer broadcaster.Shutdown()
	broadcaster.StartRecordingToSink(&typedcore.EventSinkImpl{Interface: w.typed.CoreV1().Events(w.namespace)})
	recorder := broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "clients"})
	for range 3 {
		recorder.Event(about, corev1.EventTypeNormal, "Counted", "counted to 8")
	}
	selector := "involvedObject.name=counter,reason=Counted"
	return w.until("an event that counts 3", func() (bool, error) {
		list, err := w.typed.CoreV1().Events(w.namespace).List(w.ctx, metav1.ListOptions{FieldSelector: selector})
		if err != nil || len(list.Items) != 1 {
			return false, err
		}
		return list.Items[0].Count == 3, fmt.Errorf("it counts %d", list.Items[0].Count)
	})
}

// Two candidates, one lease: the second leads when the first lets go.
func election(w *world) error {
	var leading atomic.Int32
	led := make(chan string, 2)
	candidate := func(name string) (context.CancelFunc, chan struct{}) {
		ctx, cancel := context.WithCancel(w.ctx)
		done := make(chan struct{})
		lock := &resourcelock.LeaseLock{
			LeaseMeta: metav1.ObjectMeta{Name: "clients", Namespace: w.namespace}, Client: w.typed.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: name},
		}
		go func() {
			defer close(done)
			leaderelection.RunOrDie(ctx, leaderelection.LeaderElectionConfig{
				Lock: lock, ReleaseOnCancel: true,
				LeaseDuration: 5 * time.Second, RenewDeadline: 3 * time.Second, RetryPeriod: 200 * time.Millisecond,
				Callbacks: leaderelection.LeaderCallbacks{
					OnStartedLeading: func(ctx context.Context) {
						if leading.Add(1) > 1 {
							led <- "two leaders at once"
						} else {
							led <- name
						}
						<-ctx.Done()
						leading.Add(-1)
					},
					OnStoppedLeading: func() {},
				},
			})
		}()
		return cancel, done
	}
	stopFirst, firstDone := candidate("one")
	defer stopFirst()
	if who := <-led; who != "one" {
		return fmt.Errorf("%s leads", who)
	}
	stopSecond, secondDone := candidate("two")
	defer func() { stopSecond(); <-secondDone }()
	stopFirst()
	<-firstDone
	select {
	case who := <-led:
		if who != "two" {
			return fmt.Errorf("%s leads", who)
		}
		return nil
	case <-w.ctx.Done():
		return fmt.Errorf("nobody took the lease that was let go")
	}
}
