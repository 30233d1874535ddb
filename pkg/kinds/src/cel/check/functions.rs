//! The functions that upstream's environments declare. `functions.txt` is written by `hack/cel`: a row an overload.

use super::types::{Type, parse};
use std::collections::HashMap;
use std::sync::LazyLock;

/// Where an expression comes from decides which functions it may use (`apiserver/pkg/cel/environment`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Library {
    /// New or changed expressions: only what the version before knows too, so that one can go back to it.
    #[default]
    New,
    /// Expressions that were accepted before.
    Stored,
    /// Mutations of admission policies: with `jsonpatch`.
    Patch,
    /// Selectors of devices: with `cel.bind`.
    Device,
}

pub struct Overload {
    pub id: &'static str,
    /// It is called on its first argument.
    pub member: bool,
    pub arguments: Vec<Type>,
    pub result: Type,
    /// The names of its type parameters.
    pub params: Vec<std::sync::Arc<str>>,
    libraries: &'static str,
}

impl Overload {
    pub fn is_in(&self, library: Library) -> bool {
        self.libraries.contains(match library {
            Library::New => 'n',
            Library::Stored => 's',
            Library::Patch => 'p',
            Library::Device => 'b',
        })
    }
}

static FUNCTIONS: LazyLock<HashMap<&'static str, Vec<Overload>>> = LazyLock::new(|| {
    let mut all: HashMap<&str, Vec<Overload>> = HashMap::new();
    for row in include_str!("functions.txt").lines() {
        if let [name, id, style, arguments, result, libraries] = row.split('\t').collect::<Vec<_>>()[..] {
            let arguments: Vec<Type> = arguments.split(';').filter(|a| !a.is_empty()).map(parse).collect();
            let result = parse(result);
            let mut params = Vec::new();
            arguments.iter().chain([&result]).for_each(|t| collect_params(t, &mut params));
            let overload = Overload { id, member: style == "m", arguments, result, params, libraries };
            all.entry(name).or_default().push(overload);
        }
    }
    all
});

fn collect_params(t: &Type, out: &mut Vec<std::sync::Arc<str>>) {
    match t {
        Type::Param(name) if !out.contains(name) => out.push(name.clone()),
        _ => t.parts().into_iter().for_each(|p| collect_params(p, out)),
    }
}

/// The overloads of a function, in the order in which they are tried. `None`: there is no such function.
pub fn overloads(name: &str, library: Library) -> Option<Vec<&'static Overload>> {
    let all: Vec<&Overload> = FUNCTIONS.get(name)?.iter().filter(|o| o.is_in(library)).collect();
    (!all.is_empty()).then_some(all)
}

#[cfg(test)]
pub fn names() -> impl Iterator<Item = (&'static str, &'static Overload)> {
    FUNCTIONS.iter().flat_map(|(name, all)| all.iter().map(move |o| (*name, o)))
}
