//! `Messages`: the history as an immutable sequence that decodes only what is looked at.

use crate::call::attached;
use crate::data::SessionData;
use crate::decode::{decode, Scratch};
use crate::fields::Whole;
use perdure_core::{MessageLog, Tail};
use pyo3::exceptions::{PyIndexError, PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PySlice};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// A view of a session's messages as they were when it was made.
#[pyclass(frozen, sequence, module = "perdure")]
#[derive(Clone)]
pub struct Messages {
    source: Source,
    start: isize,
    step: isize,
    len: usize,
}

/// Where the messages are.
#[derive(Clone)]
enum Source {
    Log(MessageLog),
    /// The last ones here, the others with the session that was opened.
    Tail(Arc<Tail>, Arc<Py<SessionData>>),
}

impl Messages {
    pub fn new(log: MessageLog) -> Messages {
        let len = log.len();
        Messages { source: Source::Log(log), start: 0, step: 1, len }
    }

    pub fn of_tail(tail: Arc<Tail>, data: Py<SessionData>) -> Messages {
        let len = tail.count();
        Messages { source: Source::Tail(tail, Arc::new(data)), start: 0, step: 1, len }
    }

    /// All messages as they are stored.
    pub fn iterate(&self) -> impl Iterator<Item = PyResult<bytes::Bytes>> + '_ {
        (0..self.len).map(|i| self.stored(self.position(i)))
    }

    /// Index into the log of this view's message `index`.
    fn position(&self, index: usize) -> usize {
        // A step may be as large as Python likes; within the view the result is always a place in the log.
        self.start.wrapping_add(self.step.wrapping_mul(index as isize)) as usize
    }

    fn at(&self, index: Whole) -> PyResult<usize> {
        let given = index.0;
        let real = if given < 0 { given + self.len as isize } else { given };
        if real < 0 || real as usize >= self.len {
            return Err(PyIndexError::new_err(format!("there is no message {given}: there are {}", self.len)));
        }
        Ok(self.position(real as usize))
    }

    fn stored(&self, position: usize) -> PyResult<bytes::Bytes> {
        let found = match &self.source {
            Source::Log(log) => log.get(position),
            Source::Tail(tail, data) => match tail.get(position) {
                Some(message) => Some(message),
                None => {
                    Python::attach(|py| data.get().whole(py))?;
                    tail.get(position)
                }
            },
        };
        found.ok_or_else(|| PyIndexError::new_err("message index out of range"))
    }

    fn decoded<'py>(&self, py: Python<'py>, position: usize) -> PyResult<Bound<'py, PyAny>> {
        let bytes = self.stored(position)?;
        attached(|| decode(py, &bytes, || format!("messages[{position}]")))
    }

    /// The same within a walk over many messages.
    fn decoded_with<'py>(
        &self,
        py: Python<'py>,
        position: usize,
        scratch: &mut Scratch,
    ) -> PyResult<Bound<'py, PyAny>> {
        let bytes = self.stored(position)?;
        attached(|| scratch.decode(py, &bytes, || format!("messages[{position}]")))
    }

    fn find(&self, value: &Bound<'_, PyAny>, from: usize, to: usize) -> PyResult<Option<usize>> {
        let mut scratch = Scratch::for_many();
        for i in from..to.min(self.len) {
            if self.decoded_with(value.py(), self.position(i), &mut scratch)?.eq(value)? {
                return Ok(Some(i));
            }
        }
        Ok(None)
    }
}

#[pymethods]
impl Messages {
    fn __len__(&self) -> usize {
        self.len
    }

    fn __getitem__<'py>(&self, index: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let py = index.py();
        if let Ok(slice) = index.cast::<PySlice>() {
            let part = slice.indices(self.len as isize)?;
            let view = Messages {
                source: self.source.clone(),
                start: self.start.wrapping_add(self.step.wrapping_mul(part.start)),
                step: self.step.wrapping_mul(part.step),
                len: part.slicelength,
            };
            return Ok(Bound::new(py, view)?.into_any());
        }
        if !index.hasattr(intern!(py, "__index__"))? {
            let kind = index.get_type().name()?;
            return Err(PyTypeError::new_err(format!("messages are indexed by integers or slices, not by {kind}")));
        }
        self.decoded(py, self.at(index.extract()?)?)
    }

    fn __iter__(slf: Bound<'_, Self>) -> MessageIterator {
        MessageIterator {
            messages: slf.get().clone(),
            next: AtomicUsize::new(0),
            scratch: Mutex::new(Scratch::for_many()),
        }
    }

    fn __contains__(&self, value: &Bound<'_, PyAny>) -> PyResult<bool> {
        Ok(self.find(value, 0, self.len)?.is_some())
    }

    fn __eq__(&self, other: &Bound<'_, PyAny>) -> PyResult<bool> {
        if let Ok(other) = other.cast::<Messages>() {
            let other = other.get();
            if self.len != other.len {
                return Ok(false);
            }
        } else if other.cast::<PyList>().is_err() && other.cast::<pyo3::types::PyTuple>().is_err() {
            return Ok(false);
        }
        if other.len()? != self.len {
            return Ok(false);
        }
        let mut scratch = Scratch::for_many();
        for i in 0..self.len {
            if !self.decoded_with(other.py(), self.position(i), &mut scratch)?.eq(other.get_item(i)?)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn __repr__(&self) -> String {
        // No content: a history is not for logs.
        format!("<Messages: {}>", self.len)
    }

    #[pyo3(signature = (value, start=Whole(0), stop=Whole(isize::MAX), /), text_signature = "($self, value, start=0, stop=..., /)")]
    fn index(&self, value: &Bound<'_, PyAny>, start: Whole, stop: Whole) -> PyResult<usize> {
        let clamp = |Whole(i)| (if i < 0 { (i + self.len as isize).max(0) } else { i }) as usize;
        self.find(value, clamp(start), clamp(stop))?.ok_or_else(|| PyValueError::new_err("no such message"))
    }

    #[pyo3(signature = (value, /))]
    fn count(&self, value: &Bound<'_, PyAny>) -> PyResult<usize> {
        let (mut count, mut scratch) = (0, Scratch::for_many());
        for i in 0..self.len {
            count += usize::from(self.decoded_with(value.py(), self.position(i), &mut scratch)?.eq(value)?);
        }
        Ok(count)
    }

    /// The stored JSON of a message.
    fn raw<'py>(&self, py: Python<'py>, index: Whole) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, &self.stored(self.at(index)?)?))
    }
}

/// Iterates over messages; made by `iter(messages)`.
#[pyclass(frozen, module = "perdure")]
pub struct MessageIterator {
    messages: Messages,
    next: AtomicUsize,
    scratch: Mutex<Scratch>,
}

#[pymethods]
impl MessageIterator {
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        if index >= self.messages.len {
            return Ok(None);
        }
        let position = self.messages.position(index);
        // Held by another thread, or by this one, in the finalizer of an object that the collector found meanwhile.
        match self.scratch.try_lock() {
            Ok(mut scratch) => self.messages.decoded_with(py, position, &mut scratch),
            Err(_) => self.messages.decoded(py, position),
        }
        .map(Some)
    }

    fn __length_hint__(&self) -> usize {
        self.messages.len.saturating_sub(self.next.load(Ordering::Relaxed))
    }
}
