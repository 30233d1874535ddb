//! What expressions ask the authorizers. Expressions do not wait: where an authorizer has to be called, they are evaluated
//! again once it has answered, as often as they ask for more.

use crate::authorization::{AuthorizerChain, Verdict};
use isopod_auth::Attributes;
use parking_lot::Mutex;
use std::sync::Arc;

/// The answers of one request; clones share them.
#[derive(Clone)]
pub struct Answers(Arc<Inner>);

struct Inner {
    authorizer: Arc<AuthorizerChain>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What had to be waited for.
    known: Vec<(Attributes, Verdict)>,
    open: Vec<Attributes>,
}

impl Answers {
    pub fn new(authorizer: Arc<AuthorizerChain>) -> Self {
        Answers(Arc::new(Inner { authorizer, state: Mutex::default() }))
    }

    /// `None`: it has to be waited for; see [`Answers::settled`].
    pub fn get(&self, attributes: &Attributes) -> Option<Verdict> {
        let known = |state: &State| state.known.iter().find(|(a, _)| a == attributes).map(|(_, v)| v.clone());
        let known = known(&self.0.state.lock());
        let verdict = known.or_else(|| self.0.authorizer.authorize_now(attributes));
        if verdict.is_none() {
            self.0.state.lock().open.push(attributes.clone());
        }
        verdict
    }

    /// Whether what was evaluated last lacks an answer.
    pub fn are_open(&self) -> bool {
        !self.0.state.lock().open.is_empty()
    }

    /// What `evaluate` comes to when all that it asks is answered.
    pub async fn settled<T>(&self, mut evaluate: impl FnMut() -> T) -> T {
        loop {
            let value = evaluate();
            let open = std::mem::take(&mut self.0.state.lock().open);
            if open.is_empty() {
                return value;
            }
            drop(value);
            for attributes in open {
                let verdict = self.0.authorizer.authorize(&attributes).await;
                self.0.state.lock().known.push((attributes, verdict));
            }
        }
    }
}
