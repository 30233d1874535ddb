//! Whether the expressions of a ValidatingAdmissionPolicy fit the kinds that it is about
//! (`apiserver/pkg/admission/plugin/policy/validating/typechecking.go`). What does not fit is a warning: the policy works as it is
//! written.

use crate::access::Access;
use crate::cel::check::{Environment, Library, Objects, Type, check};
use crate::cel::{Declared, admission};
use isopod_api::{Gvk, Gvr, Path};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// No more kinds of a rule are looked at.
pub const MOST_KINDS: usize = 10;
const VARIABLES: &str = "kubernetes.variables";
const REFERENCE: &str = "#/components/schemas/";
const INT_OR_STRING: &str = "x-kubernetes-int-or-string";

/// A kind with what its schema declares. `None`: anything.
#[derive(Clone, Debug)]
pub struct Typed {
    pub kind: Gvk,
    declared: Option<Declared>,
}

impl Typed {
    /// Of a group version's OpenAPI document, version 3. `None`: the kind is not in it.
    pub fn of(document: &Value, kind: &Gvk) -> Option<Self> {
        let schema = schema(document, kind)?;
        Some(Typed { kind: kind.clone(), declared: Declared::of_resource(&schema) })
    }

    fn types(&self, name: &str) -> (Type, Objects) {
        self.declared.as_ref().map_or((Type::Dyn, Objects::new()), |d| d.object_types(name))
    }
}

/// The resources that each rule names, as far as it names them without wildcards, in the order in which they are looked at.
pub fn resources(spec: &Value) -> Vec<Vec<Gvr>> {
    let rules = spec.at("matchConstraints").list("resourceRules").iter();
    rules.map(named).collect()
}

fn named(rule: &Value) -> Vec<Gvr> {
    let sorted = |field: &str| -> Vec<&str> {
        let mut all = rule.texts(field);
        all.sort_unstable();
        all
    };
    let (groups, versions) = (sorted("apiGroups"), sorted("apiVersions"));
    if groups.iter().chain(&versions).any(|text| text.contains('*')) {
        return Vec::new();
    }
    // Subresources have other types.
    let resources: Vec<&str> = sorted("resources").into_iter().filter(|r| !r.contains(['*', '/'])).collect();
    let mut all = Vec::new();
    for group in groups {
        for version in &versions {
            all.extend(resources.iter().map(|resource| Gvr::new(group, *version, *resource)));
        }
    }
    all
}

/// The policy's `status.typeChecking.expressionWarnings`. `kinds` are those that it matches; `params` is its `paramKind`, if that
/// is known.
pub fn warnings(spec: &Value, kinds: &[Typed], params: Option<&Typed>) -> Vec<Value> {
    let surroundings: Vec<(&Gvk, Environment)> =
        kinds.iter().map(|kind| (&kind.kind, environment(spec, kind, params))).collect();
    let path = Path::new("spec").child("validations");
    let mut warnings = Vec::new();
    for (i, validation) in spec.list("validations").iter().enumerate() {
        for field in ["expression", "messageExpression"] {
            let text = validation.text(field);
            if text.is_empty() && field == "messageExpression" {
                continue;
            }
            let faults = surroundings.iter().filter_map(|(kind, around)| {
                let fault = check(text, around).err()?;
                Some(format!("{}/{}, Kind={}: {fault}\n", kind.group, kind.version, kind.kind))
            });
            let faults: Vec<String> = faults.collect();
            if !faults.is_empty() {
                let place = path.index(i).child(field).to_string();
                warnings.push(json!({"fieldRef": place, "warning": faults.join("\n")}));
            }
        }
    }
    warnings
}

/// What a policy's expressions see whatever it is asked about, with its variables. The types of the objects are not known.
pub fn of_any_kind(spec: &Value) -> Environment {
    with_variables(spec, &admission(Library::Stored, true, true))
}

/// What validations see, with the policy's variables.
fn environment(spec: &Value, kind: &Typed, params: Option<&Typed>) -> Environment {
    let has_params = spec.has("paramKind");
    let (object, objects) = kind.types(&kind.kind.kind);
    let mut base = admission(Library::Stored, has_params, false)
        .objects(Arc::new(objects))
        .variable("authorizer", Type::object("kubernetes.authorization.Authorizer"))
        .variable("object", object.clone())
        .variable("oldObject", object);
    if let Some(params) = params.filter(|_| has_params) {
        // Of another group there may be a kind of the same name.
        let (params, objects) = params.types(&format!("params.{}", params.kind.kind));
        base = base.objects(Arc::new(objects)).variable("params", params);
    }
    with_variables(spec, &base)
}

fn with_variables(spec: &Value, base: &Environment) -> Environment {
    let mut variables = BTreeMap::new();
    let with = |variables: &BTreeMap<String, Type>| {
        base.clone()
            .objects(Arc::new(Objects::from([(VARIABLES.to_owned(), variables.clone())])))
            .variable("variables", Type::object(VARIABLES))
    };
    for variable in spec.list("variables") {
        let t = check(variable.text("expression"), &with(&variables)).map_or(Type::Dyn, |c| c.result().of_variable());
        variables.insert(variable.text("name").to_owned(), t);
    }
    with(&variables)
}

/// The kind's schema, whole.
fn schema(document: &Value, kind: &Gvk) -> Option<Value> {
    let schemas = document.at("components").at("schemas").as_object()?;
    let is_it =
        |is: &Value| ["group", "version", "kind"].map(|f| is.text(f)) == [&kind.group, &kind.version, &kind.kind];
    let (name, root) = schemas.iter().find(|(_, s)| s.list("x-kubernetes-group-version-kind").iter().any(is_it))?;
    resolve(schemas, root, &mut BTreeSet::from([name.as_str()]))
}

/// `schema` with what it refers to in its place; of what refers to itself is only known that it is an object. `None`: it refers
/// to nothing that is there.
fn resolve<'a>(schemas: &'a Map<String, Value>, schema: &'a Value, within: &mut BTreeSet<&'a str>) -> Option<Value> {
    let Some(name) = reference(schema) else { return parts(schemas, schema, within) };
    if !within.insert(name) {
        return Some(json!({"type": "object"}));
    }
    let resolved = parts(schemas, schemas.get(name)?, within);
    within.remove(name);
    resolved
}

/// A reference may stand in an `allOf` beside a default.
fn reference(schema: &Value) -> Option<&str> {
    let here = schema.at("$ref").as_str().and_then(|r| r.strip_prefix(REFERENCE));
    here.or_else(|| schema.list("allOf").iter().find_map(reference))
}

/// What the types of expressions follow from.
fn parts<'a>(schemas: &'a Map<String, Value>, schema: &'a Value, within: &mut BTreeSet<&'a str>) -> Option<Value> {
    let mut out = Map::new();
    for (key, value) in schema.as_object()? {
        match key.as_str() {
            "properties" => {
                let mut properties = Map::new();
                for (name, property) in value.as_object()? {
                    properties.insert(name.clone(), resolve(schemas, property, within)?);
                }
                out.insert(key.clone(), Value::Object(properties));
            }
            "items" | "additionalProperties" if value.is_object() => {
                out.insert(key.clone(), resolve(schemas, value, within)?);
            }
            "format" if value == "int-or-string" => {
                out.insert(INT_OR_STRING.to_owned(), json!(true));
            }
            "type" | "format" | "required" | "default" | INT_OR_STRING | "x-kubernetes-embedded-resource" => {
                out.insert(key.clone(), value.clone());
            }
            _ => {}
        }
    }
    Some(Value::Object(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document() -> Value {
        let object = |properties: Value| json!({"type": "object", "properties": properties});
        let of = |name: &str| json!({"allOf": [{"$ref": format!("{REFERENCE}{name}")}], "default": {}});
        let mut web = object(json!({
            "apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": of("Meta"), "spec": of("Spec")}));
        web["x-kubernetes-group-version-kind"] = json!([{"group": "example.com", "version": "v1", "kind": "Web"}]);
        json!({"components": {"schemas": {
            "Web": web,
            "Meta": object(json!({"name": {"type": "string"}, "generateName": {"type": "string"},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}}})),
            "Spec": object(json!({
                "replicas": {"type": "integer", "format": "int32"},
                "port": {"$ref": format!("{REFERENCE}IntOrString")},
                "limit": {"$ref": format!("{REFERENCE}Quantity")},
                "all": {"type": "array", "items": of("Spec")}})),
            "IntOrString": {"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]},
            "Quantity": {"oneOf": [{"type": "string"}, {"type": "number"}]},
        }}})
    }

    fn web() -> Typed {
        Typed::of(&document(), &Gvk::new("example.com", "v1", "Web")).unwrap()
    }

    /// The warnings of a validation's expression, with two variables.
    fn told(expression: &str) -> Vec<String> {
        let variables =
            json!([{"name": "n", "expression": "object.spec.replicas"}, {"name": "spec", "expression": "object.spec"}]);
        let spec = json!({"variables": variables, "paramKind": {}, "validations": [{"expression": expression}]});
        warnings(&spec, &[web()], None).iter().map(|w| w.text("warning").to_owned()).collect()
    }

    #[test]
    fn what_fits_is_not_told() {
        for text in [
            "object.spec.replicas > 1 && oldObject.metadata.labels['a'] == 'b'",
            "object.spec.port == 1 || object.spec.port == 'http'",
            "object.spec.all.all(s, s == s)",
            "variables.n > 1 && variables.spec.anything == 'dyn' && params.x == 1",
            "request.name == object.metadata.name && namespaceObject.metadata.name != ''",
            "authorizer.path('/healthz').check('get').allowed()",
        ] {
            assert_eq!(told(text), Vec::<String>::new(), "{text}");
        }
    }

    #[test]
    fn what_does_not_fit_is_told_with_the_kind() {
        for (text, want) in [
            ("object.spec.replicas > '1'", "found no matching overload for '_>_' applied to '(int, string)'"),
            ("object.nothing", "undefined field 'nothing'"),
            ("oldObject.spec.limit == '1'", "undefined field 'limit'"),
            ("object.spec.all[0].replicas == 1", "undefined field 'replicas'"),
            ("variables.n == 'a'", "found no matching overload for '_==_' applied to '(int, string)'"),
            ("variables.none", "undefined field 'none'"),
        ] {
            let all = told(text);
            let [one] = all.as_slice() else { panic!("{text}: {all:?}") };
            assert!(one.starts_with("example.com/v1, Kind=Web: ERROR: <input>:1:") && one.ends_with("^\n"), "{one}");
            assert!(one.contains(want), "{one}");
        }
    }

    #[test]
    fn each_kind_and_each_expression_is_told() {
        let spec = json!({"validations": [{"expression": "true", "messageExpression": "'a' + object.spec.replicas"}]});
        let told = warnings(&spec, &[web(), web()], None);
        assert_eq!(told[0]["fieldRef"], "spec.validations[0].messageExpression");
        assert_eq!(told[0].text("warning").matches("Kind=Web").count(), 2);
        assert!(told[0].text("warning").contains("^\n\nexample.com/v1"), "{told:?}");
        assert_eq!(warnings(&spec, &[], None), Vec::<Value>::new());
    }

    #[test]
    fn params_have_types_of_their_own() {
        let spec = json!({"paramKind": {}, "validations": [{"expression": "params.spec.replicas == 'a' || params.x"}]});
        let told = warnings(&spec, &[web()], Some(&web()));
        let said = told[0].text("warning");
        assert!(said.contains("'(int, string)'") && said.contains("undefined field 'x'"), "{said}");
    }

    #[test]
    fn rules_name_resources() {
        let rule = |groups: Value, versions: Value, resources: Value| json!({"matchConstraints": {"resourceRules": [{"apiGroups": groups, "apiVersions": versions, "resources": resources}]}});
        let named = |spec: Value| resources(&spec).concat().iter().map(ToString::to_string).collect::<Vec<_>>();
        let all = rule(json!(["b", "a"]), json!(["v1"]), json!(["pods/status", "y", "x", "*"]));
        assert_eq!(named(all), ["a", "b"].map(|g| ["x", "y"].map(|r| Gvr::new(g, "v1", r).to_string())).concat());
        for (groups, versions) in [(json!(["*"]), json!(["v1"])), (json!(["a"]), json!(["*"]))] {
            assert_eq!(named(rule(groups, versions, json!(["x"]))), Vec::<String>::new());
        }
    }
}
