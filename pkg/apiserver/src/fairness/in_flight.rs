//! The plain limits of requests at a time, where priority and fairness is switched off.

use isopod_api::{UserInfo, user};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// `None`: no limit.
pub struct InFlight {
    reading: Option<Arc<Semaphore>>,
    mutating: Option<Arc<Semaphore>>,
}

/// What became of a request.
pub enum Entered {
    Permit(OwnedSemaphorePermit),
    /// It is not limited.
    Free,
    Full,
}

impl InFlight {
    /// 0: no limit.
    pub fn new(reading: usize, mutating: usize) -> Self {
        let limit = |n: usize| (n > 0).then(|| Arc::new(Semaphore::new(n.min(Semaphore::MAX_PERMITS))));
        InFlight { reading: limit(reading), mutating: limit(mutating) }
    }

    /// Administrators always get in.
    pub fn enter(&self, mutating: bool, sender: &UserInfo) -> Entered {
        let limit = if mutating { &self.mutating } else { &self.reading };
        let Some(limit) = limit else { return Entered::Free };
        match limit.clone().try_acquire_owned() {
            Ok(permit) => Entered::Permit(permit),
            Err(_) if sender.groups.iter().any(|g| g == user::SYSTEM_MASTERS) => Entered::Free,
            Err(_) => Entered::Full,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_are_limited_apart_and_masters_are_not() {
        let (limits, joe) = (InFlight::new(1, 0), UserInfo::new("joe", &[]));
        let Entered::Permit(first) = limits.enter(false, &joe) else { panic!("there is room") };
        assert!(matches!(limits.enter(false, &joe), Entered::Full));
        assert!(matches!(limits.enter(true, &joe), Entered::Free));
        assert!(matches!(limits.enter(false, &UserInfo::new("root", &["system:masters"])), Entered::Free));
        drop(first);
        assert!(matches!(limits.enter(false, &joe), Entered::Permit(_)));
    }
}
