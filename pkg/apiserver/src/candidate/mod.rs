//! How the object that a request wants is made. Create takes the body as it is; update and patch make it from the newest
//! stored object, anew each time a compare-and-swap is lost.

pub mod patch;
pub mod update;

use isopod_api::Status;
use serde_json::Value;

/// What a candidate is made of.
#[derive(Debug, Default)]
pub struct Made {
    pub object: Value,
    pub warnings: Vec<String>,
}

/// Makes the wanted object.
pub trait Candidate: Send + Sync {
    /// `current` is the newest stored object in the served version; `None`: it does not exist, which is an error for
    /// everything but a PUT that may create.
    fn make(&self, current: Option<&Value>) -> Result<Made, Status>;
}
