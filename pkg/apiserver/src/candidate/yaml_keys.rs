//! Keys that stand twice in one map of a YAML text, with their lines, as upstream's parser names them. Ours says only that there
//! is one.

use std::collections::HashSet;

/// `line 9: key "foo" already set in map`, of maps in block style.
pub fn repeated(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    // The maps that are open, by the column of their keys.
    let mut open: Vec<(usize, HashSet<String>)> = Vec::new();
    let mut verbatim: Option<usize> = None;
    for (number, line) in (1..).zip(text.lines()) {
        let content = line.trim_start();
        let mut column = line.len() - content.len();
        // Lines of a block scalar are text.
        if content.is_empty() || content.starts_with('#') || verbatim.is_some_and(|at| column > at) {
            continue;
        }
        verbatim = None;
        let mut rest = content;
        while let Some(item) = rest.strip_prefix("- ") {
            // An item is a map of its own.
            open.retain(|(at, _)| *at <= column);
            let inner = item.trim_start();
            column += rest.len() - inner.len();
            rest = inner;
        }
        open.retain(|(at, _)| *at <= column);
        let Some((key, value)) = entry(rest) else { continue };
        if value.starts_with(['|', '>']) {
            verbatim = Some(column);
        }
        match open.last_mut() {
            Some((at, keys)) if *at == column => {
                if !keys.insert(key.to_owned()) {
                    found.push(format!("line {number}: key {key:?} already set in map"));
                }
            }
            _ => open.push((column, HashSet::from([key.to_owned()]))),
        }
    }
    found
}

/// Key and value of `key: value`.
fn entry(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|c| matches!(c, '"' | '\''));
    if let Some(quote) = quote {
        let (key, rest) = text[1..].split_once(quote)?;
        return Some((key, rest.strip_prefix(':')?.trim_start()));
    }
    if text.starts_with(['{', '[']) {
        return None;
    }
    let (key, value) = text.split_once(": ").or_else(|| Some((text.strip_suffix(':')?, "")))?;
    Some((key, value.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::repeated;

    #[test]
    fn lines_of_keys() {
        for (text, want) in [
            ("a: 1\nb: 2\n", vec![]),
            ("\nspec:\n  foo: 1\n  foo: 2\nfoo: 3\n", vec!["line 4: key \"foo\" already set in map"]),
            ("l:\n- a: 1\n  b: 1\n- a: 2\n  a: 3\n", vec!["line 5: key \"a\" already set in map"]),
            ("l:\n  - a: 1\n  - a: 2\n\"l\": 1\n", vec!["line 4: key \"l\" already set in map"]),
            ("t: |\n  a: 1\n  a: 2\nu:\n  a: 1\nv:\n  a: 1\n", vec![]),
        ] {
            assert_eq!(repeated(text), want, "{text}");
        }
    }
}
