//! A cursor over JSON text. Its syntax errors are worded as those of Go's scanner, because clients see them; numbers keep
//! their literal, because Go's type errors show it.
//!
//! Invariant: never panics and never recurses deeper than [`depth::limit`], whatever the bytes are.

use super::depth;
use serde_json::{Map, Number, Value};
use std::borrow::Cow;

/// The text of a syntax error.
pub(super) type Syntax = String;

/// What a value begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Object,
    Array,
    String,
    Number,
    Bool,
    Null,
}

impl Token {
    /// What Go's type errors call it; numbers are shown with their literal where a number was possible.
    pub(super) fn noun(self) -> &'static str {
        match self {
            Token::Object => "object",
            Token::Array => "array",
            Token::String => "string",
            Token::Number => "number",
            Token::Bool => "bool",
            Token::Null => "null",
        }
    }
}

impl Token {
    /// A value of the sort.
    pub(super) fn example(self) -> Value {
        match self {
            Token::Object => Value::Object(Map::new()),
            Token::Array => Value::Array(Vec::new()),
            Token::String => Value::String(String::new()),
            Token::Number => Value::from(0),
            Token::Bool => Value::Bool(false),
            Token::Null => Value::Null,
        }
    }
}

pub(super) struct Scanner<'a> {
    bytes: &'a [u8],
    pos: usize,
    depth: usize,
    /// Where nesting is looked at more closely.
    closer: usize,
}

const EOF: &str = "unexpected end of JSON input";

fn invalid(c: u8, context: &str) -> Syntax {
    let shown = match c {
        b'\'' => "\\'".to_owned(),
        b'"' => "\"".to_owned(),
        b'\\' => "\\\\".to_owned(),
        0x07 => "\\a".to_owned(),
        0x08 => "\\b".to_owned(),
        0x09 => "\\t".to_owned(),
        0x0a => "\\n".to_owned(),
        0x0b => "\\v".to_owned(),
        0x0c => "\\f".to_owned(),
        0x0d => "\\r".to_owned(),
        0x00..0x20 | 0x7f => format!("\\x{c:02x}"),
        0x80..0xa0 | 0xad => format!("\\u{:04x}", u32::from(c)),
        _ => char::from(c).to_string(),
    };
    format!("invalid character '{shown}' {context}")
}

impl<'a> Scanner<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Scanner { bytes, pos: 0, depth: 0, closer: depth::ORDINARY }
    }

    fn skip_space(&mut self) {
        while matches!(self.bytes.get(self.pos), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.pos += 1;
        }
    }

    /// The next byte that is no space, not consumed.
    fn peek(&mut self) -> Result<u8, Syntax> {
        self.skip_space();
        self.bytes.get(self.pos).copied().ok_or_else(|| EOF.to_owned())
    }

    /// What stands next, not consumed.
    pub(super) fn token(&mut self) -> Result<Token, Syntax> {
        match self.peek()? {
            b'{' => Ok(Token::Object),
            b'[' => Ok(Token::Array),
            b'"' => Ok(Token::String),
            b'-' | b'0'..=b'9' => Ok(Token::Number),
            b't' | b'f' => Ok(Token::Bool),
            b'n' => Ok(Token::Null),
            c => Err(invalid(c, "looking for beginning of value")),
        }
    }

    /// After the top-level value only space may come.
    pub(super) fn end(&mut self) -> Result<(), Syntax> {
        self.skip_space();
        match self.bytes.get(self.pos) {
            None => Ok(()),
            Some(c) => Err(invalid(*c, "after top-level value")),
        }
    }

    fn enter(&mut self) -> Result<(), Syntax> {
        self.depth += 1;
        if self.depth > self.closer {
            self.closer = depth::beyond_ordinary();
            if self.depth > self.closer {
                return Err(invalid(self.bytes.get(self.pos).copied().unwrap_or(b'{'), super::TOO_DEEP));
            }
        }
        self.pos += 1;
        Ok(())
    }

    fn leave(&mut self) {
        self.depth -= 1;
        self.pos += 1;
    }

    /// Reads an object; `entry` must consume the value of each key.
    pub(super) fn object<E: From<Syntax>>(
        &mut self,
        entry: &mut dyn FnMut(&mut Self, Cow<'a, str>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.enter()?;
        if self.peek()? == b'}' {
            self.leave();
            return Ok(());
        }
        loop {
            match self.peek()? {
                b'"' => {}
                c => return Err(invalid(c, "looking for beginning of object key string").into()),
            }
            let key = self.string()?;
            match self.peek()? {
                b':' => self.pos += 1,
                c => return Err(invalid(c, "after object key").into()),
            }
            entry(self, key)?;
            match self.peek()? {
                b',' => self.pos += 1,
                b'}' => break,
                c => return Err(invalid(c, "after object key:value pair").into()),
            }
        }
        self.leave();
        Ok(())
    }

    /// Reads an array; `element` must consume each value.
    pub(super) fn array<E: From<Syntax>>(
        &mut self,
        element: &mut dyn FnMut(&mut Self, usize) -> Result<(), E>,
    ) -> Result<(), E> {
        self.enter()?;
        if self.peek()? == b']' {
            self.leave();
            return Ok(());
        }
        for i in 0.. {
            element(self, i)?;
            match self.peek()? {
                b',' => self.pos += 1,
                b']' => break,
                c => return Err(invalid(c, "after array element").into()),
            }
        }
        self.leave();
        Ok(())
    }

    /// Reads `true`, `false` or `null`; `None` for null.
    pub(super) fn literal(&mut self) -> Result<Option<bool>, Syntax> {
        let (word, value) = match self.peek()? {
            b't' => ("true", Some(true)),
            b'f' => ("false", Some(false)),
            _ => ("null", None),
        };
        for expected in word.bytes() {
            match self.bytes.get(self.pos) {
                Some(c) if *c == expected => self.pos += 1,
                Some(c) => {
                    return Err(invalid(*c, &format!("in literal {word} (expecting '{}')", char::from(expected))));
                }
                None => return Err(EOF.to_owned()),
            }
        }
        Ok(value)
    }

    fn digits(&mut self, context: &str) -> Result<(), Syntax> {
        let start = self.pos;
        while matches!(self.bytes.get(self.pos), Some(b'0'..=b'9')) {
            self.pos += 1;
        }
        match self.bytes.get(self.pos) {
            _ if self.pos > start => Ok(()),
            Some(c) => Err(invalid(*c, context)),
            None => Err(EOF.to_owned()),
        }
    }

    /// Reads a number and returns its literal.
    pub(super) fn number(&mut self) -> Result<&'a str, Syntax> {
        self.skip_space();
        let start = self.pos;
        if self.bytes.get(self.pos) == Some(&b'-') {
            self.pos += 1;
        }
        if self.bytes.get(self.pos) == Some(&b'0') {
            self.pos += 1;
        } else {
            self.digits("in numeric literal")?;
        }
        if self.bytes.get(self.pos) == Some(&b'.') {
            self.pos += 1;
            self.digits("after decimal point in numeric literal")?;
        }
        if matches!(self.bytes.get(self.pos), Some(b'e' | b'E')) {
            self.pos += 1;
            if matches!(self.bytes.get(self.pos), Some(b'+' | b'-')) {
                self.pos += 1;
            }
            self.digits("in exponent of numeric literal")?;
        }
        Ok(std::str::from_utf8(&self.bytes[start..self.pos]).unwrap_or_default())
    }

    /// Reads a string. Bytes that are not UTF-8 and lone surrogates become U+FFFD, as in Go.
    pub(super) fn string(&mut self) -> Result<Cow<'a, str>, Syntax> {
        self.skip_space();
        self.pos += 1;
        let start = self.pos;
        loop {
            match self.bytes.get(self.pos) {
                None => return Err(EOF.to_owned()),
                Some(b'"') => {
                    let raw = &self.bytes[start..self.pos];
                    self.pos += 1;
                    // Checking alone is several times faster than looking for what is to be replaced, and there is nearly always nothing.
                    return Ok(std::str::from_utf8(raw).map_or_else(|_| String::from_utf8_lossy(raw), Cow::Borrowed));
                }
                Some(b'\\') => return self.escaped(start).map(Cow::Owned),
                Some(c @ 0x00..0x20) => return Err(invalid(*c, "in string literal")),
                Some(_) => self.pos += 1,
            }
        }
    }

    /// The rest of a string that has escapes; `start` is where its text began.
    fn escaped(&mut self, start: usize) -> Result<String, Syntax> {
        let mut out = self.bytes[start..self.pos].to_vec();
        loop {
            match self.bytes.get(self.pos) {
                None => return Err(EOF.to_owned()),
                Some(b'"') => {
                    self.pos += 1;
                    return Ok(match String::from_utf8(out) {
                        Ok(s) => s,
                        Err(e) => String::from_utf8_lossy(e.as_bytes()).into_owned(),
                    });
                }
                Some(b'\\') => {
                    self.pos += 1;
                    let c = self.escape()?;
                    out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                }
                Some(c @ 0x00..0x20) => return Err(invalid(*c, "in string literal")),
                Some(c) => {
                    out.push(*c);
                    self.pos += 1;
                }
            }
        }
    }

    /// What follows a backslash.
    fn escape(&mut self) -> Result<char, Syntax> {
        let c = *self.bytes.get(self.pos).ok_or(EOF)?;
        self.pos += 1;
        Ok(match c {
            b'"' | b'\\' | b'/' => char::from(c),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let first = self.hex4()?;
                if !(0xd800..0xdc00).contains(&first) {
                    return Ok(char::from_u32(first).unwrap_or('\u{fffd}'));
                }
                let mark = self.pos;
                if self.bytes.get(mark..mark + 2) == Some(b"\\u") {
                    self.pos += 2;
                    let second = self.hex4()?;
                    if (0xdc00..0xe000).contains(&second) {
                        let code = 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
                        return Ok(char::from_u32(code).unwrap_or('\u{fffd}'));
                    }
                    self.pos = mark;
                }
                '\u{fffd}'
            }
            c => return Err(invalid(c, "in string escape code")),
        })
    }

    fn hex4(&mut self) -> Result<u32, Syntax> {
        let mut code = 0;
        for _ in 0..4 {
            let c = *self.bytes.get(self.pos).ok_or(EOF)?;
            let digit = char::from(c).to_digit(16).ok_or_else(|| invalid(c, "in \\u hexadecimal character escape"))?;
            code = code * 16 + digit;
            self.pos += 1;
        }
        Ok(code)
    }

    /// Reads any value. Of a key that stands twice the last one wins.
    pub(super) fn value(&mut self) -> Result<Value, Syntax> {
        Ok(match self.token()? {
            Token::Null | Token::Bool => self.literal()?.map_or(Value::Null, Value::Bool),
            Token::String => Value::String(self.string()?.into_owned()),
            Token::Number => number(self.number()?)?,
            Token::Array => {
                let mut items = Vec::new();
                self.array::<Syntax>(&mut |s, _| {
                    items.push(s.value()?);
                    Ok(())
                })?;
                Value::Array(items)
            }
            Token::Object => {
                let mut map = Map::new();
                self.object::<Syntax>(&mut |s, key| {
                    map.insert(key.into_owned(), s.value()?);
                    Ok(())
                })?;
                Value::Object(map)
            }
        })
    }

    /// Reads any value and drops it.
    pub(super) fn skip(&mut self) -> Result<(), Syntax> {
        match self.token()? {
            Token::Null | Token::Bool => self.literal().map(drop),
            Token::String => self.string().map(drop),
            Token::Number => self.number().map(drop),
            Token::Array => self.array(&mut |s, _| s.skip()),
            Token::Object => self.object(&mut |s, _| s.skip()),
        }
    }
}

/// How the complaint about a number begins that no type can hold.
pub(super) const UNFIT: &str = "json: cannot unmarshal number ";

/// A number as `sigs.k8s.io/json` reads it into an untyped place: an integer where the literal is one, else a double.
pub(crate) fn number(literal: &str) -> Result<Value, Syntax> {
    if let Ok(i) = literal.parse::<i64>() {
        return Ok(Value::from(i));
    }
    let float = literal.parse::<f64>().ok().and_then(Number::from_f64);
    float.map(Value::Number).ok_or_else(|| format!("{UNFIT}{literal} into Go value of type float64"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Value, Syntax> {
        let mut s = Scanner::new(text.as_bytes());
        let v = s.value()?;
        s.end()?;
        Ok(v)
    }

    #[test]
    fn syntax_errors_are_those_of_go() {
        for (text, want) in [
            ("", "unexpected end of JSON input"),
            ("{", "unexpected end of JSON input"),
            ("{\"a\":1", "unexpected end of JSON input"),
            ("x", "invalid character 'x' looking for beginning of value"),
            ("[1,]", "invalid character ']' looking for beginning of value"),
            ("{\"a\":1,}", "invalid character '}' looking for beginning of object key string"),
            ("{a:1}", "invalid character 'a' looking for beginning of object key string"),
            ("{\"a\" 1}", "invalid character '1' after object key"),
            ("{\"a\":1 \"b\":2}", "invalid character '\"' after object key:value pair"),
            ("[1 2]", "invalid character '2' after array element"),
            ("{} x", "invalid character 'x' after top-level value"),
            ("\"a\nb\"", "invalid character '\\n' in string literal"),
            ("\"\\x\"", "invalid character 'x' in string escape code"),
            ("\"\\u12g4\"", "invalid character 'g' in \\u hexadecimal character escape"),
            ("trux", "invalid character 'x' in literal true (expecting 'e')"),
            ("-x", "invalid character 'x' in numeric literal"),
            ("1.x", "invalid character 'x' after decimal point in numeric literal"),
            ("1ex", "invalid character 'x' in exponent of numeric literal"),
            ("01", "invalid character '1' after top-level value"),
            ("[-1e400]", "json: cannot unmarshal number -1e400 into Go value of type float64"),
        ] {
            assert_eq!(read(text).unwrap_err(), want, "{text}");
        }
    }

    #[test]
    fn values() {
        let text =
            r#" {"a":[1,-2.5,1e3,9223372036854775808,true,null,"x\n\u00e9\ud83d\ude00\ud800"],"b":{},"b":{"c":"d"}} "#;
        let v = read(text).unwrap();
        assert_eq!(v["a"][0], 1);
        assert_eq!(v["a"][2], 1000.0);
        assert_eq!(v["a"][3], 9223372036854775808f64);
        assert_eq!(v["a"][6], "x\n\u{e9}\u{1f600}\u{fffd}");
        assert_eq!(v["b"]["c"], "d");
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |n| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert_eq!(depth::of(&read(&nested(depth::ORDINARY)).unwrap()), depth::ORDINARY);
        let deep = nested(depth::ORDINARY + 1);
        assert_eq!(read(&deep).unwrap_err(), "invalid character '[' exceeded max depth");
    }
}
