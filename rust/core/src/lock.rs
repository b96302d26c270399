//! The lock file of a session (docs/format.md, section 5).

use crate::error::{At, Error, Owner, Result};
use crate::fs::{Dir, File, Open};
use std::io::IoSlice;
use std::time::{Duration, Instant};

/// A holder that locks for the time of one save is waited for, whatever the caller's time-out: it is gone in a moment.
const GRACE: Duration = Duration::from_secs(10);

/// How long a lock is going to be held; readable by others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hold {
    /// For one save or delete.
    Save,
    /// As long as the session is open.
    Open,
}

/// How long to wait for a lock.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wait {
    /// One try.
    Never,
    /// This long for an owner that has the session open; an owner that only saves is waited for anyway. The function is
    /// asked from time to time whether to go on.
    AtMost(Duration, fn() -> bool),
}

/// An open lock file. Locked or not is the caller's to know.
#[derive(Debug)]
pub(crate) struct LockFile {
    file: Box<dyn File>,
    name: String,
    inode: (u64, u64),
    /// What this process last wrote into it, and for which hold.
    line: Vec<u8>,
    hold: Hold,
}

/// What the lock file says about its last holder.
#[derive(Debug, Default)]
struct Note {
    owner: Owner,
    open: bool,
    temp: Option<String>,
}

impl Note {
    fn read(bytes: &[u8]) -> Note {
        let Ok(json) = serde_json::from_slice::<serde_json::Value>(bytes) else { return Note::default() };
        let text = |key: &str| json.get(key).and_then(|v| v.as_str()).map(str::to_string);
        let temp = text("temp").filter(|t| t.len() == 16 && t.bytes().all(|b| b.is_ascii_hexdigit()));
        Note {
            owner: Owner {
                pid: json.get("pid").and_then(|v| v.as_u64()).and_then(|p| u32::try_from(p).ok()),
                host: text("host"),
                since: json.get("since").and_then(|v| v.as_u64()),
            },
            open: text("hold").as_deref() == Some("open"),
            temp,
        }
    }
}

impl Note {
    /// True if the holder may keep the lock for as long as it likes. One of this very process is about to let go of it:
    /// whoever has the session open here works through the same slot.
    fn is_patient(&self) -> bool {
        self.open && !(self.owner.pid == Some(std::process::id()) && self.owner.host.as_deref() == Some(&host()))
    }
}

fn host() -> String {
    #[cfg(unix)]
    return rustix::system::uname().nodename().to_string_lossy().into_owned();
    #[cfg(not(unix))]
    return std::env::var("COMPUTERNAME").unwrap_or_default();
}

impl LockFile {
    /// Locks `name`, waiting for it as told. Gives the lock and, if another holder was
    /// there before, the name part of the temp file that it may have left.
    pub fn acquire(
        dir: &dyn Dir,
        name: &str,
        kept: Option<LockFile>,
        id: &str,
        wait: Wait,
        hold: Hold,
        temp: &str,
    ) -> Result<(LockFile, Option<String>)> {
        let path = dir.path().join(name);
        let started = Instant::now();
        let mut pause = Duration::from_micros(200);
        let mut kept = kept;
        loop {
            let mut lock = match kept.take() {
                Some(lock) => lock,
                None => {
                    let file = dir.open(name, Open::Create).at("open", &path)?;
                    let stat = file.stat().at("stat", &path)?;
                    LockFile { file, name: name.to_string(), inode: (stat.device, stat.inode), line: Vec::new(), hold }
                }
            };
            if lock.file.try_lock().at("lock", &path)? {
                // The one before us may have removed it while we waited.
                let there = dir.stat(name).at("stat", &path)?;
                if there.is_some_and(|s| (s.device, s.inode) == lock.inode) {
                    match lock.sign(dir, hold, temp) {
                        Ok(left) => return Ok((lock, left)),
                        Err(error) => {
                            let _ = lock.file.unlock();
                            return Err(error);
                        }
                    }
                }
                continue; // dropping the file lets go of it
            }
            let note = lock.file.read_some(0, 4096).map(|b| Note::read(&b)).unwrap_or_default();
            let (patience, give_up) = match wait {
                Wait::Never => (Duration::ZERO, false),
                Wait::AtMost(timeout, ask) => (if note.is_patient() { timeout } else { timeout.max(GRACE) }, ask()),
            };
            if give_up || started.elapsed() >= patience {
                return Err(Error::Locked { id: id.to_string(), owner: note.owner });
            }
            kept = Some(lock);
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Writes who we are, unless it stands there already.
    fn sign(&mut self, dir: &dyn Dir, hold: Hold, temp: &str) -> Result<Option<String>> {
        let path = dir.path().join(&self.name);
        let found = self.file.read_some(0, 4096).at("read", &path)?;
        if !self.line.is_empty() && found == self.line && hold == self.hold {
            return Ok(None);
        }
        let left = Note::read(&found).temp.filter(|t| t != temp);
        let text = match hold {
            Hold::Save => "save",
            Hold::Open => "open",
        };
        let line = serde_json::json!({
            "pid": std::process::id(), "host": host(), "since": crate::now(), "hold": text, "temp": temp,
        });
        let line = format!("{line}\n").into_bytes();
        self.file.write_at(0, &[IoSlice::new(&line)]).at("write", &path)?;
        self.file.set_len(line.len() as u64).at("truncate", &path)?;
        (self.line, self.hold) = (line, hold);
        Ok(left)
    }

    /// True if the file at the path is still the one that is locked.
    pub fn is_in_place(&self, dir: &dyn Dir) -> bool {
        matches!(dir.stat(&self.name), Ok(Some(there)) if (there.device, there.inode) == self.inode)
    }

    /// Lets go of the lock and keeps the file open for the next time. False: it stays locked until the file is closed.
    pub fn release(&self) -> bool {
        self.file.unlock().is_ok()
    }

    /// Removes the file while it is held, then lets go.
    pub fn remove(self, dir: &dyn Dir) {
        let _ = dir.remove(&self.name);
        let _ = self.file.unlock();
    }
}
