//! The types of expressions before they are evaluated, after cel-go's checker: names, fields, overloads, and what a whole
//! expression comes to; and what evaluating it may cost ([`cost`]).
//!
//! Invariant: what is wrong is told in cel-go's words at cel-go's places; `golden/answers.jsonl` has upstream's answers.

mod checker;
pub mod cost;
mod environment;
mod formats;
mod functions;
#[cfg(test)]
mod golden;
mod literals;
mod macros;
mod tree;
mod types;
mod unify;

pub(super) use environment::RESERVED;
pub use environment::{Environment, Objects};
pub use functions::Library;
pub use types::Type;

use super::{Fault, display, parser};
use std::collections::{BTreeSet, HashMap};
use tree::{Id, Tree};

/// More errors than these are counted only.
const MAX_SHOWN: usize = 100;

/// An expression whose types are known.
pub struct Checked {
    tree: Tree,
    types: Vec<Type>,
    overloads: HashMap<Id, Vec<&'static str>>,
    /// The variables that it speaks of.
    pub references: BTreeSet<String>,
}

impl Checked {
    /// What the expression comes to.
    pub fn result(&self) -> &Type {
        &self.types[self.tree.root]
    }

    /// Where calls stand whose arguments' types leave open which of the functions of a name they are, in order.
    pub fn open_calls(&self) -> Vec<usize> {
        let open = self.overloads.iter().filter(|(_, which)| which.len() > 1);
        let mut places: Vec<usize> = open.map(|(id, _)| self.tree.nodes[*id].at).collect();
        places.sort_unstable();
        places.dedup();
        places
    }
}

/// The error is what upstream says after `compilation failed: `.
pub fn check(text: &str, environment: &Environment) -> Result<Checked, String> {
    let told = |faults: Vec<Fault>| shown(text, faults);
    let expression = parser::parse(text).map_err(|f| told(vec![f]))?;
    let tree = Tree::new(&expression, environment.library).map_err(told)?;
    let checked = checker::check(tree, environment).map_err(told)?;
    let mut faults = formats::faults(&checked);
    faults.extend(literals::faults(&checked));
    if faults.is_empty() { Ok(checked) } else { Err(told(faults)) }
}

/// The faults in the order of the text.
fn shown(text: &str, mut faults: Vec<Fault>) -> String {
    let hidden = faults.len().saturating_sub(MAX_SHOWN);
    faults.truncate(MAX_SHOWN);
    faults.sort_by_key(|f| f.at);
    let mut lines: Vec<String> = faults.iter().map(|f| display(text, f)).collect();
    if hidden > 0 {
        lines.push(format!("{hidden} more errors were truncated"));
    }
    lines.join("\n")
}
