//! JSON that the scanner has accepted to Python objects.

mod strings;

use crate::encode::step;
use crate::errors;
use perdure_core::json::{self, Text};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString};
use strings::Strings;

/// Room for unescaped text up to this size is kept from one value to the next.
const ROOM: usize = 1 << 20;
/// Below this length of a single value it does not pay to remember its strings.
const SHORT: usize = 4096;
/// A longer value is an id or a text, and unlikely to come again.
const LONGEST_VALUE: usize = 16;
/// Every integer of so many digits fits into 64 bits.
const SURELY_SMALL: usize = 18;

/// What values have in common that are decoded one after the other.
#[derive(Default)]
pub struct Scratch {
    keys: Strings,
    values: Strings,
    text: Vec<u8>,
    remembers: bool,
}

impl Scratch {
    /// For a walk over many values of the same shape.
    pub fn for_many() -> Scratch {
        Scratch { remembers: true, ..Scratch::default() }
    }

    /// Decodes one value; `root` names it in errors.
    pub fn decode<'py>(
        &mut self,
        py: Python<'py>,
        text: &[u8],
        root: impl Fn() -> String,
    ) -> PyResult<Bound<'py, PyAny>> {
        let mut decoder = Decoder { py, text, at: 0, tokens: json::Strings::new(text), scratch: self };
        let decoded = decoder.value();
        if self.text.len() > ROOM {
            self.text = Vec::new();
        }
        decoded.map_err(|refusal| match *refusal {
            Refusal::Value { reason, steps } => {
                let steps: String = steps.into_iter().rev().collect();
                errors::serialization(py, &format!("{}{steps}", root()), &reason)
            }
            Refusal::Raised(error) => error,
        })
    }
}

/// Decodes a single value; `root` names it in errors.
pub fn decode<'py>(py: Python<'py>, text: &[u8], root: impl Fn() -> String) -> PyResult<Bound<'py, PyAny>> {
    Scratch { remembers: text.len() > SHORT, ..Scratch::default() }.decode(py, text, root)
}

enum Refusal {
    /// `steps` lead to the value, from the innermost outwards.
    Value {
        reason: String,
        steps: Vec<String>,
    },
    Raised(PyErr),
}

/// Boxed, so that what nearly always succeeds hands on two words.
type Refused = Box<Refusal>;

impl From<PyErr> for Refused {
    fn from(error: PyErr) -> Refused {
        Box::new(Refusal::Raised(error))
    }
}

#[cold]
fn refused(reason: impl Into<String>) -> Refused {
    Box::new(Refusal::Value { reason: reason.into(), steps: Vec::new() })
}

#[cold]
fn inside(mut refusal: Refused, step: impl FnOnce() -> String) -> Refused {
    if let Refusal::Value { steps, .. } = &mut *refusal {
        steps.push(step());
    }
    refusal
}

struct Decoder<'a, 'py> {
    py: Python<'py>,
    text: &'a [u8],
    at: usize,
    tokens: json::Strings<'a>,
    scratch: &'a mut Scratch,
}

type Decoded<'py> = Result<Bound<'py, PyAny>, Refused>;

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
            b'"' => Ok(self.string(false)?.into_any()),
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
            let key = self.string(true)?;
            self.peek(); // ':'
            self.at += 1;
            let value = self.value().map_err(|refusal| inside(refusal, || step(&key)))?;
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
            let value = self.value().map_err(|refusal| inside(refusal, || format!("[{}]", list.len())))?;
            list.append(value)?;
            let closed = self.peek() == b']';
            self.at += 1;
            if closed {
                return Ok(list.into_any());
            }
        }
    }

    #[inline]
    fn string(&mut self, key: bool) -> Result<Bound<'py, PyString>, Refused> {
        let Scratch { keys, values, text: room, remembers } = &mut *self.scratch;
        let (text, end) = self.tokens.read(self.at, room);
        self.at = end;
        let bytes = match text {
            Text::Plain(bytes) => {
                let known = match key {
                    true if *remembers => keys.get(self.py, bytes),
                    false if *remembers && bytes.len() <= LONGEST_VALUE => values.get(self.py, bytes),
                    _ => None,
                };
                if let Some(string) = known {
                    return string.map_err(|_| refused("not UTF-8"));
                }
                bytes
            }
            Text::Unescaped(bytes) => bytes,
            Text::Surrogates(bytes) => {
                let bytes = PyBytes::new(self.py, bytes);
                let text = bytes.call_method1(intern!(self.py, "decode"), ("utf-8", "surrogatepass"))?;
                return Ok(text.cast_into::<PyString>().map_err(PyErr::from)?);
            }
        };
        // Python checks the UTF-8 that it is given, so nobody else has to.
        PyString::from_bytes(self.py, bytes).map_err(|_| refused("not UTF-8"))
    }

    #[inline]
    fn number(&mut self) -> Decoded<'py> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let sign = usize::from(rest.first() == Some(&b'-'));
        let (mut small, mut len) = (0i64, sign);
        while let Some(digit @ b'0'..=b'9') = rest.get(len) {
            // Wraps where there are too many digits; then it is not used.
            small = small.wrapping_mul(10).wrapping_add(i64::from(digit - b'0'));
            len += 1;
        }
        if matches!(rest.get(len), Some(b'.' | b'e' | b'E')) {
            return self.float(rest);
        }
        self.at += len.max(1); // never stands still, whatever the text is
        if len - sign <= SURELY_SMALL {
            return Ok(PyInt::new(self.py, if sign == 1 { -small } else { small }).into_any());
        }
        self.large(rest.get(..len).unwrap_or_default())
    }

    fn float(&mut self, rest: &[u8]) -> Decoded<'py> {
        let len = rest.iter().take_while(|b| matches!(b, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E')).count();
        self.at += len;
        let token = std::str::from_utf8(rest.get(..len).unwrap_or_default()).unwrap_or_default();
        let value: f64 = token.parse().map_err(|_| refused("a bad number"))?;
        if !value.is_finite() {
            return Err(refused("a number beyond what a float can hold"));
        }
        Ok(PyFloat::new(self.py, value).into_any())
    }

    #[cold]
    fn large(&self, token: &[u8]) -> Decoded<'py> {
        let token = std::str::from_utf8(token).unwrap_or_default();
        // Python's own limit guards against quadratic time.
        let digits = token.len() - usize::from(token.starts_with('-'));
        if digits > 4300 {
            return Err(refused("an integer of over 4,300 digits"));
        }
        // A lower limit than Python's own is the user's (sys.set_int_max_str_digits).
        let lower = |error: PyErr| refused(error.value(self.py).to_string());
        self.py.get_type::<PyInt>().call1((token,)).map_err(lower)
    }
}
