//! The paths of a group version: one path item for each of a resource's addresses.

use crate::definitions::{META, definition_name};
use crate::descriptions::Descriptions;
use crate::index::{OPENID_CONFIGURATION, OPENID_KEYS};
use crate::operations::{Names, Operation, path_item};
use crate::words;
use isopod_kinds::{Kind, Subresource};
use isopod_schema::facts;
use isopod_schema::types::Node;
use serde_json::{Map, Value};
use std::sync::Arc;

/// The paths of one entry of the index: `api/v1`, `apis/apps/v1`, or a path without resources (`api`, `apis/apps`, `version`).
pub fn of(kinds: &[Arc<Kind>], entry: &str, descriptions: &Descriptions) -> Map<String, Value> {
    let mut out = Map::new();
    let base = format!("/{entry}");
    let parts: Vec<&str> = entry.split('/').collect();
    let gv = match parts.as_slice() {
        ["api", version] => Some(("", *version)),
        ["apis", group, version] => Some((*group, *version)),
        _ => None,
    };
    let Some((group, version)) = gv else {
        out.insert(format!("{base}/"), without_resources(entry, &parts, descriptions));
        return out;
    };
    let names = Names::new(group, version, descriptions);
    let list = names.discovery("APIResources", words::RESOURCES, &format!("{META}APIResourceList"));
    out.insert(format!("{base}/"), list);
    for kind in kinds.iter().filter(|k| k.gvk.group == group && k.gvk.version == version) {
        resource(&mut out, kind, &base, &names);
    }
    out
}

/// The paths that list what there is, and those that are one document.
fn without_resources(entry: &str, parts: &[&str], descriptions: &Descriptions) -> Value {
    let plain = |tag: &str| Names::plain(tag, descriptions);
    let group = |group: &str| Names::new(group, "", descriptions);
    match parts {
        _ if entry == OPENID_CONFIGURATION => {
            let (id, text) = ("getServiceAccountIssuerOpenIDConfiguration", words::OPENID_CONFIGURATION);
            plain("WellKnown").text(id, text, "application/json")
        }
        _ if entry == OPENID_KEYS => {
            let (id, text) = ("getServiceAccountIssuerOpenIDKeyset", words::OPENID_KEYS);
            plain("openid").text(id, text, "application/jwk-set+json")
        }
        ["api"] => group("").discovery("APIVersions", words::VERSIONS, &format!("{META}APIVersions")),
        ["apis"] => plain("apis").discovery("APIVersions", words::VERSIONS, &format!("{META}APIGroupList")),
        ["apis", name] => group(name).discovery("APIGroup", words::GROUP, &format!("{META}APIGroup")),
        _ => {
            let info = "io.k8s.apimachinery.pkg.version.Info";
            plain("version").json_only("getCodeVersion", words::VERSION, info)
        }
    }
}

fn resource(out: &mut Map<String, Value>, kind: &Kind, base: &str, names: &Names<'_>) {
    let can = |verb: &str| kind.verbs.iter().any(|v| v == verb);
    let definition = definition_name(kind);
    let scope = if kind.namespaced { "Namespaced" } else { "" };
    let collection = if kind.namespaced {
        format!("{base}/namespaces/{{namespace}}/{}", kind.resource)
    } else {
        format!("{base}/{}", kind.resource)
    };
    let item = format!("{collection}/{{name}}");
    let noun = kind.gvk.kind.as_str();
    let op = |verb: &str, id: String| Operation::new(verb, id, kind, "", &definition);

    let list = can("list").then(|| op("list", names.id("list", &format!("{scope}{noun}"))));
    let create = can("create").then(|| op("post", names.id("create", &format!("{scope}{noun}"))));
    let delete_all = can("deletecollection")
        .then(|| op("deletecollection", names.id("delete", &format!("Collection{scope}{noun}"))));
    let mut common = common(kind, names);
    put(out, &collection, [list, create, delete_all], names, common.clone());
    if kind.namespaced && can("list") {
        let all = op("list", names.id("list", &format!("{noun}ForAllNamespaces")));
        put(
            out,
            &format!("{base}/{}", kind.resource),
            [Some(all)],
            names,
            vec![names.parameter("", "pretty", "query", "string")],
        );
    }
    watches(out, kind, base, names, &definition);
    common.push(names.name_parameter(noun));
    let single = [
        ("get", "get", "read"),
        ("update", "put", "replace"),
        ("patch", "patch", "patch"),
        ("delete", "delete", "delete"),
    ]
    .map(|(verb, action, word)| can(verb).then(|| op(action, names.id(word, &format!("{scope}{noun}")))));
    put(out, &item, single, names, common.clone());
    for sub in &kind.subresources {
        subresource(out, kind, sub, &item, names);
    }
}

/// The parameters of whatever concerns a kind, but the name.
fn common(kind: &Kind, names: &Names<'_>) -> Vec<Value> {
    let mut all = vec![names.parameter("", "pretty", "query", "string")];
    if kind.namespaced {
        all.push(names.parameter("", "namespace", "path", "string"));
    }
    all
}

/// The deprecated addresses of watches, which built-in kinds alone have.
fn watches(out: &mut Map<String, Value>, kind: &Kind, base: &str, names: &Names<'_>, definition: &str) {
    if kind.schema.custom || !kind.verbs.iter().any(|v| v == "watch") {
        return;
    }
    let (noun, resource) = (kind.gvk.kind.as_str(), kind.resource.as_str());
    let mut all = vec![names.parameter("", "pretty", "query", "string")];
    let mut add = |path: String, action: &str, id: String, parameters: Vec<Value>| {
        let operation = Operation::new(action, names.id("watch", &id), kind, "", definition);
        put(out, &format!("{base}/watch/{path}"), [Some(operation)], names, parameters);
    };
    let (scope, collection) = if kind.namespaced {
        add(resource.to_owned(), "watchlist", format!("{noun}ListForAllNamespaces"), all);
        all = common(kind, names);
        ("Namespaced", format!("namespaces/{{namespace}}/{resource}"))
    } else {
        ("", resource.to_owned())
    };
    add(collection.clone(), "watchlist", format!("{scope}{noun}List"), all.clone());
    all.push(names.name_parameter(noun));
    add(format!("{collection}/{{name}}"), "watch", format!("{scope}{noun}"), all);
}

fn put<const N: usize>(
    out: &mut Map<String, Value>,
    path: &str,
    operations: [Option<Operation>; N],
    names: &Names<'_>,
    parameters: Vec<Value>,
) {
    let operations: Vec<Operation> = operations.into_iter().flatten().collect();
    if !operations.is_empty() {
        out.insert(path.to_owned(), path_item(operations, names, parameters));
    }
}

/// The name of a definition by kind.
fn definition_of(gvk: &isopod_api::Gvk) -> String {
    facts::builtin().object_of(gvk).map(|o| o.name.clone()).unwrap_or_default()
}

fn subresource(out: &mut Map<String, Value>, kind: &Kind, sub: &Subresource, item: &str, names: &Names<'_>) {
    let path = format!("{item}/{}", sub.name);
    let scope = if kind.namespaced { "Namespaced" } else { "" };
    let noun = format!("{scope}{}{}", kind.gvk.kind, capital(&sub.name));
    let gvk = sub.gvk.clone().unwrap_or_else(|| kind.gvk.clone());
    if gvk.kind.ends_with("Options") {
        return connect(out, kind, &gvk, sub, &path, &noun, names);
    }
    let definition = if sub.gvk.is_some() { definition_of(&gvk) } else { definition_name(kind) };
    let can = |verb: &str| sub.verbs.iter().any(|v| v == verb);
    let mut parameters = common(kind, names);
    parameters.push(names.name_parameter(&gvk.kind));
    let log = sub.name == "log";
    if log {
        let options = isopod_api::Gvk::new("", "v1", "PodLogOptions");
        parameters.extend(option_parameters(&options, names).into_iter().filter(|p| p["name"] != "sinceTime"));
    }
    let verbs = [
        ("get", "get", "read"),
        ("update", "put", "replace"),
        ("patch", "patch", "patch"),
        ("delete", "delete", "delete"),
        ("create", "post", "create"),
    ];
    let operations = verbs.map(|(verb, action, word)| {
        can(verb).then(|| {
            let mut op = Operation::new(action, names.id(word, &noun), kind, &sub.name, &definition);
            op.gvk = gvk.clone();
            op.text = log;
            op
        })
    });
    put(out, &path, operations, names, parameters);
}

/// Connections: every method means the same, options stand in the query.
fn connect(
    out: &mut Map<String, Value>,
    kind: &Kind,
    gvk: &isopod_api::Gvk,
    sub: &Subresource,
    path: &str,
    noun: &str,
    names: &Names<'_>,
) {
    let methods: &[&str] = if sub.verbs.iter().any(|v| v == "delete") {
        &["get", "put", "post", "delete", "options", "head", "patch"]
    } else {
        &["get", "post"]
    };
    let mut parameters: Vec<Value> = common(kind, names).into_iter().filter(|p| p["name"] != "pretty").collect();
    parameters.push(names.name_parameter(&gvk.kind));
    parameters.extend(option_parameters(gvk, names));
    let operations = |suffix: &str| -> Vec<Operation> {
        methods
            .iter()
            .map(|m| {
                let id = names.id("connect", &format!("{}{noun}{suffix}", capital(m)));
                Operation::connect(m, id, kind, &sub.name, gvk)
            })
            .collect()
    };
    out.insert(path.to_owned(), path_item(operations(""), names, parameters.clone()));
    if sub.name == "proxy" {
        parameters.push(names.parameter("connect", "path", "path", "string"));
        out.insert(format!("{path}/{{path}}"), path_item(operations("WithPath"), names, parameters));
    }
}

/// The fields of an options kind as query parameters.
fn option_parameters(gvk: &isopod_api::Gvk, names: &Names<'_>) -> Vec<Value> {
    let Some(object) = facts::builtin().object_of(gvk) else { return Vec::new() };
    let fields = object.fields.iter().filter(|f| !matches!(f.name.as_str(), "apiVersion" | "kind"));
    let named = fields.map(|f| {
        let scalar = match &f.node {
            Node::List(l) => &l.item,
            other => other,
        };
        let kind = match scalar {
            Node::Bool => "boolean",
            Node::Int32 | Node::Int64 => "integer",
            _ => "string",
        };
        names.parameter(&gvk.kind, &f.name, "query", kind)
    });
    named.collect()
}

/// `pods` → `Pods`, `get` → `Get`.
pub fn capital(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or_else(String::new, |c| c.to_uppercase().chain(chars).collect())
}
