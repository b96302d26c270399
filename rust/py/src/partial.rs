//! A session of which only the end was read: what it can say, and how it is made whole.

use crate::call::engine;
use crate::data::SessionData;
use crate::errors;
use perdure_core::{Error, Opened, Session, Tail};
use pyo3::prelude::*;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};

impl SessionData {
    pub fn opened(opened: Opened) -> SessionData {
        match opened {
            Opened::Whole(loaded) => SessionData::new(loaded.session),
            Opened::Tail(tail) => SessionData::with_tail(tail.session().clone(), Some(tail)),
        }
    }

    /// Reads what has not been read yet; warnings that are to be logged. Never called with the interpreter held.
    pub fn complete(&self) -> Result<Vec<String>, Error> {
        if self.whole.load(Ordering::Acquire) {
            return Ok(Vec::new());
        }
        let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(rest) = &*tail else { return Ok(Vec::new()) };
        let loaded = rest.load()?;
        *self.lock() = loaded.session;
        *tail = None;
        self.whole.store(true, Ordering::Release);
        Ok(loaded.warnings)
    }

    /// The whole session, to be looked at or changed.
    pub fn session(&self, py: Python<'_>) -> PyResult<MutexGuard<'_, Session>> {
        self.whole(py)?;
        Ok(self.lock())
    }

    /// Reads what has not been read yet.
    pub fn whole(&self, py: Python<'_>) -> PyResult<()> {
        if !self.whole.load(Ordering::Acquire) {
            for warning in engine(py, || self.complete())? {
                errors::warn(py, &warning)?;
            }
        }
        Ok(())
    }

    pub fn tail(&self) -> Option<Arc<Tail>> {
        if self.whole.load(Ordering::Acquire) {
            return None;
        }
        // Held for long only by a thread that is about to make the session whole.
        self.tail.try_lock().ok().and_then(|tail| tail.clone())
    }

    pub fn count(&self, py: Python<'_>) -> PyResult<usize> {
        match self.tail() {
            Some(tail) => Ok(tail.count()),
            None => Ok(self.session(py)?.log().len()),
        }
    }
}
