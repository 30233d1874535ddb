//! Literals that can be told to fail before anything is evaluated (`cel/validator.go`).

use super::tree::{Item, What};
use super::types::Type;
use super::{Checked, Fault};
use crate::cel::functions;
use crate::cel::value::Val;

pub fn faults(checked: &Checked) -> Vec<Fault> {
    let mut faults = Vec::new();
    for name in ["duration", "timestamp", "matches"] {
        for node in &checked.tree.nodes {
            if let What::Call { function, arguments, .. } = &node.what
                && function == name
                && let Some(literal) = arguments.first()
                && let What::Literal(value) = checked.tree.what(*literal)
                && fails(name, value)
            {
                faults.push(Fault { at: checked.tree.nodes[*literal].at, message: format!("invalid {name} argument") });
            }
        }
    }
    let exempt = in_formats(checked);
    for (id, node) in checked.tree.nodes.iter().enumerate() {
        if exempt[id] {
            continue;
        }
        match &node.what {
            What::List(items) => mixed(checked, items, &mut faults, true),
            What::Map(pairs) => {
                let values: Vec<Item> = pairs.iter().map(|p| Item { optional: p.optional, value: p.value }).collect();
                let keys: Vec<Item> = pairs.iter().map(|p| Item { optional: false, value: p.key }).collect();
                mixed(checked, &keys, &mut faults, false);
                mixed(checked, &values, &mut faults, false);
            }
            _ => {}
        }
    }
    faults
}

fn fails(function: &str, value: &Val) -> bool {
    match (function, value) {
        ("matches", Val::Text(pattern)) => !functions::is_regex(pattern),
        ("matches", _) => false,
        (name, value) => matches!(functions::call(name, std::slice::from_ref(value)), Some(Err(_)) | None),
    }
}

/// What stands in a call of `format`, at any depth, may be mixed.
fn in_formats(checked: &Checked) -> Vec<bool> {
    let nodes = &checked.tree.nodes;
    let mut exempt = vec![false; nodes.len()];
    // Parts stand before what they are parts of.
    for id in (0..nodes.len()).rev() {
        let formats = matches!(&nodes[id].what, What::Call { function, .. } if function == "format");
        if exempt[id] || formats {
            checked.tree.parts(id).into_iter().for_each(|p| exempt[p] = true);
        }
    }
    exempt
}

/// Values of different types, which dyn would hide.
fn mixed(checked: &Checked, items: &[Item], faults: &mut Vec<Fault>, once: bool) {
    let of = |item: &Item| {
        let t = &checked.types[item.value];
        if item.optional { t.of_optional().unwrap_or(t) } else { t }
    };
    let Some(first) = items.first().map(&of) else { return };
    for item in &items[1..] {
        let t: &Type = of(item);
        if !first.is_equivalent(t) {
            let message = format!("expected type '{}' but found '{}'", first.shown(), t.shown());
            faults.push(Fault { at: checked.tree.nodes[item.value].at, message });
            if once {
                return;
            }
        }
    }
}
