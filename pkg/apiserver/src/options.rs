//! The options of requests, from the query or (for deletes) from the body, with upstream's checks.

use crate::encode::decode::{self, FieldValidation};
use crate::request::Query;
use http::HeaderMap;
use isopod_api::{FieldError, FieldErrors, Gvk, Path, Status};
use isopod_kinds::metadata;
use isopod_schema::facts;
use serde_json::{Value, json};
use std::num::{IntErrorKind, ParseIntError};

/// 422 about one field of an options object.
fn refuse(kind: &str, error: FieldError) -> Status {
    Status::invalid(&Gvk::new("meta.k8s.io", "v1", kind), "", &[error])
}

/// Options of create, update and patch.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    pub dry_run: bool,
    pub validation: FieldValidation,
    /// Empty: the client's program is the manager.
    pub field_manager: String,
    /// An apply takes fields from other managers.
    pub force: bool,
    /// The options as an object, for webhooks.
    pub shown: Value,
}

impl WriteOptions {
    /// `kind`: `CreateOptions` or `UpdateOptions`.
    pub fn parse(kind: &str, query: &Query) -> Result<Self, Status> {
        Self::read(kind, query, Vec::new())
    }

    /// `PatchOptions`; `apply`: of server-side apply.
    pub fn parse_patch(query: &Query, apply: bool) -> Result<Self, Status> {
        let mut errors = Vec::new();
        if apply && query.get("fieldManager").unwrap_or_default().is_empty() {
            errors.push(FieldError::required(&Path::new("fieldManager"), "is required for apply patch"));
        }
        if !apply && query.has("force") {
            errors.push(FieldError::forbidden(&Path::new("force"), "may not be specified for non-apply patch"));
        }
        Self::read("PatchOptions", query, errors)
    }

    fn read(kind: &str, query: &Query, mut errors: FieldErrors) -> Result<Self, Status> {
        let field_manager = query.get("fieldManager").unwrap_or_default().to_owned();
        errors.extend(metadata::field_manager(&field_manager, &Path::new("fieldManager")));
        if !errors.is_empty() {
            return Err(Status::invalid(&Gvk::new("meta.k8s.io", "v1", kind), "", &errors));
        }
        let validation = match query.get("fieldValidation").unwrap_or_default() {
            "" | "Warn" => FieldValidation::Warn,
            "Ignore" => FieldValidation::Ignore,
            "Strict" => FieldValidation::Strict,
            other => {
                let valid = ["", "Ignore", "Strict", "Warn"];
                return Err(refuse(kind, FieldError::not_supported(&Path::new("fieldValidation"), other, &valid)));
            }
        };
        let dry_run = dry_run(kind, query.all("dryRun"))?;
        let force = query.flag("force");
        let mut shown = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
        if dry_run {
            shown["dryRun"] = json!(["All"]);
        }
        if force {
            shown["force"] = true.into();
        }
        for key in ["fieldManager", "fieldValidation"] {
            if let Some(value) = query.get(key).filter(|v| !v.is_empty()) {
                shown[key] = value.into();
            }
        }
        Ok(WriteOptions { dry_run, validation, field_manager, force, shown })
    }
}

fn dry_run<'a>(kind: &str, values: impl Iterator<Item = &'a str>) -> Result<bool, Status> {
    let values: Vec<&str> = values.filter(|v| !v.is_empty()).collect();
    if values.iter().any(|v| *v != "All") {
        return Err(refuse(kind, FieldError::not_supported(&Path::new("dryRun"), values, &["All"])));
    }
    Ok(!values.is_empty())
}

/// What happens to dependents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Orphan,
    Background,
    Foreground,
}

#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    pub grace_period_seconds: Option<i64>,
    pub propagation: Option<Propagation>,
    /// The old way of saying `propagation`.
    pub orphan_dependents: Option<bool>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub dry_run: bool,
}

impl DeleteOptions {
    /// As an object, for webhooks.
    pub fn shown(&self) -> Value {
        let mut shown = json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1"});
        let mut set = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                shown[key] = value;
            }
        };
        set("gracePeriodSeconds", self.grace_period_seconds.map(Value::from));
        set("orphanDependents", self.orphan_dependents.map(Value::from));
        set("propagationPolicy", self.propagation.map(|p| format!("{p:?}").into()));
        set("dryRun", self.dry_run.then(|| json!(["All"])));
        if self.uid.is_some() || self.resource_version.is_some() {
            let mut preconditions = serde_json::Map::new();
            for (key, value) in [("uid", &self.uid), ("resourceVersion", &self.resource_version)] {
                if let Some(value) = value {
                    preconditions.insert(key.into(), value.clone().into());
                }
            }
            set("preconditions", Some(preconditions.into()));
        }
        shown
    }

    /// From the body if there is one, else from the query.
    pub fn parse(headers: &HeaderMap, query: &Query, body: &[u8]) -> Result<Self, Status> {
        if body.is_empty() { Self::from_query(query) } else { Self::from_body(headers, body) }
    }

    fn from_query(query: &Query) -> Result<Self, Status> {
        let number = |key: &str| match query.get(key).filter(|v| !v.is_empty()) {
            None => Ok(None),
            Some(v) => v.parse::<i64>().map(Some).map_err(|e| no_number(v, &e)),
        };
        let mut options = DeleteOptions {
            grace_period_seconds: number("gracePeriodSeconds")?,
            dry_run: dry_run("DeleteOptions", query.all("dryRun"))?,
            orphan_dependents: query.has("orphanDependents").then(|| query.flag("orphanDependents")),
            ..Default::default()
        };
        options.set_propagation(query.get("propagationPolicy"))?;
        Ok(options)
    }

    fn from_body(headers: &HeaderMap, body: &[u8]) -> Result<Self, Status> {
        let gvk = Gvk::new("", "v1", "DeleteOptions");
        let schema = facts::builtin().object("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions");
        let schema = schema.ok_or_else(|| Status::internal("no schema of DeleteOptions"))?;
        // DeleteOptions live in every group version: what the client names does not matter.
        let value = match crate::encode::negotiate::body_media(headers, false)? {
            crate::encode::negotiate::Media::Protobuf => {
                let unknown = isopod_schema::proto::envelope::unwrap(body);
                let unknown = unknown.map_err(|e| Status::bad_request(e.to_string()))?;
                isopod_schema::proto::decode(unknown.raw, &schema).map_err(|e| Status::bad_request(e.to_string()))?
            }
            media => {
                let mut parsed = decode::parse_text(media, body).map_err(|e| {
                    Status::bad_request(format!(
                        "the object provided is unrecognized (must be of type DeleteOptions): {e}"
                    ))
                })?;
                if let Some(kind) = parsed.get("kind").and_then(Value::as_str).filter(|k| *k != "DeleteOptions") {
                    return Err(Status::bad_request(format!(
                        "decoded object cannot be converted to DeleteOptions: {kind}"
                    )));
                }
                if let Some(object) = parsed.as_object_mut() {
                    object.remove("apiVersion");
                }
                let decoded = decode::parsed(parsed, &gvk, &schema, FieldValidation::Ignore);
                decoded.map_err(|e| Status::bad_request(e.why()))?.value
            }
        };
        let text = |v: &Value| v.as_str().filter(|s| !s.is_empty()).map(str::to_owned);
        let mut options = DeleteOptions {
            grace_period_seconds: value["gracePeriodSeconds"].as_i64(),
            orphan_dependents: value["orphanDependents"].as_bool(),
            uid: text(&value["preconditions"]["uid"]),
            resource_version: text(&value["preconditions"]["resourceVersion"]),
            dry_run: dry_run(
                "DeleteOptions",
                value["dryRun"].as_array().into_iter().flatten().filter_map(Value::as_str),
            )?,
            propagation: None,
        };
        options.set_propagation(value["propagationPolicy"].as_str())?;
        Ok(options)
    }

    fn set_propagation(&mut self, policy: Option<&str>) -> Result<(), Status> {
        let path = Path::new("propagationPolicy");
        self.propagation = match policy.unwrap_or_default() {
            "" => None,
            "Orphan" => Some(Propagation::Orphan),
            "Background" => Some(Propagation::Background),
            "Foreground" => Some(Propagation::Foreground),
            other => {
                let valid = ["Foreground", "Background", "Orphan", "nil"];
                return Err(refuse("DeleteOptions", FieldError::not_supported(&path, other, &valid)));
            }
        };
        if self.propagation.is_some() && self.orphan_dependents.is_some() {
            let shown = policy.unwrap_or_default();
            let why = "orphanDependents and deletionPropagation cannot be both set";
            return Err(refuse("DeleteOptions", FieldError::invalid(&path, shown, why)));
        }
        Ok(())
    }
}

/// `resourceVersionMatch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    Exact,
    NotOlderThan,
}

#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    pub resource_version: Option<i64>,
    pub version_match: Option<Match>,
    pub limit: usize,
    pub continue_token: String,
    pub watch: bool,
    pub bookmarks: bool,
    pub send_initial_events: Option<bool>,
    pub timeout_seconds: Option<u64>,
}

/// Why a parameter is no number, as Go says it.
fn no_number(text: &str, error: &ParseIntError) -> Status {
    let why = match error.kind() {
        IntErrorKind::PosOverflow | IntErrorKind::NegOverflow => "value out of range",
        _ => "invalid syntax",
    };
    Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: {why}"))
}

impl ListOptions {
    pub fn parse(query: &Query, watch: bool) -> Result<Self, Status> {
        let number = |key: &str| match query.get(key).filter(|v| !v.is_empty()) {
            None => Ok(None),
            Some(v) => v.parse::<i64>().map(|n| Some(n.max(0) as u64)).map_err(|e| no_number(v, &e)),
        };
        let version = resource_version(query.get("resourceVersion"));
        let options = ListOptions {
            resource_version: *version.as_ref().unwrap_or(&Some(-1)),
            version_match: match query.get("resourceVersionMatch").unwrap_or_default() {
                "" => None,
                "Exact" => Some(Match::Exact),
                "NotOlderThan" => Some(Match::NotOlderThan),
                other => {
                    let valid = ["Exact", "NotOlderThan", ""];
                    let path = Path::new("resourceVersionMatch");
                    return Err(refuse("ListOptions", FieldError::not_supported(&path, other, &valid)));
                }
            },
            limit: number("limit")?.unwrap_or(0) as usize,
            continue_token: query.get("continue").unwrap_or_default().to_owned(),
            watch,
            bookmarks: query.flag("allowWatchBookmarks"),
            send_initial_events: query.has("sendInitialEvents").then(|| query.flag("sendInitialEvents")),
            timeout_seconds: number("timeoutSeconds")?,
        };
        options.check()?;
        match version {
            // A watch meets it in the cache, whose errors are no answers.
            Err(why) if watch => Err(Status::new(500, "", why)),
            Err(why) => Err(invalid_version(&why)),
            Ok(_) => Ok(options),
        }
    }

    fn check(&self) -> Result<(), Status> {
        let forbid = |field: &str, why: &str| Err(refuse("ListOptions", FieldError::forbidden(&Path::new(field), why)));
        if !self.continue_token.is_empty() && (self.watch || self.version_match.is_some()) {
            return forbid("resourceVersionMatch", "resourceVersionMatch is forbidden when continue is provided");
        }
        if self.watch {
            return match (self.send_initial_events, self.version_match) {
                (None, Some(_)) => {
                    let why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
                    forbid("resourceVersionMatch", why)
                }
                (Some(_), None) => {
                    let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
                    forbid("resourceVersionMatch", why)
                }
                (Some(_), Some(Match::Exact)) => {
                    let path = Path::new("resourceVersionMatch");
                    let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
                    let errors = [
                        FieldError::forbidden(&path, why),
                        FieldError::not_supported(&path, "Exact", &["NotOlderThan"]),
                    ];
                    Err(Status::invalid(&Gvk::new("meta.k8s.io", "v1", "ListOptions"), "", &errors))
                }
                _ => Ok(()),
            };
        }
        if self.send_initial_events.is_some() {
            return forbid("sendInitialEvents", "sendInitialEvents is forbidden for list");
        }
        if self.version_match.is_some() {
            if self.resource_version.is_none() {
                let why = "resourceVersionMatch is forbidden unless resourceVersion is provided";
                return forbid("resourceVersionMatch", why);
            }
            if self.version_match == Some(Match::Exact) && self.resource_version == Some(0) {
                let why = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
                return forbid("resourceVersionMatch", why);
            }
        }
        Ok(())
    }
}

/// Parses `resourceVersion`; empty is `None`. The error is upstream's text about it.
pub fn resource_version(text: Option<&str>) -> Result<Option<i64>, String> {
    match text.unwrap_or_default() {
        "" => Ok(None),
        v => v
            .parse::<u64>()
            .map(|n| Some(n as i64))
            .map_err(|e| FieldError::invalid(&Path::new("resourceVersion"), v, parse_uint_error(v, &e)).to_string()),
    }
}

/// What Go's `strconv.ParseUint` says.
pub fn parse_uint_error(text: &str, error: &std::num::ParseIntError) -> String {
    let why = match error.kind() {
        std::num::IntErrorKind::PosOverflow => "value out of range",
        _ => "invalid syntax",
    };
    format!("strconv.ParseUint: parsing {text:?}: {why}")
}

/// 400 for a read of such a revision.
pub fn invalid_version(why: &str) -> Status {
    Status::bad_request(format!("invalid resource version: {why}"))
}
