//! Expressions: compiled, checked for types, estimated, evaluated.

use isopod_kinds::cel::check::cost::{Unbounded, estimate};
use isopod_kinds::cel::check::{Checked, Environment, Library, Type, check};
use isopod_kinds::cel::{Program, Val, Variables, admission};
use serde_json::{Value, json};
use std::sync::LazyLock;

/// What an evaluation may cost: what upstream grants one rule of a custom resource's schema.
const BUDGET: u64 = 1_000_000;

struct Given(Value);

impl Variables for Given {
    fn get(&self, name: &str) -> Option<Result<Val, String>> {
        self.0.get(name).map(|v| Ok(Val::from_json(v)))
    }
}

static GIVEN: LazyLock<Given> = LazyLock::new(|| {
    Given(json!({"n": 7, "s": "text", "d": 2.5, "b": true, "l": [1, 2, 3], "t": ["a", "b"], "m": {"x": "1", "y": "2"},
        "any": {"deep": [{"er": null}, {"er": "x"}], "n": -1}, "object": {"spec": {"replicas": 3}}, "oldObject": null}))
});

/// With a variable of each common type, which has a value of that type.
static TYPED: LazyLock<Environment> = LazyLock::new(|| {
    Environment::new(Library::Stored)
        .variable("n", Type::Int)
        .variable("s", Type::Text)
        .variable("d", Type::Double)
        .variable("b", Type::Bool)
        .variable("l", Type::list(Type::Int))
        .variable("t", Type::list(Type::Text))
        .variable("m", Type::map(Type::Text, Type::Text))
        .variable("any", Type::Dyn)
});

static OTHERS: LazyLock<[Environment; 3]> = LazyLock::new(|| {
    [
        admission(Library::New, true, true),
        admission(Library::Patch, true, true),
        Environment::new(Library::Device).variable("device", Type::Dyn),
    ]
});

/// What is checked can be compiled; what has a type comes to a value of that type, or fails; it ends within its budget.
pub fn expression(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let program = Program::compile(text);
    let result = program.as_ref().ok().map(|p| {
        let mut budget = BUDGET;
        let result = p.run(&*GIVEN, &mut budget);
        assert!(budget <= BUDGET);
        result
    });
    for environment in OTHERS.iter() {
        if let Ok(checked) = check(text, environment) {
            assert!(program.is_ok(), "{text:?} is checked and cannot be compiled");
            ordered(&checked, text);
        }
    }
    let Ok(checked) = check(text, &TYPED) else { return };
    ordered(&checked, text);
    match result {
        None => panic!("{text:?} is checked and cannot be compiled"),
        // What is dynamic is what it is.
        Some(Ok(_)) if checked.references.contains("any") || text.contains("dyn") => {}
        Some(Ok(value)) => assert!(fits(&value, checked.result()), "{text:?} is {value:?}, not {:?}", checked.result()),
        Some(Err(_)) => {}
    }
}

fn ordered(checked: &Checked, text: &str) {
    let range = estimate(checked, &Unbounded);
    assert!(range.min <= range.max, "{text:?} costs {range:?}");
}

/// Of scalars alone: what lists and maps hold is theirs to say.
fn fits(value: &Val, wanted: &Type) -> bool {
    match wanted {
        Type::Bool => matches!(value, Val::Bool(_)),
        Type::Int => matches!(value, Val::Int(_)),
        Type::Uint => matches!(value, Val::Uint(_)),
        Type::Double => matches!(value, Val::Double(_)),
        Type::Text => matches!(value, Val::Text(_)),
        Type::Bytes => matches!(value, Val::Bytes(_)),
        Type::List(_) => matches!(value, Val::List(_) | Val::Unordered(_)),
        Type::Map(..) => matches!(value, Val::Map(_)),
        Type::Timestamp => matches!(value, Val::Timestamp(_)),
        Type::Duration => matches!(value, Val::Duration(_)),
        _ => true,
    }
}
