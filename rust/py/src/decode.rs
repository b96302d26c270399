//! JSON that the scanner has accepted to Python objects.

use crate::encode::step;
use crate::errors;
use perdure_core::json;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString};

/// Decodes one value; `root` names it in errors.
pub fn decode<'py>(py: Python<'py>, text: &[u8], root: impl Fn() -> String) -> PyResult<Bound<'py, PyAny>> {
    let mut decoder = Decoder { py, text, at: 0 };
    decoder.value().map_err(|refusal| match refusal {
        Refusal::Value { reason, steps } => {
            let steps: String = steps.into_iter().rev().collect();
            errors::serialization(py, &format!("{}{steps}", root()), &reason)
        }
        Refusal::Raised(error) => error,
    })
}

enum Refusal {
    /// `steps` lead to the value, from the innermost outwards.
    Value {
        reason: String,
        steps: Vec<String>,
    },
    Raised(PyErr),
}

impl From<PyErr> for Refusal {
    fn from(error: PyErr) -> Refusal {
        Refusal::Raised(error)
    }
}

impl Refusal {
    fn new(reason: impl Into<String>) -> Refusal {
        Refusal::Value { reason: reason.into(), steps: Vec::new() }
    }

    #[cold]
    fn inside(mut self, step: impl FnOnce() -> String) -> Refusal {
        if let Refusal::Value { steps, .. } = &mut self {
            steps.push(step());
        }
        self
    }
}

struct Decoder<'a, 'py> {
    py: Python<'py>,
    text: &'a [u8],
    at: usize,
}

type Decoded<'py> = Result<Bound<'py, PyAny>, Refusal>;

impl<'py> Decoder<'_, 'py> {
    fn peek(&mut self) -> u8 {
        while let Some(&byte) = self.text.get(self.at) {
            if !matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
                return byte;
            }
            self.at += 1;
        }
        0
    }

    fn value(&mut self) -> Decoded<'py> {
        let py = self.py;
        match self.peek() {
            b'"' => Ok(self.string()?.into_any()),
            b'{' => self.object(),
            b'[' => self.array(),
            b't' => {
                self.at += 4;
                Ok(PyBool::new(py, true).to_owned().into_any())
            }
            b'f' => {
                self.at += 5;
                Ok(PyBool::new(py, false).to_owned().into_any())
            }
            b'n' => {
                self.at += 4;
                Ok(py.None().into_bound(py))
            }
            _ => self.number(),
        }
    }

    fn object(&mut self) -> Decoded<'py> {
        let dict = PyDict::new(self.py);
        self.at += 1;
        if self.peek() == b'}' {
            self.at += 1;
            return Ok(dict.into_any());
        }
        loop {
            self.peek();
            let key = self.string()?;
            self.peek(); // ':'
            self.at += 1;
            let value = self.value().map_err(|refusal| refusal.inside(|| step(&key)))?;
            dict.set_item(key, value)?;
            let closed = self.peek() == b'}';
            self.at += 1;
            if closed {
                return Ok(dict.into_any());
            }
        }
    }

    fn array(&mut self) -> Decoded<'py> {
        let list = PyList::empty(self.py);
        self.at += 1;
        if self.peek() == b']' {
            self.at += 1;
            return Ok(list.into_any());
        }
        loop {
            let value = self.value().map_err(|refusal| refusal.inside(|| format!("[{}]", list.len())))?;
            list.append(value)?;
            let closed = self.peek() == b']';
            self.at += 1;
            if closed {
                return Ok(list.into_any());
            }
        }
    }

    fn string(&mut self) -> Result<Bound<'py, PyString>, Refusal> {
        let start = self.at + 1;
        let rest = self.text.get(start..).unwrap_or_default();
        let plain = rest.iter().position(|b| matches!(b, b'"' | b'\\')).unwrap_or(rest.len());
        let (head, tail) = rest.split_at(plain);
        if tail.first() != Some(&b'\\') {
            self.at = start + plain + 1;
            return match json::check_utf8(head) {
                Ok(text) => Ok(PyString::new(self.py, text)),
                Err(_) => Err(Refusal::new("not UTF-8")),
            };
        }
        self.escaped(start)
    }

    /// A string with escapes, collected as WTF-8: a lone surrogate becomes three bytes.
    fn escaped(&mut self, start: usize) -> Result<Bound<'py, PyString>, Refusal> {
        let mut out = Vec::new();
        let mut lone = false;
        let mut at = start;
        loop {
            let rest = self.text.get(at..).unwrap_or_default();
            let plain = rest.iter().position(|b| matches!(b, b'"' | b'\\')).unwrap_or(rest.len());
            out.extend_from_slice(rest.get(..plain).unwrap_or_default());
            at += plain;
            if self.text.get(at) != Some(&b'\\') {
                break;
            }
            let escape = self.text.get(at + 1).copied().unwrap_or(b'\\');
            at += 2;
            match escape {
                b'b' => out.push(8),
                b't' => out.push(9),
                b'n' => out.push(10),
                b'f' => out.push(12),
                b'r' => out.push(13),
                b'u' => {
                    let mut unit = self.hex(at);
                    at += 4;
                    if (0xd800..0xdc00).contains(&unit) && self.text.get(at..at + 2) == Some(b"\\u") {
                        let low = self.hex(at + 2);
                        if (0xdc00..0xe000).contains(&low) {
                            unit = 0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00);
                            at += 6;
                        }
                    }
                    match char::from_u32(unit) {
                        Some(c) => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
                        None => {
                            lone = true;
                            let byte = |shift: u32, high: u32| (high | ((unit >> shift) & 0x3f)) as u8;
                            out.extend_from_slice(&[byte(12, 0xe0), byte(6, 0x80), byte(0, 0x80)]);
                        }
                    }
                }
                other => out.push(other),
            }
        }
        self.at = at + 1;
        if lone {
            let bytes = PyBytes::new(self.py, &out);
            let text = bytes.call_method1(intern!(self.py, "decode"), ("utf-8", "surrogatepass"))?;
            return Ok(text.cast_into::<PyString>().map_err(PyErr::from)?);
        }
        match json::check_utf8(&out) {
            Ok(text) => Ok(PyString::new(self.py, text)),
            Err(_) => Err(Refusal::new("not UTF-8")),
        }
    }

    fn hex(&self, at: usize) -> u32 {
        let digits = self.text.get(at..at + 4).unwrap_or_default();
        digits.iter().fold(0, |n, d| n * 16 + char::from(*d).to_digit(16).unwrap_or(0))
    }

    fn number(&mut self) -> Decoded<'py> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let len = rest.iter().take_while(|b| matches!(b, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E')).count();
        let token = std::str::from_utf8(rest.get(..len).unwrap_or_default()).unwrap_or_default();
        self.at += len.max(1); // never stands still, whatever the text is
        if token.contains(['.', 'e', 'E']) {
            let value: f64 = token.parse().map_err(|_| Refusal::new("a bad number"))?;
            if !value.is_finite() {
                return Err(Refusal::new("a number beyond what a float can hold"));
            }
            return Ok(PyFloat::new(self.py, value).into_any());
        }
        if let Ok(small) = token.parse::<i64>() {
            return Ok(PyInt::new(self.py, small).into_any());
        }
        // Python's own limit guards against quadratic time.
        let digits = token.len() - usize::from(token.starts_with('-'));
        if digits > 4300 {
            return Err(Refusal::new("an integer of over 4,300 digits"));
        }
        // A lower limit than Python's own is the user's (sys.set_int_max_str_digits).
        let refused = |error: PyErr| Refusal::new(error.value(self.py).to_string());
        self.py.get_type::<PyInt>().call1((token,)).map_err(refused)
    }
}
