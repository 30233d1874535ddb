//! What a plugin is. Upstream's extension points, with the per-pod state kept in the closures that a plugin returns: it
//! prepares once a pod (`PreFilter`, `PreScore`) and is asked once a node (`Filter`, `Score`).

use crate::cluster::{Cluster, NodeInfo};
use crate::pod::PodInfo;
use std::borrow::Cow;

/// Why a node does not take the pod, in upstream's words; several at once where several are true.
pub type Reasons = Vec<Cow<'static, str>>;

pub type Filter<'a> = Box<dyn Fn(&NodeInfo) -> Result<(), Reasons> + 'a>;

/// How the raw scores of all nodes become 0 to 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Normalize {
    /// They are already.
    No,
    /// The highest becomes 100.
    ToMax,
    /// The highest becomes 0, nothing becomes 100.
    Reversed,
    /// From the lowest to the highest.
    Range,
}

pub struct Score<'a> {
    pub of: Box<dyn Fn(&NodeInfo) -> i64 + 'a>,
    pub normalize: Normalize,
}

/// What happened in the cluster, as a set of bits: which pods may fit now?
pub type Wake = u16;
pub const NODE_ADDED: Wake = 1;
pub const NODE_LABELS: Wake = 1 << 1;
pub const NODE_TAINTS: Wake = 1 << 2;
/// `allocatable` changed.
pub const NODE_SIZE: Wake = 1 << 3;
/// A pod came to a node, or the labels of one there changed.
pub const POD_PLACED: Wake = 1 << 4;
/// A pod left its node.
pub const POD_GONE: Wake = 1 << 5;
pub const NAMESPACE_LABELS: Wake = 1 << 6;
pub const ANY: Wake = Wake::MAX;

/// A scheduling rule: one small file in `plugins/`, one row in `plugins/all.rs`.
pub trait Plugin: Send + Sync {
    fn name(&self) -> &'static str;

    /// The changes after which a pod that this plugin refused may fit.
    fn wakes_on(&self) -> Wake;

    /// `None`: this plugin refuses this pod nowhere.
    fn filter<'a>(&self, _pod: &'a PodInfo, _cluster: &'a Cluster) -> Option<Filter<'a>> {
        None
    }

    /// Weight, and the score; `None`: this plugin prefers nothing.
    fn score<'a>(&self, _pod: &'a PodInfo, _cluster: &'a Cluster) -> Option<(i64, Score<'a>)> {
        None
    }
}

pub fn refuse(reason: &'static str) -> Result<(), Reasons> {
    Err(vec![Cow::Borrowed(reason)])
}
