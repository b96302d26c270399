//! `perdure._core`: the engine's Python face. Its types and docstrings are in `python/perdure/_core.pyi`.

mod appender;
mod call;
mod data;
mod decode;
mod delta;
mod encode;
mod errors;
mod fields;
mod hcl;
mod messages;
mod partial;
mod store;

use pyo3::prelude::*;

#[pymodule(gil_used = false)]
mod _core {
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::appender::{Appender, Mailbox};
    #[pymodule_export]
    use super::data::SessionData;
    #[pymodule_export]
    use super::delta::SessionDelta;
    #[pymodule_export]
    use super::hcl::parse_config;
    #[pymodule_export]
    use super::messages::{MessageIterator, Messages};
    #[pymodule_export]
    use super::store::{close_all, FileSessionStore};
    #[allow(non_upper_case_globals)]
    #[pymodule_export]
    const __version__: &str = env!("CARGO_PKG_VERSION");
    /// "release" or "debug": a debug build is slow, and says so.
    #[allow(non_upper_case_globals)]
    #[pymodule_export]
    const build_profile: &str = if cfg!(debug_assertions) { "debug" } else { "release" };

    /// A history is a sequence for `isinstance` and `match` too.
    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        let sequence = module.py().import("collections.abc")?.getattr("Sequence")?;
        sequence.call_method1("register", (module.py().get_type::<Messages>(),))?;
        Ok(())
    }
}
