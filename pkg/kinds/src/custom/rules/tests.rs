//! Rules, and what they say of objects.

use super::*;
use serde_json::json;

/// What the rules of `schema`, which is that of `spec`, say of a spec and of the change from another one.
fn judge(schema: &Value, new: &Value, old: Option<&Value>) -> Judgement {
    let root = json!({"type": "object", "properties": {"spec": schema}});
    let of =
        |spec: &Value| json!({"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": "x"}, "spec": spec});
    let (new, old) = (of(new), old.map(of));
    let change = old.as_ref().map(|old| Correlated::new(&new, old, &root));
    Rules::new(&root).expect("there are rules").judge(&new, old.as_ref(), change.as_ref())
}

fn errors(schema: &Value, new: &Value, old: Option<&Value>) -> Vec<String> {
    judge(schema, new, old).errors.iter().map(ToString::to_string).collect()
}

fn ruled(mut schema: Value, rules: &[&str]) -> Value {
    schema["x-kubernetes-validations"] = rules.iter().map(|r| json!({"rule": r})).collect();
    schema
}

fn fields() -> Value {
    json!({"type": "object", "properties": {
        "n": {"type": "integer"}, "s": {"type": "string"}, "d": {"type": "number"}, "maybe": {"type": "string", "nullable": true},
        "either": {"x-kubernetes-int-or-string": true}, "when": {"type": "string", "format": "date-time"},
        "long": {"type": "string", "format": "duration"}, "raw": {"type": "string", "format": "byte"},
        "a.b": {"type": "integer"}, "int": {"type": "integer"}, "x-y": {"type": "integer"},
        "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"], "items":
            {"type": "object", "properties": {"name": {"type": "string"}, "n": {"type": "integer"}}}},
        "labels": {"type": "object", "additionalProperties": {"type": "integer"}},
        "inner": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true},
    }})
}

#[test]
fn true_rules() {
    let spec = json!({"n": 3, "s": "x", "d": 2, "maybe": null, "either": "50%", "when": "2024-01-01T00:00:00Z", "long": "90s",
        "raw": "aGk=", "a.b": 1, "int": 2, "x-y": 3, "tags": ["a", "b"], "labels": {"k": 1, "l": 2},
        "ports": [{"name": "http", "n": 80}, {"name": "dns", "n": 53}],
        "inner": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"a": "b"}}}});
    for rule in [
        "self.n == 3 && self.s == 'x' && self.d == 2.0",
        "!has(self.maybe) && has(self.n)",
        "type(self.either) == string && self.either.endsWith('%')",
        "self.when.getFullYear() == 2024 && self.long == duration('1m30s') && self.raw == b'hi'",
        "self.a__dot__b == 1 && self.__int__ == 2 && self.x__dash__y == 3",
        "self.tags == ['b', 'a'] || self.tags.exists(t, t == 'a')",
        "self.tags + ['a', 'c'] == ['c', 'a', 'b'] && self.tags.size() == 2 && 'b' in self.tags",
        "self.labels.all(k, self.labels[k] > 0) && self.labels.k == 1 && 'l' in self.labels",
        "self.ports.exists_one(p, p.name == 'http' && p.n == 80) && self.ports[1].name == 'dns'",
        "self.inner.metadata.name == 'p' && self.inner.kind == 'Pod'",
        "!has(self.unset) || self.unset == 1",
    ] {
        assert_eq!(errors(&ruled(fields(), &[rule]), &spec, None), [""; 0], "{rule}");
    }
}

#[test]
fn sets_are_compared_without_their_order() {
    let schema = ruled(fields(), &["self.tags == oldSelf.tags && self.ports == oldSelf.ports"]);
    let old = json!({"tags": ["a", "b"], "ports": [{"name": "a"}, {"name": "b", "n": 1}]});
    let new = json!({"tags": ["b", "a"], "ports": [{"name": "b", "n": 1}, {"name": "a"}]});
    assert_eq!(errors(&schema, &new, Some(&old)), [""; 0]);
    let new = json!({"tags": ["b", "a"], "ports": [{"name": "b", "n": 2}, {"name": "a"}]});
    assert_eq!(errors(&schema, &new, Some(&old)).len(), 1);
}

#[test]
fn errors_say_what_the_rule_says() {
    let with = |rule: Value| {
        let mut schema = fields();
        schema["x-kubernetes-validations"] = json!([rule]);
        errors(&schema, &json!({"n": 1, "labels": {}}), None).concat()
    };
    for (rule, wanted) in [
        (json!({"rule": " self.n > 2 "}), "spec: Invalid value: failed rule: self.n > 2"),
        (json!({"rule": "self.n > 2", "message": "n is small"}), "spec: Invalid value: n is small"),
        (
            json!({"rule": "self.n > 2", "message": "m", "messageExpression": "'n is ' + string(self.n)"}),
            "spec: Invalid value: n is 1",
        ),
        (json!({"rule": "self.n > 2", "message": "m", "messageExpression": "string(1 / 0)"}), "spec: Invalid value: m"),
        (json!({"rule": "self.n > 2", "message": "m", "messageExpression": "' '"}), "spec: Invalid value: m"),
        (json!({"rule": "self.n > 2", "message": "m", "reason": "FieldValueForbidden"}), "spec: Forbidden: m"),
        (json!({"rule": "self.n > 2", "message": "m", "reason": "FieldValueRequired"}), "spec: Required value: m"),
        (json!({"rule": "self.n > 2", "reason": "FieldValueDuplicate"}), "spec: Duplicate value"),
        (
            json!({"rule": "self.n > 2", "message": "m", "fieldPath": ".labels['a.b']"}),
            "spec.labels[a.b]: Invalid value: m",
        ),
        (json!({"rule": "self.n > 2", "message": "m", "fieldPath": "['a.b']"}), "spec.a.b: Invalid value: m"),
        (
            json!({"rule": "self.labels['x'] == 1"}),
            "spec: Invalid value: \"object\": no such key: x evaluating rule: self.labels['x'] == 1",
        ),
        (
            json!({"rule": "self.n / 0 == 1", "message": "m"}),
            "spec: Invalid value: \"object\": division by zero evaluating rule: m",
        ),
        (
            json!({"rule": "self.either + 1 == 2"}),
            "spec: Invalid value: \"object\": no such key: either evaluating rule: self.either + 1 == 2",
        ),
    ] {
        assert_eq!(with(rule.clone()), wanted, "{rule}");
    }
    let scalar = ruled(json!({"type": "integer"}), &["self > 5"]);
    assert_eq!(errors(&scalar, &json!(1), None), ["spec: Invalid value: 1: failed rule: self > 5"]);
}

#[test]
fn rules_stand_at_every_level() {
    let schema = json!({"type": "object", "properties": {
        "list": {"type": "array", "items": ruled(json!({"type": "integer"}), &["self < 3"])},
        "map": {"type": "object", "additionalProperties": ruled(json!({"type": "string"}), &["self.size() < 3"])},
        "deep": {"type": "object", "properties": {"er": ruled(json!({"type": "boolean"}), &["self"])}},
        "a.b": ruled(json!({"type": "integer"}), &["self == 1"]),
        "inner": ruled(json!({"type": "object", "x-kubernetes-embedded-resource": true}), &["self.metadata.name == 'x'"]),
    }});
    let spec = json!({"list": [1, 3], "map": {"k": "long", "l": "s"}, "deep": {"er": false}, "a.b": 2,
        "inner": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "y"}}});
    let mut told = errors(&schema, &spec, None);
    told.sort();
    assert_eq!(
        told,
        [
            "spec.a.b: Invalid value: 2: failed rule: self == 1",
            "spec.deep.er: Invalid value: false: failed rule: self",
            "spec.inner: Invalid value: failed rule: self.metadata.name == 'x'",
            "spec.list[1]: Invalid value: 3: failed rule: self < 3",
            "spec.map[k]: Invalid value: \"long\": failed rule: self.size() < 3",
        ]
    );
    assert_eq!(errors(&schema, &json!({"list": null}), None), [""; 0]);
}

#[test]
fn the_root_speaks_of_its_type_and_name() {
    let root = ruled(json!({"type": "object"}), &["self.kind == 'Foo' && self.metadata.name == 'no'"]);
    let object = json!({"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": "x", "uid": "u"}});
    let told = Rules::new(&root).expect("there are rules").judge(&object, None, None).errors;
    let wanted = "<nil>: Invalid value: failed rule: self.kind == 'Foo' && self.metadata.name == 'no'";
    assert_eq!(told[0].to_string(), wanted);
}

#[test]
fn transitions() {
    let grows = ruled(fields(), &["self.n >= oldSelf.n"]);
    assert_eq!(errors(&grows, &json!({"n": 1}), None), [""; 0]);
    assert_eq!(errors(&grows, &json!({"n": 1}), Some(&json!({"n": 2}))).len(), 1);
    assert_eq!(errors(&grows, &json!({"n": 3}), Some(&json!({"n": 2}))), [""; 0]);
    let optional = json!({"rule": "!oldSelf.hasValue() ? self == 1 : self > oldSelf.value()", "optionalOldSelf": true});
    let schema =
        json!({"type": "object", "properties": {"n": {"type": "integer", "x-kubernetes-validations": [optional]}}});
    for (new, old, count) in [(1, None, 0), (2, None, 1), (2, Some(1), 0), (2, Some(3), 1)] {
        let old = old.map(|n| json!({"n": n}));
        assert_eq!(errors(&schema, &json!({"n": new}), old.as_ref()).len(), count, "{new} {old:?}");
    }
    let mut ports = fields()["properties"]["ports"].clone();
    ports["items"] = ruled(ports["items"].take(), &["self.n >= oldSelf.n"]);
    let old = json!([{"name": "a", "n": 5}, {"name": "b", "n": 1}]);
    let new = json!([{"name": "b", "n": 3}, {"name": "c", "n": 0}, {"name": "a", "n": 1}]);
    assert_eq!(errors(&ports, &new, Some(&old)), ["spec[2]: Invalid value: failed rule: self.n >= oldSelf.n"]);
}

#[test]
fn faults_that_were_there_before_are_warnings() {
    let schema = json!({"type": "object", "properties": {
        "a": ruled(json!({"type": "integer"}), &["self > 5"]),
        "b": {"type": "integer"},
        "plain": {"type": "array", "items": ruled(json!({"type": "integer"}), &["self > 5"])},
        "old": ruled(json!({"type": "integer"}), &["self > 5 || oldSelf > 5"]),
    }});
    let told = |new: Value, old: Value| {
        let judgement = judge(&schema, &new, Some(&old));
        (judgement.errors.len(), judgement.warnings)
    };
    let warning = || vec!["spec.a: Invalid value: 1: failed rule: self > 5".to_owned()];
    assert_eq!(told(json!({"a": 1, "b": 2}), json!({"a": 1, "b": 1})), (0, warning()));
    assert_eq!(told(json!({"a": 2}), json!({"a": 1})), (1, vec![]));
    assert_eq!(told(json!({"plain": [1]}), json!({"plain": [1], "b": 1})).0, 0);
    assert_eq!(told(json!({"plain": [1, 7]}), json!({"plain": [1]})).0, 1);
    assert_eq!(told(json!({"old": 1}), json!({"old": 1})), (1, vec![]));
}

#[test]
fn budgets_end_the_evaluation() {
    let nested = "self.all(a, self.all(b, self.all(c, a + b + c >= 0)))";
    let one = ruled(json!({"type": "array", "items": {"type": "integer"}}), &[nested, "false"]);
    let many: Value = (0..150).collect();
    assert_eq!(
        errors(&one, &many, None),
        [format!(
            "spec: Invalid value: \"array\": 'operation cancelled: actual cost limit exceeded': no further validation rules \
             will be run due to call cost exceeds limit for rule: {nested}"
        )]
    );
    // Each call stays within its limit; all of them do not.
    let items =
        ruled(json!({"type": "array", "items": {"type": "integer"}}), &["self.all(a, self.all(b, a + b >= 0))"]);
    let all = json!({"type": "array", "items": items});
    let row: Value = (0..300).collect();
    let told = errors(&all, &(0..40).map(|_| row.clone()).collect(), None);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].ends_with("failed due to running out of cost budget, no further validation rules will be run"),
        "{told:?}"
    );
}

#[test]
fn many_items_are_judged_in_reasonable_time() {
    let item = ruled(
        json!({"type": "object", "properties": {"name": {"type": "string"}, "n": {"type": "integer"}}}),
        &["self.n >= 0 && self.name.startsWith('item-')"],
    );
    let list = json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"], "items": item});
    let items: Value = (0..1000).map(|i| json!({"name": format!("item-{i}"), "n": i})).collect();
    let started = std::time::Instant::now();
    assert_eq!(errors(&list, &items, Some(&items)), [""; 0]);
    let took = started.elapsed();
    assert!(took < std::time::Duration::from_secs(1), "1,000 rules took {took:?}");
    println!("1,000 items with a rule each: {took:?}");
}

#[test]
fn what_rules_take_is_timed() {
    use crate::cel::timing::{COMPILATION, EVALUATION};
    let sums = || [&COMPILATION, &EVALUATION].map(|t| t.counts().iter().sum::<u64>());
    let before = sums();
    assert_eq!(errors(&ruled(fields(), &["self.n == 3"]), &json!({"n": 3}), None), [""; 0]);
    // The root, which only leads to the rules, is one of the places.
    let after = sums();
    assert!(after[0] >= before[0] + 2 && after[1] >= before[1] + 2, "{before:?} {after:?}");
}
