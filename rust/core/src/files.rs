//! What is done to a session's files under its lock (docs/format.md, section 4).

use crate::error::{At, Result};
use crate::fs::{Open, Stat};
use crate::journal::{encode_tombstone, Header};
use crate::read::{JournalFile, Names};
use crate::session::Session;
use crate::slot::Held;
use crate::snapshot::Image;
use std::io::IoSlice;
use std::time::{Duration, Instant};

impl Held<'_> {
    /// Writes a snapshot beside the one that is there; gives its identity.
    pub fn write_temp(&mut self, temp: &str, image: &Image<'_>, syncing: &mut Duration) -> Result<Stat> {
        let path = self.dir.path().join(temp);
        let file = match self.dir.open(temp, Open::CreateNew) {
            // Left by a write of this very slot that could not be tidied up.
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                self.dir.remove(temp).at("remove", &path)?;
                self.dir.open(temp, Open::CreateNew)
            }
            opened => opened,
        }
        .at("create", &path)?;
        file.write_at(0, &image.pieces()).at("write", &path)?;
        let started = Instant::now();
        file.sync_all().at("sync", &path)?;
        *syncing += started.elapsed();
        file.stat().at("stat", &path)
    }

    /// Writes at the journal's acknowledged end. On failure the journal is cut back to it, or marked as not to be trusted.
    pub fn append(&mut self, end: u64, bytes: &[u8], sync: bool, syncing: &mut Duration) -> Result<()> {
        let path = self.dir.path().join(&self.slot.names.journal);
        if !self.is_ready() {
            self.make_durable()?;
        }
        let Some(file) = self.open_journal() else {
            return Err(std::io::Error::from(std::io::ErrorKind::NotFound)).at("append to", &path);
        };
        let mut sync_failed = false;
        let mut done = file.write_at(end, &[IoSlice::new(bytes)]).at("append to", &path);
        if done.is_ok() && sync {
            let started = Instant::now();
            done = file.sync_data().at("sync", &path);
            sync_failed = done.is_err();
            *syncing += started.elapsed();
        }
        if done.is_ok() && self.slot.kept_id().is_some() {
            // Nobody else writes meanwhile: the identity need not be looked at again.
            self.set_ready();
            return Ok(());
        }
        let stat = file.stat().ok().filter(|_| done.is_ok());
        if done.is_err() {
            let cut = file.set_len(end).and_then(|()| file.sync_data());
            // After a failed sync the page cache may claim what the disk does not have.
            self.slot.poisoned |= sync_failed || cut.is_err();
            self.leave(None);
        }
        self.slot.durable_journal = stat;
        done
    }

    /// Makes durable what a line is going to stand on: the names of both files, and a cut of the journal. Whoever wrote
    /// them may have been killed before he could. Nothing is done for what this slot made durable itself.
    fn make_durable(&mut self) -> Result<()> {
        let snapshot_path = self.dir.path().join(&self.slot.names.snapshot);
        let path = self.dir.path().join(&self.slot.names.journal);
        let snapshot = self.dir.stat(&self.slot.names.snapshot).at("stat", &snapshot_path)?;
        let (file, created) = self.slot.journal(self.dir)?;
        let journal = Some(file.stat().at("stat", &path)?);
        let known = self.slot.durable_journal;
        if journal != known && !created {
            let (file, _) = self.slot.journal(self.dir)?;
            file.sync_data().at("sync", &path)?;
        }
        if journal != known || snapshot.is_none() || snapshot != self.slot.durable_snapshot {
            self.dir.sync().at("sync the directory", self.dir.path())?;
        }
        (self.slot.durable_snapshot, self.slot.durable_journal) = (snapshot, journal);
        Ok(())
    }

    /// Makes the journal fit to be appended to: a torn tail is put aside, lines that were folded already are cut.
    pub fn tidy_journal(&mut self, journal: &JournalFile) -> Result<JournalFile> {
        let mut tidy = journal.clone();
        if journal.good_len < journal.len {
            self.put_aside(journal)?;
        }
        if journal.folded {
            (tidy.good_len, tidy.crc, tidy.folded) = (0, 0, false);
        }
        if tidy.good_len < tidy.len {
            self.cut_journal(tidy.good_len)?;
            tidy.len = tidy.good_len;
        }
        Ok(tidy)
    }

    /// Cuts the journal durably. If that fails it may be longer after a crash than it seems now.
    fn cut_journal(&mut self, len: u64) -> Result<()> {
        let path = self.dir.path().join(&self.slot.names.journal);
        let known = self.slot.durable_journal.take();
        let (file, _) = self.slot.journal(self.dir)?;
        let cut = file.set_len(len).at("truncate", &path);
        let cut = cut.and_then(|()| file.sync_data().at("sync", &path));
        let stat = file.stat().ok().filter(|now| known.is_some_and(|k| (k.device, k.inode) == (now.device, now.inode)));
        match cut {
            Ok(()) => self.slot.durable_journal = stat,
            Err(_) => self.slot.poisoned = true,
        }
        cut
    }

    pub fn empty_journal(&mut self, journal: &JournalFile) -> Result<()> {
        if journal.good_len < journal.len {
            self.put_aside(journal)?;
        }
        self.cut_journal(0)
    }

    /// Keeps the bytes of a torn tail beside the journal: nothing is thrown away unseen.
    fn put_aside(&mut self, journal: &JournalFile) -> Result<()> {
        let path = self.dir.path().join(&self.slot.names.journal);
        let (file, _) = self.slot.journal(self.dir)?;
        let tail = file.read_from(journal.good_len).at("read", &path)?;
        let name = format!("{}.torn-{}", self.slot.names.journal, crate::now());
        let mut number = 0;
        let aside = loop {
            let name = if number == 0 { name.clone() } else { format!("{name}-{number}") };
            match self.dir.open(&name, Open::CreateNew) {
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && number < 1000 => number += 1,
                opened => break (opened.at("create", &self.dir.path().join(&name))?, name),
            }
        };
        let (aside, name) = aside;
        let path = self.dir.path().join(&name);
        let kept = aside.write_at(0, &[IoSlice::new(&tail)]).at("write", &path);
        let kept = kept.and_then(|()| aside.sync_all().at("sync", &path));
        let kept = kept.and_then(|()| self.dir.sync().at("sync the directory", self.dir.path()));
        if kept.is_err() {
            // The tail is where it was; on a full disk every try would leave another piece of it.
            let _ = self.dir.remove(&name);
        }
        kept
    }

    /// The durable mark that the session is deleted; from here on it is.
    pub fn tombstone(&mut self, session: &Session, journal: &JournalFile) -> Result<()> {
        let journal = self.tidy_journal(journal)?;
        let saved = session.base().saved();
        let (mut bytes, chain) = match journal.good_len {
            0 => {
                let file = saved.and_then(|s| s.file.as_ref());
                Header {
                    id: session.id().to_string(),
                    lineage: saved.and_then(|s| s.lineage),
                    base_revision: session.base().revision(),
                    snapshot_bytes: file.map_or(0, |f| f.stat.len),
                    snapshot_crc: file.map_or(0, |f| f.crc),
                }
                .encode()
            }
            _ => (Vec::new(), journal.crc),
        };
        encode_tombstone(&mut bytes, session.base().revision() + 1, crate::now(), chain);
        self.append(journal.good_len, &bytes, true, &mut Duration::default())
    }

    /// Carries a deletion through whose mark is durable.
    pub fn finish_delete(&mut self) -> Result<()> {
        let Names { snapshot, journal, .. } = (*self.slot.names).clone();
        // Its writer may have been killed before he could sync it.
        match self.dir.open(&journal, Open::Write) {
            Ok(file) => file.sync_data().at("sync", &self.dir.path().join(&journal))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).at("open", &self.dir.path().join(&journal)),
        }
        for name in [snapshot, journal] {
            let path = self.dir.path().join(&name);
            match self.dir.remove(&name) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).at("remove", &path),
                _ => self.dir.sync().at("sync the directory", self.dir.path())?,
            }
        }
        self.slot.drop_journal();
        self.slot.poisoned = false;
        Ok(())
    }
}
