//! The options of `pods/log`, checked before the node is asked.

use crate::verbs::Call;
use isopod_api::{Gvk, Status};
use isopod_kinds::kinds::pod::validate_log_options;
use serde_json::{Map, Value};

/// Refuses options that contradict each other or are out of range.
pub fn check(call: &Call) -> Result<(), Status> {
    let mut options = Map::new();
    for key in ["tailLines", "limitBytes", "sinceSeconds"] {
        let given = call.query.get(key).filter(|v| !v.is_empty());
        if let Some(text) = given {
            let number: i64 = text
                .parse()
                .map_err(|_| Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax")))?;
            options.insert(key.to_owned(), number.into());
        }
    }
    if let Some(time) = call.query.get("sinceTime").filter(|v| !v.is_empty()) {
        options.insert("sinceTime".to_owned(), time.into());
    }
    let errors = validate_log_options(&Value::Object(options));
    if errors.is_empty() {
        return Ok(());
    }
    Err(Status::invalid(&Gvk::new("", "v1", "PodLogOptions"), &call.info.name, &errors))
}
