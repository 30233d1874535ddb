//! `'%d'.format([x])`: whether the clauses fit what they are given (cel-go `ext/formatting.go`).

use super::tree::{Id, Item, What};
use super::types::Type;
use super::{Checked, Fault};
use crate::cel::value::Val;
use std::iter::Peekable;
use std::str::Chars;

pub fn faults(checked: &Checked) -> Vec<Fault> {
    let mut faults = Vec::new();
    for node in &checked.tree.nodes {
        if let What::Call { target: Some(target), function, arguments } = &node.what
            && let ("format", [list]) = (function.as_str(), &arguments[..])
            && let (What::Literal(Val::Text(text)), What::List(items)) =
                (checked.tree.what(*target), checked.tree.what(*list))
        {
            faults.extend(format(checked, text, items, node.at));
        }
    }
    faults
}

fn format(checked: &Checked, text: &str, items: &[Item], call: usize) -> Option<Fault> {
    let told = |at: usize, message: String| Some(Fault { at, message });
    let mut chars = text.chars().peekable();
    let mut used = 0;
    while let Some(c) = chars.next() {
        if c != '%' {
            continue;
        }
        let Some(verb) = verb(&mut chars) else {
            return told(call, "unexpected end of string".into());
        };
        if verb == '%' {
            continue;
        }
        let Some(kind) = Kind::of(verb) else {
            let why = format!("could not parse formatting clause: unrecognized formatting clause \"{verb}\"");
            return told(call, why);
        };
        let Some(item) = items.get(used) else { return told(call, format!("index {used} out of range")) };
        used += 1;
        if let Some(wrong) = kind.misfit(checked, item.value) {
            let given = checked.types[wrong].name();
            let why = format!("error during formatting: {}, was given {given}", kind.rule());
            return told(checked.tree.nodes[wrong].at, why);
        }
    }
    let given = items.len();
    let message = || format!("too many arguments supplied to string.format (expected {used}, got {given})");
    (given > used).then(|| Fault { at: call, message: message() })
}

/// What comes after the precision.
fn verb(chars: &mut Peekable<Chars<'_>>) -> Option<char> {
    if chars.peek() == Some(&'.') {
        chars.next();
        while chars.peek().is_some_and(char::is_ascii_digit) {
            chars.next();
        }
    }
    chars.next()
}

#[derive(Clone, Copy)]
enum Kind {
    Text,
    Decimal,
    Fixed,
    Scientific,
    Binary,
    Hex,
    Octal,
}

impl Kind {
    fn of(verb: char) -> Option<Self> {
        Some(match verb {
            's' => Kind::Text,
            'd' => Kind::Decimal,
            'f' => Kind::Fixed,
            'e' => Kind::Scientific,
            'b' => Kind::Binary,
            'x' | 'X' => Kind::Hex,
            'o' => Kind::Octal,
            _ => return None,
        })
    }

    fn rule(self) -> &'static str {
        match self {
            Kind::Text => {
                "string clause can only be used on strings, bools, bytes, ints, doubles, maps, lists, types, durations, and timestamps"
            }
            Kind::Decimal => "decimal clause can only be used on integers",
            Kind::Fixed => "fixed-point clause can only be used on doubles",
            Kind::Scientific => "scientific clause can only be used on doubles",
            Kind::Binary => "only integers and bools can be formatted as binary",
            Kind::Hex => "only integers, byte buffers, and strings can be formatted as hex",
            Kind::Octal => "octal clause can only be used on integers",
        }
    }

    fn takes(self, t: &Type) -> bool {
        if *t == Type::Dyn {
            return true;
        }
        match self {
            Kind::Text => !matches!(t, Type::Opaque(..) | Type::Object(_) | Type::Error | Type::Any | Type::Param(_)),
            Kind::Decimal | Kind::Octal => matches!(t, Type::Int | Type::Uint),
            // Texts may say that they are no number.
            Kind::Fixed | Kind::Scientific => matches!(t, Type::Double | Type::Text),
            Kind::Binary => matches!(t, Type::Int | Type::Uint | Type::Bool),
            Kind::Hex => matches!(t, Type::Int | Type::Uint | Type::Text | Type::Bytes),
        }
    }

    /// The value that does not fit: itself, or for texts one inside of a list or map.
    fn misfit(self, checked: &Checked, id: Id) -> Option<Id> {
        if !self.takes(&checked.types[id]) {
            return Some(id);
        }
        match (self, checked.tree.what(id)) {
            (Kind::Text, What::List(items)) => items.iter().find_map(|i| self.misfit(checked, i.value)),
            (Kind::Text, What::Map(pairs)) => {
                pairs.iter().find_map(|p| self.misfit(checked, p.key).or_else(|| self.misfit(checked, p.value)))
            }
            _ => None,
        }
    }
}
