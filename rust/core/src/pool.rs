//! Threads for blocking work: one bounded pool a process.
//!
//! Threads are started when work waits and none is free, and end when there was none for a while.
//!
//! **After a fork** a child has none of its parent's threads, and a mutex that one of them held at that moment stays locked
//! in the child for ever. So a child touches nothing that its parent may have locked: every process takes a pool of its own
//! out of a static row, by one atomic exchange of its process id, and a pool needs no set-up that a fork could interrupt.
//! Jobs that waited or ran in the parent remain the parent's.
//!
//! Guaranteed: whatever the parent's threads were doing, a child never waits for any of it. Not guaranteed: anything to a
//! job that forks, or to a process whose id was that of the very ancestor from which it inherited the last pool in the row.
//! The row bounds how many processes may descend from each other and all have used their pool; behind it, work is done
//! without one.

use crate::engine::guard;
use std::any::Any;
use std::collections::VecDeque;
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Most threads of a pool. Far more than cores on purpose: they wait in syncs, and a file system commits the syncs that
/// wait at the same time together, so that many take little longer than one.
pub const MOST: usize = 64;
/// How long a thread without work stays.
const IDLE: Duration = Duration::from_secs(5);
/// How often a caller that waits looks up.
const WATCH: Duration = Duration::from_millis(50);
/// Length of the row.
const GENERATIONS: usize = 64;

static POOLS: [Pool; GENERATIONS] = [const { Pool::new(IDLE) }; GENERATIONS];

/// Runs a job on a thread of the pool; the caller does not wait for it. A panic in it ends this job alone.
pub fn submit(job: Box<dyn FnOnce() + Send>) {
    match own(&POOLS, std::process::id()) {
        Some(pool) => pool.submit(job),
        None => without_pool(job),
    }
}

/// Does some work on each item, on at most `width` threads at a time; gives the results in the items' order.
///
/// The calling thread works too, so this goes on where the pool is busy, and a job may call it. Every item is worked on,
/// also after a panic over another one; then the first panic goes on in the caller. When this returns, nothing of the
/// call is left in the pool: the items, `work` and what it holds are gone.
pub fn map<T, R>(items: Vec<T>, width: usize, work: impl Fn(T) -> R + Send + Sync + 'static) -> Vec<R>
where
    T: Send + 'static,
    R: Send + 'static,
{
    map_watched(items, width, || (), work)
}

/// The same; the calling thread calls `watch` from time to time while it waits for the others.
pub fn map_watched<T, R>(
    items: Vec<T>,
    width: usize,
    watch: impl Fn(),
    work: impl Fn(T) -> R + Send + Sync + 'static,
) -> Vec<R>
where
    T: Send + 'static,
    R: Send + 'static,
{
    let total = items.len();
    let left = Left { items: items.into_iter().enumerate(), work: Arc::new(work) };
    let batch = Arc::new(Batch {
        total,
        left: Mutex::new(Some(left)),
        done: Mutex::new(Vec::with_capacity(total)),
        all_done: Condvar::new(),
    });
    for _ in 1..width.min(total).min(MOST) {
        let batch = batch.clone();
        submit(Box::new(move || batch.work()));
    }
    batch.work();
    let mut done = guard(&batch.done);
    while done.len() < total {
        let (woken, timeout) = batch.all_done.wait_timeout(done, WATCH).unwrap_or_else(PoisonError::into_inner);
        done = woken;
        if timeout.timed_out() {
            drop(done);
            watch();
            done = guard(&batch.done);
        }
    }
    let mut outcomes = std::mem::take(&mut *done);
    drop(done);
    outcomes.sort_unstable_by_key(|(index, _)| *index);
    let results: Result<Vec<R>, _> = outcomes.into_iter().map(|(_, outcome)| outcome).collect();
    results.unwrap_or_else(|panic| resume_unwind(panic))
}

/// One call of [`map`].
struct Batch<T, R, W> {
    total: usize,
    /// None once there is nothing left to begin.
    left: Mutex<Option<Left<T, W>>>,
    done: Mutex<Vec<(usize, Outcome<R>)>>,
    all_done: Condvar,
}

struct Left<T, W> {
    items: std::iter::Enumerate<std::vec::IntoIter<T>>,
    work: Arc<W>,
}

type Outcome<R> = Result<R, Box<dyn Any + Send>>;

impl<T, R, W: Fn(T) -> R> Batch<T, R, W> {
    /// Works until there is nothing left to begin.
    fn work(&self) {
        while let Some((index, item, work)) = self.next() {
            // Moved in: our share of `work` has to be gone before the caller can learn that this is done.
            let outcome = catch_unwind(AssertUnwindSafe(move || work(item)));
            let mut done = guard(&self.done);
            done.push((index, outcome));
            if done.len() == self.total {
                self.all_done.notify_one();
            }
        }
    }

    fn next(&self) -> Option<(usize, T, Arc<W>)> {
        let mut left = guard(&self.left);
        let Left { items, work } = left.as_mut()?;
        let next = items.next().map(|(index, item)| (index, item, work.clone()));
        if next.is_none() {
            *left = None;
        }
        next
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// The threads of one process, and what waits for them.
struct Pool {
    /// The process; 0: nobody's yet. Only the process that is named here touches the rest.
    process: AtomicU32,
    queue: Mutex<Queue>,
    wake: Condvar,
    idle: Duration,
}

struct Queue {
    jobs: VecDeque<Job>,
    /// Threads, those that are about to start included.
    threads: usize,
    /// Those of them that wait for a job, or have been woken for one that they have not taken yet.
    waiting: usize,
}

/// The pool of a process: the last one in use, if it is its own, else the one behind that.
fn own(pools: &'static [Pool], process: u32) -> Option<&'static Pool> {
    // The last one only: ids are given again, and this one may have been that of an ancestor further up.
    let free = pools.iter().position(|pool| pool.process.load(Ordering::Acquire) == 0).unwrap_or(pools.len());
    let (used, free) = pools.split_at(free);
    if let Some(last) = used.last().filter(|pool| pool.process.load(Ordering::Acquire) == process) {
        return Some(last);
    }
    let pool = free.first()?;
    // If it was taken since we looked, then by another thread of this process.
    let _ = pool.process.compare_exchange(0, process, Ordering::AcqRel, Ordering::Acquire);
    Some(pool)
}

/// Runs a job on a thread of its own, or here if there can be none.
fn without_pool(job: Job) {
    let job = Arc::new(Mutex::new(Some(job)));
    let take = |job: &Mutex<Option<Job>>| {
        let job = guard(job).take();
        job.map(run)
    };
    let theirs = job.clone();
    if std::thread::Builder::new().spawn(move || take(&theirs)).is_err() {
        take(&job);
    }
}

fn run(job: Job) {
    // Whoever wants to know of a panic catches it inside of the job, as `map` does; the hook has told of it.
    let _ = catch_unwind(AssertUnwindSafe(job));
}

impl Pool {
    const fn new(idle: Duration) -> Pool {
        let queue = Queue { jobs: VecDeque::new(), threads: 0, waiting: 0 };
        Pool { process: AtomicU32::new(0), queue: Mutex::new(queue), wake: Condvar::new(), idle }
    }

    fn submit(&'static self, job: Job) {
        let mut queue = guard(&self.queue);
        queue.jobs.push_back(job);
        if queue.jobs.len() <= queue.waiting || queue.threads == MOST {
            drop(queue);
            self.wake.notify_one();
            return;
        }
        queue.threads += 1;
        drop(queue);
        let thread = std::thread::Builder::new().name("perdure".into());
        if thread.spawn(|| self.serve()).is_err() {
            let mut queue = guard(&self.queue);
            queue.threads -= 1;
            // The system has no more threads. Those that there are do it; if there are none, we do.
            let jobs = if queue.threads == 0 { std::mem::take(&mut queue.jobs) } else { VecDeque::new() };
            drop(queue);
            jobs.into_iter().for_each(run);
        }
    }

    /// What a thread does: jobs, until there are none for a while.
    fn serve(&self) {
        let mut queue = guard(&self.queue);
        loop {
            while let Some(job) = queue.jobs.pop_front() {
                drop(queue);
                run(job);
                queue = guard(&self.queue);
            }
            queue.waiting += 1;
            let woken = self.wake.wait_timeout(queue, self.idle).unwrap_or_else(PoisonError::into_inner);
            queue = woken.0;
            queue.waiting -= 1;
            if woken.1.timed_out() && queue.jobs.is_empty() {
                queue.threads -= 1;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc::{channel, Receiver};
    use std::sync::Barrier;
    use std::time::Instant;

    const LONG: Duration = Duration::from_secs(60);

    fn pool(idle: Duration) -> &'static Pool {
        Box::leak(Box::new(Pool::new(idle)))
    }

    fn threads(pool: &Pool) -> usize {
        guard(&pool.queue).threads
    }

    /// Waits for what other threads are about to do.
    fn until(what: impl Fn() -> bool) {
        let started = Instant::now();
        while !what() {
            assert!(started.elapsed() < LONG, "it does not happen");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Keeps a thread of the pool busy until the sender is dropped.
    fn block(pool: &'static Pool) -> std::sync::mpsc::Sender<()> {
        let (open, gate): (_, Receiver<()>) = channel();
        pool.submit(Box::new(move || {
            let _ = gate.recv();
        }));
        open
    }

    #[test]
    fn results_come_in_order_from_several_threads() {
        // Three at a time or nobody gets past it.
        let barrier = Barrier::new(3);
        let squares = map((0..300u64).collect(), 3, move |n| {
            barrier.wait();
            n * n
        });
        assert_eq!(squares, (0..300).map(|n| n * n).collect::<Vec<_>>());
        assert!(map(Vec::<u8>::new(), 4, |n| n).is_empty());
        assert_eq!(map(vec![7], 0, |n| n + 1), [8]);
    }

    #[test]
    fn no_more_threads_than_width() {
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (inside, seen) = (now.clone(), most.clone());
        map((0..200).collect(), 5, move |_: i32| {
            seen.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_micros(200));
            inside.fetch_sub(1, Ordering::SeqCst);
        });
        assert!((1..=5).contains(&most.load(Ordering::SeqCst)), "{most:?}");
    }

    #[test]
    fn map_in_map_in_a_full_pool_goes_on() {
        let sums = map((0..100u64).collect(), MOST, |n| {
            let inner = map((0..100u64).collect(), MOST, move |m| map(vec![n, m], 2, |k| k).into_iter().sum::<u64>());
            inner.into_iter().sum::<u64>()
        });
        assert_eq!(sums, (0..100).map(|n| 100 * n + 4950).collect::<Vec<_>>());
    }

    #[test]
    fn a_panic_is_the_callers_after_all_is_done() {
        let (worked, rest) = (Arc::new(AtomicUsize::new(0)), Arc::new(()));
        let (count, held) = (worked.clone(), rest.clone());
        let panic = catch_unwind(AssertUnwindSafe(|| {
            map((0..50).collect(), 4, move |n: usize| {
                let _held = &held;
                count.fetch_add(1, Ordering::SeqCst);
                assert!(n % 20 != 7, "item {n}");
            })
        }))
        .unwrap_err();
        assert_eq!(panic.downcast_ref::<String>().unwrap(), "item 7");
        assert_eq!(worked.load(Ordering::SeqCst), 50);
        assert_eq!(Arc::strong_count(&rest), 1);
    }

    /// Else an engine that `work` holds might be closed at any time, by any thread.
    #[test]
    fn nothing_outlives_map() {
        struct Slow(Arc<AtomicUsize>);
        impl Drop for Slow {
            fn drop(&mut self) {
                std::thread::sleep(Duration::from_millis(20));
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let (dropped, caller) = (Arc::new(AtomicUsize::new(0)), std::thread::current().id());
        let (slow, both) = (Slow(dropped.clone()), Barrier::new(2));
        map(vec![Slow(dropped.clone()), Slow(dropped.clone())], 2, move |_item| {
            both.wait();
            // The other thread is the last to let go of this closure.
            if std::thread::current().id() != caller {
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = &slow;
        });
        assert_eq!(dropped.load(Ordering::SeqCst), 3);
    }

    #[test]
    fn threads_are_started_when_needed_kept_and_ended() {
        let pool = pool(Duration::from_millis(400));
        assert_eq!(threads(pool), 0);
        drop(block(pool));
        until(|| guard(&pool.queue).waiting == 1);
        drop(block(pool));
        assert_eq!(threads(pool), 1, "one was waiting");
        let gates: Vec<_> = (0..3).map(|_| block(pool)).collect();
        until(|| guard(&pool.queue).jobs.is_empty());
        assert!((3..=4).contains(&threads(pool)), "{}", threads(pool));
        drop(gates);
        until(|| threads(pool) == 0);
        drop(block(pool));
        assert_eq!(threads(pool), 1);
    }

    #[test]
    fn it_is_bounded_and_no_job_is_lost() {
        let pool = pool(LONG);
        let gates: Vec<_> = (0..MOST).map(|_| block(pool)).collect();
        let (sender, receiver) = channel();
        for n in 0..1000 {
            let sender = sender.clone();
            pool.submit(Box::new(move || {
                let _ = sender.send(n);
            }));
        }
        assert_eq!(threads(pool), MOST);
        assert!(receiver.recv_timeout(Duration::from_millis(50)).is_err(), "a 65th thread");
        drop((gates, sender));
        let mut numbers: Vec<_> = receiver.iter().collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..1000).collect::<Vec<_>>());
        assert_eq!(threads(pool), MOST);
    }

    #[test]
    fn a_panic_kills_no_thread() {
        let pool = pool(LONG);
        let gates: Vec<_> = (1..MOST).map(|_| block(pool)).collect();
        for _ in 0..5 {
            pool.submit(Box::new(|| panic!("on purpose")));
        }
        let (sender, receiver) = channel();
        pool.submit(Box::new(move || {
            let _ = sender.send(std::thread::current().id());
        }));
        // Only the thread that ran those is left to run it.
        receiver.recv_timeout(LONG).unwrap();
        assert_eq!(threads(pool), MOST);
        drop(gates);
    }

    #[test]
    fn a_child_takes_a_pool_of_its_own() {
        let pools: &'static [Pool] = Box::leak(Box::new([const { Pool::new(LONG) }; 3]));
        let at = |process| own(pools, process).and_then(|own| pools.iter().position(|pool| std::ptr::eq(pool, own)));
        assert_eq!((at(10), at(10)), (Some(0), Some(0)));
        // Its parent held the lock when it was forked.
        let _held = guard(&pools[0].queue);
        assert_eq!((at(11), at(11)), (Some(1), Some(1)));
        let (sender, receiver) = channel();
        own(pools, 11).unwrap().submit(Box::new(move || {
            let _ = sender.send(());
        }));
        receiver.recv_timeout(LONG).unwrap();
        // A grandchild that was given its late grandparent's id.
        assert_eq!((at(10), at(10)), (Some(2), Some(2)));
        assert_eq!((at(12), at(10)), (None, Some(2)));
    }

    #[test]
    fn threads_of_a_process_agree_on_its_pool() {
        for _ in 0..100 {
            let pools: &'static [Pool] = Box::leak(Box::new([const { Pool::new(LONG) }; 3]));
            own(pools, 1);
            let start = Barrier::new(4);
            let find = || {
                start.wait();
                own(pools, 2).map(|pool| pool as *const Pool as usize)
            };
            let found: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(find)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert_eq!(found, [Some(&pools[1] as *const Pool as usize); 4]);
        }
    }

    #[test]
    fn work_is_done_without_a_pool_too() {
        let (sender, receiver) = channel();
        without_pool(Box::new(move || {
            let _ = sender.send(1);
        }));
        assert_eq!(receiver.recv_timeout(LONG), Ok(1));
    }
}
