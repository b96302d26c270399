//! A session in memory: head fields and messages as serialised JSON, and what of it is known to be stored.

use crate::base::{Base, FileBase, Lineage, Saved};
use crate::id::SessionId;
use crate::json;
use crate::log::MessageLog;
use crate::prompt::prompt_of;
use crate::snapshot::{Image, Snapshot};
use bytes::Bytes;
use std::path::Path;
use std::sync::Arc;

/// The head: every field but the messages. Values are canonical JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// `(key, value)` in file order, without `id`, `perdure` and `messages`. Keys are the text between the quotes, as written.
    pub fields: Vec<(Arc<str>, Bytes)>,
    /// `perdure.tags`.
    pub tags: Bytes,
    /// `perdure.parent`.
    pub parent: Bytes,
    /// Members of `perdure` that this version does not know.
    pub extra: Vec<(Arc<str>, Bytes)>,
}

impl Default for Head {
    fn default() -> Head {
        Head {
            fields: Vec::new(),
            tags: Bytes::from_static(b"[]"),
            parent: Bytes::from_static(b"null"),
            extra: Vec::new(),
        }
    }
}

impl Head {
    /// The value of a field.
    pub fn get(&self, key: &str) -> Option<&Bytes> {
        self.fields.iter().find(|(k, _)| &**k == key).map(|(_, v)| v)
    }

    /// Sets a field; a new one goes to the end.
    pub fn set(&mut self, key: &str, value: Bytes) {
        match self.fields.iter_mut().find(|(k, _)| &**k == key) {
            Some((_, v)) => *v = value,
            None => self.fields.push((key.into(), value)),
        }
    }

    /// Removes a field.
    pub fn remove(&mut self, key: &str) -> Option<Bytes> {
        let at = self.fields.iter().position(|(k, _)| &**k == key)?;
        Some(self.fields.remove(at).1)
    }

    /// An integer field.
    pub fn int(&self, key: &str) -> Option<i64> {
        std::str::from_utf8(self.get(key)?).ok()?.parse().ok()
    }

    /// True if what the journal calls the head field `perdure` is the same.
    pub(crate) fn same_meta(&self, other: &Head) -> bool {
        self.tags == other.tags && self.parent == other.parent && self.extra == other.extra
    }
}

/// A session. A clone is cheap and independent.
#[derive(Debug, Clone)]
pub struct Session {
    id: SessionId,
    head: Arc<Head>,
    log: MessageLog,
    base: Base,
    /// A save whose outcome is unknown (its rename succeeded, the directory sync failed): what it wrote.
    attempt: Option<Arc<Saved>>,
    /// The lineage that the first save is going to use.
    planned: Option<Lineage>,
    edits: Edits,
    /// The edits that the base already has.
    base_edits: u64,
    /// The base is another session's: nothing of this log is known to be in it.
    foreign_base: bool,
}

/// Where the log was changed otherwise than by an append. This, and never a comparison of contents, proves that the
/// messages before a point are still those that were saved.
#[derive(Debug, Clone, Default)]
struct Edits {
    count: u64,
    /// `(number, index)`: edit `number` left the messages before `index` alone. Both rise from entry to entry: an edit
    /// further to the front makes the ones before it pointless.
    points: Vec<(u64, usize)>,
}

impl Edits {
    fn push(&mut self, index: usize) {
        self.count += 1;
        while self.points.last().is_some_and(|(_, last)| *last >= index) {
            self.points.pop();
        }
        self.points.push((self.count, index));
    }

    /// Messages at the front that no edit after number `mark` touched; at most `count`.
    fn unbroken_since(&self, mark: u64, count: usize) -> usize {
        self.points.iter().find(|(number, _)| *number > mark).map_or(count, |(_, index)| count.min(*index))
    }

    fn forget(&mut self, mark: u64) {
        self.points.retain(|(number, _)| *number > mark);
    }
}

impl Session {
    /// A new session without messages.
    pub fn new(id: SessionId, head: Head) -> Session {
        Session::fresh(id, head, MessageLog::default())
    }

    fn fresh(id: SessionId, head: Head, log: MessageLog) -> Session {
        let (base, edits) = (Base::Absent, Edits::default());
        Session {
            id,
            head: Arc::new(head),
            log,
            base,
            attempt: None,
            planned: None,
            edits,
            base_edits: 0,
            foreign_base: false,
        }
    }

    /// A session as it was stored.
    pub fn stored(
        id: SessionId,
        head: Arc<Head>,
        log: MessageLog,
        lineage: Option<Lineage>,
        revision: u64,
        file: Option<FileBase>,
    ) -> Session {
        let mut session = Session::fresh(id, Head::default(), log);
        session.head = head;
        session.base = Base::At(Arc::new(session.as_saved(lineage, revision, file)));
        session
    }

    /// What this session is once it has been stored as it is now.
    pub fn as_saved(&self, lineage: Option<Lineage>, revision: u64, file: Option<FileBase>) -> Saved {
        Saved { lineage, revision, count: self.log.len(), head: self.head.clone(), content: self.content(), file }
    }

    /// CRC of messages and head, independent of how a file writes them.
    fn content(&self) -> u32 {
        let head = &*self.head;
        let meta = [("tags", &head.tags), ("parent", &head.parent)];
        let extra = head.extra.iter().chain(&head.fields).map(|(k, v)| (&**k, v));
        let mut crc = self.log.crc();
        for (key, value) in meta.into_iter().chain(extra) {
            for part in [key.as_bytes(), b":", value, b"\n"] {
                crc = crc32c::crc32c_append(crc, part);
            }
        }
        crc
    }

    /// Its id.
    pub fn id(&self) -> &SessionId {
        &self.id
    }

    /// Its head.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Its head, to be changed.
    pub fn head_mut(&mut self) -> &mut Head {
        Arc::make_mut(&mut self.head)
    }

    /// Notes when it was changed, in Unix seconds.
    pub fn touch(&mut self, now: u64) {
        // A head that stays as it is stays shared with the base.
        if self.head.int("updated_at").and_then(|at| u64::try_from(at).ok()) != Some(now) {
            self.head_mut().set("updated_at", now.to_string().into());
        }
    }

    /// Its messages.
    pub fn log(&self) -> &MessageLog {
        &self.log
    }

    /// What it expects to be stored.
    pub fn base(&self) -> &Base {
        &self.base
    }

    /// Lineage and revision that the next save makes.
    pub fn plan(&mut self) -> std::io::Result<(Lineage, u64)> {
        let known = self.base.saved().and_then(|s| s.lineage).or(self.planned);
        let lineage = match known {
            Some(lineage) => lineage,
            None => Lineage::random()?,
        };
        self.planned = Some(lineage);
        Ok((lineage, self.base.revision() + 1))
    }

    /// The lineage for a first save, if there is a plan.
    pub(crate) fn planned(&self) -> Option<Lineage> {
        let has_one = self.base.saved().is_some_and(|s| s.lineage.is_some());
        self.planned.filter(|_| !has_one)
    }

    /// A save of unknown outcome.
    pub fn attempt(&self) -> Option<&Arc<Saved>> {
        self.attempt.as_ref()
    }

    /// Appends serialised messages.
    pub fn append<M: AsRef<[u8]>>(&mut self, messages: &[M]) {
        self.log.append(messages);
    }

    /// Keeps the first `count` messages.
    pub fn truncate(&mut self, count: usize) {
        if count < self.log.len() {
            self.log.truncate(count);
            self.edits.push(count);
        }
    }

    /// Replaces one message.
    pub fn replace(&mut self, index: usize, message: &[u8]) {
        self.log.replace(index, message);
        self.edits.push(index);
    }

    /// A copy under another id, not stored yet, of the first `at` messages; its parent is named.
    pub fn fork(&self, id: SessionId, at: usize) -> Session {
        let mut head = (*self.head).clone();
        let mut parent = json::Writer::new();
        parent.open(b'{');
        parent.key(b"id");
        parent.string(self.id.as_str().as_bytes());
        parent.key(b"lineage");
        match self.base.saved().and_then(|s| s.lineage) {
            Some(lineage) => parent.string(lineage.to_string().as_bytes()),
            None => parent.raw(b"null"),
        }
        parent.key(b"revision");
        parent.int(self.base.revision() as i64);
        parent.key(b"at");
        parent.int(at as i64);
        parent.close(b'}');
        head.parent = parent.into_bytes().into();
        let mut log = self.log.clone();
        log.truncate(at);
        Session::fresh(id, head, log)
    }

    /// Forgets what is stored: the next save creates.
    pub fn detach(&mut self) {
        (self.base, self.attempt, self.planned) = (Base::Absent, None, None);
    }

    /// Expects what `stored` came from: the next save overwrites it, knowingly.
    pub fn rebase(&mut self, stored: &Session) {
        (self.base, self.attempt, self.foreign_base) = (stored.base.clone(), None, true);
    }

    /// The first message that the base does not have, or has otherwise.
    pub fn first_new(&self) -> usize {
        if self.foreign_base {
            return 0;
        }
        self.edits.unbroken_since(self.base_edits, self.base.saved().map_or(0, |s| s.count))
    }

    /// True if saving would write nothing.
    pub fn is_unchanged(&self) -> bool {
        self.base.saved().is_some_and(|s| {
            s.count == self.log.len()
                && self.first_new() == s.count
                && (Arc::ptr_eq(&s.head, &self.head) || *s.head == *self.head)
        })
    }

    /// Moves the base: `written`, a clone of this session as it was then, is stored as `saved`. This session may have
    /// been changed since.
    pub fn settle(&mut self, written: &Session, saved: Arc<Saved>) {
        let same_life = self.base.saved().and_then(|s| s.lineage) == saved.lineage;
        if same_life && self.base.revision() > saved.revision {
            return; // a later save of the same session was settled already
        }
        (self.base_edits, self.foreign_base) = (written.edits.count, false);
        self.edits.forget(self.base_edits);
        self.base = Base::At(saved);
        self.attempt = None;
    }

    /// Remembers a save of unknown outcome.
    pub fn set_attempt(&mut self, attempt: Arc<Saved>) {
        self.attempt = Some(attempt);
    }

    /// The whole session as a snapshot file's bytes, at its base's revision.
    pub fn to_json(&self) -> Vec<u8> {
        let lineage = self.base.saved().and_then(|s| s.lineage);
        Image::new(self, lineage, self.base.revision()).to_vec()
    }

    /// The same without the messages.
    pub fn head_json(&self) -> Vec<u8> {
        let lineage = self.base.saved().and_then(|s| s.lineage);
        Image::new(self, lineage, self.base.revision()).into_head()
    }

    /// A session from a snapshot file's bytes. One with a lineage continues the stored session that it is a copy of.
    pub fn from_json(text: Bytes) -> crate::Result<Session> {
        let parsed = Snapshot::parse(Path::new("<session>"), &text)?;
        if parsed.lineage.is_none() {
            let mut session = Session::fresh(parsed.id, Head::default(), parsed.log);
            session.head = parsed.head;
            return Ok(session);
        }
        Ok(Session::stored(parsed.id, parsed.head, parsed.log, parsed.lineage, parsed.revision, None))
    }

    /// The first user prompt, as a JSON value of at most 200 code points; `null` if there is none.
    pub fn first_prompt(&self) -> Bytes {
        // Looked for near the front only: a prompt that comes later is not what a listing should show.
        for message in self.log.iter_from(0).take(16) {
            if let Some(prompt) = prompt_of(&message) {
                return prompt;
            }
        }
        Bytes::from_static(b"null")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A copy is rebased on what somebody else stored, saved, and the session settles on that. The rebase used to count as
    /// an edit of the copy, and so hid the session's next edit: it was not saved, and nobody was told.
    #[test]
    fn an_edit_after_a_forced_save_is_seen() {
        let mut session = Session::new(SessionId::new("s").unwrap(), Head::default());
        session.append(&["{1}", "{2}", "{3}"]);
        let other = Session::stored(session.id.clone(), session.head.clone(), session.log.clone(), None, 4, None);
        let mut copy = session.clone();
        copy.rebase(&other);
        assert_eq!(copy.first_new(), 0);
        session.settle(&copy, Arc::new(copy.as_saved(None, 5, None)));
        assert!(session.is_unchanged());
        session.truncate(1);
        session.append(&["{4}", "{5}"]);
        assert!(!session.is_unchanged());
        assert_eq!(session.first_new(), 1);
    }

    #[test]
    fn settle_keeps_what_came_after_the_clone() {
        let mut session = Session::new(SessionId::new("s").unwrap(), Head::default());
        session.append(&["{1}", "{2}"]);
        let written = session.clone();
        let saved = |s: &Session| Arc::new(s.as_saved(None, 1, None));
        session.append(&["{3}"]);
        session.settle(&written, saved(&written));
        assert_eq!(session.first_new(), 2);
        assert!(!session.is_unchanged());

        // Cut while the save was under way: the stored tail is not ours any more.
        let written = session.clone();
        session.truncate(1);
        session.append(&["{4}", "{5}"]);
        session.settle(&written, saved(&written));
        assert_eq!(session.first_new(), 1);

        let written = session.clone();
        session.settle(&written, saved(&written));
        assert!(session.is_unchanged());
    }
}
