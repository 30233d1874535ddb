//! Operations in the form of OpenAPI v3.

use crate::definitions::{META, list_definition_name};
use crate::descriptions::Descriptions;
use crate::paths::capital;
use crate::words;
use isopod_api::Gvk;
use isopod_kinds::Kind;
use serde_json::{Map, Value, json};

const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// Query parameters of reads that select and page.
const LIST: &[(&str, &str)] = &[
    ("continue", "string"),
    ("fieldSelector", "string"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("shardSelector", "string"),
    ("timeoutSeconds", "integer"),
];
const WATCH: &[(&str, &str)] = &[("allowWatchBookmarks", "boolean"), ("watch", "boolean")];
const WRITE: &[(&str, &str)] = &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")];
const FORCE: &[(&str, &str)] = &[("force", "boolean")];
const DELETE: &[(&str, &str)] = &[
    ("dryRun", "string"),
    ("gracePeriodSeconds", "integer"),
    ("ignoreStoreReadErrorWithClusterBreakingPotential", "boolean"),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
];

fn reference(definition: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{definition}")})
}

/// How operations of a group version are called, and what is said about their parameters.
pub struct Names<'a> {
    descriptions: &'a Descriptions,
    /// `AppsV1`.
    camel: String,
    /// `apps_v1`.
    tag: String,
}

impl<'a> Names<'a> {
    pub fn new(group: &str, version: &str, descriptions: &'a Descriptions) -> Self {
        let group = if group.is_empty() { "core" } else { group.strip_suffix(".k8s.io").unwrap_or(group) };
        let mut words = group.split('.');
        let first = words.next().unwrap_or_default();
        let rest: String = words.map(capital).collect();
        let tag = if version.is_empty() { format!("{first}{rest}") } else { format!("{first}{rest}_{version}") };
        Names { descriptions, camel: format!("{}{rest}{}", capital(first), capital(version)), tag }
    }

    /// Paths that belong to no group.
    pub fn plain(tag: &str, descriptions: &'a Descriptions) -> Self {
        Names { descriptions, camel: String::new(), tag: tag.to_owned() }
    }

    /// A parameter with a simple schema. `owner`: whose it is, as [`Descriptions::parameter`] knows them.
    pub fn parameter(&self, owner: &str, name: &str, place: &str, kind: &str) -> Value {
        let mut out = json!({"name": name, "in": place, "schema": {"type": kind, "uniqueItems": true}});
        if place == "path" {
            out["required"] = json!(true);
        }
        if let Some(text) = self.descriptions.parameter(owner, name) {
            out["description"] = text.into();
        }
        out
    }

    /// The name of an object of a kind, in its path.
    pub fn name_parameter(&self, kind: &str) -> Value {
        let mut out = self.parameter("", "name", "path", "string");
        out["description"] = words::name_of(kind).into();
        out
    }

    fn query(&self, owner: &str, parameters: &[(&str, &str)]) -> Vec<Value> {
        parameters.iter().map(|(name, kind)| self.parameter(owner, name, "query", kind)).collect()
    }

    /// `listAppsV1NamespacedDeployment`.
    pub fn id(&self, verb: &str, noun: &str) -> String {
        format!("{verb}{}{noun}", self.camel)
    }

    /// The path item of a discovery document.
    pub fn discovery(&self, what: &str, text: &str, definition: &str) -> Value {
        let response = response("OK", &content(&[JSON, PROTOBUF, YAML], &reference(definition)));
        self.get(self.id("get", what), text, response)
    }

    /// The path item of a document that exists in JSON only.
    pub fn json_only(&self, id: &str, text: &str, definition: &str) -> Value {
        self.get(id.to_owned(), text, response("OK", &content(&[JSON], &reference(definition))))
    }

    /// The path item of a document that has no schema.
    pub fn text(&self, id: &str, text: &str, media: &str) -> Value {
        self.get(id.to_owned(), text, response("OK", &content(&[media], &json!({"type": "string"}))))
    }

    fn get(&self, id: String, text: &str, ok: Value) -> Value {
        json!({"get": {
            "description": text, "operationId": id, "tags": [self.tag],
            "responses": {"200": ok, "401": {"description": "Unauthorized"}},
        }})
    }
}

fn content(types: &[&str], schema: &Value) -> Value {
    Value::Object(types.iter().map(|t| ((*t).to_owned(), json!({"schema": schema}))).collect())
}

fn response(description: &str, content: &Value) -> Value {
    json!({"description": description, "content": content})
}

/// One operation, still without the parameters of its path.
pub struct Operation {
    /// `x-kubernetes-action`.
    action: String,
    description: String,
    method: String,
    id: String,
    pub gvk: Gvk,
    definition: String,
    list_definition: String,
    /// Answers with text (logs).
    pub text: bool,
    custom: bool,
    returns_deleted: bool,
}

impl Operation {
    pub fn new(action: &str, id: String, kind: &Kind, subresource: &str, definition: &str) -> Self {
        let method = match action {
            "list" | "watch" | "watchlist" => "get",
            "deletecollection" => "delete",
            other => other,
        };
        Operation {
            action: action.to_owned(),
            description: words::operation(action, kind, subresource),
            method: method.to_owned(),
            id,
            gvk: kind.gvk.clone(),
            definition: definition.to_owned(),
            list_definition: list_definition_name(kind),
            text: false,
            custom: kind.schema.custom,
            returns_deleted: kind.hooks.returns_deleted(),
        }
    }

    pub fn connect(method: &str, id: String, kind: &Kind, subresource: &str, gvk: &Gvk) -> Self {
        Operation {
            action: "connect".to_owned(),
            description: words::connection(method, kind, subresource),
            method: method.to_owned(),
            id,
            gvk: gvk.clone(),
            definition: String::new(),
            list_definition: String::new(),
            text: false,
            custom: false,
            returns_deleted: false,
        }
    }

    fn parameters(&self, names: &Names<'_>) -> Vec<Value> {
        let lists: &[&[(&str, &str)]] = match self.action.as_str() {
            "list" | "watch" | "watchlist" => &[LIST, WATCH],
            "post" | "put" => &[WRITE],
            "patch" => &[WRITE, FORCE],
            "delete" => &[DELETE],
            "deletecollection" => &[LIST, DELETE],
            _ => &[],
        };
        let mut out: Vec<Value> = lists.iter().flat_map(|list| names.query(&self.action, list)).collect();
        sort(&mut out);
        out
    }

    fn body(&self) -> Option<Value> {
        let patch = format!("{META}Patch");
        match self.action.as_str() {
            "post" | "put" => {
                Some(json!({"content": content(&["*/*"], &reference(&self.definition)), "required": true}))
            }
            "delete" | "deletecollection" => {
                Some(json!({"content": content(&["*/*"], &reference(&format!("{META}DeleteOptions")))}))
            }
            "patch" => {
                let mut types =
                    vec!["application/apply-patch+yaml", "application/json-patch+json", "application/merge-patch+json"];
                if !self.custom {
                    types.push("application/strategic-merge-patch+json");
                }
                Some(json!({"content": content(&types, &reference(&patch)), "required": true}))
            }
            _ => None,
        }
    }

    fn responses(&self) -> Value {
        let mut types = vec![JSON, YAML];
        if !self.custom {
            types.push(PROTOBUF);
        }
        let mut definition = self.definition.clone();
        let codes: &[(&str, &str)] = match self.action.as_str() {
            "post" => &[("200", "OK"), ("201", "Created"), ("202", "Accepted")],
            "put" | "patch" => &[("200", "OK"), ("201", "Created")],
            "delete" => &[("200", "OK"), ("202", "Accepted")],
            _ => &[("200", "OK")],
        };
        let mut schema = None;
        match self.action.as_str() {
            "list" | "watch" | "watchlist" => {
                match self.action.as_str() {
                    "list" => definition.clone_from(&self.list_definition),
                    _ => definition = format!("{META}WatchEvent"),
                }
                types.push("application/json;stream=watch");
                if !self.custom {
                    types.push("application/vnd.kubernetes.protobuf;stream=watch");
                }
            }
            "deletecollection" => definition = format!("{META}Status"),
            "delete" if !self.returns_deleted => definition = format!("{META}Status"),
            "connect" => {
                types = vec!["*/*"];
                schema = Some(json!({"type": "string"}));
            }
            _ if self.text => {
                types.push("text/plain");
                schema = Some(json!({"type": "string"}));
            }
            _ => {}
        }
        let content = content(&types, &schema.unwrap_or_else(|| reference(&definition)));
        let mut out: Map<String, Value> =
            codes.iter().map(|(code, text)| ((*code).to_owned(), response(text, &content))).collect();
        out.insert("401".to_owned(), json!({"description": "Unauthorized"}));
        Value::Object(out)
    }

    fn value(&self, names: &Names<'_>, parameters: Vec<Value>) -> Value {
        let gvk = json!({"group": self.gvk.group, "version": self.gvk.version, "kind": self.gvk.kind});
        let mut out = json!({
            "description": self.description, "operationId": self.id, "tags": [names.tag], "responses": self.responses(),
            "x-kubernetes-action": self.action, "x-kubernetes-group-version-kind": gvk,
        });
        if !parameters.is_empty() {
            out["parameters"] = Value::Array(parameters);
        }
        if let Some(body) = self.body() {
            out["requestBody"] = body;
        }
        out
    }
}

fn sort(parameters: &mut [Value]) {
    parameters.sort_by(|a, b| {
        a["name"].as_str().cmp(&b["name"].as_str()).then_with(|| a["in"].as_str().cmp(&b["in"].as_str()))
    });
}

/// A path with its operations. Parameters that all operations share belong to the path.
pub fn path_item(operations: Vec<Operation>, names: &Names<'_>, mut parameters: Vec<Value>) -> Value {
    let own: Vec<Vec<Value>> = operations.iter().map(|o| o.parameters(names)).collect();
    let shared: Vec<Value> =
        own.first().into_iter().flatten().filter(|p| own.iter().all(|list| list.contains(p))).cloned().collect();
    let mut out = Map::new();
    for (operation, own) in operations.iter().zip(own) {
        let rest = own.into_iter().filter(|p| !shared.contains(p)).collect();
        out.insert(operation.method.clone(), operation.value(names, rest));
    }
    parameters.extend(shared);
    sort(&mut parameters);
    if !parameters.is_empty() {
        out.insert("parameters".to_owned(), Value::Array(parameters));
    }
    Value::Object(out)
}
