//! `$(VAR)` expansion in commands, arguments and environment values (`third_party/forked/golang/expansion`).

/// Replaces `$(NAME)` by what `lookup` knows, `$$` by `$`; an unknown reference stays as it is written.
pub fn expand(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(inner) = rest.strip_prefix('(') {
            match inner.split_once(')') {
                Some((name, after)) => {
                    match lookup(name) {
                        Some(value) => out.push_str(&value),
                        None => {
                            out.push_str("$(");
                            out.push_str(name);
                            out.push(')');
                        }
                    }
                    rest = after;
                }
                None => {
                    out.push_str("$(");
                    rest = inner;
                }
            }
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_escapes_and_the_rest() {
        let lookup = |name: &str| match name {
            "A" => Some("1".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        for (text, want) in [
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$(B)", "$(B)"),
            ("$(EMPTY)|", "|"),
            ("$A ${A} $", "$A ${A} $"),
            ("$(A", "$(A"),
            ("$", "$"),
            ("$(A)$", "1$"),
            ("häß$(A)", "häß1"),
        ] {
            assert_eq!(expand(text, &lookup), want, "{text}");
        }
    }
}
