//! Scanning JSON without taking it apart: is it valid, where does it end, is its white space already ours.
//!
//! Nothing here recurses and nothing allocates, so neither depth nor size of the input can hurt.

use super::string::Strings;
use super::MAX_DEPTH;

/// Why a text is not JSON, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Byte offset.
    pub at: usize,
    /// What was expected or is wrong.
    pub what: &'static str,
}

/// A scanned value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Value {
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
    /// True if its white space is what our writer would write.
    pub canonical: bool,
}

impl Value {
    /// The bytes of the value.
    pub fn of<'a>(&self, text: &'a [u8]) -> &'a [u8] {
        text.get(self.start..self.end).unwrap_or_default()
    }
}

/// One member of an object: where its key (with quotes) and its value lie.
#[derive(Debug, Clone, Copy)]
pub struct Member {
    /// The key's token.
    pub key: Value,
    /// The value.
    pub value: Value,
}

pub(super) type Scan<T> = Result<T, Fault>;

pub(super) fn fault<T>(at: usize, what: &'static str) -> Scan<T> {
    Err(Fault { at, what })
}

/// Checks that bytes are UTF-8.
pub fn check_utf8(text: &[u8]) -> Scan<&str> {
    simdutf8::basic::from_utf8(text)
        .or_else(|_| std::str::from_utf8(text).map_err(|e| Fault { at: e.valid_up_to(), what: "not UTF-8" }))
}

#[inline]
fn space(text: &[u8], mut at: usize) -> usize {
    while let Some(b' ' | b'\n' | b'\r' | b'\t') = text.get(at) {
        at += 1;
    }
    at
}

/// True if the white space `from..to` is exactly `count` spaces.
#[inline]
fn is_spaces(text: &[u8], from: usize, to: usize, count: usize) -> bool {
    to - from == count && (count == 0 || text.get(from) == Some(&b' '))
}

fn digits(text: &[u8], at: usize) -> usize {
    text.get(at..).unwrap_or_default().iter().take_while(|b| b.is_ascii_digit()).count()
}

fn number(text: &[u8], at: usize) -> Scan<usize> {
    let mut i = at;
    if text.get(i) == Some(&b'-') {
        i += 1;
    }
    match text.get(i) {
        Some(b'0') => i += 1,
        Some(b'1'..=b'9') => i += digits(text, i),
        _ => return fault(at, "expected a value"),
    }
    if text.get(i) == Some(&b'.') {
        let count = digits(text, i + 1);
        if count == 0 {
            return fault(i, "expected a digit after the decimal point");
        }
        i += 1 + count;
    }
    if let Some(b'e' | b'E') = text.get(i) {
        let mut exponent = i + 1;
        if let Some(b'+' | b'-') = text.get(exponent) {
            exponent += 1;
        }
        let count = digits(text, exponent);
        if count == 0 {
            return fault(i, "expected a digit in the exponent");
        }
        i = exponent + count;
    }
    if let Some(b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'.') = text.get(i) {
        return fault(i, "bad number");
    }
    Ok(i)
}

fn literal(text: &[u8], at: usize, word: &[u8]) -> Scan<usize> {
    let end = at + word.len();
    if text.get(at..end) == Some(word) && !text.get(end).is_some_and(u8::is_ascii_alphanumeric) {
        Ok(end)
    } else {
        fault(at, "expected a value")
    }
}

/// Which brackets are open: one bit each, set for an object.
struct Stack {
    bits: [u64; MAX_DEPTH / 64],
    depth: usize,
}

impl Stack {
    fn push(&mut self, at: usize, object: bool) -> Scan<()> {
        let Some(word) = self.bits.get_mut(self.depth / 64) else {
            return fault(at, "nested deeper than 512 levels");
        };
        let bit = 1 << (self.depth % 64);
        if object {
            *word |= bit;
        } else {
            *word &= !bit;
        }
        self.depth += 1;
        Ok(())
    }

    fn in_object(&self) -> bool {
        let top = self.depth.wrapping_sub(1);
        self.bits.get(top / 64).is_some_and(|word| word & (1 << (top % 64)) != 0)
    }
}

fn key(text: &[u8], strings: &mut Strings<'_>, at: usize, canonical: &mut bool) -> Scan<usize> {
    if text.get(at) != Some(&b'"') {
        return fault(at, "expected a key in double quotes");
    }
    let end = strings.end(at)?;
    let colon = space(text, end);
    if text.get(colon) != Some(&b':') {
        return fault(colon, "expected ':' after a key");
    }
    let value = space(text, colon + 1);
    *canonical &= colon == end && is_spaces(text, colon + 1, value, 1);
    Ok(value)
}

/// Scans one value that begins at `start` (no white space before it).
pub fn value(text: &[u8], start: usize) -> Scan<Value> {
    value_of(text, &mut Strings::new(text), start)
}

fn value_of(text: &[u8], strings: &mut Strings<'_>, start: usize) -> Scan<Value> {
    let mut stack = Stack { bits: [0; MAX_DEPTH / 64], depth: 0 };
    let mut canonical = true;
    let mut i = start;
    loop {
        // A value begins at i.
        let mut done = match text.get(i) {
            Some(b'"') => strings.end(i)?,
            Some(open @ (b'{' | b'[')) => {
                let object = *open == b'{';
                stack.push(i, object)?;
                let inner = space(text, i + 1);
                canonical &= inner == i + 1;
                if text.get(inner) == Some(if object { &b'}' } else { &b']' }) {
                    stack.depth -= 1;
                    inner + 1
                } else {
                    i = if object { key(text, strings, inner, &mut canonical)? } else { inner };
                    continue;
                }
            }
            Some(b't') => literal(text, i, b"true")?,
            Some(b'f') => literal(text, i, b"false")?,
            Some(b'n') => literal(text, i, b"null")?,
            Some(b'N' | b'I') => return fault(i, "NaN and Infinity are not JSON"),
            Some(_) => number(text, i)?,
            None => return fault(text.len(), "the text ends where a value is expected"),
        };
        // It ends at done; close brackets until another value is due.
        loop {
            if stack.depth == 0 {
                return Ok(Value { start, end: done, canonical });
            }
            let next = space(text, done);
            canonical &= next == done;
            let object = stack.in_object();
            match text.get(next) {
                Some(b',') => {
                    let after = space(text, next + 1);
                    canonical &= is_spaces(text, next + 1, after, 1);
                    i = if object { key(text, strings, after, &mut canonical)? } else { after };
                    break;
                }
                Some(b'}') if object => {
                    stack.depth -= 1;
                    done = next + 1;
                }
                Some(b']') if !object => {
                    stack.depth -= 1;
                    done = next + 1;
                }
                Some(_) if object => return fault(next, "expected ',' or '}'"),
                Some(_) => return fault(next, "expected ',' or ']'"),
                None => return fault(text.len(), "the text ends inside of an object or an array"),
            }
        }
    }
}

/// Walks over the members of the object at `start`; gives the offset behind it.
///
/// `take` may scan a value itself: it gets the key and the offset of the value and returns the value's end, or None to have it scanned and handed over.
pub fn members<E: From<Fault>>(
    text: &[u8],
    start: usize,
    mut take: impl FnMut(Value, usize) -> Result<usize, E>,
) -> Result<usize, E> {
    if text.get(start) != Some(&b'{') {
        return Err(Fault { at: start, what: "expected an object" }.into());
    }
    let mut i = space(text, start + 1);
    if text.get(i) == Some(&b'}') {
        return Ok(i + 1);
    }
    let mut strings = Strings::new(text);
    loop {
        let begin = i;
        let at = key(text, &mut strings, begin, &mut false)?;
        let key = Value { start: begin, end: strings.end(begin)?, canonical: true };
        let end = take(key, at)?;
        i = space(text, end);
        match text.get(i) {
            Some(b',') => i = space(text, i + 1),
            Some(b'}') => return Ok(i + 1),
            Some(_) => return Err(Fault { at: i, what: "expected ',' or '}'" }.into()),
            None => return Err(Fault { at: text.len(), what: "the text ends inside of an object" }.into()),
        }
    }
}

/// Walks over the elements of the array at `start`; gives the offset behind it.
pub fn elements<E: From<Fault>>(
    text: &[u8],
    start: usize,
    mut take: impl FnMut(Value) -> Result<(), E>,
) -> Result<usize, E> {
    if text.get(start) != Some(&b'[') {
        return Err(Fault { at: start, what: "expected an array" }.into());
    }
    let mut i = space(text, start + 1);
    if text.get(i) == Some(&b']') {
        return Ok(i + 1);
    }
    let mut strings = Strings::new(text);
    loop {
        let element = value_of(text, &mut strings, i)?;
        i = space(text, element.end);
        take(element)?;
        match text.get(i) {
            Some(b',') => i = space(text, i + 1),
            Some(b']') => return Ok(i + 1),
            Some(_) => return Err(Fault { at: i, what: "expected ',' or ']'" }.into()),
            None => return Err(Fault { at: text.len(), what: "the text ends inside of an array" }.into()),
        }
    }
}

/// Copies a scanned value with canonical white space; tokens stay as they are.
pub fn respace(text: &[u8], out: &mut Vec<u8>) {
    let mut strings = Strings::new(text);
    let mut i = 0;
    while let Some(&byte) = text.get(i) {
        match byte {
            b' ' | b'\n' | b'\r' | b'\t' => i += 1,
            b'"' => {
                let end = strings.end(i).unwrap_or(text.len());
                out.extend_from_slice(text.get(i..end).unwrap_or_default());
                i = end;
            }
            b',' | b':' => {
                out.extend_from_slice(&[byte, b' ']);
                i += 1;
            }
            _ => {
                out.push(byte);
                i += 1;
            }
        }
    }
}

/// The text of a scanned string token; None if it holds a lone surrogate.
pub fn string_text(token: &[u8]) -> Option<String> {
    serde_json::from_slice(token).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn whole(text: &str) -> Result<Value, Fault> {
        let start = space(text.as_bytes(), 0);
        let v = value(text.as_bytes(), start)?;
        let end = space(text.as_bytes(), v.end);
        if end == text.len() {
            Ok(v)
        } else {
            fault(end, "trailing")
        }
    }

    #[test]
    fn accepts_json_and_nothing_else() {
        for good in [
            "0",
            "-0",
            "1.5e+3",
            "\"\"",
            "\"\\ud83d\"",
            "[]",
            "{}",
            "[ ]",
            "{ }",
            "null",
            "true",
            "[1,2]",
            "{\"a\":{\"b\":[{}]}}",
            "1e400",
            "\"\\u00e9\\/\\b\"",
            " [1 , 2] ",
        ] {
            assert!(whole(good).is_ok(), "{good}: {:?}", whole(good));
        }
        for bad in [
            "",
            "01",
            "+1",
            ".5",
            "1.",
            "1e",
            "-",
            "NaN",
            "Infinity",
            "-Infinity",
            "nul",
            "nulll",
            "truefalse",
            "[1,]",
            "{,}",
            "{\"a\"}",
            "{\"a\":}",
            "{a:1}",
            "[1 2]",
            "\"",
            "\"\\x\"",
            "\"\\u12g4\"",
            "\"\t\"",
            "[",
            "{",
            "[}",
            "{]",
            "1 2",
            "'a'",
            "{\"a\":1,}",
            "\u{feff}1",
            "\"\\",
        ] {
            assert!(whole(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn depth_is_bounded_and_linear() {
        let nest = |n: usize| "[".repeat(n) + &"]".repeat(n);
        assert!(whole(&nest(MAX_DEPTH)).is_ok());
        assert_eq!(whole(&nest(MAX_DEPTH + 1)).unwrap_err().at, MAX_DEPTH);
        assert!(whole(&"[".repeat(10_000_000)).is_err());
    }

    #[test]
    fn canonical_is_our_own_white_space() {
        for (text, canonical) in [
            (r#"{"a": [1, 2], "b": {}}"#, true),
            (r#"{"a":1}"#, false),
            (r#"{"a" : 1}"#, false),
            (r#"{"a":  1}"#, false),
            ("{\"a\":\t1}", false),
            (r#"[1,2]"#, false),
            (r#"[1, 2 ]"#, false),
            (r#"[ 1]"#, false),
            (r#"{ }"#, false),
            (r#""a,b:c""#, true),
        ] {
            assert_eq!(whole(text).unwrap().canonical, canonical, "{text}");
        }
    }

    proptest! {
        /// Against an independent parser: what it takes, we take, and the other way round.
        #[test]
        fn agrees_with_serde_json(text in r#"[\[\]{}",:0-9eE+\-. a-f\\untrl]{0,40}"#) {
            let theirs: Result<&serde_json::value::RawValue, _> = serde_json::from_str(&text);
            prop_assert_eq!(whole(&text).is_ok(), theirs.is_ok(), "{}", text);
        }

        #[test]
        fn respaced_is_canonical_and_equal(text in json_text()) {
            let v = whole(&text).unwrap();
            let mut out = Vec::new();
            respace(v.of(text.as_bytes()), &mut out);
            let again = whole(std::str::from_utf8(&out).unwrap()).unwrap();
            prop_assert!(again.canonical);
            let a: serde_json::Value = serde_json::from_str(&text).unwrap();
            let b: serde_json::Value = serde_json::from_slice(&out).unwrap();
            prop_assert_eq!(a, b);
        }
    }

    /// JSON texts with odd white space.
    fn json_text() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("null".to_string()),
            any::<i64>().prop_map(|i| i.to_string()),
            any::<String>().prop_map(|s| serde_json::to_string(&s).unwrap()),
        ];
        let ws = "[ \n\t]{0,2}";
        leaf.prop_recursive(4, 24, 4, move |inner| {
            prop_oneof![
                (prop::collection::vec(inner.clone(), 0..4), ws)
                    .prop_map(|(v, w)| format!("[{w}{}{w}]", v.join(&format!("{w},{w}")))),
                (prop::collection::vec((any::<String>(), inner), 0..4), ws).prop_map(|(v, w)| {
                    let members: Vec<String> = v
                        .into_iter()
                        .map(|(k, v)| format!("{}{w}:{w}{v}", serde_json::to_string(&k).unwrap()))
                        .collect();
                    format!("{{{w}{}{w}}}", members.join(&format!("{w},{w}")))
                }),
            ]
        })
    }
}
