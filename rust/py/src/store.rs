//! `FileSessionStore`: the engine as Python sees it.

use crate::call::{detached, engine, give_up};
use crate::data::{Outcome, SessionData, SessionDelta};
use crate::decode::decode;
use crate::errors;
use crate::fields::{datetime, session_id};
use perdure_core::{Engine, Info, SaveOptions};
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Sessions in a directory, one readable JSON file each.
#[pyclass(frozen, subclass, module = "perdure", weakref)]
pub struct FileSessionStore {
    path: PathBuf,
    engine: Mutex<Arc<Engine>>,
    sync: bool,
    lock_timeout: Duration,
}

impl FileSessionStore {
    /// The engine; a forked child opens its own, and closes what it inherited without unlocking it.
    fn engine(&self, py: Python<'_>) -> PyResult<Arc<Engine>> {
        let current = self.engine.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if current.is_ours() {
            return Ok(current);
        }
        let path = self.path.clone();
        let fresh = engine(py, move || Engine::open(&path))?;
        *self.engine.lock().unwrap_or_else(PoisonError::into_inner) = fresh.clone();
        Ok(fresh)
    }

    fn options(&self) -> SaveOptions {
        SaveOptions { sync: self.sync, lock_timeout: self.lock_timeout, give_up, ..SaveOptions::default() }
    }

    fn commit(&self, py: Python<'_>, delta: &SessionDelta, options: SaveOptions) -> PyResult<Py<PyAny>> {
        let engine = self.engine(py)?;
        let started = Instant::now();
        let written = &delta.written;
        let place = engine.clone();
        let done = detached(py, move || place.save(written, &options))?;
        let seconds = started.elapsed().as_secs_f64();
        match done {
            Ok(receipt) => {
                let saved = receipt.saved.clone();
                let name = saved.file.as_ref().map(|f| f.name.clone()).unwrap_or_default();
                *delta.outcome() = Some(Outcome::Stored(saved.clone()));
                let location = engine.path().join(name).display().to_string();
                let fields = (saved.revision, receipt.bytes_written, receipt.new_bytes, seconds, location);
                Ok(py.import("perdure.types")?.getattr("SaveReceipt")?.call1(fields)?.unbind())
            }
            Err(failed) => {
                *delta.outcome() = failed.attempt.map(Outcome::Unknown);
                Err(errors::raise(py, &failed.error))
            }
        }
    }
}

fn seconds(py: Python<'_>, name: &str, value: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(value)
        .map_err(|_| errors::new(py, "ConfigError", &format!("{name} has to be a number of seconds, 0 or more, not {value}"), []))
}

#[pymethods]
impl FileSessionStore {
    #[new]
    #[pyo3(signature = (dir, *, journal=false, durability="full", lock_timeout=0.0))]
    fn py_new(py: Python<'_>, dir: PathBuf, journal: bool, durability: &str, lock_timeout: f64) -> PyResult<Self> {
        let sync = match durability {
            "full" => true,
            "process" => false,
            other => {
                let message = format!("durability is \"full\" or \"process\", not {other:?}");
                return Err(errors::new(py, "ConfigError", &message, []));
            }
        };
        if journal {
            let message = "journal=True: the journal mode of the file store is not in this version yet; leave it out";
            return Err(errors::new(py, "ConfigError", message, []));
        }
        let lock_timeout = seconds(py, "lock_timeout", lock_timeout)?;
        let path = dir.clone();
        let engine = engine(py, move || Engine::open(&path))?;
        // Absolute, so that a forked child finds it again whatever its working directory is.
        Ok(FileSessionStore { path: engine.path().to_path_buf(), engine: Mutex::new(engine), sync, lock_timeout })
    }

    #[classattr]
    fn revisions() -> bool {
        true
    }

    #[classattr]
    fn threadsafe() -> bool {
        true
    }

    /// The directory.
    #[getter]
    fn path(&self) -> PathBuf {
        self.path.clone()
    }

    #[getter]
    fn durability(&self) -> &'static str {
        if self.sync {
            "full"
        } else {
            "process"
        }
    }

    #[pyo3(signature = (data, /, *, create=false, force=false))]
    fn save(&self, py: Python<'_>, data: &SessionData, create: bool, force: bool) -> PyResult<Py<PyAny>> {
        let delta = {
            let mut session = data.lock();
            let unchanged = session.is_unchanged();
            SessionDelta::new(py, &mut session, unchanged)?
        };
        let done = self.commit(py, &delta, SaveOptions { create, force, ..self.options() });
        data.settle(&delta, false);
        done
    }

    #[pyo3(signature = (delta, /, *, step=false))]
    fn append(&self, py: Python<'_>, delta: &SessionDelta, step: bool) -> PyResult<Py<PyAny>> {
        self.commit(py, delta, SaveOptions { step, ..self.options() })
    }

    #[pyo3(signature = (id, /))]
    fn load(&self, py: Python<'_>, id: &Bound<'_, PyAny>) -> PyResult<Option<SessionData>> {
        let (id, place) = (session_id(id)?, self.engine(py)?);
        let Some(loaded) = engine(py, move || place.load(&id))? else { return Ok(None) };
        if !loaded.warnings.is_empty() {
            let logger = py.import("logging")?.call_method1("getLogger", ("perdure",))?;
            for warning in loaded.warnings {
                logger.call_method1("warning", ("%s", warning))?;
            }
        }
        Ok(Some(SessionData::new(loaded.session)))
    }

    #[pyo3(signature = (id, /))]
    fn delete(&self, py: Python<'_>, id: &Bound<'_, PyAny>) -> PyResult<bool> {
        let (id, place, options) = (session_id(id)?, self.engine(py)?, self.options());
        engine(py, move || place.delete(&id, &options))
    }

    fn list(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        let place = self.engine(py)?;
        engine(py, move || place.list())
    }

    #[pyo3(signature = (id, /))]
    fn exists(&self, py: Python<'_>, id: &Bound<'_, PyAny>) -> PyResult<bool> {
        let (id, place) = (session_id(id)?, self.engine(py)?);
        engine(py, move || place.exists(&id))
    }

    #[pyo3(signature = (limit=50, cursor=None))]
    fn infos<'py>(&self, py: Python<'py>, limit: usize, cursor: Option<String>) -> PyResult<Bound<'py, PyTuple>> {
        let place = self.engine(py)?;
        let page = engine(py, move || place.infos(limit.max(1), cursor.as_deref()))?;
        let infos = PyList::empty(py);
        for info in &page.infos {
            infos.append(session_info(py, info)?)?;
        }
        (infos, page.next).into_pyobject(py)
    }

    /// Writes and removes a file in the directory, so that what is wrong with it shows.
    fn health_check(&self, py: Python<'_>) -> PyResult<()> {
        let place = self.engine(py)?;
        engine(py, move || place.health_check())
    }

    /// Closes the session's files and lets go of its lock; the store opens them again when they are needed.
    fn release(&self, py: Python<'_>, data: &SessionData) -> PyResult<()> {
        let (session, place) = (data.lock().clone(), self.engine(py)?);
        engine(py, move || {
            place.release(&session);
            Ok(())
        })
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let place = self.engine(py)?;
        engine(py, move || {
            place.close();
            Ok(())
        })
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_error))]
    fn __exit__(&self, py: Python<'_>, _error: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.close(py)
    }

    fn __repr__(&self) -> String {
        format!("FileSessionStore({:?}, durability={:?})", self.path.display().to_string(), self.durability())
    }
}

fn session_info<'py>(py: Python<'py>, info: &Info) -> PyResult<Bound<'py, PyAny>> {
    let config = info.head.get("config").map(|c| decode(py, c, || "config".into())).transpose()?;
    let name = config.and_then(|c| c.get_item("name").ok()).and_then(|n| n.extract::<String>().ok()).unwrap_or_default();
    let tags = decode(py, &info.head.tags, || "tags".into())?.cast_into::<PyList>().map_err(PyErr::from)?.to_tuple();
    let time = |key: &str| datetime(py, info.head.int(key).unwrap_or((info.changed_ns / 1_000_000_000) as i64));
    let fields = (
        info.id.as_str(),
        name,
        tags,
        time("created_at")?,
        time("updated_at")?,
        info.count,
        info.bytes,
        info.revision,
        decode(py, &info.first_prompt, || "first_prompt".into())?,
    );
    py.import("perdure.types")?.getattr("SessionInfo")?.call1(fields)
}

/// Closes what is still open; called when the interpreter exits.
#[pyfunction]
pub fn close_all(py: Python<'_>) -> PyResult<()> {
    engine(py, || {
        Engine::close_all();
        Ok(())
    })
}
