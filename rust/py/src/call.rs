//! The one door between Python and the engine: lets go of the interpreter, lets no panic through, and lets Ctrl-C in.

use crate::errors;
use perdure_core::Error;
use pyo3::prelude::*;
use std::cell::RefCell;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

thread_local! {
    /// What a signal handler raised while this thread waited inside of the engine.
    static RAISED: RefCell<Option<PyErr>> = const { RefCell::new(None) };
    /// Set for work that is spread over threads: whether it is to be given up.
    static SHARED: RefCell<Option<Arc<AtomicBool>>> = const { RefCell::new(None) };
}

/// Does work that gives up waiting on every thread once one was interrupted: only the main thread hears of Ctrl-C.
pub fn together<T>(interrupted: &Arc<AtomicBool>, work: impl FnOnce() -> T) -> T {
    let before = SHARED.replace(Some(interrupted.clone()));
    let done = work();
    SHARED.set(before);
    done
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
    let shared = SHARED.with_borrow(Clone::clone);
    if shared.as_ref().is_some_and(|interrupted| interrupted.load(Ordering::Relaxed)) {
        return true;
    }
    // Without an interpreter nobody waits for the outcome.
    let raised = Python::try_attach(|py| match py.check_signals() {
        Ok(()) => false,
        Err(raised) => {
            RAISED.set(Some(raised));
            true
        }
    });
    if let Some(interrupted) = shared.filter(|_| raised == Some(true)) {
        interrupted.store(true, Ordering::Relaxed);
    }
    raised.unwrap_or(true)
}
