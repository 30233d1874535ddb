package main

import (
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/checker"
	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/common/types/traits"
	"github.com/google/cel-go/ext"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel/model"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/version"
	admission "k8s.io/apiserver/pkg/admission/plugin/cel"
	apiservercel "k8s.io/apiserver/pkg/cel"
	"k8s.io/apiserver/pkg/cel/common"
	"k8s.io/apiserver/pkg/cel/environment"
	"k8s.io/apiserver/pkg/cel/library"
	"k8s.io/apiserver/pkg/cel/mutation"
	"sigs.k8s.io/yaml"
)

// world is what an expression is written in: types, variables and their values.
type world struct {
	fresh, stored *cel.Env
	variables     map[string]any
	root          *apiservercel.DeclType
}

func extended(set *environment.EnvSet, decls []*apiservercel.DeclType, options ...cel.EnvOption) *environment.EnvSet {
	return must(set.Extend(environment.VersionedOptions{
		IntroducedVersion: version.MajorMinor(1, 0), EnvOptions: options, DeclTypes: decls,
	}))
}

func parsed[T any](dir, name string) T {
	var value T
	// Whole numbers are int64, as in an API server.
	if err := utiljson.Unmarshal(must(yaml.YAMLToJSON(must(os.ReadFile(filepath.Join(dir, name))))), &value); err != nil {
		panic(err)
	}
	return value
}

func worlds(set *environment.EnvSet, dir string) map[string]*world {
	external := parsed[apiextensionsv1.JSONSchemaProps](dir, "schema.json")
	var internal apiextensions.JSONSchemaProps
	if err := apiextensionsv1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(&external, &internal, nil); err != nil {
		panic(err)
	}
	schema := must(structuralschema.NewStructural(&internal))
	root := model.SchemaDeclType(schema, true).MaybeAssignTypeName("selfType")
	self := common.UnstructuredToVal(parsed[map[string]any](dir, "data.json"), &model.Structural{Structural: schema})
	data := parsed[map[string]any](dir, "data.json")
	of := func(set *environment.EnvSet, root *apiservercel.DeclType, variables map[string]any) *world {
		return &world{set.NewExpressionsEnv(), set.StoredExpressionsEnv(), variables, root}
	}
	selfSet := extended(set, []*apiservercel.DeclType{root},
		cel.Variable("self", root.CelType()), cel.Variable("oldSelf", types.NewOptionalType(root.CelType())))
	request, namespace := admission.BuildRequestType(), admission.BuildNamespaceType()
	admissionSet := extended(set, []*apiservercel.DeclType{request, namespace},
		cel.Variable("object", cel.DynType), cel.Variable("oldObject", cel.DynType), cel.Variable("params", cel.DynType),
		cel.Variable("request", request.CelType()), cel.Variable("namespaceObject", namespace.CelType()),
		cel.Variable("authorizer", library.AuthorizerType),
		cel.Variable("authorizer.requestResource", library.ResourceCheckType))
	objects := map[string]any{
		"object": data, "oldObject": nil, "params": map[string]any{"limit": 3},
	}
	patchSet := extended(admissionSet, nil, common.ResolverEnvOption(&mutation.DynamicTypeResolver{}), library.JSONPatch())
	deviceSet := extended(set, nil, ext.Bindings(ext.BindingsVersion(0)), cel.Variable("device", cel.DynType))
	return map[string]*world{
		"self":      of(selfSet, root, map[string]any{"self": self, "oldSelf": types.OptionalNone}),
		"admission": of(admissionSet, nil, objects),
		"patch":     of(patchSet, nil, objects),
		"device":    of(deviceSet, nil, map[string]any{"device": data}),
	}
}

func (w *world) ask(in, expression string) answer {
	a := answer{World: in, Expression: expression}
	ast, issues := w.fresh.Compile(expression)
	stored, storedIssues := w.stored.Compile(expression)
	if issues.Err() != nil {
		a.Errors = issues.String()
	} else {
		a.Type = checker.FormatCELType(ast.OutputType())
	}
	switch {
	case storedIssues.Err() != nil && storedIssues.String() != a.Errors:
		a.Stored = storedIssues.String()
	case storedIssues.Err() == nil && a.Type != checker.FormatCELType(stored.OutputType()):
		a.Stored = checker.FormatCELType(stored.OutputType())
	}
	if storedIssues.Err() != nil {
		return a
	}
	estimator := &library.CostEstimator{SizeEstimator: &sizes{w.root}}
	estimate := must(w.stored.EstimateCost(stored, estimator))
	a.Estimate = &[2]uint64{estimate.Min, estimate.Max}
	program, err := w.stored.Program(stored, cel.CostLimit(10_000_000), cel.CostTracking(estimator))
	if err != nil {
		a.Failure = "program: " + err.Error()
		return a
	}
	a.Value, a.Failure, a.Cost = w.evaluated(program)
	// Maps have no order: what depends on one is no fact.
	for range 50 {
		value, failure, cost := w.evaluated(program)
		if value != a.Value || failure != a.Failure {
			a.Value, a.Failure, a.Cost = "", "", nil
			break
		}
		if cost != nil && a.Cost != nil && *cost != *a.Cost {
			a.Cost = nil
		}
	}
	return a
}

func (w *world) evaluated(program cel.Program) (value, failure string, cost *uint64) {
	found, details, err := program.Eval(w.variables)
	if err != nil {
		failure = err.Error()
	} else {
		value = shown(found)
	}
	if details != nil {
		cost = details.ActualCost()
	}
	return value, failure, cost
}

// sizes says how large the values of a schema can be.
type sizes struct{ root *apiservercel.DeclType }

func (s *sizes) EstimateCallCost(string, string, *checker.AstNode, []checker.AstNode) *checker.CallEstimate {
	return nil
}

func (s *sizes) EstimateSize(node checker.AstNode) *checker.SizeEstimate {
	path := node.Path()
	if s.root == nil || len(path) == 0 {
		return nil
	}
	at := s.root
	for _, step := range path[1:] {
		switch step {
		case "@items", "@values":
			at = at.ElemType
		case "@keys":
			at = at.KeyType
		default:
			field := at.Fields[step]
			if field == nil {
				return nil
			}
			at = field.Type
		}
		if at == nil {
			return nil
		}
	}
	return &checker.SizeEstimate{Min: 0, Max: uint64(at.MaxElements)}
}

func shown(value ref.Val) string {
	switch v := value.(type) {
	case nil:
		return "absent"
	case types.Null:
		return "null"
	case types.Bool:
		return strconv.FormatBool(bool(v))
	case types.Int:
		return strconv.FormatInt(int64(v), 10)
	case types.Uint:
		return strconv.FormatUint(uint64(v), 10) + "u"
	case types.Double:
		return strconv.FormatFloat(float64(v), 'e', -1, 64)
	case types.String:
		return strconv.Quote(string(v))
	case types.Bytes:
		return "b" + hex.EncodeToString(v)
	case types.Timestamp:
		return "timestamp " + v.UTC().Format("2006-01-02T15:04:05.999999999Z07:00")
	case types.Duration:
		return "duration " + strconv.FormatInt(int64(v.Duration), 10)
	case *types.Optional:
		if !v.HasValue() {
			return "none"
		}
		return "some " + shown(v.GetValue())
	case *types.Type:
		return "type " + v.TypeName()
	case traits.Lister:
		parts := []string{}
		for it := v.Iterator(); it.HasNext() == types.True; {
			parts = append(parts, shown(it.Next()))
		}
		return "[" + strings.Join(parts, ", ") + "]"
	case traits.Mapper:
		parts := []string{}
		for it := v.Iterator(); it.HasNext() == types.True; {
			key := it.Next()
			if found, ok := v.Find(key); ok {
				parts = append(parts, shown(key)+": "+shown(found))
			}
		}
		sort.Strings(parts)
		return "{" + strings.Join(parts, ", ") + "}"
	}
	return fmt.Sprintf("of type %s", value.Type().TypeName())
}
