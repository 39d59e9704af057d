//! The tokens of a JSON text: the only place where text is walked byte by byte.
//!
//! No value is checked here. The tokens of a text that is not JSON mean nothing.

use memchr::memchr2;

/// A bracket, comma, colon, string, number or word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token<'a> {
    /// The offset of its first byte.
    pub(super) at: usize,
    /// As it is written, a string with its quotes.
    pub(super) text: &'a str,
}

/// The tokens of a text.
pub(super) struct Tokens<'a> {
    text: &'a str,
    at: usize,
}

pub(super) fn tokens(text: &str) -> Tokens<'_> {
    Tokens { text, at: 0 }
}

impl Token<'_> {
    /// Its first byte, which says what it is.
    pub(super) fn first(&self) -> u8 {
        self.text.as_bytes()[0]
    }
}

impl<'a> Tokens<'a> {
    /// Whether nothing but white space is left.
    pub(super) fn is_at_end(&mut self) -> bool {
        self.peek().is_none()
    }

    /// Passes a byte that is not white space. `None` if another one is next.
    pub(super) fn pass(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    /// Passes a string without escapes, and returns it as it is written. `None` if it has escapes.
    pub(super) fn plain_string(&mut self) -> Option<&'a str> {
        let rest = self.rest()?;
        let value = rest.strip_prefix('"')?;
        let end = memchr2(b'"', b'\\', value.as_bytes())?;
        let is_whole = value.as_bytes()[end] == b'"';
        is_whole.then(|| self.pass_text(&rest[..end + 2]))
    }

    /// Passes text at the beginning of [`rest`](Self::rest).
    pub(super) fn pass_text(&mut self, text: &'a str) -> &'a str {
        self.at += text.len();
        text
    }

    /// The text that is left, from its next token.
    pub(super) fn rest(&mut self) -> Option<&'a str> {
        self.peek()?;
        self.text.get(self.at..)
    }

    /// Passes a value: one token, or all up to the bracket that closes it. `None` if there is none.
    pub(super) fn value(&mut self) -> Option<&'a str> {
        let first = self.next()?;
        let mut open = match first.first() {
            b'{' | b'[' => 1_usize,
            b'}' | b']' | b',' | b':' => return None,
            _ => 0,
        };
        while open > 0 {
            match self.next()?.first() {
                b'{' | b'[' => open += 1,
                b'}' | b']' => open -= 1,
                _ => {}
            }
        }
        self.text.get(first.at..self.at)
    }

    /// Calls `item` with the first token of each item of an object or array, up to the bracket
    /// `end`. `None` if an item is `None`, or if commas and brackets are not those of JSON.
    pub(super) fn items(
        &mut self,
        end: u8,
        mut item: impl FnMut(&mut Self, Token<'a>) -> Option<()>,
    ) -> Option<()> {
        let mut token = self.next()?;
        while token.first() != end {
            item(self, token)?;
            token = self.next()?;
            if token.first() == b',' {
                token = self.next().filter(|next| next.first() != end)?;
            } else if token.first() != end {
                return None;
            }
        }
        Some(())
    }

    /// The next byte that is not white space.
    fn peek(&mut self) -> Option<u8> {
        let bytes = self.text.as_bytes();
        while is_white_space(*bytes.get(self.at)?) {
            self.at += 1;
        }
        bytes.get(self.at).copied()
    }
}

impl<'a> Iterator for Tokens<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        let first = self.peek()?;
        let (bytes, at) = (self.text.as_bytes(), self.at);
        self.at = match first {
            b'"' => string_end(bytes, at),
            b'{' | b'}' | b'[' | b']' | b',' | b':' => at + 1,
            _ => at + bytes[at..].iter().take_while(|byte| is_inside(**byte)).count(),
        };
        Some(Token { at, text: &self.text[at..self.at] })
    }
}

fn is_white_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// Whether a byte continues a number or word.
fn is_inside(byte: u8) -> bool {
    !matches!(byte, b',' | b']' | b'}' | b':' | b'"') && !is_white_space(byte)
}

/// The end of the string that begins at `start`, behind its closing quote.
fn string_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(skip) = bytes.get(at..).and_then(|rest| memchr2(b'"', b'\\', rest)) {
        at += skip;
        if bytes[at] == b'"' {
            return at + 1;
        }
        at += 2;
    }
    bytes.len()
}
