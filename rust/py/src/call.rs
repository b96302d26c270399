//! The one door between Python and the engine: lets go of the interpreter, lets no panic through, and lets Ctrl-C in.

use crate::errors;
use perdure_core::Error;
use pyo3::prelude::*;
use std::cell::RefCell;
use std::panic::{catch_unwind, AssertUnwindSafe};

thread_local! {
    /// What a signal handler raised while this thread waited inside of the engine.
    static RAISED: RefCell<Option<PyErr>> = const { RefCell::new(None) };
}

/// Runs engine code without the interpreter.
pub fn detached<T: Send, E: Send>(
    py: Python<'_>,
    work: impl FnOnce() -> Result<T, E> + Send,
) -> PyResult<Result<T, E>> {
    let done = py.detach(|| catch_unwind(AssertUnwindSafe(work)));
    if let Some(raised) = RAISED.take() {
        return Err(raised);
    }
    done.map_err(|panic| errors::bug(&panic))
}

/// The same, for work whose error is the engine's.
pub fn engine<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T, Error> + Send) -> PyResult<T> {
    detached(py, work)?.map_err(|error| errors::raise(py, &error))
}

/// Runs code that keeps the interpreter; a panic becomes an error.
pub fn attached<T>(work: impl FnOnce() -> PyResult<T>) -> PyResult<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(errors::bug(&panic)))
}

/// Called by the engine while it waits for a lock: true if a signal handler raised and the wait has to end.
pub fn give_up() -> bool {
    Python::attach(|py| match py.check_signals() {
        Ok(()) => false,
        Err(raised) => {
            RAISED.set(Some(raised));
            true
        }
    })
}
