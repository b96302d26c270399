//! Head fields between Python and the engine.

use crate::encode::encode;
use crate::errors;
use bytes::Bytes;
use perdure_core::json::Writer;
use perdure_core::{Head, SessionId};
use pyo3::exceptions::PyOverflowError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDateTime, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};

/// The head of a new session, in the order in which files have it (docs/format.md).
const DEFAULTS: &[(&str, &str)] = &[
    (
        "config",
        r#"{"name": "", "workspace": "", "system_prompt": "", "max_context_length": 200000, "auto_compact": false, "planning_enabled": false}"#,
    ),
    ("state", r#""Active""#),
    ("context_usage", r#"{"used_tokens": 0, "max_tokens": 200000, "percent": 0.0, "turns": 0}"#),
    (
        "total_usage",
        r#"{"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0, "cache_read_tokens": null, "cache_write_tokens": null}"#,
    ),
    ("tool_names", "[]"),
    ("thinking_enabled", "false"),
    ("thinking_budget", "null"),
    ("created_at", "0"),
    ("updated_at", "0"),
    ("tasks", "[]"),
];

/// Unix time in seconds.
pub fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

pub fn default_head() -> Head {
    let mut head = Head::default();
    for (key, value) in DEFAULTS {
        head.set(key, Bytes::from_static(value.as_bytes()));
    }
    let now = Bytes::from(now().to_string());
    head.set("created_at", now.clone());
    head.set("updated_at", now);
    head
}

/// Checks an id from Python.
pub fn session_id(id: &Bound<'_, PyAny>) -> PyResult<SessionId> {
    let py = id.py();
    let invalid = |reason: &str| errors::new(py, "InvalidSessionIdError", reason, []);
    let Ok(text) = id.cast::<PyString>() else {
        let kind = id.get_type().name()?;
        return Err(invalid(&format!("not a session id: a {kind}; ids are strings of 1 to 4,096 characters")));
    };
    match text.to_str() {
        Ok(text) => SessionId::new(text).map_err(|error| errors::raise(py, &error)),
        Err(_) => Err(invalid("not a session id: it contains a lone surrogate")),
    }
}

/// A whole number from Python; one that no machine word holds becomes the nearest that one does.
#[derive(Clone, Copy)]
pub struct Whole(pub isize);

impl<'a, 'py> FromPyObject<'a, 'py> for Whole {
    type Error = PyErr;

    fn extract(value: Borrowed<'a, 'py, PyAny>) -> PyResult<Whole> {
        let nearest = |error: PyErr| match error.is_instance_of::<PyOverflowError>(value.py()) {
            true => Ok(if value.lt(0)? { isize::MIN } else { isize::MAX }),
            false => Err(error),
        };
        value.extract::<isize>().or_else(nearest).map(Whole)
    }
}

/// The written form of a key, without its quotes.
pub fn key_text(key: &Bound<'_, PyString>) -> PyResult<String> {
    let mut out = Writer::new();
    encode(&mut out, key.as_any(), None).map_err(|f| f.raise(key.py(), "key"))?;
    let text = String::from_utf8_lossy(&out.into_bytes()).into_owned();
    Ok(text.get(1..text.len() - 1).unwrap_or_default().to_string())
}

/// A value of a field, encoded and checked: what it has to be is the same as for a file.
pub fn field(key: &str, value: &Bound<'_, PyAny>) -> PyResult<Bytes> {
    let py = value.py();
    let refuse = |what: &str| {
        let kind = value.get_type().name().map(|n| n.to_string()).unwrap_or_default();
        Err(errors::serialization(py, key, &format!("it has to be {what}, not a {kind}")))
    };
    match key {
        "id" | "perdure" | "messages" | "revision" | "todos" => {
            return Err(errors::serialization(py, key, "this field cannot be set"));
        }
        "config" | "context_usage" | "total_usage" if value.cast::<PyDict>().is_err() => return refuse("a dict"),
        "tasks" | "tool_names" if value.cast::<PyList>().is_err() && value.cast::<PyTuple>().is_err() => {
            return refuse("a list");
        }
        "state" if value.cast::<PyString>().is_err() => return refuse("a string"),
        "created_at" | "updated_at" => return seconds(key, value),
        _ => {}
    }
    let mut out = Writer::new();
    encode(&mut out, value, None).map_err(|f| f.raise(py, key))?;
    Ok(out.into_bytes().into())
}

/// A time as Unix seconds.
fn seconds(key: &str, value: &Bound<'_, PyAny>) -> PyResult<Bytes> {
    let py = value.py();
    let refuse = |why: &str| Err(errors::serialization(py, key, why));
    let number = if value.cast::<PyDateTime>().is_ok() {
        if value.getattr("tzinfo")?.is_none() {
            return refuse("a datetime without time zone says nothing; use an aware one, or Unix seconds");
        }
        value.call_method0("timestamp")?.extract::<f64>()?
    } else if value.cast::<PyBool>().is_err() && (value.cast::<PyInt>().is_ok() || value.cast::<PyFloat>().is_ok()) {
        value.extract::<f64>().unwrap_or(f64::NAN)
    } else {
        return refuse("it has to be an aware datetime or a number of Unix seconds");
    };
    if !(0.0..253_402_300_800.0).contains(&number) {
        return refuse("it has to lie between 1970 and 9999");
    }
    Ok(Bytes::from((number as u64).to_string()))
}

/// Unix seconds as an aware UTC datetime.
pub fn datetime<'py>(py: Python<'py>, seconds: i64) -> PyResult<Bound<'py, PyAny>> {
    let module = py.import("datetime")?;
    let utc = module.getattr("timezone")?.getattr("utc")?;
    // A file may hold any number; a time that datetime cannot hold becomes its nearest.
    let seconds = seconds.clamp(0, 253_402_300_799);
    module.getattr("datetime")?.call_method1("fromtimestamp", (seconds, utc))
}

/// A list of strings.
pub fn strings(key: &str, value: &Bound<'_, PyAny>) -> PyResult<Bytes> {
    let py = value.py();
    let wrong = || errors::serialization(py, key, "it has to be a list of strings");
    if value.cast::<PyString>().is_ok() {
        return Err(wrong());
    }
    let list: Vec<Bound<'_, PyString>> = value.extract().map_err(|_| wrong())?;
    let mut out = Writer::new();
    encode(&mut out, PyList::new(py, list)?.as_any(), None).map_err(|f| f.raise(py, key))?;
    Ok(out.into_bytes().into())
}
