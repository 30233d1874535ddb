//! How the object that a request wants is made. Create takes the body as it is; update and patch make it from the newest
//! stored object, anew each time a compare-and-swap is lost.

pub mod apply;
pub mod patch;
pub mod update;

use async_trait::async_trait;
use isopod_api::Status;
use serde_json::Value;

/// What a candidate is made of.
#[derive(Debug, Default)]
pub struct Made {
    pub object: Value,
    pub warnings: Vec<String>,
    /// The object's `managedFields` say already who owns what; else the pipeline records it.
    pub owned: bool,
}

/// Whether a candidate can be made where there is no object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Creates {
    Never,
    /// A PUT, of kinds that allow it.
    IfAllowed,
    /// An apply.
    Always,
}

/// Makes the wanted object.
#[async_trait]
pub trait Candidate: Send + Sync {
    /// Gets what [`make`](Self::make) of the same object needs and this process does not have.
    async fn prepare(&self, _current: Option<&Value>) -> Result<(), Status> {
        Ok(())
    }

    /// `current` is the newest stored object in the served version; `None`: it does not exist, which is asked only of one
    /// that [`creates`](Self::creates).
    fn make(&self, current: Option<&Value>) -> Result<Made, Status>;

    fn creates(&self) -> Creates {
        Creates::Never
    }
}
