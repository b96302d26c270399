//! `FileSessionStore`: the engine as Python sees it.

use crate::call::{engine, give_up};
use crate::data::SessionData;
use crate::decode::decode;
use crate::delta::{Outcome, SessionDelta};
use crate::errors;
use crate::fields::{datetime, session_id, Whole};
use perdure_core::{Engine, Error, Info, Receipt, SaveOptions};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString, PyTuple};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Sessions in a directory, one readable JSON file each.
#[pyclass(frozen, subclass, module = "perdure", weakref)]
pub struct FileSessionStore {
    opened: OnceLock<Opened>,
}

/// What `__init__` makes of it: a subclass may have arguments of its own, as with any Python class.
struct Opened {
    path: PathBuf,
    engine: Mutex<Arc<Engine>>,
    sync: bool,
    lock_timeout: Duration,
}

impl FileSessionStore {
    fn opened(&self) -> PyResult<&Opened> {
        let never =
            || PyValueError::new_err("this store was never opened: its __init__ has to call super().__init__(dir)");
        self.opened.get().ok_or_else(never)
    }

    fn engine(&self, py: Python<'_>) -> PyResult<Arc<Engine>> {
        self.opened()?.engine(py)
    }

    fn options(&self) -> PyResult<SaveOptions> {
        Ok(self.opened()?.options())
    }
}

impl Opened {
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
}

/// Saves a delta, notes in it what became of it, and says what the receipt needs to know.
fn write(engine: &Engine, delta: &SessionDelta, options: &SaveOptions) -> Result<Receipt, Error> {
    match engine.save(&delta.written, options) {
        Ok(receipt) => {
            *delta.outcome() = Some(Outcome::Stored(receipt.saved.clone()));
            Ok(receipt)
        }
        Err(failed) => {
            *delta.outcome() = failed.attempt.map(Outcome::Unknown);
            Err(failed.error)
        }
    }
}

fn save_receipt(py: Python<'_>, engine: &Engine, receipt: &Receipt, started: Instant) -> PyResult<Py<PyAny>> {
    let saved = &receipt.saved;
    let name = saved.file.as_ref().map(|f| f.name.as_str()).unwrap_or_default();
    let location = engine.path().join(name).display().to_string();
    let seconds = started.elapsed().as_secs_f64();
    let fields = (saved.revision, receipt.bytes_written, receipt.new_bytes, seconds, location);
    Ok(py.import("perdure.types")?.getattr("SaveReceipt")?.call1(fields)?.unbind())
}

fn seconds(py: Python<'_>, name: &str, value: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(value).map_err(|_| {
        errors::new(py, "ConfigError", &format!("{name} has to be a number of seconds, 0 or more, not {value}"), [])
    })
}

#[pymethods]
impl FileSessionStore {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn py_new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> FileSessionStore {
        FileSessionStore { opened: OnceLock::new() }
    }

    #[pyo3(signature = (dir, *, journal=false, durability="full", lock_timeout=0.0))]
    fn __init__(
        &self,
        py: Python<'_>,
        dir: PathBuf,
        journal: bool,
        durability: &str,
        lock_timeout: f64,
    ) -> PyResult<()> {
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
        if let Some(kind) = engine.network_warning() {
            let told =
                "%s is on a network file system (%s): what it says is saved may be lost, and its locks may not hold";
            let logger = py.import("logging")?.call_method1("getLogger", ("perdure",))?;
            logger.call_method1("warning", (told, engine.path().display().to_string(), kind))?;
        }
        // Absolute, so that a forked child finds it again whatever its working directory is.
        let opened = Opened { path: engine.path().to_path_buf(), engine: Mutex::new(engine), sync, lock_timeout };
        self.opened
            .set(opened)
            .map_err(|_| errors::new(py, "ConfigError", "this store is open already; make another one", []))
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
    fn path(&self) -> PyResult<PathBuf> {
        Ok(self.opened()?.path.clone())
    }

    #[getter]
    fn durability(&self) -> PyResult<&'static str> {
        Ok(if self.opened()?.sync { "full" } else { "process" })
    }

    #[pyo3(signature = (data, /, *, create=false, force=false))]
    fn save(&self, py: Python<'_>, data: &SessionData, create: bool, force: bool) -> PyResult<Py<PyAny>> {
        let (place, options) = (self.engine(py)?, SaveOptions { create, force, ..self.options()? });
        let started = Instant::now();
        let receipt = engine(py, || {
            // Two threads that save one session take turns: the second one stands on what the first one saved.
            let _turn = data.turn();
            let delta = SessionDelta::new(&mut data.lock())?;
            let done = write(&place, &delta, &options);
            data.settled(&delta, false);
            done
        })?;
        save_receipt(py, &place, &receipt, started)
    }

    #[pyo3(signature = (delta, /, *, step=false))]
    fn append(&self, py: Python<'_>, delta: &SessionDelta, step: bool) -> PyResult<Py<PyAny>> {
        let (place, options) = (self.engine(py)?, SaveOptions { step, ..self.options()? });
        let started = Instant::now();
        let receipt = engine(py, || write(&place, delta, &options))?;
        save_receipt(py, &place, &receipt, started)
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
        let (id, place, options) = (session_id(id)?, self.engine(py)?, self.options()?);
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

    #[pyo3(signature = (limit=Whole(50), cursor=None), text_signature = "($self, limit=50, cursor=None)")]
    fn infos<'py>(&self, py: Python<'py>, limit: Whole, cursor: Option<String>) -> PyResult<Bound<'py, PyTuple>> {
        let Some(limit) = usize::try_from(limit.0).ok().filter(|limit| *limit > 0) else {
            return Err(PyValueError::new_err(format!("limit: at least 1, not {}", limit.0)));
        };
        let place = self.engine(py)?;
        let page = engine(py, move || place.infos(limit, cursor.as_deref()))?;
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
        match (self.opened.get(), self.durability()) {
            (Some(opened), Ok(durability)) => {
                format!("FileSessionStore({:?}, durability={durability:?})", opened.path.display().to_string())
            }
            _ => "<FileSessionStore, not opened>".to_string(),
        }
    }
}

/// One bad value in one head must not take the whole listing down: what cannot be shown is left empty.
fn session_info<'py>(py: Python<'py>, info: &Info) -> PyResult<Bound<'py, PyAny>> {
    let shown = |value: &[u8]| decode(py, value, String::new).ok();
    let name = info.head.get("config").and_then(|c| shown(c)?.get_item("name").ok()?.extract::<String>().ok());
    let tags = shown(&info.head.tags).and_then(|tags| tags.cast_into::<PyList>().ok()).map(|tags| tags.to_tuple());
    let prompt = shown(&info.first_prompt).and_then(|prompt| prompt.cast_into::<PyString>().ok());
    let time = |key: &str| datetime(py, info.head.int(key).unwrap_or((info.changed_ns / 1_000_000_000) as i64));
    let fields = (
        info.id.as_str(),
        name.unwrap_or_default(),
        tags.unwrap_or_else(|| PyTuple::empty(py)),
        time("created_at")?,
        time("updated_at")?,
        info.count,
        info.bytes,
        info.revision,
        prompt,
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
