package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log"
	"reflect"
	"sort"
	"strconv"
	"strings"

	admissionv1 "k8s.io/api/admission/v1"
	admissionv1beta1 "k8s.io/api/admission/v1beta1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	networkingv1 "k8s.io/api/networking/v1"
	nodev1 "k8s.io/api/node/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	resourcev1 "k8s.io/api/resource/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"
	storagemigrationv1 "k8s.io/api/storagemigration/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
)

var packages = []func(*runtime.Scheme) error{
	admissionv1.AddToScheme, admissionv1beta1.AddToScheme, admissionregistrationv1.AddToScheme, apidiscoveryv2.AddToScheme,
	appsv1.AddToScheme, authenticationv1.AddToScheme, authorizationv1.AddToScheme, autoscalingv1.AddToScheme,
	autoscalingv2.AddToScheme, batchv1.AddToScheme, certificatesv1.AddToScheme, coordinationv1.AddToScheme, corev1.AddToScheme,
	discoveryv1.AddToScheme, eventsv1.AddToScheme, flowcontrolv1.AddToScheme, networkingv1.AddToScheme, nodev1.AddToScheme,
	policyv1.AddToScheme, rbacv1.AddToScheme, resourcev1.AddToScheme, schedulingv1.AddToScheme, storagev1.AddToScheme,
	storagemigrationv1.AddToScheme, apiextensionsv1.AddToScheme, apiregistrationv1.AddToScheme, metav1.AddMetaToScheme,
}

// special are the types that are no plain structs in JSON, with their code in the table.
var special = map[reflect.Type]string{
	reflect.TypeFor[resource.Quantity]():                            "Q",
	reflect.TypeFor[intstr.IntOrString]():                           "I",
	reflect.TypeFor[metav1.Time]():                                  "T",
	reflect.TypeFor[metav1.MicroTime]():                             "M",
	reflect.TypeFor[metav1.Duration]():                              "U",
	reflect.TypeFor[metav1.FieldsV1]():                              "F",
	reflect.TypeFor[runtime.RawExtension]():                         "A",
	reflect.TypeFor[apiextensionsv1.JSON]():                         "A",
	reflect.TypeFor[any]():                                          "A",
	reflect.TypeFor[apiextensionsv1.JSONSchemaPropsOrBool]():        "?b",
	reflect.TypeFor[apiextensionsv1.JSONSchemaPropsOrArray]():       "?a",
	reflect.TypeFor[apiextensionsv1.JSONSchemaPropsOrStringArray](): "?s",
}

type marshaler interface{ Marshal() ([]byte, error) }

type walker struct {
	scheme *runtime.Scheme
	spec   map[string]*definition
	lines  map[string]string
	enums  *enums
	queue  []reflect.Type
	seen   map[reflect.Type]bool
}

func newWalker(spec map[string]*definition) *walker {
	w := &walker{scheme: runtime.NewScheme(), spec: spec, enums: newEnums(), lines: map[string]string{}, seen: map[reflect.Type]bool{}}
	for _, add := range packages {
		if err := add(w.scheme); err != nil {
			log.Fatal(err)
		}
	}
	metav1.AddToGroupVersion(w.scheme, schema.GroupVersion{Version: "v1"})
	return w
}

func (w *walker) known(gvk schema.GroupVersionKind) bool { return w.scheme.Recognizes(gvk) }

// name is the definition of a kind.
func (w *walker) name(gvk schema.GroupVersionKind) string {
	t, ok := w.scheme.KnownTypes(gvk.GroupVersion())[gvk.Kind]
	if !ok {
		log.Fatalf("%v is served but no Go type is known for it", gvk)
	}
	return modelName(t)
}

// roots queues every type that is registered in a served group version, and lists them.
func (w *walker) roots(groups []groupVersion) *bytes.Buffer {
	b := &bytes.Buffer{}
	b.WriteString("# group/version\tkind\tdefinition\n")
	gvs := []schema.GroupVersion{}
	for _, g := range groups {
		gvs = append(gvs, g.gv)
	}
	gvs = append(gvs, metav1.SchemeGroupVersion, admissionv1.SchemeGroupVersion, admissionv1beta1.SchemeGroupVersion, apidiscoveryv2.SchemeGroupVersion)
	for _, gv := range gvs {
		types := w.scheme.KnownTypes(gv)
		for _, kind := range sortedKeys(types) {
			t := types[kind]
			// Options and events are registered in every group version; list them once.
			if t.PkgPath() == "k8s.io/apimachinery/pkg/apis/meta/v1" && gv.Group != "" && gv.Group != "meta.k8s.io" {
				continue
			}
			if t.PkgPath() == "k8s.io/apimachinery/pkg/apis/meta/internalversion" {
				continue
			}
			fmt.Fprintf(b, "%s\t%s\t%s\n", gv, kind, modelName(t))
			w.visit(t)
		}
	}
	// Types that stand for themselves in OpenAPI or on the wire without being registered.
	for _, t := range []reflect.Type{
		reflect.TypeFor[metav1.TypeMeta](), reflect.TypeFor[metav1.ObjectMeta](), reflect.TypeFor[metav1.ListMeta](),
		reflect.TypeFor[metav1.Condition](), reflect.TypeFor[metav1.LabelSelector](), reflect.TypeFor[metav1.WatchEvent](),
		reflect.TypeFor[metav1.APIResource](), reflect.TypeFor[metav1.RootPaths](),
	} {
		w.visit(t)
	}
	return b
}

func (w *walker) visit(t reflect.Type) {
	if !w.seen[t] {
		w.seen[t] = true
		w.queue = append(w.queue, t)
	}
}

func (w *walker) step() bool {
	if len(w.queue) == 0 {
		return false
	}
	t := w.queue[0]
	w.queue = w.queue[1:]
	w.describe(t)
	return true
}

func (w *walker) table() *bytes.Buffer {
	b := &bytes.Buffer{}
	b.WriteString("# definition\tattributes\n#\tfield\ttype\tprotobuf tag\tflags\tattributes (see facts/parse.rs)\n")
	names := sortedKeys(w.lines)
	for _, n := range names {
		b.WriteString(w.lines[n])
	}
	return b
}

// modelName is the definition's name in OpenAPI.
func modelName(t reflect.Type) string {
	if m, ok := reflect.New(t).Interface().(interface{ OpenAPIModelName() string }); ok {
		return m.OpenAPIModelName()
	}
	host, path, _ := strings.Cut(t.PkgPath(), "/")
	parts := strings.Split(host, ".")
	for i, j := 0, len(parts)-1; i < j; i, j = i+1, j-1 {
		parts[i], parts[j] = parts[j], parts[i]
	}
	return strings.Join(parts, ".") + "." + strings.ReplaceAll(path, "/", ".") + "." + t.Name()
}

func (w *walker) describe(t reflect.Type) {
	name := modelName(t)
	if _, ok := w.lines[name]; ok {
		log.Fatalf("two types are called %s", name)
	}
	def := w.spec[name]
	if def == nil {
		def = &definition{}
	}
	b := &strings.Builder{}
	b.WriteString(name)
	if def.MapType == "atomic" {
		b.WriteString("\tatomic")
	}
	if len(def.Unions) > 0 {
		compact := &bytes.Buffer{}
		if err := json.Compact(compact, def.Unions); err != nil {
			log.Fatal(err)
		}
		b.WriteString("\tunions=" + compact.String())
	}
	b.WriteByte('\n')
	w.fields(b, t, def, nil, nil)
	w.lines[name] = b.String()
}

// fields writes the fields of t; tags and names lead to t from the struct that inlines it.
func (w *walker) fields(b *strings.Builder, t reflect.Type, def *definition, tags, names []string) {
	for i := 0; i < t.NumField(); i++ {
		f := t.Field(i)
		tag, ok := f.Tag.Lookup("json")
		jsonName, opts, _ := strings.Cut(tag, ",")
		if jsonName == "-" || !f.IsExported() {
			continue
		}
		if f.Anonymous && jsonName == "" {
			if f.Type.Kind() != reflect.Struct {
				log.Fatalf("%v.%s: inlined pointer", t, f.Name)
			}
			inner := append(append([]string{}, names...), f.Name)
			if number := protoNumber(f); number != 0 {
				w.fields(b, f.Type, def, append(append([]string{}, tags...), strconv.Itoa(number)), inner)
			} else if f.Type == reflect.TypeFor[metav1.TypeMeta]() {
				w.fields(b, f.Type, def, []string{"-"}, inner)
			} else {
				w.fields(b, f.Type, def, tags, inner)
			}
			continue
		}
		if !ok || jsonName == "" {
			jsonName = f.Name
		}
		w.field(b, t, f, jsonName, opts, def, tags, names)
	}
}

func (w *walker) field(b *strings.Builder, t reflect.Type, f reflect.StructField, jsonName, opts string, def *definition, tags, names []string) {
	ft, flags := f.Type, ""
	if ft.Kind() == reflect.Pointer {
		ft, flags = ft.Elem(), "p"
	}
	for _, o := range strings.Split(opts, ",") {
		switch o {
		case "omitempty":
			flags += "e"
		case "omitzero":
			flags += "z"
		case "", "inline":
		default:
			log.Fatalf("%v.%s: json option %q", t, f.Name, o)
		}
	}
	for _, r := range def.Required {
		if r == jsonName {
			flags += "r"
		}
	}
	number := protoNumber(f)
	attrs := []string{}
	add := func(k, v string) {
		if v != "" {
			attrs = append(attrs, k+"="+v)
		}
	}
	if len(tags) == 1 && tags[0] == "-" {
		number, tags = 0, nil
	}
	add("inline", strings.Join(tags, ","))
	add("embedded", strings.Join(names, "."))
	if f.Name != strings.ToUpper(jsonName[:1])+jsonName[1:] {
		add("field", f.Name)
	}
	code := w.code(ft)
	p := def.Properties[jsonName]
	add("list", strings.TrimPrefix(p.ListType, "atomic"))
	add("keys", strings.Join(p.MapKeys, ","))
	add("map", p.MapType)
	if p.ListType == "atomic" {
		add("list", "atomic")
	}
	add("patch", f.Tag.Get("patchStrategy"))
	add("mergekey", f.Tag.Get("patchMergeKey"))
	if goType := ft.String(); goType != w.derived(ft) {
		add("go", goType)
	}
	add("enum", w.enumOf(ft))
	if d := def.defaults[jsonName]; len(d) > 0 {
		if isZero(d) {
			flags += "0"
		} else {
			c := &bytes.Buffer{}
			_ = json.Compact(c, d)
			add("default", c.String())
		}
	}
	if flags == "" {
		flags = "-"
	}
	row := append([]string{"", jsonName, code, strconv.Itoa(number), flags}, attrs...)
	b.WriteString(strings.Join(row, "\t") + "\n")
}

// enumOf gives the allowed values of a field as JSON; empty where any will do.
func (w *walker) enumOf(t reflect.Type) string {
	values := w.enums.of(t)
	if len(values) == 0 {
		return ""
	}
	b, err := json.Marshal(values)
	if err != nil {
		log.Fatal(err)
	}
	return string(b)
}

func isZero(raw json.RawMessage) bool {
	switch string(raw) {
	case "{}", `""`, "0", "false":
		return true
	}
	return false
}

// code is the table's notation of a type.
func (w *walker) code(t reflect.Type) string {
	if c, ok := special[t]; ok {
		if c[0] == '?' {
			props := reflect.TypeFor[apiextensionsv1.JSONSchemaProps]()
			w.visit(props)
			return c + modelName(props)
		}
		return c
	}
	switch t.Kind() {
	case reflect.Bool:
		return "b"
	case reflect.String:
		return "s"
	case reflect.Int32:
		return "i"
	case reflect.Int64, reflect.Int:
		return "l"
	case reflect.Float64:
		return "d"
	case reflect.Struct:
		w.visit(t)
		return "@" + modelName(t)
	case reflect.Pointer:
		return w.code(t.Elem())
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return "B"
		}
		// A named slice type with its own marshaler is a message in protobuf.
		if _, ok := reflect.New(t).Interface().(marshaler); ok {
			return "<" + w.code(t.Elem())
		}
		return "[" + w.code(t.Elem())
	case reflect.Map:
		if t.Key().Kind() != reflect.String {
			log.Fatalf("map with key %v", t.Key())
		}
		return "%" + w.code(t.Elem())
	}
	log.Fatalf("no notation for type %v (%v)", t, t.Kind())
	return ""
}

// derived is the name of the Go type that the schema's reader can work out by itself.
func (w *walker) derived(t reflect.Type) string {
	if _, ok := special[t]; ok {
		return map[string]string{
			"Q": "resource.Quantity", "I": "intstr.IntOrString", "T": "v1.Time", "M": "v1.MicroTime", "U": "v1.Duration",
			"F": "v1.FieldsV1", "A": "runtime.RawExtension", "?b": "v1.JSONSchemaPropsOrBool", "?a": "v1.JSONSchemaPropsOrArray",
			"?s": "v1.JSONSchemaPropsOrStringArray",
		}[special[t]]
	}
	switch t.Kind() {
	case reflect.Struct:
		parts := strings.Split(modelName(t), ".")
		return strings.Join(parts[len(parts)-2:], ".")
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return "[]uint8"
		}
		return "[]" + w.derived(t.Elem())
	case reflect.Map:
		return "map[string]" + w.derived(t.Elem())
	default:
		return t.Kind().String()
	}
}

// protoNumber is the field's number in protobuf, 0 if it has none.
func protoNumber(f reflect.StructField) int {
	parts := strings.Split(f.Tag.Get("protobuf"), ",")
	if len(parts) < 2 {
		return 0
	}
	n, err := strconv.Atoi(parts[1])
	if err != nil {
		log.Fatalf("%s: protobuf tag %q", f.Name, f.Tag.Get("protobuf"))
	}
	return n
}

var _ = sort.Strings
