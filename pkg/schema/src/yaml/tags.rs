//! Tokens with names: anchors and aliases, tags, directives.

use super::scan::{Scanned, Scanner, Token, is_blank, is_blankz, is_breakz};

impl Scanner {
    /// The name behind `&` or `*`.
    pub(super) fn name(&mut self) -> Scanned<String> {
        self.skip();
        let name = self.word();
        if name.is_empty() || !(is_blankz(self.char(0)) || "?:,]}%@`".contains(self.char(0))) {
            return self.error("did not find expected alphabetic or numeric character");
        }
        Ok(name)
    }

    fn word(&mut self) -> String {
        let mut word = String::new();
        while is_alpha(self.char(0)) {
            word.push(self.char(0));
            self.skip();
        }
        word
    }

    pub(super) fn tag(&mut self) -> Scanned<Token> {
        let (handle, suffix) = if self.char(1) == '<' {
            self.skip();
            self.skip();
            let uri = self.uri("")?;
            if self.char(0) != '>' {
                return self.error("did not find the expected '>'");
            }
            self.skip();
            (String::new(), uri)
        } else {
            let handle = self.handle(false)?;
            if handle.len() > 1 && handle.ends_with('!') {
                let suffix = self.uri("")?;
                (handle, suffix)
            } else {
                match self.uri(&handle)? {
                    // `!` alone.
                    suffix if suffix.is_empty() => (suffix, "!".to_owned()),
                    suffix => ("!".to_owned(), suffix),
                }
            }
        };
        if !is_blankz(self.char(0)) {
            return self.error("did not find expected whitespace or line break");
        }
        Ok(Token::Tag { handle, suffix })
    }

    /// `!`, `!!` or `!word!`; or what may be the beginning of a tag without one.
    fn handle(&mut self, directive: bool) -> Scanned<String> {
        if self.char(0) != '!' {
            return self.error("did not find expected '!'");
        }
        self.skip();
        let mut handle = format!("!{}", self.word());
        if self.char(0) == '!' {
            handle.push('!');
            self.skip();
        } else if directive && handle != "!" {
            return self.error("did not find expected '!'");
        }
        Ok(handle)
    }

    /// A tag's text, which has begun with `head`.
    fn uri(&mut self, head: &str) -> Scanned<String> {
        let mut uri: Vec<u8> = head.bytes().skip(1).collect();
        let mut found = !head.is_empty();
        while is_alpha(self.char(0)) || ";/?:@&=+$,.!~*'()[]%".contains(self.char(0)) {
            if self.char(0) == '%' {
                self.escaped(&mut uri)?;
            } else {
                uri.extend(self.char(0).to_string().bytes());
                self.skip();
            }
            found = true;
        }
        if !found {
            return self.error("did not find expected tag URI");
        }
        Ok(String::from_utf8_lossy(&uri).into_owned())
    }

    /// The octets of one character, `%C3%A9`.
    fn escaped(&mut self, out: &mut Vec<u8>) -> Scanned {
        let mut left: Option<usize> = None;
        while left != Some(0) {
            let digits =
                (self.char(0) == '%').then(|| self.char(1).to_digit(16).zip(self.char(2).to_digit(16))).flatten();
            let Some((high, low)) = digits else { return self.error("did not find URI escaped octet") };
            let octet = (high * 16 + low) as u8;
            let width = match (left, octet) {
                (None, 0..=0x7f) => 1,
                (None, 0xc0..=0xdf) => 2,
                (None, 0xe0..=0xef) => 3,
                (None, 0xf0..=0xf7) => 4,
                (None, _) => return self.error("found an incorrect leading UTF-8 octet"),
                (Some(left), 0x80..=0xbf) => left,
                (Some(_), _) => return self.error("found an incorrect trailing UTF-8 octet"),
            };
            out.push(octet);
            (0..3).for_each(|_| self.skip());
            left = Some(width - 1);
        }
        Ok(())
    }

    pub(super) fn directive(&mut self) -> Scanned<Token> {
        self.skip();
        let name = self.word();
        if name.is_empty() {
            return self.error("could not find expected directive name");
        }
        if !is_blankz(self.char(0)) {
            return self.error("found unexpected non-alphabetical character");
        }
        let token = match &*name {
            "YAML" => self.version()?,
            "TAG" => self.tag_directive()?,
            _ => return self.error("found unknown directive name"),
        };
        self.skip_blanks();
        self.skip_comment();
        if !is_breakz(self.char(0)) {
            return self.error("did not find expected comment or line break");
        }
        self.skip_line();
        Ok(token)
    }

    fn version(&mut self) -> Scanned<Token> {
        self.skip_blanks();
        let major = self.version_number()?;
        if self.char(0) != '.' {
            return self.error("did not find expected digit or '.' character");
        }
        self.skip();
        Ok(Token::Version(major, self.version_number()?))
    }

    fn version_number(&mut self) -> Scanned<u32> {
        let (mut number, mut length) = (0, 0);
        while let Some(digit) = self.char(0).to_digit(10) {
            length += 1;
            if length > 2 {
                return self.error("found extremely long version number");
            }
            number = number * 10 + digit;
            self.skip();
        }
        match length {
            0 => self.error("did not find expected version number"),
            _ => Ok(number),
        }
    }

    fn tag_directive(&mut self) -> Scanned<Token> {
        self.skip_blanks();
        let handle = self.handle(true)?;
        if !is_blank(self.char(0)) {
            return self.error("did not find expected whitespace");
        }
        self.skip_blanks();
        let prefix = self.uri("")?;
        if !is_blankz(self.char(0)) {
            return self.error("did not find expected whitespace or line break");
        }
        Ok(Token::TagDirective { handle, prefix })
    }
}

fn is_alpha(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-')
}
