//! PUT: the body is the candidate.

use super::{Candidate, Creates, Made};
use isopod_api::Status;
use serde_json::Value;

/// The body of a PUT, decoded.
pub struct Update {
    pub object: Value,
    pub warnings: Vec<String>,
}

impl Candidate for Update {
    fn make(&self, _current: Option<&Value>) -> Result<Made, Status> {
        Ok(Made { object: self.object.clone(), warnings: self.warnings.clone(), owned: false })
    }

    fn creates(&self) -> Creates {
        Creates::IfAllowed
    }
}

/// A change that the server itself makes to the newest object: scale, bind, evict, approve.
pub struct Edit<F>(pub F);

impl<F: Fn(&mut Value) -> Result<(), Status> + Send + Sync> Candidate for Edit<F> {
    fn make(&self, current: Option<&Value>) -> Result<Made, Status> {
        let mut object = current.cloned().unwrap_or_default();
        (self.0)(&mut object)?;
        Ok(Made { object, ..Made::default() })
    }
}

/// As [`Edit`], but ownership of fields is what the change leaves of it.
pub struct Raw<F>(pub F);

impl<F: Fn(&mut Value) -> Result<(), Status> + Send + Sync> Candidate for Raw<F> {
    fn make(&self, current: Option<&Value>) -> Result<Made, Status> {
        Ok(Made { owned: true, ..Edit(&self.0).make(current)? })
    }
}
