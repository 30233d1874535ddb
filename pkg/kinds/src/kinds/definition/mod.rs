//! Definitions of custom resources: what may stand in one. What the API server makes of them is in `custom`.
//!
//! Invariant: a definition is looked at as upstream's internal version has it ([`lift`]), since that decides at which
//! path an error stands.
//!
//! Not here: CA bundles, which upstream looks at once a definition is established.

mod conversion;
mod defaults;
mod deletion;
pub(crate) mod expressions;
pub(crate) mod field_path;
mod schema;
mod spec;
mod structural;

use self::expressions::Accepted;
use crate::access::{Access, set};
use crate::ownership;
use crate::strategy::{PLAIN, Strategy};
use isopod_api::{FieldError, FieldErrors, Path, names};
use serde_json::{Map, Value};
use std::collections::BTreeSet;

pub const STRATEGY: Strategy = Strategy {
    owned: ownership::spec_or_status,
    unconditional_update: false,
    name: Some(name),
    prepare_create: |_, new| store_version(new),
    prepare_update: |ctx, new, _| {
        if ctx.subresource.is_empty() {
            store_version(new);
        }
    },
    prepare_delete: deletion::prepare_delete,
    create,
    update,
    update_status: |new, _| status(new),
    warnings,
    ..PLAIN
};

const APPROVED: &str = "api-approved.kubernetes.io";
const REVIEWED: &str = "see https://github.com/kubernetes/enhancements/pull/1111";

fn name(definition: &Value, name: &str, prefix: bool) -> Vec<String> {
    let mut msgs = names::name_is_dns_subdomain(name, prefix);
    let wanted = format!("{}.{}", definition.text("spec.names.plural"), definition.text("spec.group"));
    if name != wanted {
        msgs.push(r#"must be spec.names.plural+"."+spec.group"#.to_owned());
    }
    msgs
}

/// What an update may leave as it was, although a new definition could not have it.
struct Rules {
    fixed_names: bool,
    schemas: bool,
    known_types: bool,
    structural: bool,
    pruned_defaults: bool,
    atomic_sets: bool,
    solid_keys: bool,
    known_review: bool,
    /// Rules in CEL that are there already.
    accepted: Accepted,
    /// Versions that may keep more selectable fields than allowed; `""` stands for all versions together.
    many_selectable: BTreeSet<String>,
}

impl Rules {
    fn of_new() -> Self {
        Rules {
            fixed_names: false,
            schemas: true,
            known_types: true,
            structural: true,
            pruned_defaults: true,
            atomic_sets: true,
            solid_keys: true,
            known_review: true,
            accepted: Accepted::default(),
            many_selectable: BTreeSet::new(),
        }
    }

    fn of_update(new: &Value, old: &Value, established: bool) -> Self {
        let all = schema::roots(old);
        let holds = |bad: fn(&Value) -> bool| !all.iter().any(|s| schema::any(s, &bad));
        let reviews = old.texts("conversion.conversionReviewVersions");
        Rules {
            fixed_names: established,
            schemas: old.has("validation.openAPIV3Schema")
                || old.list("versions").iter().all(|v| v.has("schema.openAPIV3Schema")),
            known_types: holds(schema::is_of_unknown_type),
            structural: all.iter().all(|s| structural::is_structural(s)),
            pruned_defaults: all.iter().all(|s| defaults::are_pruned(s)),
            atomic_sets: holds(schema::is_set_of_parts),
            solid_keys: holds(schema::has_loose_keys),
            known_review: reviews.is_empty() || reviews.iter().any(|v| conversion::REVIEWS.contains(v)),
            accepted: Accepted::of(&all),
            many_selectable: spec::with_many_selectable(new, old),
        }
    }
}

/// The spec as upstream's internal version has it: what all versions have in common stands beside them, and a webhook's
/// parts stand in the conversion.
fn lift(spec: &Value) -> Value {
    let mut out = spec.as_object().cloned().unwrap_or_default();
    if let Some(Value::Array(versions)) = out.get_mut("versions").map(Value::take).filter(|v| !v.is_null()) {
        let (common, versions) = in_common(versions);
        out.insert("versions".to_owned(), versions.into());
        out.extend(common);
    }
    if let Some(Value::Object(conversion)) = out.get_mut("conversion")
        && let Some(hook) = conversion.remove("webhook")
    {
        conversion.insert("conversionReviewVersions".to_owned(), hook.at("conversionReviewVersions").clone());
        conversion.insert("webhookClientConfig".to_owned(), hook.at("clientConfig").clone());
    }
    Value::Object(out)
}

/// What all versions have in common, and the versions without it.
fn in_common(mut versions: Vec<Value>) -> (Map<String, Value>, Vec<Value>) {
    let mut common = Map::new();
    let Some(first) = versions.first().cloned() else { return (common, versions) };
    common.insert("version".to_owned(), first.at("name").clone());
    let fields = [
        ("subresources", "subresources"),
        ("schema", "validation"),
        ("additionalPrinterColumns", "additionalPrinterColumns"),
        ("selectableFields", "selectableFields"),
    ];
    for (field, above) in fields {
        if versions.iter().all(|v| alike(v.at(field), first.at(field))) {
            common.insert(above.to_owned(), first.at(field).clone());
            for v in versions.iter_mut().filter_map(Value::as_object_mut) {
                v.remove(field);
            }
        }
    }
    (common, versions)
}

/// Equal as Go's semantic equality sees pointers and lists: an empty struct is not an absent one.
fn alike(a: &Value, b: &Value) -> bool {
    let is_empty_list = |v: &Value| v.is_null() || v.as_array().is_some_and(Vec::is_empty);
    a == b || is_empty_list(a) && is_empty_list(b)
}

/// The version that is stored belongs to those that ever were.
fn store_version(definition: &mut Value) {
    let stored = definition.list("spec.versions").iter().find(|v| v.flag("storage"));
    let Some(name) = stored.map(|v| v.text("name").to_owned()) else { return };
    let mut known = definition.list("status.storedVersions").to_vec();
    if !known.iter().any(|v| *v == name) {
        known.push(name.into());
        set(definition, "status.storedVersions", known);
    }
}

fn create(definition: &Value) -> FieldErrors {
    let lifted = lift(definition.at("spec"));
    let mut errs = spec::spec(&lifted, &mut Rules::of_new(), &Path::new("spec"));
    errs.extend(whole(definition, None));
    errs
}

fn update(new: &Value, old: &Value) -> FieldErrors {
    let is_established = |c: &Value| c.text("type") == "Established" && c.text("status") == "True";
    let established = old.list("status.conditions").iter().any(is_established);
    let (lifted, before) = (lift(new.at("spec")), lift(old.at("spec")));
    let mut rules = Rules::of_update(&lifted, &before, established);
    let mut errs = spec::update(&lifted, &before, &mut rules, &Path::new("spec"));
    errs.extend(whole(new, Some(old)));
    errs
}

fn whole(new: &Value, old: Option<&Value>) -> FieldErrors {
    let mut errs = status(new);
    errs.extend(stored_versions(new));
    errs.extend(approval(new, old));
    if new.flag("spec.preserveUnknownFields") && !old.is_some_and(|o| o.flag("spec.preserveUnknownFields")) {
        let m =
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        errs.push(FieldError::invalid(&Path::new("spec.preserveUnknownFields"), true, m));
    }
    errs
}

fn status(definition: &Value) -> FieldErrors {
    spec::names(definition.at("status.acceptedNames"), &Path::new("status").child("acceptedNames"))
}

fn stored_versions(definition: &Value) -> FieldErrors {
    let path = Path::new("status").child("storedVersions");
    let stored = definition.texts("status.storedVersions");
    if stored.is_empty() {
        return vec![FieldError::invalid(&path, Value::Null, "must have at least one stored version")];
    }
    let versions = definition.list("spec.versions");
    let mut errs = Vec::new();
    for (i, v) in versions.iter().enumerate().filter(|(_, v)| v.flag("storage")) {
        // Upstream ticks a name off once a version has it.
        let taken = versions[..i].iter().any(|o| o.text("name") == v.text("name"));
        if stored.contains(&v.text("name")) && !taken {
            continue;
        }
        let m = format!("must have the storage version {}", v.text("name"));
        errs.push(FieldError::invalid(&path, stored.clone(), m));
    }
    for (i, name) in stored.iter().enumerate().filter(|(_, n)| !versions.iter().any(|v| v.text("name") == **n)) {
        let m = format!(
            "missing from spec.versions; {name} was previously a storage version, and must remain in spec.versions until \
             a storage migration ensures no data remains persisted in {name} and removes {name} from status.storedVersions"
        );
        errs.push(FieldError::invalid(&path.index(i), *name, m));
    }
    errs
}

/// Whether the community approved the API, as far as its annotation tells.
#[derive(PartialEq, Eq)]
enum Approval {
    Missing,
    Bypassed,
    Approved,
    Invalid,
}

fn approval_of(definition: &Value) -> Approval {
    let text = definition.entry_text("metadata.annotations", APPROVED);
    let has_host = |url: &str| {
        url.split_once("://").is_some_and(|(scheme, rest)| {
            !scheme.is_empty()
                && scheme.chars().all(char::is_alphanumeric)
                && !rest.starts_with('/')
                && !rest.is_empty()
        })
    };
    match text {
        "" => Approval::Missing,
        t if t.starts_with("unapproved") => Approval::Bypassed,
        t if has_host(t) => Approval::Approved,
        _ => Approval::Invalid,
    }
}

/// Groups of the community need an approval.
fn approval(new: &Value, old: Option<&Value>) -> FieldErrors {
    let group = new.text("spec.group");
    let protected = ["k8s.io", "kubernetes.io"];
    if !protected.iter().any(|p| group == *p || group.ends_with(&format!(".{p}"))) {
        return Vec::new();
    }
    let state = approval_of(new);
    if old.is_some_and(|o| approval_of(o) == state) {
        return Vec::new();
    }
    let path = Path::new("metadata").child("annotations").key(APPROVED);
    let must = format!("protected groups must have approval annotation {APPROVED:?}");
    match state {
        Approval::Missing => vec![FieldError::required(&path, format!("{must}, {REVIEWED}"))],
        Approval::Invalid => {
            let m = format!("{must} with either a URL or a reason starting with \"unapproved\", {REVIEWED}");
            vec![FieldError::invalid(&path, new.entry_text("metadata.annotations", APPROVED), m)]
        }
        Approval::Approved | Approval::Bypassed => Vec::new(),
    }
}

fn warnings(new: &Value, old: Option<&Value>) -> Vec<String> {
    let of = |definition: &Value| {
        let lifted = lift(definition.at("spec"));
        let (mut formats, mut sets) = (Vec::new(), BTreeSet::new());
        for root in schema::roots(&lifted) {
            schema::visit(root, &mut |s| {
                formats.extend(schema::unknown_format(s).map(|f| format!("unrecognized format {f:?}")));
                sets.extend(schema::set_of_parts_warning(s));
            });
        }
        formats.extend(sets);
        formats
    };
    let before = old.map(of).unwrap_or_default();
    of(new).into_iter().filter(|w| !before.contains(w)).collect()
}

#[cfg(test)]
mod tests;
