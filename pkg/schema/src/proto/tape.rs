//! JSON text laid out by its schema: for each object the places of its fields' values, for each list the places of its
//! elements. Nothing is copied; scalars stay where they are in the text.
//!
//! The text comes from [`crate::json::encode`] or has been read as JSON before. What is no JSON gives some tape or none, and
//! never a panic. Invariant: `null` fields are as absent ones.

use super::layout::Layout;
use crate::json::depth;
use crate::types::Node;

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Null,
    False,
    True,
    Number,
    /// A string as it stands between its quotes.
    Text,
    /// A string with escapes in it.
    Escaped,
    /// Any JSON, of types that keep it.
    Raw,
    /// `start` is where its slots begin.
    Object,
    /// `start` is its last element.
    List,
    /// `start` is its last key, `end` is 0 where the keys ascend.
    Map,
    /// A list or an object where the schema has none.
    Other,
}

/// A value. Its offsets are those of the text unless [`What`] says otherwise.
#[derive(Clone, Copy, Debug)]
pub(super) struct Token {
    pub(super) what: What,
    pub(super) start: u32,
    pub(super) end: u32,
    /// The element or key in front of this one; 0 is none. The value of a key is the token behind it.
    pub(super) before: u32,
}

impl Token {
    pub(super) const NULL: Token = Token { what: What::Null, start: 0, end: 0, before: 0 };

    fn new(what: What, start: usize, end: usize) -> Self {
        // `Tape::read` takes no longer text.
        Token { what, start: start as u32, end: end as u32, before: 0 }
    }
}

/// See the module. One can be used again and again.
#[derive(Debug, Default)]
pub(super) struct Tape {
    tokens: Vec<Token>,
    /// Tokens of objects' fields, by slot of the layout; 0 is none.
    slots: Vec<u32>,
    /// Some of the last long texts of [`What::Raw`].
    known: [Vec<u8>; KNOWN],
    learned: usize,
}

/// How many texts are known, and how long a text is for that to pay.
const KNOWN: usize = 4;
const LONG: usize = 64;

impl Tape {
    /// Reads an object. `None`: this is no JSON.
    pub(super) fn read(&mut self, json: &[u8], layout: &Layout) -> Option<Token> {
        u32::try_from(json.len()).ok()?;
        self.tokens.clear();
        self.slots.clear();
        self.tokens.push(Token::NULL);
        let mut reader = Reader { json, at: 0, depth: 0, tape: self };
        if reader.peek()? == b'{' { reader.object(layout) } else { Some(Token::NULL) }
    }

    pub(super) fn token(&self, index: u32) -> Token {
        self.tokens.get(index as usize).copied().unwrap_or(Token::NULL)
    }

    /// The fields of an object's token.
    pub(super) fn slots(&self, object: Token, layout: &Layout) -> &[u32] {
        let start = object.start as usize;
        self.slots.get(start..start + layout.nodes.len()).unwrap_or_default()
    }
}

struct Reader<'a> {
    json: &'a [u8],
    at: usize,
    depth: usize,
    tape: &'a mut Tape,
}

impl Reader<'_> {
    /// The next byte that is no space, not consumed.
    fn peek(&mut self) -> Option<u8> {
        loop {
            match *self.json.get(self.at)? {
                b' ' | b'\t' | b'\r' | b'\n' => self.at += 1,
                c => return Some(c),
            }
        }
    }

    fn expect(&mut self, wanted: u8) -> Option<()> {
        let found = self.peek()? == wanted;
        self.at += 1;
        found.then_some(())
    }

    fn enter(&mut self) -> Option<()> {
        self.at += 1;
        self.depth += 1;
        (self.depth <= depth::ORDINARY || self.depth <= depth::limit()).then_some(())
    }

    /// Behind an element: whether there is another one. `close` ends them all.
    fn more(&mut self, close: u8) -> Option<bool> {
        let c = self.peek()?;
        self.at += 1;
        match c {
            b',' => Some(true),
            c if c == close => {
                self.depth -= 1;
                Some(false)
            }
            _ => None,
        }
    }

    /// Whether there is nothing between the brackets.
    fn is_empty(&mut self, close: u8) -> Option<bool> {
        let empty = self.peek()? == close;
        if empty {
            self.at += 1;
            self.depth -= 1;
        }
        Some(empty)
    }

    /// Reads a value; returns its token's index.
    fn value(&mut self, node: &Node) -> Option<u32> {
        let index = self.tape.tokens.len();
        self.tape.tokens.push(Token::NULL);
        let token = match (node, self.peek()?) {
            (_, b'n') => {
                self.scalar(What::Null);
                Token::NULL
            }
            (Node::Any | Node::FieldsV1, _) => self.raw()?,
            (_, b'"') => self.string()?,
            (_, b't') => self.scalar(What::True),
            (_, b'f') => self.scalar(What::False),
            (Node::Object(o) | Node::SchemaOrBool(o) | Node::SchemaOrArray(o) | Node::SchemaOrStringArray(o), b'{') => {
                self.object(Layout::of(o.get()))?
            }
            (Node::List(list), b'[') => self.list(&list.item)?,
            (Node::SchemaOrArray(o), b'[') => self.list(&Node::Object(o.clone()))?,
            (Node::SchemaOrStringArray(_), b'[') => self.list(&Node::String)?,
            (Node::Map(map), b'{') => self.map(&map.value)?,
            (_, b'{' | b'[') => {
                self.skip()?;
                Token::new(What::Other, 0, 0)
            }
            _ => self.scalar(What::Number),
        };
        self.tape.tokens[index] = token;
        Some(index as u32)
    }

    fn object(&mut self, layout: &Layout) -> Option<Token> {
        self.enter()?;
        let start = self.tape.slots.len();
        self.tape.slots.resize(start + layout.nodes.len(), 0);
        let object = Token::new(What::Object, start, 0);
        if self.is_empty(b'}')? {
            return Some(object);
        }
        loop {
            let slot = self.name(layout)?;
            match slot {
                None => self.skip()?,
                Some(slot) => {
                    let index = if self.peek()? == b'n' {
                        self.scalar(What::Null);
                        0
                    } else {
                        self.value(&layout.nodes[slot])?
                    };
                    self.tape.slots[start + slot] = index;
                }
            }
            if !self.more(b'}')? {
                return Some(object);
            }
        }
    }

    /// Reads a key and its colon; returns the slot that it names.
    fn name(&mut self, layout: &Layout) -> Option<Option<usize>> {
        let key = self.string()?;
        self.expect(b':')?;
        let slot = match key.what {
            What::Text => layout.names.slot(&self.json[key.start as usize..key.end as usize]),
            _ => layout.names.slot(unescaped(self.json, key).as_bytes()),
        };
        Some(slot)
    }

    fn list(&mut self, item: &Node) -> Option<Token> {
        self.enter()?;
        let mut last = 0;
        if !self.is_empty(b']')? {
            loop {
                let index = self.value(item)?;
                self.tape.tokens[index as usize].before = last;
                last = index;
                if !self.more(b']')? {
                    break;
                }
            }
        }
        Some(Token { what: What::List, start: last, end: 0, before: 0 })
    }

    fn map(&mut self, value: &Node) -> Option<Token> {
        self.enter()?;
        let (mut last, mut ascending) = (Token::NULL, true);
        let mut last_index = 0;
        if !self.is_empty(b'}')? {
            loop {
                let index = self.tape.tokens.len() as u32;
                self.peek()?;
                let key = Token { before: last_index, ..self.string()? };
                self.tape.tokens.push(key);
                self.expect(b':')?;
                self.value(value)?;
                ascending &= last_index == 0 || self.ascends(last, key);
                (last, last_index) = (key, index);
                if !self.more(b'}')? {
                    break;
                }
            }
        }
        Some(Token { what: What::Map, start: last_index, end: u32::from(!ascending), before: 0 })
    }

    /// Whether two keys are certainly in order.
    fn ascends(&self, a: Token, b: Token) -> bool {
        let text = |t: Token| &self.json[t.start as usize..t.end as usize];
        a.what == What::Text && b.what == What::Text && text(a) < text(b)
    }

    fn string(&mut self) -> Option<Token> {
        if self.peek()? != b'"' {
            return None;
        }
        let start = self.at + 1;
        let (end, escaped) = string_end(self.json, start)?;
        self.at = end + 1;
        Some(Token::new(if escaped { What::Escaped } else { What::Text }, start, end))
    }

    /// A value that is kept as it is. Objects of one controller have the same managed fields as a rule, and what begins with
    /// the text of a whole object is that object: it is not looked through again.
    fn raw(&mut self) -> Option<Token> {
        let start = self.at;
        let rest = self.json.get(start..)?;
        if let Some(known) = self.tape.known.iter().find(|known| !known.is_empty() && rest.starts_with(known)) {
            self.at += known.len();
            return Some(Token::new(What::Raw, start, self.at));
        }
        self.skip()?;
        let text = self.json.get(start..self.at)?;
        if text.len() >= LONG && text.starts_with(b"{") {
            let place = &mut self.tape.known[self.tape.learned % KNOWN];
            place.clear();
            place.extend_from_slice(text);
            self.tape.learned = self.tape.learned.wrapping_add(1);
        }
        Some(Token::new(What::Raw, start, self.at))
    }

    /// A number or a word.
    fn scalar(&mut self, what: What) -> Token {
        let start = self.at;
        while self.json.get(self.at).is_some_and(|c| !matches!(c, b',' | b']' | b'}' | b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
        Token::new(what, start, self.at)
    }

    /// Any value, by its quotes and brackets alone.
    fn skip(&mut self) -> Option<()> {
        match self.peek()? {
            b'"' => {
                self.string()?;
            }
            b'{' | b'[' => {
                let mut open = 0usize;
                loop {
                    match *self.json.get(self.at)? {
                        b'"' => {
                            self.at = string_end(self.json, self.at + 1)?.0 + 1;
                            continue;
                        }
                        b'{' | b'[' => open += 1,
                        b'}' | b']' => open -= 1,
                        _ => {}
                    }
                    self.at += 1;
                    if open == 0 {
                        break;
                    }
                }
            }
            _ => {
                self.scalar(What::Number);
            }
        }
        Some(())
    }
}

/// The text of a string's token, which includes its quotes: Go's rules for what is no character.
pub(super) fn unescaped(json: &[u8], token: Token) -> String {
    let quoted = json.get((token.start as usize).saturating_sub(1)..=token.end as usize).unwrap_or_default();
    crate::json::string(quoted)
}

/// The place of the quote that ends the string whose text begins at `at`, and whether there are escapes in it.
fn string_end(json: &[u8], mut at: usize) -> Option<(usize, bool)> {
    let mut escaped = false;
    loop {
        // Eight bytes at a time as long as there is neither quote nor backslash in them.
        while let Some(eight) = json.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
            let word = u64::from_le_bytes(*eight);
            let found = zero_bytes(word ^ QUOTES) | zero_bytes(word ^ BACKSLASHES);
            if found != 0 {
                at += found.trailing_zeros() as usize / 8;
                break;
            }
            at += 8;
        }
        match *json.get(at)? {
            b'"' => return Some((at, escaped)),
            b'\\' => {
                escaped = true;
                at += 2;
            }
            _ => at += 1,
        }
    }
}

const ONES: u64 = u64::from_le_bytes([1; 8]);
const HIGH: u64 = u64::from_le_bytes([0x80; 8]);
const QUOTES: u64 = u64::from_le_bytes([b'"'; 8]);
const BACKSLASHES: u64 = u64::from_le_bytes([b'\\'; 8]);

/// The high bit of each byte that is zero; those above the lowest one may be wrong.
fn zero_bytes(word: u64) -> u64 {
    word.wrapping_sub(ONES) & !word & HIGH
}
