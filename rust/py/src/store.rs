//! `FileSessionStore`: the engine as Python sees it.

use crate::call::{detached, engine, give_up, together};
use crate::data::SessionData;
use crate::decode::decode;
use crate::delta::{Outcome, SessionDelta};
use crate::errors;
use crate::fields::{datetime, session_id, Whole};
use perdure_core::{pool, Engine, Error, Info, Receipt, SaveOptions};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyList, PyString, PyTuple};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// A look at the files' identities costs as much as a write that is not synced. What is lost if they are replaced within
/// this time is no more than what a power cut may take.
const RECHECK: Duration = Duration::from_millis(1);

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
    journal: bool,
    lock_timeout: Duration,
}

impl FileSessionStore {
    fn opened(&self) -> PyResult<&Opened> {
        let never =
            || PyValueError::new_err("this store was never opened: its __init__ has to call super().__init__(dir)");
        self.opened.get().ok_or_else(never)
    }

    pub fn engine(&self, py: Python<'_>) -> PyResult<Arc<Engine>> {
        self.opened()?.engine(py)
    }

    pub fn options(&self) -> PyResult<SaveOptions> {
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
        SaveOptions {
            sync: self.sync,
            journal: self.journal,
            recheck: RECHECK,
            lock_timeout: self.lock_timeout,
            give_up,
            ..SaveOptions::default()
        }
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

/// Saves a session and moves its base.
pub fn save_data(engine: &Engine, data: &SessionData, options: &SaveOptions) -> Result<Receipt, Error> {
    // Two threads that save one session take turns: the second one stands on what the first one saved.
    let _turn = data.turn();
    data.complete()?;
    let delta = SessionDelta::new(&mut data.lock())?;
    let done = write(engine, &delta, options);
    data.settled(&delta, false);
    done
}

fn save_receipt(py: Python<'_>, engine: &Engine, receipt: &Receipt, taken: Duration) -> PyResult<Py<PyAny>> {
    static CLASS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let class = CLASS.import(py, "perdure.types", "SaveReceipt")?;
    let saved = &receipt.saved;
    let name = saved.file.as_ref().map(|f| f.name()).unwrap_or_default();
    let location = engine.path().join(name).display().to_string();
    let (seconds, syncing) = (taken.as_secs_f64(), receipt.syncing.as_secs_f64());
    let fields = (saved.revision, receipt.bytes_written, receipt.new_bytes, seconds, location, syncing);
    Ok(class.call1(fields)?.unbind())
}

/// What a close did not do is done by whoever opens the session next; but nobody should have to guess.
fn closed(py: Python<'_>, done: Result<(), Error>) -> PyResult<()> {
    match done {
        Ok(()) => Ok(()),
        Err(error) => {
            errors::warn(py, &format!("a journal was not put into its snapshot: {error}; nothing is lost by it"))
        }
    }
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
        let lock_timeout = seconds(py, "lock_timeout", lock_timeout)?;
        let path = dir.clone();
        let engine = engine(py, move || Engine::open(&path))?;
        if let Some(kind) = engine.network_warning() {
            let path = engine.path().display();
            errors::warn(
                py,
                &format!(
                    "{path} is on a network file system ({kind}): what it says is saved may be lost, and its locks \
                     may not hold"
                ),
            )?;
        }
        // Absolute, so that a forked child finds it again whatever its working directory is.
        let path = engine.path().to_path_buf();
        let opened = Opened { path, engine: Mutex::new(engine), sync, journal, lock_timeout };
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

    #[getter]
    fn journal(&self) -> PyResult<bool> {
        Ok(self.opened()?.journal)
    }

    #[pyo3(signature = (data, /, *, create=false, force=false))]
    fn save(&self, py: Python<'_>, data: &SessionData, create: bool, force: bool) -> PyResult<Py<PyAny>> {
        let (place, options) = (self.engine(py)?, SaveOptions { create, force, ..self.options()? });
        let started = Instant::now();
        data.whole(py)?;
        let receipt = engine(py, || save_data(&place, data, &options))?;
        save_receipt(py, &place, &receipt, started.elapsed())
    }

    #[pyo3(signature = (datas, /, *, create=false, force=false))]
    fn save_many(&self, py: Python<'_>, datas: &Bound<'_, PyAny>, create: bool, force: bool) -> PyResult<Py<PyList>> {
        let (place, options) = (self.engine(py)?, SaveOptions { create, force, ..self.options()? });
        let datas: Vec<Py<SessionData>> =
            datas.try_iter()?.map(|data| Ok(data?.extract()?)).collect::<PyResult<_>>()?;
        for data in &datas {
            // What it says is logged here; an error shows when the session is saved.
            let _ = data.get().whole(py);
        }
        let at = place.clone();
        let saved = detached(py, move || {
            let interrupted = Arc::new(AtomicBool::new(false));
            let theirs = interrupted.clone();
            let watch = || {
                let _ = together(&interrupted, give_up);
            };
            Ok::<_, PyErr>(pool::map_watched(datas, pool::MOST, watch, move |data| {
                let started = Instant::now();
                let done = together(&theirs, || save_data(&at, data.get(), &options));
                // The object goes back to the caller, who has the interpreter, to be let go of.
                (done, started.elapsed(), data)
            }))
        })??;
        let results = PyList::empty(py);
        for (done, taken, _) in saved {
            match done {
                Ok(receipt) => results.append(save_receipt(py, &place, &receipt, taken)?)?,
                Err(error) => results.append(errors::raise(py, &error).value(py))?,
            }
        }
        Ok(results.unbind())
    }

    #[pyo3(signature = (id, /))]
    fn checkpoint(&self, py: Python<'_>, id: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        let (id, place, options) = (session_id(id)?, self.engine(py)?, self.options()?);
        let started = Instant::now();
        match engine(py, || place.checkpoint(&id, &options))? {
            Some(receipt) => save_receipt(py, &place, &receipt, started.elapsed()),
            None => {
                let message = format!("there is no session {:?} in {}", id.as_str(), place.path().display());
                let id = PyString::new(py, id.as_str()).into_any();
                Err(errors::new(py, "SessionNotFoundError", &message, [("session_id", Some(id))]))
            }
        }
    }

    fn stats(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let stats = self.engine(py)?.stats();
        let fields = (
            stats.saves,
            stats.lines,
            stats.snapshots,
            stats.bytes_written,
            stats.new_bytes,
            stats.syncing.as_secs_f64(),
        );
        Ok(py.import("perdure.types")?.getattr("StoreStats")?.call1(fields)?.unbind())
    }

    #[pyo3(signature = (delta, /, *, step=false))]
    fn append(&self, py: Python<'_>, delta: &SessionDelta, step: bool) -> PyResult<Py<PyAny>> {
        let (place, options) = (self.engine(py)?, SaveOptions { step, ..self.options()? });
        let started = Instant::now();
        let receipt = engine(py, || write(&place, delta, &options))?;
        save_receipt(py, &place, &receipt, started.elapsed())
    }

    #[pyo3(signature = (id, /))]
    fn load(&self, py: Python<'_>, id: &Bound<'_, PyAny>) -> PyResult<Option<SessionData>> {
        let (id, place) = (session_id(id)?, self.engine(py)?);
        let Some(opened) = engine(py, move || place.open_session(&id))? else { return Ok(None) };
        if let perdure_core::Opened::Whole(loaded) = &opened {
            for warning in &loaded.warnings {
                errors::warn(py, warning)?;
            }
        }
        Ok(Some(SessionData::opened(opened)))
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
        let done = detached(py, move || Ok::<_, PyErr>(place.release(&session)))??;
        closed(py, done)
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let place = self.engine(py)?;
        let done = detached(py, move || Ok::<_, PyErr>(place.close()))??;
        closed(py, done)
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
                let (path, journal) =
                    (opened.path.display().to_string(), if opened.journal { "True" } else { "False" });
                format!("FileSessionStore({path:?}, journal={journal}, durability={durability:?})")
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
    let done = detached(py, || Ok::<_, PyErr>(Engine::close_all()))??;
    closed(py, done)
}
