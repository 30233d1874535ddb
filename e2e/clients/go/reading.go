package main

import (
	"bytes"
	"fmt"
	"io"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/cache"
)

var shelves = schema.GroupVersionResource{Group: "clients.example.com", Version: "v1", Resource: "shelves"}

// Discovery, and the REST mapper that operators use.
func discover(w *world) error {
	version, err := w.typed.Discovery().ServerVersion()
	if err != nil || version.Major != "1" || version.Minor != "37" {
		return fmt.Errorf("version %v: %v", version, err)
	}
	preferred, err := w.typed.Discovery().ServerPreferredResources()
	if err != nil || len(preferred) < 15 {
		return fmt.Errorf("%d groups: %v", len(preferred), err)
	}
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(w.typed.Discovery()))
	found, err := mapper.RESTMapping(schema.GroupKind{Group: "apps", Kind: "Deployment"})
	if err != nil || found.Resource.Resource != "deployments" || found.Resource.Version != "v1" {
		return fmt.Errorf("a Deployment maps to %v: %v", found, err)
	}
	paths, err := w.typed.Discovery().OpenAPIV3().Paths()
	if err != nil {
		return err
	}
	apps, ok := paths["apis/apps/v1"]
	if !ok {
		return fmt.Errorf("OpenAPI has no apis/apps/v1 among %d paths", len(paths))
	}
	text, err := apps.Schema("application/com.github.proto-openapi.spec.v3@v1.0+protobuf")
	if err == nil && !bytes.Contains(text, []byte("io.k8s.api.apps.v1.Deployment")) {
		err = fmt.Errorf("the document of apps/v1 does not know Deployments")
	}
	return err
}

func definition() *apiextensionsv1.CustomResourceDefinition {
	spec := apiextensionsv1.JSONSchemaProps{
		Type:       "object",
		Properties: map[string]apiextensionsv1.JSONSchemaProps{"books": {Type: "integer"}},
	}
	return &apiextensionsv1.CustomResourceDefinition{
		ObjectMeta: metav1.ObjectMeta{Name: "shelves.clients.example.com"},
		Spec: apiextensionsv1.CustomResourceDefinitionSpec{
			Group: shelves.Group, Scope: apiextensionsv1.NamespaceScoped,
			Names: apiextensionsv1.CustomResourceDefinitionNames{Plural: "shelves", Singular: "shelf", Kind: "Shelf", ListKind: "ShelfList"},
			Versions: []apiextensionsv1.CustomResourceDefinitionVersion{{
				Name: "v1", Served: true, Storage: true,
				Schema: &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{
					Type: "object", Properties: map[string]apiextensionsv1.JSONSchemaProps{"spec": spec},
				}},
			}},
		},
	}
}

func established(crd *apiextensionsv1.CustomResourceDefinition) bool {
	for _, c := range crd.Status.Conditions {
		if c.Type == apiextensionsv1.Established && c.Status == apiextensionsv1.ConditionTrue {
			return true
		}
	}
	return false
}

// A definition made from Go's types, and a dynamic informer on what it defines.
func custom(w *world) error {
	crds := w.crds.ApiextensionsV1().CustomResourceDefinitions()
	if _, err := crds.Create(w.ctx, definition(), metav1.CreateOptions{}); err != nil {
		return err
	}
	err := w.until("the definition's establishment", func() (bool, error) {
		crd, err := crds.Get(w.ctx, "shelves.clients.example.com", metav1.GetOptions{})
		return err == nil && established(crd), err
	})
	if err != nil {
		return err
	}
	factory := dynamicinformer.NewFilteredDynamicSharedInformerFactory(w.dynamic, 0, w.namespace, nil)
	informer, gone := factory.ForResource(shelves).Informer(), make(chan string, 1)
	_, err = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{DeleteFunc: func(o any) {
		if shelf, ok := o.(*unstructured.Unstructured); ok {
			gone <- shelf.GetName()
		}
	}})
	if err != nil {
		return err
	}
	factory.Start(w.ctx.Done())
	factory.WaitForCacheSync(w.ctx.Done())
	shelf := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "clients.example.com/v1", "kind": "Shelf", "metadata": map[string]any{"name": "a"},
		"spec": map[string]any{"books": int64(1) << 53},
	}}
	resource := w.dynamic.Resource(shelves).Namespace(w.namespace)
	made, err := resource.Create(w.ctx, shelf, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	if books, _, _ := unstructured.NestedInt64(made.Object, "spec", "books"); books != 1<<53 {
		return fmt.Errorf("%d books", books)
	}
	if err := resource.Delete(w.ctx, "a", metav1.DeleteOptions{}); err != nil {
		return err
	}
	select {
	case name := <-gone:
		if name != "a" {
			return fmt.Errorf("%s is gone", name)
		}
	case <-w.ctx.Done():
		return fmt.Errorf("the informer never heard of the deletion")
	}
	return crds.Delete(w.ctx, "shelves.clients.example.com", metav1.DeleteOptions{})
}

// Objects without what is in them, as the garbage collector reads them.
func partial(w *world) error {
	resource := w.metadata.Resource(schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}).Namespace(w.namespace)
	list, err := resource.List(w.ctx, metav1.ListOptions{LabelSelector: "made-by=clients"})
	if err != nil {
		return err
	}
	if len(list.Items) < many-2 || list.Items[0].UID == "" {
		return fmt.Errorf("%d objects, the first %v", len(list.Items), list.Items[0])
	}
	stream, err := resource.Watch(w.ctx, metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	if err != nil {
		return err
	}
	defer stream.Stop()
	patch := []byte(`{"metadata":{"annotations":{"seen":"yes"}}}`)
	if _, err := resource.Patch(w.ctx, "counter", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return err
	}
	for event := range stream.ResultChan() {
		object, ok := event.Object.(*metav1.PartialObjectMetadata)
		if !ok {
			return fmt.Errorf("the watch brought %s %T: %v", event.Type, event.Object, apierrors.FromObject(event.Object))
		}
		if event.Type == watch.Modified && object.Annotations["seen"] == "yes" {
			return nil
		}
	}
	return fmt.Errorf("the watch ended: %v", w.ctx.Err())
}

// A pod: its logs followed, commands run inside over WebSocket and over SPDY.
func pods(w *world) error {
	grace := int64(0)
	pods := w.typed.CoreV1().Pods(w.namespace)
	_, err := pods.Create(w.ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "talker"},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: &grace,
			Containers:                    []corev1.Container{{Name: "main", Image: w.image, Command: []string{"sh", "-c", "echo hello; exec sleep 1000"}}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	err = w.until("the pod to run", func() (bool, error) {
		pod, err := pods.Get(w.ctx, "talker", metav1.GetOptions{})
		return err == nil && pod.Status.Phase == corev1.PodRunning, err
	})
	if err != nil {
		return err
	}
	logs, err := pods.GetLogs("talker", &corev1.PodLogOptions{Follow: true}).Stream(w.ctx)
	if err != nil {
		return err
	}
	defer logs.Close()
	line := make([]byte, 6)
	if _, err := io.ReadFull(logs, line); err != nil || string(line) != "hello\n" {
		return fmt.Errorf("logs say %q: %v", line, err)
	}
	if err := w.execute("talker", 2); err != nil {
		return err
	}
	return pods.Delete(w.ctx, "talker", metav1.DeleteOptions{})
}

// Who am I, what may I do, and a token that is what it says.
func reviews(w *world) error {
	access, err := w.typed.AuthorizationV1().SelfSubjectAccessReviews().Create(w.ctx, &authorizationv1.SelfSubjectAccessReview{
		Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{
			Namespace: w.namespace, Verb: "delete", Resource: "pods",
		}},
	}, metav1.CreateOptions{})
	if err != nil || !access.Status.Allowed {
		return fmt.Errorf("the administrator may not delete pods: %v %v", access, err)
	}
	seconds := int64(600)
	token, err := w.typed.CoreV1().ServiceAccounts(w.namespace).CreateToken(w.ctx, "default", &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	review, err := w.typed.AuthenticationV1().TokenReviews().Create(w.ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token.Status.Token},
	}, metav1.CreateOptions{})
	user := "system:serviceaccount:" + w.namespace + ":default"
	if err != nil || !review.Status.Authenticated || review.Status.User.Username != user {
		return fmt.Errorf("the token is that of %v: %v", review, err)
	}
	return nil
}
