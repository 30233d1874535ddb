//! The order of elements in merged lists (design proposal "preserve order in strategic merge patch"): what the patch says,
//! then what stood in the live list.

use super::PatchError;
use super::strategic::go_type;
use crate::json::go_text;
use serde_json::Value;

/// What identifies an element: the value of its merge key, or itself when `merge_key` is empty.
pub(super) fn identity<'v>(item: &'v Value, merge_key: &str) -> Option<&'v Value> {
    if merge_key.is_empty() { Some(item) } else { item.get(merge_key) }
}

fn index(list: &[Value], item: &Value, merge_key: &str) -> Option<usize> {
    let wanted = identity(item, merge_key);
    list.iter().position(|v| identity(v, merge_key) == wanted)
}

fn require_keys(items: &[Value], merge_key: &str) -> Result<(), PatchError> {
    if merge_key.is_empty() {
        return Ok(());
    }
    items.iter().try_for_each(|v| require_key(v, merge_key).map(drop))
}

/// The merge key of an element, which must be an object that has it.
pub(super) fn require_key<'v>(item: &'v Value, merge_key: &str) -> Result<&'v Value, PatchError> {
    match item {
        Value::Object(map) => map.get(merge_key).ok_or_else(|| {
            PatchError::Internal(format!("map: {} does not contain declared merge key: {merge_key}", go_text(item)))
        }),
        other => Err(PatchError::Internal(format!(
            "expected a map[string]interface {{}}, but received a {}",
            go_type(other)
        ))),
    }
}

/// Splits `merged` into the elements that `wanted` names and the rest, sorts the first by `wanted` and the rest by `live`,
/// and interleaves them by `live`.
pub(super) fn arrange(
    merged: Vec<Value>,
    wanted: &[Value],
    live: &[Value],
    merge_key: &str,
) -> Result<Vec<Value>, PatchError> {
    require_keys(&merged, merge_key)?;
    require_keys(wanted, merge_key)?;
    require_keys(live, merge_key)?;
    let (mut patched, mut rest): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|v| index(wanted, v, merge_key).is_some());
    patched.sort_by_key(|v| index(wanted, v, merge_key));
    rest.sort_by_key(|v| index(live, v, merge_key));
    let mut out = Vec::with_capacity(patched.len() + rest.len());
    let (mut rest, mut patched) = (rest.into_iter().peekable(), patched.into_iter().peekable());
    loop {
        let rest_first = match (rest.peek(), patched.peek()) {
            (Some(l), Some(r)) => match (index(live, l, merge_key), index(live, r, merge_key)) {
                (Some(l), Some(r)) => l < r,
                _ => false,
            },
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (None, None) => return Ok(out),
        };
        out.extend(if rest_first { rest.next() } else { patched.next() });
    }
}

/// The elements of a patch must be among those that `$setElementOrder` lists, in its order. Deletions do not count.
pub(super) fn check_order(patch: &[Value], order: &[Value], merge_key: &str) -> Result<(), PatchError> {
    if patch.is_empty() || order.is_empty() {
        return Ok(());
    }
    let mut remaining = patch.iter().filter(|v| v.get("$patch").is_none()).peekable();
    for wanted in order {
        let Some(item) = remaining.peek() else { break };
        let equal = if merge_key.is_empty() {
            *item == wanted
        } else {
            require_key(item, merge_key)? == require_key(wanted, merge_key)?
        };
        if equal {
            remaining.next();
        }
    }
    if remaining.peek().is_none() {
        return Ok(());
    }
    let show = |list: &[Value]| go_text(&Value::Array(list.to_vec()));
    Err(PatchError::Internal(format!(
        "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n",
        show(patch),
        show(order)
    )))
}
