//! String tokens: their end, and the text in them.

use super::scan::{fault, Scan};
use super::stops::{Class, Stops};

/// What ends a plain run within a string: `"`, `\` and what may not stand there.
struct InString;

impl Class for InString {
    #[inline(always)]
    fn has(byte: u8) -> bool {
        (byte == b'"') | (byte == b'\\') | (byte < 0x20)
    }
}

/// What an escape of one character stands for; 0 where there is no such escape.
static SHORT: [u8; 256] = short();

const fn short() -> [u8; 256] {
    let mut table = [0; 256];
    table[b'"' as usize] = b'"';
    table[b'\\' as usize] = b'\\';
    table[b'/' as usize] = b'/';
    table[b'b' as usize] = 0x08;
    table[b't' as usize] = 0x09;
    table[b'n' as usize] = 0x0a;
    table[b'f' as usize] = 0x0c;
    table[b'r' as usize] = 0x0d;
    table
}

/// Shorter runs are copied as if they had this length: for a fixed one the compiler needs no call.
pub(super) const RUN: usize = 32;

/// What a string token holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Text<'a> {
    /// No escapes: the bytes between the quotes.
    Plain(&'a [u8]),
    /// Escapes were replaced.
    Unescaped(&'a [u8]),
    /// As `Unescaped`, in WTF-8: a lone surrogate is three bytes.
    Surrogates(&'a [u8]),
}

/// Reads the string tokens of one text; quickest from the front to the back.
pub struct Strings<'a>(Stops<'a, InString>);

impl<'a> Strings<'a> {
    /// For tokens of this text.
    pub fn new(text: &'a [u8]) -> Strings<'a> {
        Strings(Stops::new(text))
    }

    /// Checks a token; `at` is its opening quote. Gives the offset behind the closing one.
    #[inline]
    pub(super) fn end(&mut self, at: usize) -> Scan<usize> {
        let mut i = self.0.next(at + 1);
        loop {
            let text = self.0.text();
            match text.get(i) {
                Some(b'"') => return Ok(i + 1),
                Some(b'\\') => match text.get(i + 1) {
                    Some(&short) if SHORT[usize::from(short)] != 0 => i += 2,
                    Some(b'u') => {
                        let digits = text.get(i + 2..i + 6).unwrap_or_default();
                        if digits.len() != 4 || !digits.iter().all(u8::is_ascii_hexdigit) {
                            return fault(i, "bad \\u escape in a string");
                        }
                        i += 6;
                    }
                    Some(_) => return fault(i, "bad escape in a string"),
                    None => return fault(text.len(), "the text ends inside of a string"),
                },
                Some(_) => return fault(i, "control character in a string"),
                None => return fault(text.len(), "the text ends inside of a string"),
            }
            i = self.0.next(i);
        }
    }

    /// What the token at `at` (its opening quote) holds, and the offset behind its closing quote.
    ///
    /// The text has been scanned; of one that has not, the answer is meaningless but there is one. `scratch` is room for
    /// a text that differs from its token; its content means nothing.
    #[inline]
    pub fn read<'s>(&mut self, at: usize, scratch: &'s mut Vec<u8>) -> (Text<'s>, usize)
    where
        'a: 's,
    {
        let text = self.0.text();
        let end = self.0.next(at + 1);
        if text.get(end) != Some(&b'\\') {
            return (Text::Plain(text.get(at + 1..end).unwrap_or_default()), end + 1);
        }
        self.unescape(at + 1, end, scratch)
    }

    /// `from`: behind the quote; `escape`: its first backslash.
    fn unescape<'s>(&mut self, mut from: usize, mut escape: usize, out: &'s mut Vec<u8>) -> (Text<'s>, usize) {
        let text = self.0.text();
        let mut lone = false;
        out.clear();
        loop {
            push_run(out, text, from, escape);
            if text.get(escape) != Some(&b'\\') {
                break;
            }
            let kind = text.get(escape + 1).copied().unwrap_or_default();
            from = escape + 2;
            if kind == b'u' {
                let mut unit = hex(text, from);
                from += 4;
                if (0xd800..0xdc00).contains(&unit) && text.get(from..from + 2) == Some(b"\\u") {
                    let low = hex(text, from + 2);
                    if (0xdc00..0xe000).contains(&low) {
                        unit = 0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00);
                        from += 6;
                    }
                }
                lone |= push_unit(out, unit);
            } else {
                out.push(SHORT[usize::from(kind)]);
            }
            escape = self.0.next(from);
        }
        (if lone { Text::Surrogates(out) } else { Text::Unescaped(out) }, escape + 1)
    }
}

/// Appends `text[from..to]`.
#[inline]
pub(super) fn push_run(out: &mut Vec<u8>, text: &[u8], from: usize, to: usize) {
    let run = to.saturating_sub(from);
    if run <= RUN {
        if let Some(whole) = text.get(from..from + RUN) {
            let len = out.len();
            out.extend_from_slice(whole);
            out.truncate(len + run);
            return;
        }
    }
    out.extend_from_slice(text.get(from..to).unwrap_or_default());
}

/// Appends a code point, or a lone surrogate: then it is true.
fn push_unit(out: &mut Vec<u8>, unit: u32) -> bool {
    match char::from_u32(unit) {
        Some(c) => {
            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            false
        }
        None => {
            let byte = |shift: u32, high: u32| (high | ((unit >> shift) & 0x3f)) as u8;
            out.extend_from_slice(&[byte(12, 0xe0), byte(6, 0x80), byte(0, 0x80)]);
            true
        }
    }
}

fn hex(text: &[u8], at: usize) -> u32 {
    let digits = text.get(at..at + 4).unwrap_or_default();
    digits.iter().fold(0, |n, d| n * 16 + char::from(*d).to_digit(16).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(token: &str) -> (Vec<u8>, &'static str, usize) {
        let mut room = Vec::new();
        let (text, end) = Strings::new(token.as_bytes()).read(0, &mut room);
        match text {
            Text::Plain(bytes) => (bytes.to_vec(), "plain", end),
            Text::Unescaped(bytes) => (bytes.to_vec(), "unescaped", end),
            Text::Surrogates(bytes) => (bytes.to_vec(), "surrogates", end),
        }
    }

    #[test]
    fn what_tokens_hold() {
        for (token, text, kind) in [
            (r#""""#, "", "plain"),
            (r#""é""#, "é", "plain"),
            (r#""\"\\\/\b\f\n\r\t""#, "\"\\/\u{8}\u{c}\n\r\t", "unescaped"),
            (r#""\u00e9\u0000""#, "é\0", "unescaped"),
            (r#""\ud83d\ude80\uD83D\uDE80""#, "🚀🚀", "unescaped"),
        ] {
            assert_eq!(read(token), (text.as_bytes().to_vec(), kind, token.len()), "{token}");
        }
        for (token, text) in [
            (r#""\ud83d""#, &b"\xed\xa0\xbd"[..]),
            (r#""\ude80\ud83d""#, b"\xed\xba\x80\xed\xa0\xbd"),
            (r#""\ud83d\ue000""#, b"\xed\xa0\xbd\xee\x80\x80"),
            (r#""\ud83d\udbff""#, b"\xed\xa0\xbd\xed\xaf\xbf"),
            (r#""\ud83dx\ude80""#, b"\xed\xa0\xbdx\xed\xba\x80"),
            (r#""\ud83d\ud83d\ude80""#, b"\xed\xa0\xbd\xf0\x9f\x9a\x80"),
        ] {
            assert_eq!(read(token), (text.to_vec(), "surrogates", token.len()), "{token}");
        }
    }

    #[test]
    fn a_text_that_was_never_scanned_is_read_without_harm() {
        for token in ["", "\"", "\"\\", "\"\\u", "\"\\u12", "\"\\ud83d\\u", "\"\\q", "\"abc", "x"] {
            let (_, _, end) = read(token);
            assert!(end > 0, "{token}");
        }
    }

    #[test]
    fn every_length_of_run_around_the_fixed_copy() {
        for length in 0..200 {
            let run = "0123456789abcdef".repeat(13).get(..length).unwrap().to_string();
            // Escapes before, behind and on both sides; another token behind it that must not leak in.
            let token = format!("\"\\n{run}\\t{run}\", \"next\\n\"");
            let (text, kind, end) = read(&token);
            assert_eq!((text, kind), (format!("\n{run}\t{run}").into_bytes(), "unescaped"), "{length}");
            assert_eq!(end, 2 * length + 6);
        }
    }

    /// Strings made of what needs care: quotes, backslashes, controls, wide characters, long plain runs.
    fn any_text() -> impl Strategy<Value = String> {
        let part = prop_oneof![
            4 => "[a-z ]{0,80}",
            2 => r#"["\\\n\t/\x00-\x1f]{1,3}"#,
            2 => any::<char>().prop_map(String::from),
            1 => "[é–日🚀]{1,4}",
        ];
        prop::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
    }

    /// The same text as a token in one of many spellings.
    fn spelled(text: &str, every: usize) -> String {
        let mut token = String::from("\"");
        for (i, c) in text.chars().enumerate() {
            if every > 0 && i % every == 0 {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    token.push_str(&format!("\\u{unit:04x}"));
                }
            } else {
                let quoted = serde_json::to_string(&c.to_string()).unwrap();
                token.push_str(quoted.get(1..quoted.len() - 1).unwrap());
            }
        }
        token + "\""
    }

    proptest! {
        /// Several tokens in a row, through one reader and one room.
        #[test]
        fn agrees_with_serde_json(texts in prop::collection::vec((any_text(), 0usize..6), 1..6)) {
            let tokens: Vec<String> = texts.iter().map(|(text, every)| spelled(text, *every)).collect();
            let row = tokens.join(", ");
            let (mut room, mut at) = (Vec::new(), 0);
            let (mut reader, mut checker) = (Strings::new(row.as_bytes()), Strings::new(row.as_bytes()));
            for ((text, _), token) in texts.iter().zip(&tokens) {
                prop_assert_eq!(&serde_json::from_str::<String>(token).unwrap(), text);
                let (got, end) = reader.read(at, &mut room);
                let (Text::Plain(got) | Text::Unescaped(got)) = got else { panic!("no surrogates here") };
                prop_assert_eq!(got, text.as_bytes());
                prop_assert_eq!(end, at + token.len());
                prop_assert_eq!(checker.end(at), Ok(end));
                at = end + 2;
            }
        }

        /// What serde_json refuses we refuse, at every place of a token.
        #[test]
        fn refuses_what_serde_json_refuses(text in any_text(), at in 0usize..400, byte in any::<u8>()) {
            let mut token = spelled(&text, 3).into_bytes();
            let at = at % token.len();
            *token.get_mut(at).unwrap() = byte;
            let Ok(token) = String::from_utf8(token) else { return Ok(()) };
            let theirs: Result<&serde_json::value::RawValue, _> = serde_json::from_str(&token);
            let ours = token.starts_with('"') && Strings::new(token.as_bytes()).end(0) == Ok(token.len());
            prop_assert_eq!(ours, theirs.is_ok() && token.starts_with('"'), "{}", token);
        }
    }
}
