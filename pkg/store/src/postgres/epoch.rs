//! Epochs: what a failover that may have lost commits does to revisions.
//!
//! Whoever first writes to a database of another lineage (see [`super::connect::Facts`]) opens an epoch before anything
//! else, under the lock on `meta`: revisions go on far beyond all that may have been handed out. What this server has shown
//! up to `base` is still true; what it has shown after that is not, and everyone who may have seen it has to look again.

use crate::{Result, Revision, StoreError};
use rand::Rng;

/// More than is written in the time that a replica lags behind, and small beside the 2^43 revisions that there are.
const JUMP: Revision = 1 << 30;

/// `(base, first)` of each epoch after the first one, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Epochs(pub Vec<(Revision, Revision)>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    Nothing,
    /// The history is true again from this revision on.
    Until(Revision),
    /// Nothing that was known can be relied on.
    Everything,
}

impl Epochs {
    /// Is the state at `rev` part of the history? Of what lies between a base and the first revision after it nothing is known.
    pub fn check_read(&self, rev: Revision) -> Result<()> {
        self.check(rev, rev)
    }

    /// May a watch start at `rev`? Its client knows everything before.
    pub fn check_watch(&self, rev: Revision) -> Result<()> {
        self.check(rev, rev - 1)
    }

    /// What of a history that is whole up to `rev` a watch may take for granted.
    pub fn whole(&self, rev: Revision) -> Revision {
        self.0.iter().find(|(base, first)| rev > *base && rev < *first).map_or(rev, |(base, _)| *base)
    }

    fn check(&self, requested: Revision, known: Revision) -> Result<()> {
        match self.0.iter().find(|(base, first)| known > *base && known < *first) {
            Some((_, first)) => Err(StoreError::Compacted { requested, compacted: *first }),
            None => Ok(()),
        }
    }

    /// What was lost of that which a server knew that had seen `rev` and the epochs `known`? `moved`: the database is of
    /// another lineage than it was then.
    pub fn loss(&self, known: &Epochs, rev: Revision, moved: bool) -> Loss {
        match self.0.strip_prefix(&known.0[..]) {
            Some([]) if moved => Loss::Everything,
            Some(new) => match new.iter().find(|(base, _)| rev > *base) {
                Some((_, first)) => Loss::Until(*first),
                None => Loss::Nothing,
            },
            // An epoch that this server knows was lost itself.
            None => Loss::Everything,
        }
    }
}

/// Where an epoch goes on. Part of it is chance: of two epochs that two failovers open, one of which is lost, each has
/// revisions of its own.
pub(crate) fn first_revision(base: Revision, shown: Revision) -> Revision {
    base.max(shown) + JUMP + rand::rng().random_range(0..JUMP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_lost_is_refused_and_what_was_not_goes_on() {
        let epochs = Epochs(vec![(10, 1000), (1005, 2000)]);
        let reads: Vec<_> = [9, 10, 11, 999, 1000, 1005, 1006, 2000, 2001].map(|r| epochs.check_read(r).is_ok()).into();
        assert_eq!(reads, [true, true, false, false, true, true, false, true, true]);
        // Who knows 10 has missed nothing that is true.
        let watches: Vec<_> = [11, 12, 1000, 1001, 1006, 1007].map(|r| epochs.check_watch(r).is_ok()).into();
        assert_eq!(watches, [true, false, false, true, true, false]);
        assert_eq!([10, 11, 999, 1000, 1006].map(|rev| epochs.whole(rev)), [10, 10, 10, 1000, 1005]);
        let known = |n: usize| Epochs(epochs.0[..n].to_vec());
        let loss = |n, rev, moved| epochs.loss(&known(n), rev, moved);
        assert_eq!([loss(0, 11, true), loss(0, 10, true)], [Loss::Until(1000), Loss::Nothing]);
        assert_eq!([loss(1, 1005, true), loss(1, 1006, true)], [Loss::Nothing, Loss::Until(2000)]);
        assert_eq!(loss(2, 5000, false), Loss::Nothing);
        assert_eq!(loss(2, 5000, true), Loss::Everything, "no epoch tells of the move: one of the same name was lost");
        assert_eq!(epochs.loss(&Epochs(vec![(10, 1001)]), 5, true), Loss::Everything);
    }
}
