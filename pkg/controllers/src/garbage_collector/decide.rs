//! What becomes of an object, given its owners.

use super::{FOREGROUND, ORPHAN};
use isopod_client::Propagation;

/// The uids of an object's owners.
#[derive(Debug, Default)]
pub struct Owners {
    /// They exist.
    pub solid: Vec<String>,
    /// They do not.
    pub dangling: Vec<String>,
    /// They are being deleted and wait for their dependents.
    pub waiting: Vec<String>,
}

#[derive(Debug, PartialEq)]
pub enum Decision {
    Keep,
    /// It has owners that hold it: the others are taken off.
    Release(Vec<String>),
    Delete(Propagation),
    /// Its owner waits for it, and it has dependents of its own.
    DeleteInForeground,
}

/// `finalizers` are the object's own: they say how someone has asked to delete it before.
pub fn decide(owners: &Owners, has_dependents: bool, finalizers: &[String]) -> Decision {
    let has = |f: &str| finalizers.iter().any(|x| x == f);
    if !owners.solid.is_empty() {
        let gone: Vec<String> = owners.dangling.iter().chain(&owners.waiting).cloned().collect();
        return if gone.is_empty() { Decision::Keep } else { Decision::Release(gone) };
    }
    if owners.waiting.is_empty() && owners.dangling.is_empty() {
        return Decision::Keep;
    }
    if !owners.waiting.is_empty() && has_dependents {
        return Decision::DeleteInForeground;
    }
    Decision::Delete(if has(ORPHAN) {
        Propagation::Orphan
    } else if has(FOREGROUND) {
        Propagation::Foreground
    } else {
        Propagation::Background
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions() {
        let uids = |n: usize| vec!["x".to_owned(); n];
        for (solid, dangling, waiting, dependents, finalizers, want) in [
            (1, 0, 0, true, vec![], Decision::Keep),
            (1, 1, 1, true, vec![], Decision::Release(uids(2))),
            (0, 1, 0, true, vec![], Decision::Delete(Propagation::Background)),
            (0, 0, 1, true, vec![], Decision::DeleteInForeground),
            (0, 0, 1, false, vec![], Decision::Delete(Propagation::Background)),
            (0, 1, 0, false, vec![ORPHAN], Decision::Delete(Propagation::Orphan)),
            (0, 1, 0, false, vec![FOREGROUND], Decision::Delete(Propagation::Foreground)),
            (0, 0, 0, false, vec![], Decision::Keep),
        ] {
            let owners = Owners { solid: uids(solid), dangling: uids(dangling), waiting: uids(waiting) };
            let finalizers: Vec<String> = finalizers.iter().map(|f| (*f).to_owned()).collect();
            assert_eq!(decide(&owners, dependents, &finalizers), want);
        }
    }
}
