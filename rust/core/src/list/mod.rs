//! Listing sessions: one pass over the names in the directory, then the heads of those that are asked for.

mod look;
mod skim;

use crate::engine::Engine;
use crate::error::{At, Error, Result};
use crate::fs::{File, Open};
use crate::id::SessionId;
use crate::pool;
use crate::read::{read, Found, Names};
use crate::session::Head;
use bytes::Bytes;
use look::{look, Files, Look};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::io;

/// Sessions whose files are open at the same time: a process may not have many descriptors left.
const AT_ONCE: usize = 32;
/// So few are read by the calling thread alone: to wake others takes longer.
const FEW: usize = 8;
/// Threads that read. More than there are cores, for directories that are not in memory.
const WIDTH: usize = 8;

/// A session in a listing.
#[derive(Debug, Clone)]
pub struct Info {
    /// Id.
    pub id: SessionId,
    /// Head fields; of `perdure` the tags and the parent.
    pub head: Head,
    /// First user prompt, a JSON string, or `null`.
    pub first_prompt: Bytes,
    /// Number of messages.
    pub count: u64,
    /// Bytes of its files.
    pub bytes: u64,
    /// Revision; 0 for files that know none.
    pub revision: u64,
    /// Last change, nanoseconds since 1970.
    pub changed_ns: i128,
}

/// A page of a listing, newest first.
#[derive(Debug)]
pub struct Page {
    /// Sessions.
    pub infos: Vec<Info>,
    /// Where the next page begins; None at the end.
    pub next: Option<String>,
}

/// What may be a session. The greatest is the newest.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    place: Place,
    bytes: u64,
    journal: bool,
}

/// Where something stands in a listing: its last change, then its stem. Not its id, for which all heads had to be read.
type Place = (i128, Reverse<String>);

impl Engine {
    /// Ids of all sessions, sorted. What is not a session is left out; damage to a journal does not matter here.
    pub fn list(&self) -> Result<Vec<String>> {
        let (stems, journals) = self.stems()?;
        let mut ids = Vec::with_capacity(stems.len());
        for chunk in stems.chunks(AT_ONCE) {
            let mut files = Vec::with_capacity(chunk.len());
            for stem in chunk {
                files.extend(self.open_files(stem, journals.contains(stem))?);
            }
            ids.extend(self.look_into(files, true).into_iter().flatten().map(|info| info.id.to_string()));
        }
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    /// Sessions, newest first (last change of snapshot or journal, then name), without their histories.
    ///
    /// A page begins behind a place in that order. So pages neither repeat nor leave out a session that is not changed
    /// between them, whatever happens to others.
    pub fn infos(&self, limit: usize, cursor: Option<&str>) -> Result<Page> {
        let mut entries = self.entries(cursor.map(parse_cursor).transpose()?)?;
        let (mut infos, mut ids, mut next) = (Vec::new(), HashSet::new(), None);
        while infos.len() < limit && !entries.is_empty() {
            let (mut files, mut opened) = (Vec::new(), Vec::new());
            while files.len() < AT_ONCE.min(limit - infos.len()) {
                let Some(entry) = entries.pop() else { break };
                if let Some(session) = self.open_files(&entry.place.1 .0, entry.journal)? {
                    files.push(session);
                    opened.push((entry.place.0, entry.bytes));
                }
                next = Some(format!("{}:{}", entry.place.0, entry.place.1 .0));
            }
            for (info, (changed_ns, bytes)) in self.look_into(files, false).into_iter().zip(opened) {
                // A name that was renamed to while the directory was read may be in it twice.
                let info = info.filter(|info| ids.insert(info.id.clone()));
                infos.extend(info.map(|info| Info { changed_ns, bytes, ..info }));
            }
        }
        Ok(Page { infos, next: next.filter(|_| !entries.is_empty()) })
    }

    /// Stems of what may be a session, and of the journals.
    fn stems(&self) -> Result<(Vec<String>, HashSet<String>)> {
        let (mut stems, mut journals) = (Vec::new(), HashSet::new());
        for mut name in self.dir().names().at("list the directory", self.path())? {
            if name.starts_with('.') {
                continue;
            }
            if let Some(len) = name.strip_suffix(".json").map(str::len) {
                name.truncate(len);
                stems.push(name);
            } else if let Some(len) = name.strip_suffix(".journal").map(str::len) {
                name.truncate(len);
                journals.insert(name);
            }
        }
        Ok((stems, journals))
    }

    /// What may be a session behind a place in the listing: a heap, since only a page of it has to be in order.
    fn entries(&self, after: Option<Place>) -> Result<BinaryHeap<Entry>> {
        let (stems, journals) = self.stems()?;
        let mut name = String::new();
        let mut stat = |stem: &str, ending: &str| {
            name.clear();
            name.extend([stem, ending]);
            self.dir().stat(&name).ok().flatten()
        };
        let mut entries = Vec::with_capacity(stems.len());
        for stem in stems {
            let Some(snapshot) = stat(&stem, ".json") else { continue };
            let journal = if journals.contains(&stem) { stat(&stem, ".journal") } else { None };
            let journal = journal.filter(|journal| journal.len > 0);
            let changed_ns = journal.map_or(snapshot.mtime_ns, |journal| journal.mtime_ns.max(snapshot.mtime_ns));
            let place = (changed_ns, Reverse(stem));
            if after.as_ref().is_none_or(|after| place < *after) {
                let bytes = snapshot.len + journal.map_or(0, |journal| journal.len);
                entries.push(Entry { place, bytes, journal: journal.is_some() });
            }
        }
        Ok(entries.into())
    }

    /// Opens what there is to look into.
    fn open_files(&self, stem: &str, journal: bool) -> Result<Option<Files>> {
        let names = Names::new(stem.to_string());
        // The journal first, as every reader does it.
        let journal = if journal { self.open_to_read(&names.journal)? } else { None };
        Ok(self.open_to_read(&names.snapshot)?.map(|snapshot| Files { names, snapshot, journal }))
    }

    fn open_to_read(&self, name: &str) -> Result<Option<Box<dyn File>>> {
        match self.dir().open(name, Open::Read) {
            Ok(file) => Ok(Some(file)),
            // What cannot be opened is left out, but not if it is us who cannot open anything.
            Err(e) if is_exhausted(&e) => Err(e).at("open", &self.path().join(name)),
            Err(_) => Ok(None),
        }
    }

    /// What a listing says of each of them; None if it is not a session, or a deleted one.
    fn look_into(&self, files: Vec<Files>, only_id: bool) -> Vec<Option<Info>> {
        let width = if files.len() > FEW { WIDTH } else { 1 };
        let looks = pool::map(files, width, move |files| {
            let seen = look(&files, only_id);
            (files.names, seen)
        });
        let finish = |(names, seen): (Names, Look)| {
            let info = match seen {
                Ok(info) => info,
                Err(_) => self.read_all(&names).ok().flatten(),
            };
            info.filter(|info| self.is_found_there(&info.id, &names))
        };
        looks.into_iter().map(finish).collect()
    }

    /// The same from all that is in the files, with another try where a writer was between the two.
    fn read_all(&self, names: &Names) -> Result<Option<Info>> {
        let path = self.path().join(&names.snapshot);
        let file = self.dir().open(&names.snapshot, Open::Read).at("open", &path)?;
        let Some(id) = look::id_inside(&file.read_from(0).at("read", &path)?) else { return Ok(None) };
        match read(self.dir(), self.number(), names, &id)? {
            Found::Session(stored) => Ok(Some(look::info_of(&stored.session))),
            Found::Nothing | Found::Deleted | Found::Other(_) => Ok(None),
        }
    }

    /// True if these are the names under which this id is found. Others have no meaning; `check` tells of them.
    fn is_found_there(&self, id: &SessionId, names: &Names) -> bool {
        let own = Names::new(id.stem());
        if own.stem == names.stem {
            return true;
        }
        // A3S Code's name for it; it counts if there is no session under ours.
        let free = || matches!(self.dir().stat(&own.snapshot), Ok(None));
        names.fits(id) && (free() || self.find(id).is_ok_and(|(found, _)| found.stem == names.stem))
    }
}

/// True if the process or the system has no file descriptors left.
fn is_exhausted(error: &io::Error) -> bool {
    cfg!(unix) && matches!(error.raw_os_error(), Some(23 | 24)) // ENFILE, EMFILE
}

fn parse_cursor(cursor: &str) -> Result<Place> {
    let bad = || Error::BadCursor(cursor.to_string());
    let (at, stem) = cursor.split_once(':').ok_or_else(bad)?;
    Ok((at.parse().map_err(|_| bad())?, Reverse(stem.to_string())))
}
