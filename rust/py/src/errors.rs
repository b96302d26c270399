//! The engine's errors as the classes of `perdure.errors`.

use perdure_core::Error;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{IntoPyDict, PyDict};
use pyo3::IntoPyObjectExt;
use std::any::Any;

fn class<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
    py.import("perdure.errors")?.getattr(name)
}

fn build<'py>(py: Python<'py>, name: &str, message: &str, fields: &Bound<'py, PyDict>) -> PyErr {
    match class(py, name).and_then(|class| class.call((message,), Some(fields))) {
        Ok(error) => PyErr::from_value(error),
        Err(error) => error,
    }
}

/// Makes an error of `perdure.errors` with keyword arguments.
pub fn new<'py, const N: usize>(
    py: Python<'py>,
    name: &str,
    message: &str,
    fields: [(&str, Option<Bound<'py, PyAny>>); N],
) -> PyErr {
    let given = fields.into_iter().filter_map(|(key, value)| value.map(|value| (key, value)));
    match given.collect::<Vec<_>>().into_py_dict(py) {
        Ok(fields) => build(py, name, message, &fields),
        Err(error) => error,
    }
}

fn object<'py, T: IntoPyObject<'py>>(py: Python<'py>, value: T) -> Option<Bound<'py, PyAny>> {
    value.into_bound_py_any(py).ok()
}

/// The Python error for an engine error.
pub fn raise(py: Python<'_>, error: &Error) -> PyErr {
    let message = error.to_string();
    match error {
        Error::BadCursor(_) => PyValueError::new_err(message),
        Error::InvalidId(_) => new(py, "InvalidSessionIdError", &message, []),
        Error::Exists { id, .. } => new(py, "SessionExistsError", &message, [("session_id", object(py, id))]),
        Error::Conflict { id, expected, found, .. } => new(
            py,
            "SessionConflictError",
            &message,
            [
                ("session_id", object(py, id)),
                ("expected", object(py, *expected)),
                ("found", found.and_then(|f| object(py, f))),
            ],
        ),
        Error::Locked { id, owner } => new(
            py,
            "SessionLockedError",
            &message,
            [
                ("session_id", object(py, id)),
                ("pid", owner.pid.and_then(|p| object(py, p))),
                ("host", owner.host.as_ref().and_then(|h| object(py, h))),
                ("since", owner.since.and_then(|s| object(py, s))),
            ],
        ),
        Error::Corrupt { path, place, .. } => new(
            py,
            "SessionCorruptError",
            &message,
            [
                ("path", object(py, path.display().to_string())),
                ("line", place.and_then(|p| object(py, p.line))),
                ("column", place.and_then(|p| object(py, p.column))),
            ],
        ),
        Error::Io { path, source, .. } => new(
            py,
            "StoreError",
            &message,
            [
                ("errno", source.raw_os_error().and_then(|e| object(py, e))),
                ("filename", object(py, path.display().to_string())),
            ],
        ),
        _ => new(py, "PerdureError", &message, []),
    }
}

/// A value that cannot be written or read; `path` says which.
pub fn serialization(py: Python<'_>, path: &str, reason: &str) -> PyErr {
    new(py, "SerializationError", &format!("{path}: {reason}"), [("path", object(py, path))])
}

/// A panic is a bug of perdure's; Python gets to know it as an error.
pub fn bug(panic: &Box<dyn Any + Send>) -> PyErr {
    let what = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    PyRuntimeError::new_err(format!("a bug in perdure, please report it: {}", what.unwrap_or("panic")))
}

/// Says something on the logger `perdure`.
pub fn warn(py: Python<'_>, message: &str) -> PyResult<()> {
    let logger = py.import("logging")?.call_method1("getLogger", ("perdure",))?;
    logger.call_method1("warning", ("%s", message))?;
    Ok(())
}
