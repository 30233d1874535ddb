//! Tokens that are text: in block style, in quotes, and plain. How lines are folded into one is what they have in common.

use super::scan::{Scanned, Scanner, Token, is_blank, is_blankz, is_break, is_breakz};

/// White space that may turn out to stand between words: blanks, or line breaks of which one alone becomes a blank.
#[derive(Default)]
struct Space {
    blanks: String,
    first_break: Option<char>,
    breaks: String,
}

impl Space {
    fn is_folded(&self) -> bool {
        self.first_break.is_some()
    }

    fn is_empty(&self) -> bool {
        self.blanks.is_empty() && !self.is_folded()
    }

    fn add_break(&mut self, c: char) {
        self.blanks.clear();
        match self.first_break {
            None => self.first_break = Some(c),
            Some(_) => self.breaks.push(c),
        }
    }

    fn write(&mut self, out: &mut String) {
        match self.first_break.take() {
            None => out.push_str(&self.blanks),
            Some('\n') if self.breaks.is_empty() => out.push(' '),
            Some('\n') => out.push_str(&self.breaks),
            Some(other) => {
                out.push(other);
                out.push_str(&self.breaks);
            }
        }
        self.blanks.clear();
        self.breaks.clear();
    }
}

/// What becomes of the line breaks at the end of a block.
#[derive(Clone, Copy, PartialEq)]
enum Chomping {
    Strip,
    Clip,
    Keep,
}

impl Scanner {
    /// Indicators behind `|` or `>`: how to end, and how far the text is indented, if that is told.
    fn block_header(&mut self) -> Scanned<(Chomping, usize)> {
        let (mut chomping, mut increment) = (None, None);
        loop {
            match self.char(0) {
                '+' if chomping.is_none() => chomping = Some(Chomping::Keep),
                '-' if chomping.is_none() => chomping = Some(Chomping::Strip),
                '0' if increment.is_none() => return self.error("found an indentation indicator equal to 0"),
                c @ '1'..='9' if increment.is_none() => increment = c.to_digit(10),
                _ => break,
            }
            self.skip();
        }
        self.skip_blanks();
        self.skip_comment();
        if !is_breakz(self.char(0)) {
            return self.error("did not find expected comment or line break");
        }
        self.skip_line();
        Ok((chomping.unwrap_or(Chomping::Clip), increment.unwrap_or_default() as usize))
    }

    pub(super) fn block_scalar(&mut self, literal: bool) -> Scanned<Token> {
        self.skip();
        let (chomping, increment) = self.block_header()?;
        let mut indent = match increment {
            0 => 0,
            more => self.indent.max(0) as usize + more,
        };
        let (mut text, mut breaks) = (String::new(), String::new());
        let mut line_break: Option<char> = None;
        let mut after_blank = false;
        self.block_breaks(&mut indent, &mut breaks)?;
        while self.at.column == indent && self.char(0) != '\0' {
            let blank = is_blank(self.char(0));
            match line_break.take() {
                Some('\n') if !literal && !after_blank && !blank => {
                    if breaks.is_empty() {
                        text.push(' ');
                    }
                }
                other => text.extend(other),
            }
            text.push_str(&std::mem::take(&mut breaks));
            after_blank = blank;
            while !is_breakz(self.char(0)) {
                text.push(self.char(0));
                self.skip();
            }
            line_break = self.skip_line();
            self.block_breaks(&mut indent, &mut breaks)?;
        }
        if chomping != Chomping::Strip {
            text.extend(line_break);
        }
        if chomping == Chomping::Keep {
            text.push_str(&breaks);
        }
        Ok(Token::Scalar { text, plain: false })
    }

    /// Indentation and empty lines. How far the text is indented follows from the first line, or the widest empty one before it.
    fn block_breaks(&mut self, indent: &mut usize, breaks: &mut String) -> Scanned {
        let mut widest = 0;
        loop {
            let within = |at: usize| *indent == 0 || at < *indent;
            while self.char(0) == ' ' && within(self.at.column) {
                self.skip();
            }
            widest = widest.max(self.at.column);
            if self.char(0) == '\t' && within(self.at.column) {
                return self.error("found a tab character where an indentation space is expected");
            }
            match self.skip_line() {
                Some(c) => breaks.push(c),
                None => break,
            }
        }
        if *indent == 0 {
            *indent = widest.max((self.indent + 1).max(1) as usize);
        }
        Ok(())
    }

    pub(super) fn quoted(&mut self, quote: char) -> Scanned<Token> {
        self.skip();
        let mut text = String::new();
        loop {
            if self.document_indicator().is_some() {
                return self.error("found unexpected document indicator");
            }
            if self.char(0) == '\0' {
                return self.error("found unexpected end of stream");
            }
            let joined = self.quoted_word(quote, &mut text)?;
            if self.char(0) == quote {
                self.skip();
                return Ok(Token::Scalar { text, plain: false });
            }
            self.quoted_space(joined, &mut text);
        }
    }

    /// Reads up to white space or the end. An escaped line break joins two lines: then it is true.
    fn quoted_word(&mut self, quote: char, text: &mut String) -> Scanned<bool> {
        loop {
            match (self.char(0), self.char(1)) {
                (c, _) if is_blankz(c) => return Ok(false),
                ('\'', '\'') if quote == '\'' => {
                    text.push('\'');
                    self.skip();
                    self.skip();
                }
                (c, _) if c == quote => return Ok(false),
                ('\\', next) if quote == '"' => {
                    if is_break(next) {
                        self.skip();
                        self.skip_line();
                        return Ok(true);
                    }
                    text.push(self.escape(next)?);
                }
                (c, _) => {
                    text.push(c);
                    self.skip();
                }
            }
        }
    }

    fn quoted_space(&mut self, joined: bool, text: &mut String) {
        let mut space = Space::default();
        loop {
            let c = self.char(0);
            if is_blank(c) {
                if !joined && !space.is_folded() {
                    space.blanks.push(c);
                }
                self.skip();
            } else if let Some(c) = self.skip_line() {
                // Behind a joint every line break counts.
                if joined { space.breaks.push(c) } else { space.add_break(c) }
            } else {
                break;
            }
        }
        if joined { text.push_str(&space.breaks) } else { space.write(text) }
    }

    fn escape(&mut self, code: char) -> Scanned<char> {
        let (digits, c) = match code {
            '0' => (0, '\0'),
            'a' => (0, '\x07'),
            'b' => (0, '\x08'),
            't' | '\t' => (0, '\t'),
            'n' => (0, '\n'),
            'v' => (0, '\x0b'),
            'f' => (0, '\x0c'),
            'r' => (0, '\r'),
            'e' => (0, '\x1b'),
            ' ' | '"' | '\'' | '\\' => (0, code),
            'N' => (0, '\u{85}'),
            '_' => (0, '\u{a0}'),
            'L' => (0, '\u{2028}'),
            'P' => (0, '\u{2029}'),
            'x' => (2, '\0'),
            'u' => (4, '\0'),
            'U' => (8, '\0'),
            _ => return self.error("found unknown escape character"),
        };
        self.skip();
        self.skip();
        if digits == 0 {
            return Ok(c);
        }
        let mut value = 0u64;
        for i in 0..digits {
            let Some(digit) = self.char(i).to_digit(16) else {
                return self.error("did not find expected hexdecimal number");
            };
            value = value << 4 | u64::from(digit);
        }
        let Some(c) = u32::try_from(value).ok().and_then(char::from_u32) else {
            return self.error("found invalid Unicode character escape code");
        };
        (0..digits).for_each(|_| self.skip());
        Ok(c)
    }

    pub(super) fn plain(&mut self) -> Scanned<Token> {
        let indent = self.indent + 1;
        let (mut text, mut space) = (String::new(), Space::default());
        loop {
            if self.document_indicator().is_some() || self.char(0) == '#' {
                break;
            }
            while !is_blankz(self.char(0)) && !self.ends_plain() {
                if !space.is_empty() {
                    space.write(&mut text);
                }
                text.push(self.char(0));
                self.skip();
            }
            if !is_blank(self.char(0)) && !is_break(self.char(0)) {
                break;
            }
            self.plain_space(indent, &mut space)?;
            if !self.flow() && (self.at.column as isize) < indent {
                break;
            }
        }
        if space.is_folded() {
            self.key_allowed = true;
        }
        Ok(Token::Scalar { text, plain: true })
    }

    fn ends_plain(&self) -> bool {
        match self.char(0) {
            ':' => is_blankz(self.char(1)),
            ',' | '?' | '[' | ']' | '{' | '}' => self.flow(),
            _ => false,
        }
    }

    fn plain_space(&mut self, indent: isize, space: &mut Space) -> Scanned {
        loop {
            let c = self.char(0);
            if is_blank(c) {
                if space.is_folded() {
                    if c == '\t' && (self.at.column as isize) < indent {
                        return self.error("found a tab character that violates indentation");
                    }
                } else {
                    space.blanks.push(c);
                }
                self.skip();
            } else if let Some(c) = self.skip_line() {
                space.add_break(c);
            } else {
                return Ok(());
            }
        }
    }
}
