//! Regular expressions of expressions, kept compiled.

use crate::cel::eval::Result;
use regex_syntax::ast::{Error, ErrorKind, parse::Parser};
use std::cell::RefCell;
use std::collections::HashMap;

/// So many patterns are kept compiled for each thread.
const PATTERNS: usize = 64;

/// Whether it can be compiled.
pub fn is_regex(pattern: &str) -> bool {
    regex(pattern).is_ok()
}

thread_local! {
    static COMPILED: RefCell<HashMap<String, regex::Regex>> = RefCell::default();
}

/// Go's regular expressions are RE2's, as this crate's are. A rule asks for the same one for each element of a list.
pub(super) fn regex(pattern: &str) -> Result<regex::Regex> {
    if let Some(known) = COMPILED.with_borrow(|all| all.get(pattern).cloned()) {
        return Ok(known);
    }
    let made = regex::Regex::new(pattern).map_err(|e| format!("error parsing regexp: {}", fault(pattern, &e)))?;
    COMPILED.with_borrow_mut(|all| {
        if all.len() >= PATTERNS {
            all.clear();
        }
        all.insert(pattern.to_owned(), made.clone());
    });
    Ok(made)
}

/// What is wrong with a pattern, in the words of Go's `regexp/syntax`.
fn fault(pattern: &str, error: &regex::Error) -> String {
    let Err(e) = Parser::new().parse(pattern) else {
        return match error {
            regex::Error::CompiledTooBig(_) => format!("expression too large: `{pattern}`"),
            other => other.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned(),
        };
    };
    let (what, part) = told(pattern, &e);
    format!("{what}: `{part}`")
}

fn told<'a>(pattern: &'a str, e: &Error) -> (&'static str, &'a str) {
    let span = e.span();
    let (at, rest) = (&pattern[span.start.offset..span.end.offset], &pattern[span.start.offset..]);
    match e.kind() {
        ErrorKind::ClassUnclosed => ("missing closing ]", rest),
        ErrorKind::ClassRangeInvalid => ("invalid character class range", at),
        ErrorKind::GroupUnclosed => ("missing closing )", pattern),
        ErrorKind::GroupUnopened => ("unexpected )", pattern),
        ErrorKind::GroupNameDuplicate { .. } => ("duplicate capture group name", at),
        ErrorKind::RepetitionMissing => ("missing argument to repetition operator", repetition(rest)),
        ErrorKind::RepetitionCountInvalid => ("invalid repeat count", at),
        ErrorKind::EscapeUnexpectedEof => ("trailing backslash at end of expression", ""),
        ErrorKind::EscapeUnrecognized => ("invalid escape sequence", at),
        ErrorKind::FlagUnrecognized | ErrorKind::UnsupportedLookAround => ("invalid or unsupported Perl syntax", at),
        ErrorKind::NestLimitExceeded(_) => ("expression nests too deeply", pattern),
        _ => ("invalid or unsupported syntax", at),
    }
}

/// The operator at the beginning of a text.
fn repetition(text: &str) -> &str {
    let end = match text.starts_with('{') {
        true => text.find('}').map_or(text.len(), |at| at + 1),
        false => text.chars().next().map_or(0, char::len_utf8),
    };
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `regexp.Compile` says it.
    #[test]
    fn faults_are_told_as_in_go() {
        for (pattern, wanted) in [
            ("a[b", "missing closing ]: `[b`"),
            ("(a", "missing closing ): `(a`"),
            ("a)", "unexpected ): `a)`"),
            ("*", "missing argument to repetition operator: `*`"),
            ("[z-a]", "invalid character class range: `z-a`"),
            ("a{2,1}", "invalid repeat count: `{2,1}`"),
            ("a\\", "trailing backslash at end of expression: ``"),
            ("\\y", "invalid escape sequence: `\\y`"),
        ] {
            assert_eq!(regex(pattern).unwrap_err(), format!("error parsing regexp: {wanted}"), "{pattern}");
        }
    }
}
