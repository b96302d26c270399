//! `SessionDelta`: what one save writes.

use crate::data::SessionData;
use perdure_core::{Error, Lineage, Saved, Session};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What became of a delta in the file store.
pub enum Outcome {
    Stored(Arc<Saved>),
    /// It failed, and nobody can know whether it is stored.
    Unknown(Arc<Saved>),
}

/// What a save has to write.
#[pyclass(frozen, module = "perdure")]
pub struct SessionDelta {
    pub written: Session,
    lineage: Lineage,
    #[pyo3(get)]
    revision: u64,
    outcome: Mutex<Option<Outcome>>,
}

impl SessionDelta {
    pub fn new(session: &mut Session) -> Result<SessionDelta, Error> {
        let random = |source| Error::Io { op: "get random bytes from", path: "the system".into(), source };
        let (lineage, next) = session.plan().map_err(random)?;
        let revision = if session.is_unchanged() { session.base().revision() } else { next };
        Ok(SessionDelta { written: session.clone(), lineage, revision, outcome: Mutex::new(None) })
    }

    pub fn outcome(&self) -> MutexGuard<'_, Option<Outcome>> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state that a store without files of ours makes of it.
    pub fn planned_state(&self) -> Arc<Saved> {
        Arc::new(self.written.as_saved(Some(self.lineage), self.revision, None))
    }

    fn stamped(&self) -> Session {
        let mut session = self.written.clone();
        session.settle(&self.written, self.planned_state());
        session
    }
}

#[pymethods]
impl SessionDelta {
    #[getter]
    fn session_id(&self) -> String {
        self.written.id().to_string()
    }

    #[getter]
    fn lineage(&self) -> String {
        self.lineage.to_string()
    }

    #[getter]
    fn base_revision(&self) -> Option<u64> {
        self.written.base().saved().map(|s| s.revision)
    }

    #[getter]
    fn first_index(&self) -> usize {
        self.written.first_new()
    }

    #[getter]
    fn message_count(&self) -> usize {
        self.written.log().len()
    }

    #[getter]
    fn messages(&self, py: Python<'_>) -> PyResult<Py<PyList>> {
        let messages = self.written.log().iter_from(self.written.first_new());
        let list = PyList::empty(py);
        for message in messages {
            list.append(PyBytes::new(py, &message))?;
        }
        Ok(list.unbind())
    }

    #[getter]
    fn head<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.stamped().head_json())
    }

    #[getter]
    fn session(&self) -> SessionData {
        SessionData::new(self.stamped())
    }

    fn __repr__(&self) -> String {
        format!(
            "<SessionDelta {:?} {} -> {}, {} messages from {}>",
            self.written.id().as_str(),
            self.written.base().revision(),
            self.revision,
            self.written.log().len() - self.written.first_new(),
            self.written.first_new()
        )
    }
}
