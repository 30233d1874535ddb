//! Who is asked a second time: mutating webhooks and policies that want it, when something changed after they were asked.

use parking_lot::Mutex;
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};

/// What is known of the plugins that change objects, during one request.
#[derive(Default)]
pub struct Rounds(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    second: bool,
    wanted: bool,
    plugins: HashMap<&'static str, Asked>,
}

#[derive(Default)]
struct Asked {
    /// Asked already, and ready to be asked again.
    asked: BTreeSet<String>,
    /// To be asked again.
    again: BTreeSet<String>,
    /// What the plugin left.
    output: Option<Value>,
}

impl Asked {
    fn ask_again(&mut self) {
        self.again.append(&mut self.asked);
    }
}

impl Rounds {
    /// Whether a second round is wanted, which begins with this.
    pub fn begin_second(&self) -> bool {
        let mut inner = self.0.lock();
        inner.second = true;
        inner.wanted
    }

    /// A plugin has its turn. True: it is the second one.
    pub fn enter(&self, plugin: &'static str, object: Option<&Value>) -> bool {
        let mut inner = self.0.lock();
        let second = inner.second;
        let asked = inner.plugins.entry(plugin).or_default();
        if second && asked.output.as_ref() != object {
            asked.ask_again();
        }
        second
    }

    /// Whether `id` is asked in the second round.
    pub fn asks_again(&self, plugin: &'static str, id: &str) -> bool {
        self.0.lock().plugins.entry(plugin).or_default().again.remove(id)
    }

    /// `id` was asked; `changed`: the object is another now.
    pub fn answered(&self, plugin: &'static str, id: &str, changed: bool, reinvocable: bool) {
        let mut inner = self.0.lock();
        inner.wanted |= changed;
        let asked = inner.plugins.entry(plugin).or_default();
        if changed {
            asked.ask_again();
        }
        if reinvocable {
            asked.asked.insert(id.to_owned());
        }
    }

    pub fn leave(&self, plugin: &'static str, object: Option<&Value>) {
        self.0.lock().plugins.entry(plugin).or_default().output = object.cloned();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_was_asked_before_a_change_is_asked_again() {
        let rounds = Rounds::default();
        let object = json!({"a": 1});
        assert!(!rounds.enter("p", Some(&object)));
        rounds.answered("p", "first", false, true);
        rounds.answered("p", "never again", false, false);
        rounds.answered("p", "second", true, true);
        rounds.leave("p", Some(&object));
        assert!(rounds.begin_second() && rounds.enter("p", Some(&object)));
        let again = |id| rounds.asks_again("p", id);
        assert!(again("first") && !again("first") && !again("never again") && !again("second"));
        // Another plugin changed the object meanwhile.
        rounds.enter("p", Some(&json!({"a": 2})));
        assert!(rounds.asks_again("p", "second"));
    }
}
