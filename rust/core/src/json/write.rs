//! Writing JSON: one space after `:` and `,`, no other white space.

use super::number::{push_float, push_int};
use super::stops::{Class, Stops};
use super::string::{push_run, RUN};

/// Bytes that a string cannot hold as they are, or that may begin such a character.
struct Doubtful;

impl Class for Doubtful {
    #[inline(always)]
    fn has(byte: u8) -> bool {
        let ascii = (byte < 0x20) | (byte == b'"') | (byte == b'\\') | (byte == 0x7f);
        // U+0080 - U+009F; U+2028, U+2029; surrogates, where the input is WTF-8.
        ascii | (byte == 0xc2) | (byte == 0xe2) | (byte == 0xed)
    }
}

/// The letter of the short escape of a character; 0: it has none.
static LETTER: [u8; 256] = letters();

const fn letters() -> [u8; 256] {
    let mut table = [0; 256];
    table[b'"' as usize] = b'"';
    table[b'\\' as usize] = b'\\';
    table[0x08] = b'b';
    table[0x09] = b't';
    table[0x0a] = b'n';
    table[0x0c] = b'f';
    table[0x0d] = b'r';
    table
}

/// Texts below this length are gone through byte by byte.
const SHORT: usize = 24;

/// Appends a string with its quotes. `text` is UTF-8 or WTF-8 (lone surrogates as three bytes); those become escapes.
pub fn push_string(out: &mut Vec<u8>, text: &[u8]) {
    out.reserve(text.len() + 2 + RUN);
    out.push(b'"');
    if text.len() < SHORT && !text.iter().any(|byte| Doubtful::has(*byte)) {
        out.extend_from_slice(text);
    } else {
        push_escaped(out, text);
    }
    out.push(b'"');
}

fn push_escaped(out: &mut Vec<u8>, text: &[u8]) {
    let mut doubtful = Stops::<Doubtful>::new(text);
    let mut from = 0;
    let mut at = doubtful.next(0);
    while let Some(&byte) = text.get(at) {
        let letter = LETTER[usize::from(byte)];
        if letter != 0 {
            push_run(out, text, from, at);
            out.extend_from_slice(&[b'\\', letter]);
            from = at + 1;
        } else if let Some((unit, taken)) = escape(text.get(at..).unwrap_or_default()) {
            push_run(out, text, from, at);
            push_unit(out, unit);
            from = at + taken;
        }
        at = doubtful.next(at + 1);
    }
    push_run(out, text, from, text.len());
}

/// The code unit that the text begins with and its length, if it has to be escaped.
fn escape(text: &[u8]) -> Option<(u16, usize)> {
    match *text {
        [byte @ (0..=0x1f | 0x7f), ..] => Some((u16::from(byte), 1)),
        [0xc2, second @ 0x80..=0x9f, ..] => Some((u16::from(second), 2)),
        [0xe2, 0x80, last @ (0xa8 | 0xa9), ..] => Some((0x2028 + u16::from(last - 0xa8), 3)),
        [0xed, second @ 0xa0..=0xbf, third @ 0x80..=0xbf, ..] => {
            Some((0xd000 | (u16::from(second & 0x3f) << 6) | u16::from(third & 0x3f), 3))
        }
        _ => None,
    }
}

/// `\u` and four lower-case hex digits.
#[cold]
fn push_unit(out: &mut Vec<u8>, unit: u16) {
    let digit = |shift: u16| char::from_digit(u32::from(unit >> shift) & 0xf, 16).map_or(b'0', |d| d as u8);
    out.extend_from_slice(&[b'\\', b'u', digit(12), digit(8), digit(4), digit(0)]);
}

/// Writes one JSON value into a buffer; the caller says what comes, the writer places commas and spaces.
#[derive(Debug, Default)]
pub struct Writer {
    out: Vec<u8>,
    first: bool,
}

impl Writer {
    /// An empty writer.
    pub fn new() -> Writer {
        Writer { out: Vec::new(), first: true }
    }

    /// An empty writer with room for so many bytes.
    pub fn with_capacity(bytes: usize) -> Writer {
        Writer::behind(Vec::with_capacity(bytes))
    }

    /// A writer that goes on behind these bytes.
    pub fn behind(out: Vec<u8>) -> Writer {
        Writer { out, first: true }
    }

    /// What has been written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.out
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.out.len()
    }

    /// True if nothing has been written.
    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    /// Takes back everything behind the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.out.truncate(len);
    }

    /// Opens an object (`{`) or an array (`[`).
    pub fn open(&mut self, bracket: u8) {
        self.out.push(bracket);
        self.first = true;
    }

    /// Closes it.
    pub fn close(&mut self, bracket: u8) {
        self.out.push(bracket);
        self.first = false;
    }

    /// Before every element of an array.
    pub fn element(&mut self) {
        if self.first {
            self.first = false;
        } else {
            self.out.extend_from_slice(b", ");
        }
    }

    /// Before every value of an object: its key.
    pub fn key(&mut self, key: &[u8]) {
        self.element();
        push_string(&mut self.out, key);
        self.out.extend_from_slice(b": ");
    }

    /// A string.
    pub fn string(&mut self, text: &[u8]) {
        push_string(&mut self.out, text);
    }

    /// An integer that fits.
    pub fn int(&mut self, value: i64) {
        push_int(&mut self.out, value);
    }

    /// A finite float; the caller has refused the others.
    pub fn float(&mut self, value: f64) {
        push_float(&mut self.out, value);
    }

    /// Ready JSON: `true`, `null`, a number of any size, a value kept as it was.
    pub fn raw(&mut self, token: &[u8]) {
        self.out.extend_from_slice(token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn string(text: &[u8]) -> String {
        let mut out = Vec::new();
        push_string(&mut out, text);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_is_escaped_and_what_is_not() {
        for (text, expected) in [
            ("plain", r#""plain""#),
            ("q\"b\\/", r#""q\"b\\/""#),
            ("\u{8}\t\n\u{c}\r", r#""\b\t\n\f\r""#),
            ("\u{0}\u{1f}\u{7f}", r#""\u0000\u001f\u007f""#),
            ("\u{80}\u{9f}\u{a0}é", "\"\\u0080\\u009f\u{a0}é\""),
            ("\u{2027}\u{2028}\u{2029}\u{202a}", "\"\u{2027}\\u2028\\u2029\u{202a}\""),
            ("你好😀", "\"你好😀\""),
            ("\u{d7ff}\u{e000}", "\"\u{d7ff}\u{e000}\""),
        ] {
            assert_eq!(string(text.as_bytes()), expected);
        }
        assert_eq!(string(b"\xed\xa0\xbd!\xed\xbf\xbf"), r#""\ud83d!\udfff""#);
    }

    /// Byte by byte, as the format says it (docs/format.md, "Strings and numbers").
    fn as_documented(text: &str) -> String {
        let mut out = String::from("\"");
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\u{8}' => out.push_str("\\b"),
                '\t' => out.push_str("\\t"),
                '\n' => out.push_str("\\n"),
                '\u{c}' => out.push_str("\\f"),
                '\r' => out.push_str("\\r"),
                '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' => {
                    out.push_str(&format!("\\u{:04x}", c as u32));
                }
                _ => out.push(c),
            }
        }
        out + "\""
    }

    proptest! {
        #[test]
        fn is_written_as_documented(
            parts in prop::collection::vec(
                prop_oneof![
                    4 => "[a-z ]{0,80}",
                    2 => r#"["\\\x00-\x1f]{1,3}"#,
                    2 => any::<char>().prop_map(String::from),
                    1 => "[\u{7f}-\u{a1}\u{2010}-\u{2030}\u{d7fe}-\u{e001}]{1,3}",
                ],
                0..12,
            )
        ) {
            let text = parts.concat();
            let written = string(text.as_bytes());
            prop_assert_eq!(&written, &as_documented(&text));
            prop_assert_eq!(serde_json::from_str::<String>(&written).unwrap(), text);
        }
    }
}
