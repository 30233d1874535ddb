//! What the API server knows about one kind, built-in or custom.

use crate::columns::NAME;
use crate::custom::{CustomColumn, Versions};
use isopod_api::{FieldErrors, Gvk, Gvr, UserInfo};
use isopod_schema::managed::Filter;
use isopod_schema::types::Object;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::sync::Arc;

/// Group and resource of the definitions of custom resources.
pub const CRD: (&str, &str) = ("apiextensions.k8s.io", "customresourcedefinitions");

/// One served version of a resource.
#[derive(Clone)]
pub struct Kind {
    pub gvk: Gvk,
    /// `PodList`.
    pub list_kind: String,
    /// Plural name in paths.
    pub resource: String,
    pub singular: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub namespaced: bool,
    /// False: the version is stored but not served, which only a custom resource's can be.
    pub served: bool,
    /// Verbs as discovery shows them: `create delete deletecollection get list patch update watch`.
    pub verbs: Vec<String>,
    pub subresources: Vec<Subresource>,
    /// The schema of the served version.
    pub schema: Arc<Object>,
    /// Where it is stored: `<storage.keys>[<namespace>/]<name>`.
    pub storage: Storage,
    pub hooks: Arc<dyn Hooks>,
    pub columns: Columns,
    /// Fields that field selectors may name besides `metadata.name` and `metadata.namespace`; values come from
    /// [`Hooks::selectable`].
    pub selectable: Vec<String>,
    /// Higher comes first in discovery's preference of versions.
    pub version_priority: i32,
}

impl Kind {
    pub fn gvr(&self) -> Gvr {
        Gvr::new(self.gvk.group.clone(), self.gvk.version.clone(), self.resource.clone())
    }

    /// Whether it is the resource that is called so: `pods`, `deployments.apps`.
    pub fn is(&self, qualified: &str) -> bool {
        match qualified.strip_prefix(&*self.resource) {
            Some("") => self.gvk.group.is_empty(),
            Some(rest) => !self.gvk.group.is_empty() && rest.strip_prefix('.') == Some(&*self.gvk.group),
            None => false,
        }
    }
}

impl Kind {
    /// Whether field selectors may name a field; else what upstream says about it.
    pub fn check_selectable(&self, field: &str) -> Result<(), String> {
        // A kind with fields of its own lists the common ones too, where they are not always empty.
        let common = field == "metadata.name"
            || field == "metadata.namespace" && (self.namespaced || self.selectable.is_empty());
        if common || self.selectable.iter().any(|f| f == field) {
            return Ok(());
        }
        Err(match (self.gvk.group.as_str(), self.gvk.kind.as_str()) {
            _ if self.selectable.is_empty() => {
                format!("{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")
            }
            ("batch", "Job") => format!("field label {field:?} not supported for Job"),
            ("resource.k8s.io", "ResourceSlice") => format!("field label not supported for {}: {field}", self.gvk),
            _ => format!("field label not supported: {field}"),
        })
    }
}

/// How objects of a kind lie in the store. Two served versions of one resource share it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    /// `pods`, `deployments`, `services/specs`, as upstream's etcd keys; custom resources: `<group>/<plural>`.
    pub prefix: String,
    /// What the keys of its objects begin with, `/registry/<prefix>/`.
    pub keys: String,
    /// The version that is stored; the others convert by [`Hooks::to_storage`] and [`Hooks::from_storage`].
    pub gvk: Gvk,
    /// Events, heartbeats: see the store's `Durability::Ephemeral`. Of leases only those whose keys, below the prefix, begin with
    /// one of these.
    pub ephemeral: bool,
    pub ephemeral_below: &'static [&'static str],
    /// Seconds until an object goes by itself (Events: 3600); 0: never.
    pub ttl_seconds: i64,
}

impl Storage {
    /// Of objects that neither go by themselves nor with the server's memory.
    pub fn new(prefix: String, gvk: Gvk) -> Self {
        let keys = format!("/registry/{prefix}/");
        Storage { prefix, keys, gvk, ephemeral: false, ephemeral_below: &[], ttl_seconds: 0 }
    }
}

/// A subresource of a kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subresource {
    /// `status`, `scale`, `binding`, `eviction`, `token`, `log`, `exec`, `attach`, `portforward`, `proxy`, `approval`,
    /// `finalize`, `resize`, `ephemeralcontainers`.
    pub name: String,
    /// The kind that its body has, where not the parent's (`autoscaling/v1 Scale`, `policy/v1 Eviction` …).
    pub gvk: Option<Gvk>,
    pub verbs: Vec<String>,
}

/// A column of the server-side table (`kubectl get`).
#[derive(Clone)]
pub struct Column {
    pub name: &'static str,
    /// `string`, `integer`, `number`, `boolean`, `date`.
    pub kind: &'static str,
    /// `name` for the name column, else empty.
    pub format: &'static str,
    pub description: &'static str,
    /// 0 always, 1 with `-o wide`.
    pub priority: i32,
    /// The cell, from the object.
    pub cell: fn(&Value, jiff::Timestamp) -> Value,
}

/// The columns of a kind's table.
#[derive(Clone)]
pub enum Columns {
    BuiltIn(Arc<[Column]>),
    /// What follows the name.
    Custom(Arc<[CustomColumn]>),
}

impl Columns {
    /// `columnDefinitions` of the table.
    pub fn definitions(&self) -> Vec<Value> {
        match self {
            Columns::BuiltIn(all) => all.iter().map(Column::definition).collect(),
            Columns::Custom(more) => {
                let all = std::iter::once(NAME.definition());
                all.chain(more.iter().map(CustomColumn::definition)).collect()
            }
        }
    }

    /// The cells of an object's row.
    pub fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        match self {
            Columns::BuiltIn(all) => all.iter().map(|c| (c.cell)(object, now)).collect(),
            Columns::Custom(more) => {
                let all = std::iter::once((NAME.cell)(object, now));
                all.chain(more.iter().map(|c| c.cell(object, now))).collect()
            }
        }
    }
}

impl Column {
    fn definition(&self) -> Value {
        json!({"name": self.name, "type": self.kind, "format": self.format, "description": self.description,
            "priority": self.priority})
    }
}

/// What a hook may know about the request.
pub struct Ctx<'a> {
    pub now: jiff::Timestamp,
    pub user: &'a UserInfo,
    /// `""` for the object itself, else `status`, `scale` …
    pub subresource: &'a str,
    pub dry_run: bool,
}

/// What is special about a kind. Every method has a default that does nothing; `prepare` is upstream's strategy. The
/// pipeline itself does what all kinds share: metadata, uid, generation (bumped when anything outside `metadata` and
/// `status` changed, see [`Hooks::generation`]), status isolation, finalizers.
pub trait Hooks: Send + Sync {
    /// Defaults of this kind that its schema's definitions do not give (`defaults/` walks those by itself).
    fn default(&self, _obj: &mut Value) {}
    /// Before a create: reset what a client may not set.
    fn prepare_create(&self, _ctx: &Ctx, _new: &mut Value) {}
    /// Before an update of the object or of a subresource: keep from `old` what this request may not change.
    fn prepare_update(&self, _ctx: &Ctx, _new: &mut Value, _old: &Value) {}
    /// Whether a generated name ends in random characters; else it is what it is generated from.
    fn random_suffix(&self) -> bool {
        true
    }
    /// The rule of names where it depends on the object: what is wrong with its name, or (`true`) with what its name is
    /// generated from. `None`: the kind's own rule (`metadata::name_rule`).
    fn name(&self, _obj: &Value, _name: &str, _prefix: bool) -> Option<Vec<String>> {
        None
    }
    /// Before a delete marks or removes the object.
    fn prepare_delete(&self, _ctx: &Ctx, _old: &mut Value) {}
    fn validate_create(&self, _ctx: &Ctx, _new: &Value) -> FieldErrors {
        Vec::new()
    }
    fn validate_update(&self, _ctx: &Ctx, _new: &Value, _old: &Value) -> FieldErrors {
        Vec::new()
    }
    /// The errors of an update, and texts for `Warning` headers about faults that it may keep.
    fn judge_update(&self, ctx: &Ctx, new: &Value, old: &Value) -> (FieldErrors, Vec<String>) {
        (self.validate_update(ctx, new, old), Vec::new())
    }
    /// Texts for `Warning` headers.
    fn warnings(&self, _ctx: &Ctx, _new: &Value, _old: Option<&Value>) -> Vec<String> {
        Vec::new()
    }
    /// Texts for `Warning` headers of a delete. `propagates`: its options say what happens to dependents.
    fn delete_warnings(&self, _propagates: bool) -> Vec<String> {
        Vec::new()
    }
    /// Completes an empty object where upstream's internal type holds by value what is a pointer outside.
    fn zero(&self, _obj: &mut Value) {}
    /// Annotations that stand in fields of upstream's internal type: an object shows them, its metadata alone does not.
    fn internal_annotations(&self) -> &[&str] {
        &[]
    }
    /// The label by which the server itself looks objects up.
    fn indexed_label(&self) -> Option<&str> {
        None
    }
    /// Whether `metadata.generation` is kept for this kind (false: core/v1 ConfigMap, Secret, Event, Lease … never set it).
    fn generation(&self) -> bool {
        true
    }
    /// Whether a change of `status` counts as a generation: of a custom resource without the subresource it does.
    fn counts_status(&self) -> bool {
        false
    }
    /// Whether `status` belongs to the status subresource only.
    fn status_isolated(&self) -> bool {
        true
    }
    /// Whether a create loses its `status` (a Node keeps it: kubelets register with one).
    fn resets_status(&self) -> bool {
        true
    }
    /// Whether a PUT to a name that does not exist creates it (`AllowCreateOnUpdate`: Lease, Endpoints, RuntimeClass …).
    fn create_on_update(&self) -> bool {
        false
    }
    /// Whether a delete answers with the object that it removed, not with a `Status`.
    fn returns_deleted(&self) -> bool {
        false
    }
    /// Text of the `Warning` on every request for a deprecated kind; empty: it is not deprecated.
    fn deprecation(&self) -> &str {
        ""
    }
    /// Whether the kind itself is about to go: nothing new is created.
    fn is_terminating(&self) -> bool {
        false
    }
    /// Whether an update may come without `resourceVersion`.
    fn unconditional_update(&self) -> bool {
        true
    }
    /// Which fields a write of the object (`""`) or through a subresource can own.
    fn owned(&self, _subresource: &str) -> Filter {
        Filter::All
    }
    /// Values of [`Kind::selectable`], in its order.
    fn selectable(&self, _obj: &Value) -> Vec<String> {
        Vec::new()
    }
    /// The paths that [`Self::selectable`] looks at: what lies elsewhere in an object need not be there. `None`: any.
    fn selected_from(&self) -> Option<&'static [&'static str]> {
        None
    }
    /// A selectable field of this version by its name in the stored version.
    fn stored_field<'a>(&self, field: &'a str) -> Cow<'a, str> {
        field.into()
    }
    /// The default grace period of a delete in seconds; `None`: deleted at once (everything but pods).
    fn graceful_delete(&self, _obj: &Value, _asked: Option<i64>) -> Option<i64> {
        None
    }
    /// Where the replicas of its scale lie in an object.
    fn replicas_path(&self) -> Vec<String> {
        vec!["spec".to_owned(), "replicas".to_owned()]
    }
    /// The `Scale` of this object, and the way back: writes `spec.replicas` of a Scale into the object.
    fn to_scale(&self, _obj: &Value) -> Option<Value> {
        None
    }
    fn apply_scale(&self, _obj: &mut Value, _scale: &Value) -> FieldErrors {
        Vec::new()
    }
    /// What is read where these bytes are stored, if that is anything else: a schema that is younger than an object has defaults
    /// for it, or does not know all of it.
    fn on_read(&self, _stored: &[u8]) -> Option<Value> {
        None
    }
    /// The versions of a custom resource. Its objects are converted through them, wherever they are read and written; all that
    /// follows is for built-in kinds.
    fn versions(&self) -> Option<&Arc<Versions>> {
        None
    }
    /// Converts a value of the served version to the stored one, and back. The default leaves it alone.
    fn to_storage(&self, _obj: &mut Value) {}
    #[allow(clippy::wrong_self_convention)]
    fn from_storage(&self, _obj: &mut Value) {}
}

/// The hooks of kinds that need none.
pub struct NoHooks;
impl Hooks for NoHooks {}

#[cfg(test)]
mod tests {
    #[test]
    fn a_resource_is_what_its_qualified_name_says() {
        let all = crate::table::builtin();
        for kind in &all {
            let name = kind.gvr().qualified();
            assert!(kind.is(&name), "{name}");
            assert!(!kind.is(&format!("{name}.")) && !kind.is(&format!("{name}x")) && !kind.is(""), "{name}");
            let same: Vec<String> = all.iter().filter(|k| k.is(&name)).map(|k| k.gvr().qualified()).collect();
            assert!(same.iter().all(|n| *n == name), "{name}: {same:?}");
        }
    }
}
