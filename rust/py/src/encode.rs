//! Python objects to JSON, straight into the engine's writer: exact types first, then subclasses and enums, then an encoder hook.

use crate::call::attached;
use crate::errors;
use perdure_core::json::{Writer, MAX_DEPTH};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyNone, PyString, PyTuple};

/// Why a value cannot be written. The path is put together while the error travels up.
pub struct Fault {
    /// From the innermost outwards.
    steps: Vec<String>,
    reason: Reason,
}

enum Reason {
    Text(String),
    /// Python code that was run (the hook, an enum) raised.
    Raised(PyErr),
}

impl From<PyErr> for Fault {
    fn from(error: PyErr) -> Fault {
        Fault { steps: Vec::new(), reason: Reason::Raised(error) }
    }
}

impl Fault {
    fn new(reason: impl Into<String>) -> Fault {
        Fault { steps: Vec::new(), reason: Reason::Text(reason.into()) }
    }

    fn inside(mut self, step: impl FnOnce() -> String) -> Fault {
        // A cycle would make a path of hundreds of steps that says nothing more than its beginning.
        self.steps.push(step());
        self
    }

    /// As a Python error; `root` names the value that was to be written.
    pub fn raise(self, py: Python<'_>, root: &str) -> PyErr {
        let mut path = root.to_string();
        for step in self.steps.iter().rev().take(40) {
            path.push_str(step);
        }
        if self.steps.len() > 40 {
            path.push('…');
        }
        match self.reason {
            Reason::Text(reason) => errors::serialization(py, &path, &reason),
            Reason::Raised(error) => {
                let raised = errors::serialization(py, &path, "the value could not be encoded");
                raised.set_cause(py, Some(error));
                raised
            }
        }
    }
}

/// Encodes messages; all of them or none.
pub fn encoded(messages: &Bound<'_, PyTuple>, first: usize, hook: Option<&Bound<'_, PyAny>>) -> PyResult<Vec<Vec<u8>>> {
    let py = messages.py();
    attached(|| {
        let mut all = Vec::with_capacity(messages.len());
        for (i, message) in messages.iter().enumerate() {
            let root = || format!("messages[{}]", first + i);
            let mut out = Writer::with_capacity(1024);
            encode(&mut out, &message, hook).map_err(|fault| fault.raise(py, &root()))?;
            let bytes = out.into_bytes();
            if bytes.first() != Some(&b'{') {
                let kind = message.get_type().name()?;
                return Err(errors::serialization(py, &root(), &format!("a message is a dict, not a {kind}")));
            }
            if u32::try_from(bytes.len()).is_err() {
                return Err(errors::serialization(py, &root(), "a message of over 4 GiB"));
            }
            all.push(bytes);
        }
        Ok(all)
    })
}

/// Writes one value.
pub fn encode(out: &mut Writer, value: &Bound<'_, PyAny>, hook: Option<&Bound<'_, PyAny>>) -> Result<(), Fault> {
    Encoder { hook }.value(out, value, 0)
}

struct Encoder<'a, 'py> {
    hook: Option<&'a Bound<'py, PyAny>>,
}

impl<'py> Encoder<'_, 'py> {
    fn value(&self, out: &mut Writer, value: &Bound<'py, PyAny>, depth: usize) -> Result<(), Fault> {
        if let Ok(text) = value.cast_exact::<PyString>() {
            string(out, text)
        } else if let Ok(dict) = value.cast_exact::<PyDict>() {
            self.dict(out, dict, depth)
        } else if let Ok(list) = value.cast_exact::<PyList>() {
            self.sequence(out, list.iter(), depth)
        } else if let Ok(flag) = value.cast::<PyBool>() {
            out.raw(if flag.is_true() { b"true" } else { b"false" });
            Ok(())
        } else if let Ok(int) = value.cast_exact::<PyInt>() {
            integer(out, int)
        } else if value.cast::<PyNone>().is_ok() {
            out.raw(b"null");
            Ok(())
        } else if let Ok(number) = value.cast_exact::<PyFloat>() {
            float(out, number.value())
        } else if let Ok(tuple) = value.cast::<PyTuple>() {
            self.sequence(out, tuple.iter(), depth)
        } else {
            self.other(out, value, depth)
        }
    }

    /// Subclasses, enums, and what only the hook can write.
    #[cold]
    fn other(&self, out: &mut Writer, value: &Bound<'py, PyAny>, depth: usize) -> Result<(), Fault> {
        if let Ok(text) = value.cast::<PyString>() {
            string(out, text)
        } else if let Ok(int) = value.cast::<PyInt>() {
            integer(out, int)
        } else if let Ok(number) = value.cast::<PyFloat>() {
            float(out, number.value())
        } else if let Ok(dict) = value.cast::<PyDict>() {
            self.items(out, dict, depth)
        } else if let Ok(list) = value.cast::<PyList>() {
            self.sequence(out, list.iter(), depth)
        } else if is_enum(value)? {
            self.deeper(out, &value.getattr(intern!(value.py(), "value"))?, depth)
        } else if let Some(hook) = self.hook {
            let replaced = hook.call1((value,))?;
            if replaced.is(value) {
                return Err(Fault::new("the encoder hook gave the value back unchanged"));
            }
            self.deeper(out, &replaced, depth)
        } else {
            let kind = value.get_type().qualname().map(|q| q.to_string()).unwrap_or_default();
            Err(Fault::new(format!(
                "a value of type {kind} is not JSON; convert it first (to a string, a number, a list or a dict)"
            )))
        }
    }

    fn deeper(&self, out: &mut Writer, value: &Bound<'py, PyAny>, depth: usize) -> Result<(), Fault> {
        bounded(depth)?;
        self.value(out, value, depth + 1)
    }

    fn dict(&self, out: &mut Writer, dict: &Bound<'py, PyDict>, depth: usize) -> Result<(), Fault> {
        if self.hook.is_some() {
            return self.items(out, dict, depth);
        }
        bounded(depth)?;
        out.open(b'{');
        let count = dict.len();
        for (key, value) in dict.iter() {
            self.member(out, &key, &value, depth)?;
            // An enum's `value` may be a property that runs code.
            if dict.len() != count {
                return Err(Fault::new("the dict was changed while it was being written"));
            }
        }
        out.close(b'}');
        Ok(())
    }

    /// A dict that may change while it is being written (the hook is free to do that), or that has an order of its own.
    fn items(&self, out: &mut Writer, dict: &Bound<'py, PyDict>, depth: usize) -> Result<(), Fault> {
        bounded(depth)?;
        out.open(b'{');
        let items = dict.as_any().call_method0(intern!(dict.py(), "items"))?;
        let items: Vec<(Bound<'py, PyAny>, Bound<'py, PyAny>)> =
            items.try_iter()?.map(|item| item?.extract()).collect::<PyResult<_>>()?;
        for (key, value) in items {
            self.member(out, &key, &value, depth)?;
        }
        out.close(b'}');
        Ok(())
    }

    #[inline]
    fn member(
        &self,
        out: &mut Writer,
        key: &Bound<'py, PyAny>,
        value: &Bound<'py, PyAny>,
        depth: usize,
    ) -> Result<(), Fault> {
        let Ok(name) = key.cast::<PyString>() else {
            let kind = key.get_type().name().map(|n| n.to_string()).unwrap_or_default();
            return Err(Fault::new(format!("a key of type {kind}; the keys of a JSON object are strings")));
        };
        match name.to_str() {
            Ok(name) => out.key(name.as_bytes()),
            Err(_) => out.key(wtf8(name)?.as_bytes()),
        }
        self.value(out, value, depth + 1).map_err(|f| f.inside(|| step(name)))
    }

    fn sequence(
        &self,
        out: &mut Writer,
        items: impl Iterator<Item = Bound<'py, PyAny>>,
        depth: usize,
    ) -> Result<(), Fault> {
        bounded(depth)?;
        out.open(b'[');
        for (i, item) in items.enumerate() {
            out.element();
            self.value(out, &item, depth + 1).map_err(|f| f.inside(|| format!("[{i}]")))?;
        }
        out.close(b']');
        Ok(())
    }
}

fn bounded(depth: usize) -> Result<(), Fault> {
    if depth >= MAX_DEPTH {
        return Err(Fault::new(format!("nested deeper than {MAX_DEPTH} levels (or it contains itself)")));
    }
    Ok(())
}

/// How a path goes on into a member of an object.
pub fn step(name: &Bound<'_, PyString>) -> String {
    let name = name.to_string_lossy();
    let plain = !name.is_empty()
        && name.chars().enumerate().all(|(i, c)| c == '_' || c.is_ascii_alphabetic() || (i > 0 && c.is_ascii_digit()));
    let short: String = name.chars().take(40).collect();
    if plain {
        format!(".{short}")
    } else {
        format!("[{short:?}]")
    }
}

fn string(out: &mut Writer, text: &Bound<'_, PyString>) -> Result<(), Fault> {
    match text.to_str() {
        Ok(text) => out.string(text.as_bytes()),
        Err(_) => out.string(wtf8(text)?.as_bytes()),
    }
    Ok(())
}

/// A string with lone surrogates.
#[cold]
fn wtf8<'py>(text: &Bound<'py, PyString>) -> PyResult<Bound<'py, PyBytes>> {
    let encoded = text.call_method1(intern!(text.py(), "encode"), ("utf-8", "surrogatepass"))?;
    Ok(encoded.cast_into::<PyBytes>()?)
}

fn integer(out: &mut Writer, value: &Bound<'_, PyInt>) -> Result<(), Fault> {
    if let Ok(small) = value.extract::<i64>() {
        out.int(small);
        return Ok(());
    }
    // int.__repr__, not str(): a subclass may print itself otherwise.
    let text = value.py().get_type::<PyInt>().call_method1(intern!(value.py(), "__repr__"), (value,));
    match text.and_then(|t| t.extract::<String>()) {
        Ok(digits) if digits.len() <= 4300 + usize::from(digits.starts_with('-')) => {
            out.raw(digits.as_bytes());
            Ok(())
        }
        // The interpreter's own limit (sys.set_int_max_str_digits) is 4,300, may be lower, and says so.
        Err(error) if value.call_method0(intern!(value.py(), "bit_length"))?.extract::<u64>()? < 14_280 => {
            Err(error.into())
        }
        _ => Err(Fault::new("an integer of over 4,300 digits")),
    }
}

fn float(out: &mut Writer, value: f64) -> Result<(), Fault> {
    if !value.is_finite() {
        return Err(Fault::new(format!("{value} is not JSON; use None or a string")));
    }
    out.float(value);
    Ok(())
}

fn is_enum(value: &Bound<'_, PyAny>) -> PyResult<bool> {
    let class = value.py().import(intern!(value.py(), "enum"))?.getattr(intern!(value.py(), "Enum"))?;
    value.is_instance(&class)
}
