//! A text's tokens: indentation becomes brackets, and what turns out to be a key gets its token put in front of it.
//!
//! A key is known by the colon behind it, which must come on the same line and within a thousand characters: so many
//! characters is the scanner ahead at most.

use super::YamlError;
use std::collections::{HashMap, VecDeque};

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    StreamEnd,
    Version(u32, u32),
    TagDirective { handle: String, prefix: String },
    DocumentStart,
    DocumentEnd,
    BlockSequenceStart,
    BlockMappingStart,
    BlockEnd,
    FlowSequenceStart,
    FlowSequenceEnd,
    FlowMappingStart,
    FlowMappingEnd,
    BlockEntry,
    FlowEntry,
    Key,
    Value,
    Alias(String),
    Anchor(String),
    Tag { handle: String, suffix: String },
    Scalar { text: String, plain: bool },
}

/// A token and the line that it begins on, counted from zero.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    pub token: Token,
    pub line: u64,
}

#[derive(Clone, Copy, Default)]
pub(super) struct Mark {
    pub index: usize,
    pub line: u64,
    pub column: usize,
}

/// Where a key may have begun: at most one between two brackets.
#[derive(Clone, Copy, Default)]
struct Candidate {
    possible: bool,
    /// It can be nothing else.
    required: bool,
    token: usize,
    at: Mark,
}

/// How far behind its beginning the colon of a key may be.
const KEY_LENGTH: usize = 1024;

pub(super) struct Scanner {
    pub(super) text: Vec<char>,
    pub(super) at: Mark,
    tokens: VecDeque<Placed>,
    /// How many tokens were taken.
    taken: usize,
    /// The column of the collection that is open, -1 outside of all.
    pub(super) indent: isize,
    indents: Vec<isize>,
    /// A candidate for each bracket that is open, and one outside of all; and where in here those of tokens are.
    candidates: Vec<Candidate>,
    levels: HashMap<usize, usize>,
    pub(super) key_allowed: bool,
    ended: bool,
    limit: usize,
}

pub(super) type Scanned<T = ()> = Result<T, YamlError>;

impl Scanner {
    pub(super) fn new(text: &str, limit: usize) -> Self {
        Scanner {
            text: text.chars().collect(),
            at: Mark::default(),
            tokens: VecDeque::new(),
            taken: 0,
            indent: -1,
            indents: Vec::new(),
            candidates: vec![Candidate::default()],
            levels: HashMap::new(),
            key_allowed: true,
            ended: false,
            limit,
        }
    }

    /// The next token. Behind the end of the stream there is nothing but it.
    pub(super) fn peek(&mut self) -> Scanned<&Placed> {
        while self.tokens.is_empty() || self.may_become_key()? {
            if self.ended {
                break;
            }
            self.fetch()?;
        }
        if self.tokens.is_empty() {
            self.push(Token::StreamEnd);
        }
        Ok(&self.tokens[0])
    }

    pub(super) fn take(&mut self) -> Scanned<Placed> {
        let placed = self.peek()?.clone();
        self.tokens.pop_front();
        self.taken += 1;
        Ok(placed)
    }

    /// Drops the token that was looked at.
    pub(super) fn skip_token(&mut self) {
        self.tokens.pop_front();
        self.taken += 1;
    }

    /// Whether a key's token may yet come in front of the next one.
    fn may_become_key(&mut self) -> Scanned<bool> {
        match self.levels.get(&self.taken).copied() {
            Some(level) => self.is_valid(level),
            None => Ok(false),
        }
    }

    pub(super) fn char(&self, ahead: usize) -> char {
        self.text.get(self.at.index + ahead).copied().unwrap_or('\0')
    }

    pub(super) fn skip(&mut self) {
        self.at.index += 1;
        self.at.column += 1;
    }

    /// Skips a line break, and says what stands for it in text.
    pub(super) fn skip_line(&mut self) -> Option<char> {
        let (length, means) = match (self.char(0), self.char(1)) {
            ('\r', '\n') => (2, '\n'),
            ('\r' | '\n' | '\u{85}', _) => (1, '\n'),
            (c @ ('\u{2028}' | '\u{2029}'), _) => (1, c),
            _ => return None,
        };
        self.at = Mark { index: self.at.index + length, line: self.at.line + 1, column: 0 };
        Some(means)
    }

    pub(super) fn skip_blanks(&mut self) {
        while is_blank(self.char(0)) {
            self.skip();
        }
    }

    /// Skips a comment to the end of its line.
    pub(super) fn skip_comment(&mut self) {
        if self.char(0) == '#' {
            while !is_breakz(self.char(0)) {
                self.skip();
            }
        }
    }

    pub(super) fn error<T>(&self, problem: &str) -> Scanned<T> {
        let line = if self.at.line > 0 { self.at.line + 1 } else { 0 };
        Err(YamlError::at(line, problem))
    }

    fn push(&mut self, token: Token) {
        let line = self.at.line;
        self.tokens.push_back(Placed { token, line });
    }

    pub(super) fn flow(&self) -> bool {
        self.candidates.len() > 1
    }

    fn fetch(&mut self) -> Scanned {
        self.skip_to_token();
        self.unroll(self.at.column as isize);
        let (first, blank_next) = (self.char(0), is_blankz(self.char(1)));
        if first == '\0' {
            return self.end();
        }
        if self.at.column == 0 && first == '%' {
            self.unroll(-1);
            self.remove_candidate()?;
            self.key_allowed = false;
            let line = self.at.line;
            let token = self.directive()?;
            self.tokens.push_back(Placed { token, line });
            return Ok(());
        }
        if let Some(token) = self.document_indicator() {
            self.unroll(-1);
            self.remove_candidate()?;
            self.key_allowed = false;
            return self.indicator(token, 3);
        }
        match first {
            '[' => self.open(Token::FlowSequenceStart),
            '{' => self.open(Token::FlowMappingStart),
            ']' => self.close(Token::FlowSequenceEnd),
            '}' => self.close(Token::FlowMappingEnd),
            ',' => {
                self.remove_candidate()?;
                self.key_allowed = true;
                self.indicator(Token::FlowEntry, 1)
            }
            '-' if blank_next => self.block_entry(),
            '?' if self.flow() || blank_next => self.key(),
            ':' if self.flow() || blank_next => self.value(),
            '*' => self.scan_key(|s| s.name().map(Token::Alias)),
            '&' => self.scan_key(|s| s.name().map(Token::Anchor)),
            '!' => self.scan_key(Scanner::tag),
            '|' | '>' if !self.flow() => {
                self.remove_candidate()?;
                self.key_allowed = true;
                self.scan(|s| s.block_scalar(first == '|'))
            }
            '\'' | '"' => self.scan_key(|s| s.quoted(first)),
            _ if self.starts_plain(first) => self.scan_key(Scanner::plain),
            _ => self.error("found character that cannot start any token"),
        }
    }

    fn starts_plain(&self, first: char) -> bool {
        let next = self.char(1);
        match first {
            '-' => !is_blank(next),
            '?' | ':' => !self.flow() && !is_blankz(next),
            _ => !is_blankz(first) && !",[]{}#&*!|>'\"%@`".contains(first),
        }
    }

    fn scan(&mut self, scan: impl FnOnce(&mut Self) -> Scanned<Token>) -> Scanned {
        let line = self.at.line;
        let token = scan(self)?;
        self.tokens.push_back(Placed { token, line });
        Ok(())
    }

    /// Scans what may be a key.
    fn scan_key(&mut self, scan: impl FnOnce(&mut Self) -> Scanned<Token>) -> Scanned {
        self.save_candidate()?;
        self.key_allowed = false;
        self.scan(scan)
    }

    fn indicator(&mut self, token: Token, length: usize) -> Scanned {
        self.push(token);
        (0..length).for_each(|_| self.skip());
        Ok(())
    }

    fn skip_to_token(&mut self) {
        loop {
            if self.at.index == 0 && self.char(0) == '\u{feff}' {
                self.skip();
            }
            while self.char(0) == ' ' || (self.char(0) == '\t' && (self.flow() || !self.key_allowed)) {
                self.skip();
            }
            self.skip_comment();
            if self.skip_line().is_none() {
                return;
            }
            if !self.flow() {
                self.key_allowed = true;
            }
        }
    }

    /// `---` or `...` at the beginning of a line.
    pub(super) fn document_indicator(&self) -> Option<Token> {
        let three = |c: char| (0..3).all(|i| self.char(i) == c);
        if self.at.column > 0 || !is_blankz(self.char(3)) {
            return None;
        }
        if three('-') {
            return Some(Token::DocumentStart);
        }
        three('.').then_some(Token::DocumentEnd)
    }

    fn end(&mut self) -> Scanned {
        if self.at.column > 0 {
            self.at.column = 0;
            self.at.line += 1;
        }
        self.unroll(-1);
        self.remove_candidate()?;
        self.key_allowed = false;
        self.ended = true;
        self.push(Token::StreamEnd);
        Ok(())
    }

    fn open(&mut self, token: Token) -> Scanned {
        self.save_candidate()?;
        self.candidates.push(Candidate { token: self.taken + self.tokens.len(), ..Candidate::default() });
        if self.candidates.len() - 1 > self.limit {
            return self.error(&format!("exceeded max depth of {}", self.limit));
        }
        self.key_allowed = true;
        self.indicator(token, 1)
    }

    fn close(&mut self, token: Token) -> Scanned {
        self.remove_candidate()?;
        if self.flow()
            && let Some(last) = self.candidates.pop()
        {
            // Upstream's library does so even if that is the token of the bracket: what is empty is no key then.
            self.levels.remove(&last.token);
        }
        self.key_allowed = false;
        self.indicator(token, 1)
    }

    fn block_entry(&mut self) -> Scanned {
        if !self.flow() {
            if !self.key_allowed {
                return self.error("block sequence entries are not allowed in this context");
            }
            self.roll(self.at, None, Token::BlockSequenceStart)?;
        }
        self.remove_candidate()?;
        self.key_allowed = true;
        self.indicator(Token::BlockEntry, 1)
    }

    fn key(&mut self) -> Scanned {
        if !self.flow() {
            if !self.key_allowed {
                return self.error("mapping keys are not allowed in this context");
            }
            self.roll(self.at, None, Token::BlockMappingStart)?;
        }
        self.remove_candidate()?;
        self.key_allowed = !self.flow();
        self.indicator(Token::Key, 1)
    }

    fn value(&mut self) -> Scanned {
        let level = self.candidates.len() - 1;
        let valid = self.is_valid(level)?;
        let key = self.candidates[level];
        if valid {
            // What was taken already can get no token in front of it; it does in upstream's library behind it.
            let place = key.token.checked_sub(self.taken);
            self.tokens.insert(place.unwrap_or(self.tokens.len()), Placed { token: Token::Key, line: key.at.line });
            self.roll(key.at, place, Token::BlockMappingStart)?;
            self.forget(level);
            self.key_allowed = false;
        } else {
            if !self.flow() {
                if !self.key_allowed {
                    return self.error("mapping values are not allowed in this context");
                }
                self.roll(self.at, None, Token::BlockMappingStart)?;
            }
            self.key_allowed = !self.flow();
        }
        self.indicator(Token::Value, 1)
    }

    /// Opens a collection in block style, if none is open at this column.
    fn roll(&mut self, at: Mark, place: Option<usize>, token: Token) -> Scanned {
        let column = at.column as isize;
        if self.flow() || self.indent >= column {
            return Ok(());
        }
        self.indents.push(self.indent);
        self.indent = column;
        if self.indents.len() > self.limit {
            return self.error(&format!("exceeded max depth of {}", self.limit));
        }
        self.tokens.insert(place.unwrap_or(self.tokens.len()), Placed { token, line: at.line });
        Ok(())
    }

    /// Closes the collections in block style that are further in.
    fn unroll(&mut self, column: isize) {
        if self.flow() {
            return;
        }
        while self.indent > column {
            self.push(Token::BlockEnd);
            self.indent = self.indents.pop().unwrap_or(-1);
        }
    }

    fn is_valid(&mut self, level: usize) -> Scanned<bool> {
        let key = self.candidates[level];
        if !key.possible {
            return Ok(false);
        }
        if key.at.line == self.at.line && key.at.index + KEY_LENGTH >= self.at.index {
            return Ok(true);
        }
        if key.required {
            return self.error("could not find expected ':'");
        }
        self.forget(level);
        Ok(false)
    }

    fn forget(&mut self, level: usize) {
        let key = &mut self.candidates[level];
        if std::mem::take(&mut key.possible) {
            self.levels.remove(&key.token);
        }
    }

    fn save_candidate(&mut self) -> Scanned {
        if !self.key_allowed {
            return Ok(());
        }
        self.remove_candidate()?;
        let token = self.taken + self.tokens.len();
        let required = !self.flow() && self.indent == self.at.column as isize;
        let level = self.candidates.len() - 1;
        self.candidates[level] = Candidate { possible: true, required, token, at: self.at };
        self.levels.insert(token, level);
        Ok(())
    }

    fn remove_candidate(&mut self) -> Scanned {
        let level = self.candidates.len() - 1;
        if self.candidates[level].possible && self.candidates[level].required {
            return self.error("could not find expected ':'");
        }
        self.forget(level);
        Ok(())
    }
}

pub(super) fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t')
}

pub(super) fn is_break(c: char) -> bool {
    matches!(c, '\r' | '\n' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

pub(super) fn is_breakz(c: char) -> bool {
    c == '\0' || is_break(c)
}

pub(super) fn is_blankz(c: char) -> bool {
    is_blank(c) || is_breakz(c)
}
