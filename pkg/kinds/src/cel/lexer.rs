//! The tokens of CEL (`cel-go/parser/gen/CEL.g4`): the longest one that fits, white space and comments left out.

use super::Fault;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Mark,
    Identifier,
    /// Between backquotes.
    Quoted,
    Int,
    Uint,
    Float,
    Text,
    Bytes,
    /// `true`, `false`, `null`.
    Constant,
    End,
}

#[derive(Clone, Debug)]
pub(super) struct Token {
    pub kind: Kind,
    pub text: String,
    /// The character that it begins at.
    pub at: usize,
}

impl Token {
    pub fn is(&self, mark: &str) -> bool {
        self.kind == Kind::Mark && self.text == mark
    }

    /// Whether an operand can begin with it.
    pub fn begins_operand(&self) -> bool {
        match self.kind {
            Kind::Mark => matches!(self.text.as_str(), "[" | "{" | "(" | "." | "-" | "!"),
            Kind::End | Kind::Quoted => false,
            _ => true,
        }
    }
}

const MARKS: [&str; 24] = [
    "==", "!=", "<=", ">=", "&&", "||", "<", ">", "[", "]", "{", "}", "(", ")", ".", ",", "-", "!", "?", ":", "+", "*",
    "/", "%",
];

/// All tokens, an end as the last.
pub(super) fn tokens(text: &str) -> Result<Vec<Token>, Fault> {
    let chars: Vec<char> = text.chars().collect();
    let mut all = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        let rest = &chars[at..];
        let skipped = blank(rest);
        if skipped > 0 {
            at += skipped;
            continue;
        }
        let Some((kind, length)) = token(rest) else {
            let told = if matches!(rest[0], '"' | '\'' | '`') { unended(rest) } else { 1 };
            let told: String = rest[..told].iter().collect();
            return Err(Fault { at, message: format!("Syntax error: token recognition error at: '{told}'") });
        };
        let text: String = rest[..length].iter().collect();
        let kind = match (kind, text.as_str()) {
            (Kind::Identifier, "in") => Kind::Mark,
            (Kind::Identifier, "true" | "false" | "null") => Kind::Constant,
            (kind, _) => kind,
        };
        all.push(Token { kind, text, at });
        at += length;
    }
    all.push(Token { kind: Kind::End, text: "<EOF>".to_owned(), at });
    Ok(all)
}

/// How much is told of a text that does not end: its line, up to an escape that is none.
fn unended(rest: &[char]) -> usize {
    let mut at = 1;
    while at < rest.len() && !matches!(rest[at], '\n' | '\r') {
        if rest[at] == '\\' && rest[0] != '`' {
            match escape(&rest[at..]) {
                Some(length) => at += length,
                None => return (at + 2).min(rest.len()),
            }
        } else {
            at += 1;
        }
    }
    at
}

/// How much white space or comment comes first.
fn blank(rest: &[char]) -> usize {
    if rest.starts_with(&['/', '/']) {
        return rest.iter().take_while(|c| **c != '\n').count();
    }
    rest.iter().take_while(|c| matches!(c, '\t' | ' ' | '\r' | '\n' | '\u{c}')).count()
}

fn token(rest: &[char]) -> Option<(Kind, usize)> {
    let first = rest[0];
    if let Some(found) = text_or_bytes(rest) {
        return Some(found);
    }
    if first.is_ascii_alphabetic() || first == '_' {
        return Some((Kind::Identifier, run(rest, |c| c.is_ascii_alphanumeric() || c == '_')));
    }
    if first.is_ascii_digit() || first == '.' && rest.get(1).is_some_and(char::is_ascii_digit) {
        return Some(number(rest));
    }
    if first == '`' {
        let inner = run(&rest[1..], |c| c.is_ascii_alphanumeric() || "_.-/ ".contains(c));
        return (inner > 0 && rest.get(inner + 1) == Some(&'`')).then_some((Kind::Quoted, inner + 2));
    }
    let fits = |m: &&&str| m.chars().zip(rest).filter(|(a, b)| a == *b).count() == m.len();
    MARKS.iter().find(fits).map(|m| (Kind::Mark, m.len()))
}

fn run(rest: &[char], of: impl Fn(char) -> bool) -> usize {
    rest.iter().take_while(|c| of(**c)).count()
}

fn number(rest: &[char]) -> (Kind, usize) {
    let digits = |from: usize| run(&rest[from.min(rest.len())..], |c| c.is_ascii_digit());
    let is_u = |at: usize| matches!(rest.get(at), Some('u' | 'U'));
    if rest.starts_with(&['0', 'x']) {
        let hex = run(&rest[2..], |c| c.is_ascii_hexdigit());
        if hex > 0 {
            return if is_u(2 + hex) { (Kind::Uint, 3 + hex) } else { (Kind::Int, 2 + hex) };
        }
    }
    let whole = digits(0);
    let mut end = whole;
    if rest.get(end) == Some(&'.') && digits(end + 1) > 0 {
        end += 1 + digits(end + 1);
    }
    if matches!(rest.get(end), Some('e' | 'E')) {
        let sign = usize::from(matches!(rest.get(end + 1), Some('+' | '-')));
        let exponent = digits(end + 1 + sign);
        if exponent > 0 {
            end += 1 + sign + exponent;
        }
    }
    match end {
        _ if end > whole => (Kind::Float, end),
        _ if is_u(end) => (Kind::Uint, end + 1),
        _ => (Kind::Int, end),
    }
}

/// A string, maybe raw (`r`), maybe of bytes (`b`).
fn text_or_bytes(rest: &[char]) -> Option<(Kind, usize)> {
    let bytes = usize::from(matches!(rest[0], 'b' | 'B'));
    let raw = usize::from(matches!(rest.get(bytes), Some('r' | 'R')));
    let prefix = bytes + raw;
    let quote = *rest.get(prefix).filter(|c| matches!(c, '"' | '\''))?;
    let body = &rest[prefix..];
    let length = if body.starts_with(&[quote; 3]) { long(body, quote, raw == 1) } else { short(body, quote, raw == 1) };
    let kind = if bytes == 1 { Kind::Bytes } else { Kind::Text };
    Some((kind, prefix + length?))
}

/// The length of a string in three quotes, with the quotes.
fn long(body: &[char], quote: char, raw: bool) -> Option<usize> {
    let mut at = 3;
    while at < body.len() {
        if body[at..].starts_with(&[quote; 3]) {
            return Some(at + 3);
        }
        at += if body[at] == '\\' && !raw { escape(&body[at..])? } else { 1 };
    }
    None
}

fn short(body: &[char], quote: char, raw: bool) -> Option<usize> {
    let mut at = 1;
    while at < body.len() {
        match body[at] {
            c if c == quote => return Some(at + 1),
            '\n' | '\r' => return None,
            '\\' if !raw => at += escape(&body[at..])?,
            _ => at += 1,
        }
    }
    None
}

/// The length of an escape sequence.
fn escape(rest: &[char]) -> Option<usize> {
    let all = |from: usize, count: usize, of: fn(&char) -> bool| {
        rest.get(from..from + count).is_some_and(|part| part.iter().all(of)).then_some(from + count)
    };
    match rest.get(1)? {
        'a' | 'b' | 'f' | 'n' | 'r' | 't' | 'v' | '"' | '\'' | '\\' | '?' | '`' => Some(2),
        'x' | 'X' => all(2, 2, char::is_ascii_hexdigit),
        'u' => all(2, 4, char::is_ascii_hexdigit),
        'U' => all(2, 8, char::is_ascii_hexdigit),
        '0'..='3' => all(2, 2, |c| matches!(c, '0'..='7')),
        _ => None,
    }
}
