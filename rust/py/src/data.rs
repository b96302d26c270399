//! `SessionData` and `SessionDelta`: what stores get and give.

use crate::call::{attached, detached};
use crate::decode::decode;
use crate::delta::{Outcome, SessionDelta};
use crate::encode::{encode, encoded};
use crate::errors;
use crate::fields::{datetime, default_head, field, key_text, now, session_id, strings, Whole};
use crate::messages::Messages;
use bytes::Bytes;
use perdure_core::json::Writer;
use perdure_core::{Session, Tail};
use pyo3::exceptions::{PyIndexError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyDict, PyList, PyString, PyTuple};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A session in memory.
#[pyclass(frozen, module = "perdure", weakref)]
pub struct SessionData {
    /// While `tail` is there: without its messages.
    session: Mutex<Session>,
    /// A session of which only the end was read so far.
    pub(crate) tail: Mutex<Option<Arc<Tail>>>,
    /// False while there is a tail. Looked at on every way in, so that a session that is whole pays for nothing.
    pub(crate) whole: AtomicBool,
    /// Held for the time of a save to files.
    saving: Mutex<()>,
}

impl SessionData {
    pub fn new(session: Session) -> SessionData {
        SessionData::with_tail(session, None)
    }

    pub fn with_tail(session: Session, tail: Option<Tail>) -> SessionData {
        let whole = AtomicBool::new(tail.is_none());
        let tail = Mutex::new(tail.map(Arc::new));
        SessionData { session: Mutex::new(session), tail, whole, saving: Mutex::new(()) }
    }

    /// The session as far as it was read: head and base. Held for moments only: nothing that calls Python or the disk
    /// happens under it.
    pub fn lock(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One save at a time. Never waited for with the interpreter held.
    pub fn turn(&self) -> MutexGuard<'_, ()> {
        self.saving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves the base to what became of `delta`; `saved` is what its store says, where that is not ours.
    pub fn settled(&self, delta: &SessionDelta, saved: bool) {
        let mut session = self.lock();
        match (&*delta.outcome(), saved) {
            (Some(Outcome::Stored(state)), _) => session.settle(&delta.written, state.clone()),
            (Some(Outcome::Unknown(state)), _) => session.set_attempt(state.clone()),
            (None, true) => session.settle(&delta.written, delta.planned_state()),
            (None, false) => {}
        }
    }

    /// Adds messages that are JSON already.
    pub fn append_encoded(&self, messages: &[Vec<u8>]) {
        if !messages.is_empty() {
            let mut session = self.lock();
            session.append(messages);
            session.touch(now());
        }
    }

    fn decoded<'py>(&self, py: Python<'py>, key: &str) -> PyResult<Bound<'py, PyAny>> {
        let value = self.lock().head().get(key).cloned();
        match value {
            Some(value) => attached(|| decode(py, &value, || key.to_string())),
            None => Ok(py.None().into_bound(py)),
        }
    }

    fn store_field(&self, key: &str, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let value_py = value.py();
        let value = attached(|| field(key, value))?;
        let mut session = self.session(value_py)?;
        if session.head().get(key) != Some(&value) {
            session.head_mut().set(key, value);
            if key != "updated_at" {
                session.touch(now());
            }
        }
        Ok(())
    }

    fn time<'py>(&self, py: Python<'py>, key: &str) -> PyResult<Bound<'py, PyAny>> {
        let seconds = self.lock().head().int(key);
        match seconds {
            Some(seconds) => datetime(py, seconds),
            None => {
                // A foreign file may have a fraction.
                let value: f64 = self.decoded(py, key)?.extract().unwrap_or(0.0);
                datetime(py, value as i64)
            }
        }
    }
}

#[pymethods]
impl SessionData {
    #[new]
    #[pyo3(signature = (id, /, **fields))]
    fn py_new(id: &Bound<'_, PyAny>, fields: Option<&Bound<'_, PyDict>>) -> PyResult<SessionData> {
        let data = SessionData::new(Session::new(session_id(id)?, default_head()));
        let Some(fields) = fields else { return Ok(data) };
        for (key, value) in fields.iter() {
            let key = key.cast_into::<PyString>()?;
            match key.to_str().unwrap_or_default() {
                "messages" => {
                    let messages: Vec<Bound<'_, PyAny>> = value.extract()?;
                    let messages = encoded(&PyTuple::new(value.py(), messages)?, 0, None)?;
                    data.lock().append(&messages);
                }
                "tags" => {
                    let tags = strings("tags", &value)?;
                    data.lock().head_mut().tags = tags;
                }
                name => {
                    let name = if name.is_empty() { key_text(&key)? } else { name.to_string() };
                    let value = attached(|| field(&name, &value))?;
                    data.lock().head_mut().set(&key_text(&key)?, value);
                }
            }
        }
        Ok(data)
    }

    #[getter]
    fn id(&self) -> String {
        self.lock().id().to_string()
    }

    #[getter]
    fn messages(slf: Bound<'_, Self>) -> PyResult<Messages> {
        match slf.get().tail() {
            Some(tail) => Ok(Messages::of_tail(tail, slf.unbind())),
            None => Ok(Messages::new(slf.get().session(slf.py())?.log().clone())),
        }
    }

    fn _load_all(&self, py: Python<'_>) -> PyResult<()> {
        self.whole(py)
    }

    /// Index of the first message that is in memory.
    #[getter]
    fn _first_loaded(&self) -> usize {
        self.tail().map_or(0, |tail| tail.first())
    }

    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        self.count(py)
    }

    /// A session without messages is still a session.
    fn __bool__(&self) -> bool {
        true
    }

    #[getter]
    fn revision(&self) -> u64 {
        self.lock().base().revision()
    }

    #[getter]
    fn lineage(&self) -> Option<String> {
        self.lock().base().saved().and_then(|s| s.lineage).map(|l| l.to_string())
    }

    #[getter]
    fn parent<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let parent = self.lock().head().parent.clone();
        attached(|| decode(py, &parent, || "parent".to_string()))
    }

    #[getter]
    fn first_prompt<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let prompt = self.session(py)?.first_prompt();
        attached(|| decode(py, &prompt, || "first_prompt".to_string()))
    }

    #[getter]
    fn tags<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let tags = self.lock().head().tags.clone();
        attached(|| decode(py, &tags, || "tags".to_string()))
    }

    #[setter]
    fn set_tags(&self, tags: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = tags.py();
        let tags = strings("tags", tags)?;
        let mut session = self.session(py)?;
        if session.head().tags != tags {
            session.head_mut().tags = tags;
            session.touch(now());
        }
        Ok(())
    }

    #[getter]
    fn config<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.decoded(py, "config")
    }

    #[setter]
    fn set_config(&self, value: &Bound<'_, PyAny>) -> PyResult<()> {
        self.store_field("config", value)
    }

    #[getter]
    fn state<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.decoded(py, "state")
    }

    #[setter]
    fn set_state(&self, value: &Bound<'_, PyAny>) -> PyResult<()> {
        self.store_field("state", value)
    }

    #[getter]
    fn tasks<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.decoded(py, "tasks")
    }

    #[setter]
    fn set_tasks(&self, value: &Bound<'_, PyAny>) -> PyResult<()> {
        self.store_field("tasks", value)
    }

    #[getter]
    fn tool_names<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.decoded(py, "tool_names")
    }

    #[setter]
    fn set_tool_names(&self, value: &Bound<'_, PyAny>) -> PyResult<()> {
        self.store_field("tool_names", value)
    }

    #[getter]
    fn context_usage<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.decoded(py, "context_usage")
    }

    #[setter]
    fn set_context_usage(&self, value: &Bound<'_, PyAny>) -> PyResult<()> {
        self.store_field("context_usage", value)
    }

    #[getter]
    fn total_usage<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.decoded(py, "total_usage")
    }

    #[setter]
    fn set_total_usage(&self, value: &Bound<'_, PyAny>) -> PyResult<()> {
        self.store_field("total_usage", value)
    }

    #[getter]
    fn model_name<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.decoded(py, "model_name")
    }

    #[setter]
    fn set_model_name(&self, value: &Bound<'_, PyAny>) -> PyResult<()> {
        self.store_field("model_name", value)
    }

    #[getter]
    fn created_at<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.time(py, "created_at")
    }

    #[getter]
    fn updated_at<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.time(py, "updated_at")
    }

    /// Any head field by its name in the file; `default` if it is not there.
    #[pyo3(signature = (key, default=None))]
    fn get<'py>(&self, key: &Bound<'py, PyString>, default: Option<Bound<'py, PyAny>>) -> PyResult<Bound<'py, PyAny>> {
        let (py, key) = (key.py(), key_text(key)?);
        let there = self.lock().head().get(&key).is_some();
        match default {
            Some(default) if !there => Ok(default),
            _ => self.decoded(py, &key),
        }
    }

    /// Sets any head field.
    fn set(&self, key: &Bound<'_, PyString>, value: &Bound<'_, PyAny>) -> PyResult<()> {
        self.store_field(&key_text(key)?, value)
    }

    /// Names of the head fields, in file order.
    fn keys(&self, py: Python<'_>) -> PyResult<Py<PyList>> {
        let keys: Vec<Arc<str>> = self.lock().head().fields.iter().map(|(key, _)| key.clone()).collect();
        let list = PyList::empty(py);
        for key in keys {
            list.append(decode(py, format!("\"{key}\"").as_bytes(), || key.to_string())?)?;
        }
        Ok(list.unbind())
    }

    #[pyo3(signature = (*messages, default=None))]
    fn append(&self, messages: &Bound<'_, PyTuple>, default: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        let first = self.session(messages.py())?.log().len();
        let messages = encoded(messages, first, default)?;
        self.append_encoded(&messages);
        Ok(())
    }

    fn truncate(&self, py: Python<'_>, count: Whole) -> PyResult<()> {
        let count = count.0;
        let mut session = self.session(py)?;
        let len = session.log().len();
        match usize::try_from(count) {
            Ok(count) if count <= len => {
                if count < len {
                    session.truncate(count);
                    session.touch(now());
                }
                Ok(())
            }
            _ => Err(PyValueError::new_err(format!("cannot keep {count} messages of {len}"))),
        }
    }

    #[pyo3(signature = (index, message, *, default=None))]
    fn replace(&self, index: Whole, message: &Bound<'_, PyAny>, default: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        let index = index.0;
        let position = |len: usize| {
            let real = if index < 0 { index + len as isize } else { index };
            usize::try_from(real).ok().filter(|i| *i < len)
        };
        let out_of_range = || PyIndexError::new_err(format!("there is no message {index}"));
        let at = position(self.session(message.py())?.log().len()).ok_or_else(out_of_range)?;
        let messages = encoded(&PyTuple::new(message.py(), [message])?, at, default)?;
        let mut session = self.lock();
        // Another thread may have cut the session meanwhile.
        let at = position(session.log().len()).ok_or_else(out_of_range)?;
        if let Some(message) = messages.first() {
            session.replace(at, message);
            session.touch(now());
        }
        Ok(())
    }

    /// An independent copy; costs nothing, whatever the length.
    fn freeze(&self, py: Python<'_>) -> PyResult<SessionData> {
        Ok(SessionData::new(self.session(py)?.clone()))
    }

    #[pyo3(signature = (new_id, at=None))]
    fn fork(&self, new_id: &Bound<'_, PyAny>, at: Option<Whole>) -> PyResult<SessionData> {
        let id = session_id(new_id)?;
        let session = self.session(new_id.py())?;
        let len = session.log().len();
        let Whole(at) = at.unwrap_or(Whole(len as isize));
        match usize::try_from(at) {
            Ok(at) if at <= len => Ok(SessionData::new(session.fork(id, at))),
            _ => Err(PyValueError::new_err(format!("cannot copy {at} messages of {len}"))),
        }
    }

    fn to_json<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let session = self.session(py)?.clone();
        let json = detached(py, move || Ok::<_, PyErr>(session.to_json()))??;
        Ok(PyBytes::new(py, &json))
    }

    #[staticmethod]
    fn from_json(py: Python<'_>, json: &Bound<'_, PyAny>) -> PyResult<SessionData> {
        let bytes: Bytes = if let Ok(bytes) = json.cast::<PyBytes>() {
            Bytes::copy_from_slice(bytes.as_bytes())
        } else if let Ok(text) = json.cast::<PyString>() {
            match text.to_str() {
                Ok(text) => Bytes::copy_from_slice(text.as_bytes()),
                Err(_) => return Err(PyTypeError::new_err("the JSON text contains a lone surrogate; encode it first")),
            }
        } else if let Ok(bytes) = json.cast::<PyByteArray>() {
            bytes.to_vec().into()
        } else {
            return Err(PyTypeError::new_err("from_json takes bytes, bytearray or str"));
        };
        crate::call::engine(py, move || Session::from_json(bytes)).map(SessionData::new)
    }

    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let session = self.session(py)?.clone();
        let dict = attached(|| decode(py, &session.head_json(), || "session".to_string()))?;
        let messages = PyList::empty(py);
        for message in Messages::new(session.log().clone()).iterate() {
            messages.append(attached(|| decode(py, &message?, || format!("messages[{}]", messages.len())))?)?;
        }
        dict.set_item("messages", messages)?;
        Ok(dict)
    }

    #[staticmethod]
    #[pyo3(signature = (fields, *, default=None))]
    fn from_dict(fields: &Bound<'_, PyDict>, default: Option<&Bound<'_, PyAny>>) -> PyResult<SessionData> {
        let py = fields.py();
        let mut out = Writer::new();
        attached(|| encode(&mut out, fields.as_any(), default).map_err(|fault| fault.raise(py, "session")))?;
        let json: Bytes = out.into_bytes().into();
        crate::call::engine(py, move || Session::from_json(json)).map(SessionData::new)
    }

    /// What the next save has to write; None if nothing changed, unless `always`.
    #[pyo3(signature = (*, always=false))]
    fn delta(&self, py: Python<'_>, always: bool) -> PyResult<Option<SessionDelta>> {
        let mut session = self.session(py)?;
        if session.is_unchanged() && !always {
            return Ok(None);
        }
        SessionDelta::new(&mut session).map(Some).map_err(|error| errors::raise(py, &error))
    }

    /// The delta is stored: the base moves to it. `saved=False`: it failed, and may have been stored all the same.
    #[pyo3(signature = (delta, *, saved=true))]
    fn settle(&self, delta: &SessionDelta, saved: bool) -> PyResult<()> {
        if self.lock().id() != delta.written.id() {
            return Err(PyValueError::new_err("the delta is of another session"));
        }
        self.settled(delta, saved);
        Ok(())
    }

    /// Expects what `stored` came from, so that the next save overwrites it.
    fn rebase(&self, py: Python<'_>, stored: &SessionData) -> PyResult<()> {
        let stored = stored.session(py)?.clone();
        self.session(py)?.rebase(&stored);
        Ok(())
    }

    /// Forgets what is stored: the next save creates.
    fn detach(&self, py: Python<'_>) -> PyResult<()> {
        self.session(py)?.detach();
        Ok(())
    }

    fn __repr__(&self) -> String {
        let session = self.lock();
        let count = self.tail().map_or(session.log().len(), |tail| tail.count());
        let (id, revision) = (session.id().as_str(), session.base().revision());
        format!("<SessionData {id:?} revision={revision} messages={count}>")
    }
}
