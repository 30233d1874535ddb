//! `scale`: an object's replicas as an `autoscaling/v1 Scale`. Who owns the object's replicas owns the scale's.

use crate::ApiServer;
use crate::admission::{self, Operation};
use crate::candidate::apply::Configuration;
use crate::candidate::patch::{Patch, PatchType};
use crate::candidate::update::Raw;
use crate::encode::decode::{self, FieldValidation};
use crate::encode::negotiate::Shape;
use crate::encode::{self, body, table};
use crate::metadata;
use crate::objects;
use crate::options::WriteOptions;
use crate::ownership::{self, Served};
use crate::pipeline::{self, Intent};
use crate::verbs::Call;
use axum::body::Body;
use axum::response::Response;
use isopod_api::{Gvk, Status, time};
use isopod_kinds::Kind;
use isopod_schema::managed::{FieldManager, Filter, Scale, Versions};
use isopod_schema::types::Object;
use isopod_schema::{facts, json};
use serde_json::Value;
use std::sync::Arc;

fn gvk() -> Gvk {
    Gvk::new("autoscaling", "v1", "Scale")
}

fn schema() -> Result<Arc<Object>, Status> {
    facts::builtin().object_of(&gvk()).ok_or_else(|| Status::internal("no schema of Scale"))
}

fn of(kind: &Kind, object: &Value) -> Result<Value, Status> {
    kind.hooks.to_scale(object).ok_or_else(Status::no_such_path)
}

pub async fn serve(server: &ApiServer, call: &Call, request: Body) -> Result<Response, Status> {
    let form = call.form()?;
    let show = |object: &Value| -> Result<Response, Status> {
        let scale = of(&call.kind, object)?;
        let Shape::Table(_) = form.shape else {
            return Ok(body::response(200, &form, encode::value(&scale, &form)));
        };
        let kind = Kind {
            gvk: gvk(),
            columns: isopod_kinds::Columns::BuiltIn(isopod_kinds::columns::of(&gvk())),
            ..Kind::clone(&call.kind)
        };
        let revision = scale["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
        let table = table::table(&kind, &[scale], &revision, &form, call.now);
        Ok(body::response(200, &form, encode::text(&table, &form)))
    };
    if call.info.verb == "get" {
        objects::check_key(&call.kind, &call.info.namespace, &call.info.name)?;
        let entry = server.get_entry(&call.kind, &call.info.namespace, &call.info.name).await?;
        let entry = entry.ok_or_else(|| Status::not_found(&call.kind.gvr(), &call.info.name))?;
        let object = encode::served(&call.kind, &entry.body);
        check_replicas(&call.kind, &object)?;
        return show(&object);
    }
    let mut change = change(call, request).await?;
    let kind = &call.kind;
    let mut intent = call.intent(&change.options);
    // To the object it is an ordinary update of its spec.
    intent.subresource = "scale".into();
    let versions = Served::new(server, kind);
    change.admit(server, &intent, &versions).await?;
    let candidate = Raw(|object: &mut Value| {
        let scale = change.owned_scale(&intent, object, &versions)?;
        let version = scale["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        if !version.is_empty() && object["metadata"]["resourceVersion"] != version {
            return Err(Status::outdated(&kind.gvr(), &call.info.name));
        }
        let errors = kind.hooks.apply_scale(object, &scale);
        if errors.is_empty() { Ok(()) } else { Err(Status::invalid(&gvk(), &call.info.name, &errors)) }
    });
    let done = pipeline::update(server, &intent, &candidate).await?;
    show(&encode::served(&call.kind, &done.entry.body))
}

/// A custom resource that does not say how many replicas it wants has no scale to show.
fn check_replicas(kind: &Kind, object: &Value) -> Result<(), Status> {
    let path = kind.hooks.replicas_path();
    let found = path.iter().try_fold(object, |v, key| v.get(key));
    if !kind.schema.custom || found.is_some() {
        return Ok(());
    }
    Err(Status::internal(format!("the spec replicas field {:?} does not exist", format!(".{}", path.join(".")))))
}

enum Wanted {
    Put(Value),
    Patch(Patch),
    Apply(Configuration),
}

struct Change {
    wanted: Wanted,
    options: WriteOptions,
    schema: Arc<Object>,
}

/// `Scale` has one version.
struct OneVersion(Arc<Object>);

impl Versions for OneVersion {
    fn schema(&self, api_version: &str) -> Option<Arc<Object>> {
        (api_version == gvk().api_version()).then(|| self.0.clone())
    }

    fn convert(&self, value: &Value, _from: &str, _to: &str) -> Value {
        value.clone()
    }
}

impl Change {
    /// Asks webhooks about the scale as it would be. One that they change is wanted as they leave it.
    async fn admit(&mut self, server: &ApiServer, intent: &Intent, versions: &Served) -> Result<(), Status> {
        let mut object = pipeline::load(server, intent).await?.value(&intent.kind);
        let old = of(&intent.kind, &object)?;
        let wanted = self.owned_scale(intent, &mut object, versions)?;
        let mut scale = wanted.clone();
        admission::about(server, intent, Operation::Update, &gvk(), &mut scale, Some(&old)).await?;
        if scale != wanted {
            self.wanted = Wanted::Put(scale);
        }
        Ok(())
    }

    /// The wanted scale; the object's `managedFields` become what they are after it.
    fn owned_scale(&self, intent: &Intent, object: &mut Value, versions: &Served) -> Result<Value, Status> {
        let known = |api_version: &str| versions.has(api_version);
        let path = intent.kind.hooks.replicas_path();
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        let view = Scale::new(&object["metadata"]["managedFields"], &intent.kind.gvk.api_version(), &path);
        let view = view.map_err(Status::internal)?;
        let mut current = of(&intent.kind, object)?;
        json::canonicalize(&mut current, &self.schema);
        ownership::set(&mut current, view.entries(&known));
        let (scale, entries) = self.scale(intent, &current)?;
        let entries = view.to_parent(&entries.unwrap_or_default(), &known).map_err(Status::internal)?;
        ownership::set(object, entries);
        Ok(scale)
    }

    /// The wanted scale and its `managedFields`.
    fn scale(&self, intent: &Intent, current: &Value) -> Result<(Value, Option<Value>), Status> {
        let (gvk, versions) = (gvk(), OneVersion(self.schema.clone()));
        let manager = FieldManager {
            schema: &self.schema,
            api_version: gvk.api_version(),
            kind: &gvk.kind,
            subresource: &intent.subresource,
            manager: &intent.manager,
            now: time::format(intent.now),
            filter: &Filter::All,
            versions: &versions,
        };
        let mut scale = match &self.wanted {
            Wanted::Put(scale) => scale.clone(),
            Wanted::Patch(patch) => {
                let mut made = patch.apply(current)?.object;
                if made["metadata"]["resourceVersion"] == current["metadata"]["resourceVersion"] {
                    made["metadata"]["resourceVersion"] = Value::Null;
                }
                made
            }
            Wanted::Apply(configuration) => {
                configuration.check_type(&gvk)?;
                let applied = manager.apply(Some(current), &configuration.config, configuration.force);
                let applied = applied.map_err(ownership::refusal)?;
                let object = applied.object.unwrap_or_else(|| current.clone());
                let scale = decode::value(object, &gvk, &self.schema, FieldValidation::Ignore)?.value;
                return Ok((scale, applied.entries));
            }
        };
        ownership::set(&mut scale, None);
        json::canonicalize(&mut scale, &self.schema);
        let entries = manager.update(Some(current), &scale, None);
        Ok((scale, entries))
    }
}

async fn change(call: &Call, request: Body) -> Result<Change, Status> {
    let ty = if call.info.verb == "patch" { Some(PatchType::of(&call.parts.headers, &call.kind)?) } else { None };
    let bytes = decode::read(request).await?;
    let options = match ty {
        Some(ty) => WriteOptions::parse_patch(&call.query, ty == PatchType::Apply)?,
        None => WriteOptions::parse("UpdateOptions", &call.query)?,
    };
    if ty.is_some() {
        call.trail.request_patch(&bytes);
    }
    let schema = schema()?;
    let wanted = match ty {
        Some(PatchType::Apply) => Wanted::Apply(Configuration::parse(&bytes, options.force, options.validation)?),
        Some(ty) => Wanted::Patch(Patch::parse(ty, &bytes, gvk(), schema.clone(), options.validation)?),
        None => {
            let decoded = decode::object(&call.parts.headers, &bytes, &gvk(), &schema, options.validation)?;
            call.trail.request_value(&decoded.value);
            metadata::check_name(&decoded.value, &call.info.name)?;
            Wanted::Put(decoded.value)
        }
    };
    Ok(Change { wanted, options, schema })
}
