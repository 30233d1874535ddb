//! PUT: the body is the candidate.

use super::{Candidate, Made};
use isopod_api::Status;
use serde_json::Value;

/// The body of a PUT, decoded.
pub struct Update {
    pub object: Value,
    pub warnings: Vec<String>,
}

impl Candidate for Update {
    fn make(&self, _current: Option<&Value>) -> Result<Made, Status> {
        Ok(Made { object: self.object.clone(), warnings: self.warnings.clone() })
    }
}

/// A change that the server itself makes to the newest object: scale, bind, evict, approve.
pub struct Edit<F>(pub F);

impl<F: Fn(&mut Value) -> Result<(), Status> + Send + Sync> Candidate for Edit<F> {
    fn make(&self, current: Option<&Value>) -> Result<Made, Status> {
        let mut object = current.cloned().unwrap_or_default();
        (self.0)(&mut object)?;
        Ok(Made { object, warnings: Vec::new() })
    }
}
