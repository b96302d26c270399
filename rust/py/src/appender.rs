//! The short way of a message to the disk: encode, look for secrets, append and save in one call of Python's.

use crate::call::{attached, engine};
use crate::data::SessionData;
use crate::encode::encoded;
use crate::errors;
use crate::store::{save_data, FileSessionStore};
use aho_corasick::AhoCorasick;
use perdure_core::{json, pool, Error};
use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString, PyTuple};
use std::any::Any;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{Mutex, PoisonError};

/// Appends messages to a session and saves it.
///
/// What needs more than that, a message in short form or one with a secret in it, is left to the session layer.
#[pyclass(frozen, module = "perdure._core")]
pub struct Appender {
    store: Py<FileSessionStore>,
    secrets: Option<AhoCorasick>,
}

impl Appender {
    /// Adds the messages. False: they are the session layer's affair, and nothing was done.
    fn add(&self, data: &SessionData, messages: &Bound<'_, PyTuple>) -> PyResult<bool> {
        let py = messages.py();
        for message in messages.iter_borrowed() {
            let Ok(message) = message.cast_exact::<PyDict>() else { return Ok(false) };
            if message.get_item(intern!(py, "content"))?.is_some_and(|content| content.is_instance_of::<PyString>()) {
                return Ok(false);
            }
        }
        let first = data.session(py)?.log().len();
        let messages = encoded(messages, first, None)?;
        if let Some(secrets) = &self.secrets {
            if messages.iter().any(|message| secrets.is_match(message)) {
                return Ok(false);
            }
        }
        data.append_encoded(&messages);
        Ok(true)
    }
}

#[pymethods]
impl Appender {
    #[new]
    fn py_new(store: Py<FileSessionStore>, secrets: Vec<Bound<'_, PyString>>) -> PyResult<Appender> {
        // A secret is in a message if and only if its encoded form is in the encoded message, or it may seem so.
        let written = |secret: &Bound<'_, PyString>| -> PyResult<Vec<u8>> {
            let mut out = Vec::new();
            json::push_string(&mut out, secret.to_str()?.as_bytes());
            Ok(out.get(1..out.len() - 1).unwrap_or_default().to_vec())
        };
        let secrets: Vec<Vec<u8>> = secrets.iter().map(written).collect::<PyResult<_>>()?;
        let secrets = match secrets.is_empty() {
            true => None,
            false => Some(AhoCorasick::new(secrets).map_err(|error| PyValueError::new_err(error.to_string()))?),
        };
        Ok(Appender { store, secrets })
    }

    #[pyo3(signature = (data, messages, /))]
    fn append(&self, py: Python<'_>, data: &SessionData, messages: &Bound<'_, PyTuple>) -> PyResult<bool> {
        let store = self.store.get();
        let (place, options) = (store.engine(py)?, store.options()?);
        if !attached(|| self.add(data, messages))? {
            return Ok(false);
        }
        engine(py, || save_data(&place, data, &options))?;
        Ok(true)
    }

    #[pyo3(signature = (data, messages, mailbox, future, /))]
    fn append_later(
        &self,
        py: Python<'_>,
        data: Py<SessionData>,
        messages: &Bound<'_, PyTuple>,
        mailbox: Py<Mailbox>,
        future: Py<PyAny>,
    ) -> PyResult<bool> {
        let store = self.store.get();
        let (place, options) = (store.engine(py)?, store.options()?);
        if !attached(|| self.add(data.get(), messages))? {
            return Ok(false);
        }
        let job = move || {
            let done = catch_unwind(AssertUnwindSafe(|| save_data(&place, data.get(), &options)));
            let outcome = match done {
                Ok(Ok(_)) => Outcome::Saved,
                Ok(Err(error)) => Outcome::Failed(error),
                Err(panic) => Outcome::Panicked(panic),
            };
            mailbox.get().put(Letter { future, _data: data, outcome });
        };
        py.detach(|| pool::submit(Box::new(job)));
        Ok(true)
    }
}

enum Outcome {
    Saved,
    Failed(Error),
    Panicked(Box<dyn Any + Send>),
}

struct Letter {
    future: Py<PyAny>,
    /// Goes back to a thread that has the interpreter, to be let go of there.
    _data: Py<SessionData>,
    outcome: Outcome,
}

/// What became of saves, for an event loop to fetch. The loop is told when the first one arrives, so that saves that end
/// together cost one call into it, and the threads that save hardly ever need the interpreter.
#[pyclass(frozen, module = "perdure._core")]
pub struct Mailbox {
    notify: Py<PyAny>,
    letters: Mutex<Vec<Letter>>,
}

impl Mailbox {
    fn put(&self, letter: Letter) {
        let mut letters = self.letters.lock().unwrap_or_else(PoisonError::into_inner);
        letters.push(letter);
        let first = letters.len() == 1;
        drop(letters);
        if first {
            // Without an interpreter, or with the loop closed, nobody waits any more.
            let _ = Python::try_attach(|py| self.notify.call0(py).map(drop));
        }
    }
}

#[pymethods]
impl Mailbox {
    #[new]
    fn py_new(notify: Py<PyAny>) -> Mailbox {
        Mailbox { notify, letters: Mutex::default() }
    }

    fn take(&self, py: Python<'_>) -> PyResult<Py<PyList>> {
        let letters = std::mem::take(&mut *self.letters.lock().unwrap_or_else(PoisonError::into_inner));
        let outcomes = letters.into_iter().map(|letter| {
            let error = match letter.outcome {
                Outcome::Saved => None,
                Outcome::Failed(error) => Some(errors::raise(py, &error).into_value(py)),
                Outcome::Panicked(panic) => Some(errors::bug(&panic).into_value(py)),
            };
            (letter.future, error)
        });
        Ok(PyList::new(py, outcomes.collect::<Vec<_>>())?.unbind())
    }
}
