//! A world of engines and handles on a failing disk, beside a plain model of what must be found there.

#![allow(dead_code)] // every test binary uses a part of it

use perdure_core::fs::fault::{FaultDir, Random};
use perdure_core::{Engine, Error, Head, SaveOptions, Saved, Session, SessionId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Nobody waits for a lock: all is done by one thread.
const SAVE: SaveOptions = SaveOptions {
    step: false,
    journal: false,
    create: false,
    force: false,
    sync: true,
    recheck: std::time::Duration::ZERO,
    lock_timeout: std::time::Duration::ZERO,
    give_up: || true,
};

/// What a session says, as plain values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    pub messages: Vec<String>,
    pub head: Vec<(String, String)>,
    pub tags: String,
}

pub fn state(session: &Session) -> State {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    State {
        messages: session.log().iter_from(0).map(|m| text(&m)).collect(),
        head: session.head().fields.iter().map(|(k, v)| (k.to_string(), text(v))).collect(),
        tags: text(&session.head().tags),
    }
}

pub fn id(text: &str) -> SessionId {
    SessionId::new(text).unwrap()
}

pub fn engine(dir: &FaultDir) -> Engine {
    Engine::on(Arc::new(dir.clone()))
}

/// What lies under an id, as an engine that knows nothing sees it.
pub fn found(dir: &FaultDir, name: &str) -> Result<Option<State>, String> {
    match engine(dir).load(&id(name)) {
        Ok(Some(loaded)) => match loaded.warnings.iter().find(|w| w.contains("outside")) {
            Some(warning) => Err(warning.clone()),
            None => Ok(Some(state(&loaded.session))),
        },
        Ok(None) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// One thing that a program does. `h` is a handle: a session in memory, tied to an engine.
#[derive(Debug, Clone)]
pub enum Action {
    /// A new session object; a loaded one if the id is stored.
    New {
        h: usize,
        engine: usize,
        id: usize,
    },
    /// What is stored; a new one if nothing is.
    Load {
        h: usize,
        engine: usize,
        id: usize,
    },
    Append {
        h: usize,
        sizes: Vec<usize>,
    },
    Truncate {
        h: usize,
        keep: usize,
    },
    Replace {
        h: usize,
        at: usize,
        size: usize,
    },
    Set {
        h: usize,
        key: &'static str,
        size: usize,
    },
    Unset {
        h: usize,
        key: &'static str,
    },
    Tag {
        h: usize,
    },
    Save {
        h: usize,
    },
    Step {
        h: usize,
    },
    /// A save in journal mode.
    Line {
        h: usize,
    },
    Checkpoint {
        engine: usize,
        id: usize,
    },
    Delete {
        engine: usize,
        id: usize,
    },
    Release {
        h: usize,
    },
    Close {
        engine: usize,
    },
    /// The engine is dropped and opened anew, as by another process.
    Reopen {
        engine: usize,
    },
}

pub struct Handle {
    pub session: Session,
    pub engine: usize,
    pub id: usize,
}

/// What may be found under an id.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// Acknowledged last.
    pub acknowledged: Option<State>,
    /// Not acknowledged, but may have been carried out.
    pub possible: Vec<Option<State>>,
}

impl Known {
    pub fn allows(&self, found: &Option<State>) -> bool {
        *found == self.acknowledged || self.possible.contains(found)
    }

    fn acknowledge(&mut self, state: Option<State>) {
        self.acknowledged = state;
        self.possible.clear();
    }
}

pub struct World {
    pub dir: FaultDir,
    /// Each is a process of its own, by its view of the directory.
    pub engines: Vec<(Engine, FaultDir)>,
    processes: usize,
    pub handles: BTreeMap<usize, Handle>,
    pub ids: Vec<String>,
    pub known: Vec<Known>,
    /// Save with `sync`.
    pub sync: bool,
    /// After a failure the program tries again at once.
    pub retry: bool,
    /// Looks at the disk after everything that succeeded, not only after failures.
    pub watch: bool,
    counter: usize,
}

/// Why a workload ended early.
#[derive(Debug, PartialEq, Eq)]
pub enum Crashed {
    /// Power was lost.
    Disk,
    /// The process with this engine was killed.
    Engine(usize),
}

impl World {
    pub fn new(dir: FaultDir, ids: &[String]) -> World {
        let engines = (0..2).map(|n| dir.process(n)).map(|dir| (engine(&dir), dir)).collect();
        let known = ids.iter().map(|_| Known::default()).collect();
        let handles = BTreeMap::new();
        World {
            dir,
            engines,
            processes: 2,
            handles,
            ids: ids.to_vec(),
            known,
            sync: true,
            retry: false,
            watch: true,
            counter: 0,
        }
    }

    /// A world on what a crash left.
    pub fn after(image: FaultDir, ids: &[String], known: Vec<Known>) -> World {
        World { known, counter: 500_000, ..World::new(image, ids) }
    }

    fn text(&mut self, size: usize) -> String {
        self.counter += 1;
        format!("{}{}", self.counter, "x".repeat(size))
    }

    fn fresh(&mut self, h: usize, engine: usize, name: usize) {
        let mut head = Head::default();
        head.set("created", format!("\"{}\"", self.text(0)).into());
        let session = Session::new(id(&self.ids[name]), head);
        self.handles.insert(h, Handle { session, engine, id: name });
    }

    fn load(&mut self, h: usize, engine: usize, name: usize) -> Result<bool, Crashed> {
        let session_id = id(&self.ids[name]);
        let loaded = match self.engines[engine].0.load(&session_id) {
            Err(_) if self.is_over(engine).is_some() => return self.is_over(engine).map_or(Ok(false), Err),
            Err(error) if self.dir.fired() => {
                let again = self.engines[engine].0.load(&session_id);
                again.unwrap_or_else(|again| panic!("load failed with {error}, then with {again}"))
            }
            loaded => loaded.unwrap_or_else(|error| panic!("load of {:?}: {error}", self.ids[name])),
        };
        let Some(loaded) = loaded else { return Ok(false) };
        self.handles.insert(h, Handle { session: loaded.session, engine, id: name });
        Ok(true)
    }

    fn is_over(&self, engine: usize) -> Option<Crashed> {
        if self.dir.crashed() {
            return Some(Crashed::Disk);
        }
        self.engines[engine].1.killed().then_some(Crashed::Engine(engine))
    }

    fn restart(&mut self, at: usize) {
        self.processes += 1;
        let dir = self.dir.process(self.processes);
        self.engines[at] = (engine(&dir), dir);
    }

    /// Does it; checks what every step of a program may rely on. In place of a process that was killed there is a new one,
    /// whose handles are loaded when they are used.
    pub fn act(&mut self, action: &Action) -> Result<(), Crashed> {
        use Action::*;
        if let Append { h, .. } | Truncate { h, .. } | Replace { h, .. } | Set { h, .. } | Unset { h, .. } = *action {
            self.revive(h)?;
        }
        if let Tag { h } | Save { h } | Step { h } | Line { h } | Release { h } = *action {
            self.revive(h)?;
        }
        let from = self.dir.operations();
        let done = self.act_once(action);
        if std::env::var_os("PERDURE_CRASH_ONLY").is_some() {
            eprintln!("  operations {from}..{}: {action:?} {done:?}", self.dir.operations());
        }
        let killed = (0..self.engines.len()).find(|e| self.engines[*e].1.killed());
        match (done, killed) {
            (Ok(()) | Err(Crashed::Engine(_)), Some(killed)) => {
                self.handles.retain(|_, handle| handle.engine != killed);
                self.restart(killed);
                (0..self.ids.len()).for_each(|name| self.check_live(name));
                Ok(())
            }
            (done, _) => done,
        }
    }

    fn revive(&mut self, h: usize) -> Result<(), Crashed> {
        if !self.handles.contains_key(&h) {
            self.act(&Action::Load { h, engine: 0, id: 0 })?;
        }
        Ok(())
    }

    fn act_once(&mut self, action: &Action) -> Result<(), Crashed> {
        match *action {
            Action::New { h, engine, id } => {
                let nothing =
                    self.known[id].acknowledged.is_none() && found(&self.dir.copy(), &self.ids[id]) == Ok(None);
                if nothing || !self.load(h, engine, id)? {
                    self.fresh(h, engine, id);
                }
            }
            Action::Load { h, engine, id } => {
                if !self.load(h, engine, id)? {
                    self.fresh(h, engine, id);
                }
            }
            Action::Append { h, ref sizes } => {
                let messages: Vec<String> =
                    sizes.iter().map(|s| format!(r#"{{"role": "user", "content": "{}"}}"#, self.text(*s))).collect();
                self.session(h).append(&messages);
            }
            Action::Truncate { h, keep } => self.session(h).truncate(keep),
            Action::Replace { h, at, size } => {
                let message = format!(r#"{{"replaced": "{}"}}"#, self.text(size));
                if at < self.session(h).log().len() {
                    self.session(h).replace(at, message.as_bytes());
                }
            }
            Action::Set { h, key, size } => {
                let value = format!("\"{}\"", self.text(size));
                self.session(h).head_mut().set(key, value.into());
            }
            Action::Unset { h, key } => {
                self.session(h).head_mut().remove(key);
            }
            Action::Tag { h } => {
                let tags = format!("[\"{}\"]", self.text(3));
                self.session(h).head_mut().tags = tags.into();
            }
            Action::Save { h } => self.save(h, SAVE)?,
            Action::Step { h } => self.save(h, SaveOptions { step: true, ..SAVE })?,
            Action::Line { h } => self.save(h, SaveOptions { journal: true, ..SAVE })?,
            Action::Checkpoint { engine, id } => self.checkpoint(engine, id)?,
            Action::Delete { engine, id } => self.delete(engine, id)?,
            Action::Release { h } => {
                let handle = &self.handles[&h];
                self.may_fail(self.engines[handle.engine].0.release(&handle.session));
            }
            Action::Close { engine } => self.may_fail(self.engines[engine].0.close()),
            Action::Reopen { engine: at } => {
                self.may_fail(self.engines[at].0.close());
                if self.is_over(at).is_none() {
                    self.restart(at);
                }
            }
        }
        if self.dir.crashed() {
            return Err(Crashed::Disk);
        }
        Ok(())
    }

    fn session(&mut self, h: usize) -> &mut Session {
        &mut self.handles.get_mut(&h).unwrap().session
    }

    fn live(&self, name: usize) -> Option<State> {
        found(&self.dir.copy(), &self.ids[name]).unwrap_or_else(|e| panic!("live session {:?}: {e}", self.ids[name]))
    }

    /// True if what is stored is what the handle's session came from, or what it tried to make of it.
    fn may_save(&self, h: usize) -> bool {
        let Handle { session, id: name, .. } = &self.handles[&h];
        let stored = engine(&self.dir.copy()).load(&id(&self.ids[*name])).unwrap_or_else(|e| panic!("stored: {e}"));
        let state = |saved: &Saved| (saved.lineage, saved.revision, saved.content);
        let stored = stored.and_then(|loaded| loaded.session.base().saved().map(state));
        stored == session.base().saved().map(state)
            || session.attempt().is_some_and(|saved| stored == Some(state(saved)))
    }

    /// Only what was injected makes it fail.
    fn may_fail(&self, done: Result<(), Error>) {
        if let Err(error) = done {
            assert!(matches!(error, Error::Io { .. }) && self.dir.fired(), "{error}");
        }
    }

    fn checkpoint(&mut self, engine: usize, name: usize) -> Result<(), Crashed> {
        let fired = self.dir.fired();
        let done = self.engines[engine].0.checkpoint(&id(&self.ids[name]), &SAVE);
        if let Some(over) = self.is_over(engine) {
            return Err(over);
        }
        match done {
            Ok(done) if self.known[name].possible.is_empty() => {
                assert_eq!(done.is_some(), self.known[name].acknowledged.is_some());
                self.check_live(name);
            }
            Ok(_) => self.check_live(name),
            Err(Error::Locked { .. }) => self.close_others(engine),
            Err(error) => {
                assert!(self.dir.fired() && !fired, "checkpoint failed with {error}");
                self.after_failure(name);
            }
        }
        Ok(())
    }

    /// The other processes let go of what they have open.
    fn close_others(&mut self, engine: usize) {
        for other in (0..self.engines.len()).filter(|other| *other != engine) {
            self.may_fail(self.engines[other].0.close());
        }
    }

    fn save(&mut self, h: usize, options: SaveOptions) -> Result<(), Crashed> {
        let options = SaveOptions { sync: self.sync, ..options };
        let fired = self.dir.fired();
        let may = !self.watch || self.may_save(h);
        let handle = self.handles.get_mut(&h).unwrap();
        let name = handle.id;
        let known = &self.known[name];
        let written = handle.session.clone();
        let new = !written.is_unchanged() || written.attempt().is_some();
        let now = state(&written);
        match self.engines[handle.engine].0.save(&written, &options) {
            Ok(receipt) => {
                assert!(may, "a save went through that overwrites what its handle has not seen");
                assert_eq!(receipt.saved.count, now.messages.len());
                handle.session.settle(&written, receipt.saved);
                if !new {
                    return Ok(()); // it acknowledges no more than what was loaded
                }
                let unsynced = ((options.step || options.journal) && !self.sync)
                    .then(|| known.possible.iter().cloned().chain([known.acknowledged.clone()]).collect::<Vec<_>>());
                self.known[name].acknowledge(Some(now.clone()));
                self.known[name].possible.extend(unsynced.unwrap_or_default());
                if self.watch {
                    assert_eq!(self.live(name), Some(now), "acknowledged, but not what is there");
                }
                Ok(())
            }
            Err(failed) => {
                if let Some(over) = self.is_over(self.handles[&h].engine) {
                    self.known[name].possible.push(Some(now));
                    return Err(over);
                }
                let conflict = matches!(failed.error, Error::Conflict { .. } | Error::Exists { .. });
                if conflict && !self.may_save(h) {
                    self.load(h, self.handles[&h].engine, name)?;
                    return Ok(());
                }
                if matches!(failed.error, Error::Locked { .. }) {
                    let engine = self.handles[&h].engine;
                    assert!(self.engines.len() > 1 && failed.attempt.is_none());
                    self.close_others(engine);
                    return match self.is_over(engine) {
                        Some(over) => Err(over),
                        None if self.engines.iter().any(|(_, dir)| dir.killed()) => Ok(()),
                        None => self.save(h, options),
                    };
                }
                let injected = matches!(failed.error, Error::Io { .. }) && self.dir.fired() && !fired;
                assert!(injected, "save failed with {}", failed.error);
                self.known[name].possible.push(Some(now));
                if let Some(attempt) = failed.attempt {
                    self.session(h).set_attempt(attempt);
                }
                self.after_failure(name);
                if self.retry {
                    return self.save(h, options);
                }
                Ok(())
            }
        }
    }

    fn delete(&mut self, engine: usize, name: usize) -> Result<(), Crashed> {
        let fired = self.dir.fired();
        let session_id = id(&self.ids[name]);
        match self.engines[engine].0.delete(&session_id, &SAVE) {
            Ok(there) => {
                if self.known[name].possible.is_empty() {
                    assert_eq!(there, self.known[name].acknowledged.is_some());
                }
                self.known[name].acknowledge(None);
                if self.watch {
                    assert_eq!(self.live(name), None);
                }
                Ok(())
            }
            Err(Error::Locked { .. }) => {
                self.close_others(engine);
                match self.is_over(engine) {
                    Some(over) => Err(over),
                    None if self.engines.iter().any(|(_, dir)| dir.killed()) => Ok(()),
                    None => self.delete(engine, name),
                }
            }
            Err(error) => {
                self.known[name].possible.push(None);
                if let Some(over) = self.is_over(engine) {
                    return Err(over);
                }
                assert!(self.dir.fired() && !fired, "delete failed with {error}");
                self.after_failure(name);
                self.delete(engine, name)
            }
        }
    }

    fn check_live(&self, name: usize) {
        let live = self.live(name);
        assert!(self.known[name].allows(&live), "after a failure there is {live:?}, known is {:?}", self.known[name]);
    }

    /// A call failed: nothing is lost, mixed or left behind.
    fn after_failure(&self, name: usize) {
        self.check_live(name);
        let left: Vec<_> = self.dir.ls().into_iter().filter(|n| n.ends_with(".tmp")).collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }

    /// The program ends: every handle that is not stale saves what it has.
    pub fn finish(&mut self) -> Result<(), Crashed> {
        for h in self.handles.keys().copied().collect::<Vec<_>>() {
            if self.handles.contains_key(&h) && self.may_save(h) {
                self.act(&Action::Save { h })?;
            }
        }
        for engine in 0..self.engines.len() {
            self.act(&Action::Close { engine })?;
        }
        Ok(())
    }
}

/// Checks a disk that a crash left: what is found is allowed, and one can go on from there. Gives what was found.
pub fn check_image(image: &FaultDir, ids: &[String], known: &[Known], random: &mut Random) -> Result<(), String> {
    for (name, known) in ids.iter().zip(known) {
        let there = found(image, name)?;
        if !known.allows(&there) {
            return Err(format!("{name:?}: found {there:?}, known is {known:?}"));
        }
        let after = Known { acknowledged: there, ..Known::default() };
        let mut world = World::after(image.clone(), std::slice::from_ref(name), vec![after]);
        let actions = going_on(random);
        for action in &actions {
            world.act(action).map_err(|_| "crashed without a crash".to_string())?;
        }
        world.act(&Action::Close { engine: 0 }).map_err(|_| "crashed without a crash".to_string())?;
        let stem = id(name).stem();
        let left = |n: &&String| {
            let empty_journal = **n == format!("{stem}.journal") && image.get(n).is_some_and(|bytes| bytes.is_empty());
            empty_journal || **n == format!("{stem}.lock")
        };
        if let Some(left) = image.ls().iter().find(left) {
            return Err(format!("{left} is left after close()"));
        }
    }
    Ok(())
}

/// What a program may do first when it finds a session after a crash.
pub fn going_on(random: &mut Random) -> Vec<Action> {
    let h = 0;
    let mut actions = vec![Action::Load { h, engine: 0, id: 0 }];
    for _ in 0..2 {
        actions.push(Action::Append { h, sizes: vec![random.below(100)] });
        actions.push([Action::Save { h }, Action::Step { h }, Action::Line { h }][random.below(3)].clone());
    }
    if random.one_in(3) {
        actions.push(Action::Delete { engine: 0, id: 0 });
    }
    actions
}
