//! Server-side apply: the candidate is the newest object with a configuration merged into it (KEP-555).

use super::{Candidate, Creates, Made};
use crate::ApiServer;
use crate::encode::decode::{self, FieldValidation, unfit};
use crate::ownership::{self, Served};
use crate::pipeline::Intent;
use async_trait::async_trait;
use isopod_api::Status;
use isopod_schema::managed::{Applied, ApplyError};
use isopod_schema::yaml;
use serde_json::{Value, json};

/// A configuration, and whether it may take fields from others.
pub struct Configuration {
    pub config: Value,
    pub force: bool,
    warnings: Vec<String>,
}

impl Configuration {
    /// One that the server itself makes.
    pub fn new(config: Value, force: bool) -> Self {
        Configuration { config, force, warnings: Vec::new() }
    }

    pub fn parse(body: &[u8], force: bool, validation: FieldValidation) -> Result<Self, Status> {
        let document = yaml::parse(body).map_err(|e| {
            // What looks like JSON is not read before it is applied.
            let json = body.trim_ascii_start().starts_with(b"{");
            let doing = if json { "decoding patch: error converting YAML to JSON" } else { "encoding patch" };
            Status::bad_request(format!("error {doing}: {e}"))
        })?;
        let config = if document.value.is_null() { json!({}) } else { document.value };
        if !config.is_object() {
            let why = unfit(&config, "map[string]interface {}");
            let m = format!("error decoding patch: error unmarshaling JSON: while decoding JSON: {why}");
            return Err(Status::bad_request(m));
        }
        let warnings = match validation {
            FieldValidation::Ignore => Vec::new(),
            FieldValidation::Warn => document.repeated,
            FieldValidation::Strict => match yaml::strictly(&document.repeated) {
                None => Vec::new(),
                Some(why) => {
                    let doing = "error strict decoding patch: error converting YAML to JSON";
                    return Err(Status::bad_request(format!("{doing}: {why}")));
                }
            },
        };
        Ok(Configuration { config, force, warnings })
    }

    /// The configuration must be of the type that the path serves.
    pub fn check_type(&self, gvk: &isopod_api::Gvk) -> Result<(), Status> {
        let text = |key: &str| self.config[key].as_str().unwrap_or_default();
        let (api_version, kind) = (text("apiVersion"), text("kind"));
        if api_version == gvk.api_version() && kind == gvk.kind {
            return Ok(());
        }
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        Err(Status::bad_request(format!("invalid object type: {group}/{version}, Kind={kind}")))
    }
}

/// An apply of one request.
pub struct Apply<'a> {
    pub server: &'a ApiServer,
    pub intent: &'a Intent,
    pub configuration: Configuration,
    pub versions: Served,
}

impl Apply<'_> {
    fn apply(&self, current: Option<&Value>) -> Result<Applied, ApplyError> {
        let filter = self.intent.kind.hooks.owned(&self.intent.subresource);
        let manager = ownership::manager(self.intent, &filter, &self.versions);
        manager.apply(current, &self.configuration.config, self.configuration.force)
    }
}

#[async_trait]
impl Candidate for Apply<'_> {
    /// Others may own fields of the object in other versions.
    async fn prepare(&self, current: Option<&Value>) -> Result<(), Status> {
        if !self.versions.asks() {
            return Ok(());
        }
        self.configuration.check_type(&self.intent.kind.gvk)?;
        loop {
            let _ = self.apply(current);
            if !self.versions.get_missing(self.server).await? {
                return Ok(());
            }
        }
    }

    fn make(&self, current: Option<&Value>) -> Result<Made, Status> {
        let (kind, configuration) = (&self.intent.kind, &self.configuration);
        configuration.check_type(&kind.gvk)?;
        let applied = self.apply(current).map_err(ownership::refusal)?;
        let object = applied.object.or_else(|| current.cloned()).unwrap_or_else(|| configuration.config.clone());
        let mut object = decode::value(object, &kind.gvk, &kind.schema, FieldValidation::Ignore)?.value;
        if object["metadata"]["name"].as_str().unwrap_or_default().is_empty() {
            let m = "was undeterminable: name must be provided";
            return Err(Status::bad_request(format!("the name of the object ({} based on URL) {m}", self.intent.name)));
        }
        // A revision matters where there is something to compare it with.
        if current.is_none()
            && let Some(meta) = object["metadata"].as_object_mut()
        {
            meta.remove("resourceVersion");
        }
        ownership::set(&mut object, applied.entries);
        Ok(Made { object, warnings: configuration.warnings.clone(), owned: true })
    }

    fn creates(&self) -> Creates {
        Creates::Always
    }
}
