//! Writing JSON: one space after `:` and `,`, no other white space.

use super::number::push_float;

/// Bytes that a string cannot hold as they are, or that may begin such a character.
static LOOK: [bool; 256] = look();

const fn look() -> [bool; 256] {
    let mut table = [false; 256];
    let mut i = 0;
    while i < 0x20 {
        table[i] = true;
        i += 1;
    }
    table[b'"' as usize] = true;
    table[b'\\' as usize] = true;
    table[0x7f] = true;
    table[0xc2] = true; // U+0080 - U+009F
    table[0xe2] = true; // U+2028, U+2029
    table[0xed] = true; // surrogates, where the input is WTF-8
    table
}

/// Appends a string with its quotes. `text` is UTF-8 or WTF-8 (lone surrogates as three bytes); those become escapes.
pub fn push_string(out: &mut Vec<u8>, text: &[u8]) {
    out.reserve(text.len() + 2);
    out.push(b'"');
    let mut from = 0;
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        if !LOOK[usize::from(byte)] {
            at += 1;
            continue;
        }
        let rest = text.get(at..).unwrap_or_default();
        let (unit, taken) = match *rest {
            [0xc2, second @ 0x80..=0x9f, ..] => (u16::from(second), 2),
            [0xe2, 0x80, last @ (0xa8 | 0xa9), ..] => (0x2028 + u16::from(last - 0xa8), 3),
            [0xed, second @ 0xa0..=0xbf, third @ 0x80..=0xbf, ..] => {
                (0xd000 | (u16::from(second & 0x3f) << 6) | u16::from(third & 0x3f), 3)
            }
            [0xc2 | 0xe2 | 0xed, ..] => {
                at += 1;
                continue;
            }
            _ => (u16::from(byte), 1),
        };
        out.extend_from_slice(text.get(from..at).unwrap_or_default());
        push_escape(out, unit);
        at += taken;
        from = at;
    }
    out.extend_from_slice(text.get(from..).unwrap_or_default());
    out.push(b'"');
}

#[cold]
fn push_escape(out: &mut Vec<u8>, unit: u16) {
    let short = match unit {
        0x22 => b'"',
        0x5c => b'\\',
        0x08 => b'b',
        0x09 => b't',
        0x0a => b'n',
        0x0c => b'f',
        0x0d => b'r',
        _ => {
            out.extend_from_slice(format!("\\u{unit:04x}").as_bytes());
            return;
        }
    };
    out.push(b'\\');
    out.push(short);
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
        use std::io::Write as _;
        // Writing to a Vec cannot fail.
        let _ = write!(self.out, "{value}");
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
}
