//! A directory that is looked over the shoulder.

use perdure_core::fs::fault::FaultDir;
use perdure_core::fs::{Dir, File, Open, Stat};
use perdure_core::Engine;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// A directory that counts what is read, and where something may happen in between.
#[derive(Debug, Clone)]
pub struct Watched {
    inner: FaultDir,
    /// Bytes that were read.
    pub read: Arc<AtomicU64>,
    /// Its names come twice.
    pub twice: bool,
    /// Called with "open" or "read" and the name, before it is done.
    hook: Hook,
}

type Call = dyn FnMut(&str, &str) -> io::Result<()> + Send;

#[derive(Clone)]
struct Hook(Arc<Mutex<Call>>);

impl std::fmt::Debug for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hook")
    }
}

impl Watched {
    pub fn new(inner: &FaultDir, hook: impl FnMut(&str, &str) -> io::Result<()> + Send + 'static) -> Watched {
        Watched { inner: inner.clone(), read: Arc::default(), twice: false, hook: Hook(Arc::new(Mutex::new(hook))) }
    }

    pub fn engine(&self) -> Engine {
        Engine::on(Arc::new(self.clone()))
    }

    fn call(&self, what: &str, name: &str) -> io::Result<()> {
        self.hook.0.lock().unwrap()(what, name)
    }
}

impl Dir for Watched {
    fn path(&self) -> &Path {
        self.inner.path()
    }
    fn open(&self, name: &str, how: Open) -> io::Result<Box<dyn File>> {
        self.call("open", name)?;
        let file = self.inner.open(name, how)?;
        Ok(Box::new(WatchedFile { file, name: name.to_string(), dir: self.clone() }))
    }
    fn stat(&self, name: &str) -> io::Result<Option<Stat>> {
        self.inner.stat(name)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.inner.remove(name)
    }
    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }
    fn names(&self) -> io::Result<Vec<String>> {
        let names = self.inner.names()?;
        Ok(if self.twice { [names.clone(), names].concat() } else { names })
    }
}

#[derive(Debug)]
struct WatchedFile {
    file: Box<dyn File>,
    name: String,
    dir: Watched,
}

impl WatchedFile {
    fn counted(&self, read: impl FnOnce() -> io::Result<Vec<u8>>) -> io::Result<Vec<u8>> {
        self.dir.call("read", &self.name)?;
        let bytes = read()?;
        self.dir.read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(bytes)
    }
}

impl File for WatchedFile {
    fn stat(&self) -> io::Result<Stat> {
        self.file.stat()
    }
    fn read_from(&self, offset: u64) -> io::Result<Vec<u8>> {
        self.counted(|| self.file.read_from(offset))
    }
    fn read_some(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        self.counted(|| self.file.read_some(offset, len))
    }
    fn write_at(&self, offset: u64, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        self.file.write_at(offset, pieces)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }
    fn sync_all(&self) -> io::Result<()> {
        self.file.sync_all()
    }
    fn try_lock(&self) -> io::Result<bool> {
        self.file.try_lock()
    }
    fn unlock(&self) -> io::Result<()> {
        self.file.unlock()
    }
}
