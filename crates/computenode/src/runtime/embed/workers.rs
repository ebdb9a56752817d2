//! The threads that embeddings are computed on: so many for all tasks together.
//!
//! A task's batches are computed side by side, each on one thread from end to end, which keeps the processors busier than
//! many threads on one product do. The threads take the batches of several tasks in turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

use crate::runtime::{RunCode, RunError};

/// Threads, each of them a pool of its own, so that what a library would spread over many stays on one.
pub(super) struct Workers {
    pools: Vec<ThreadPool>,
    /// Where the next task begins, so that small tasks do not meet on one thread.
    next: AtomicUsize,
}

/// One task's work.
struct Work<T> {
    count: usize,
    next: AtomicUsize,
    step: Box<dyn Fn(usize) -> Result<T, RunError> + Send + Sync>,
}

impl Workers {
    /// Starts so many threads.
    pub(super) fn new(threads: usize) -> Result<Self, ThreadPoolBuildError> {
        let pool = |index| {
            let builder = ThreadPoolBuilder::new().num_threads(1);
            builder.thread_name(move |_| format!("embed-{index}")).build()
        };
        Ok(Self { pools: (0..threads).map(pool).collect::<Result<_, _>>()?, next: AtomicUsize::new(0) })
    }

    /// Runs `step` for each number below `count`, on at most `threads` threads at once. What the steps give goes to `done`
    /// in the order in which they end. A step must not panic.
    ///
    /// # Errors
    /// The first of a step; no further steps begin then.
    pub(super) fn run<T: Send + 'static>(
        &self,
        count: usize,
        threads: usize,
        step: impl Fn(usize) -> Result<T, RunError> + Send + Sync + 'static,
        mut done: impl FnMut(usize, T),
    ) -> Result<(), RunError> {
        let work = Arc::new(Work { count, next: AtomicUsize::new(0), step: Box::new(step) });
        let (sender, receiver) = channel();
        let threads = threads.clamp(1, self.pools.len()).min(count);
        let first = self.next.fetch_add(threads, Ordering::Relaxed);
        for index in 0..threads {
            let (work, sender) = (Arc::clone(&work), sender.clone());
            self.pools[first.wrapping_add(index) % self.pools.len()].spawn_fifo(move || turn(work, sender));
        }
        drop(sender);
        for _ in 0..count {
            let failed = |_| RunError::new(RunCode::Internal, "a thread of the runtime ended");
            let (index, result) = receiver.recv().map_err(failed)?;
            done(index, result?);
        }
        Ok(())
    }
}

/// Does one step, and lets other tasks have their turn before the next.
fn turn<T: Send + 'static>(work: Arc<Work<T>>, sender: Sender<(usize, Result<T, RunError>)>) {
    let index = work.next.fetch_add(1, Ordering::Relaxed);
    if index >= work.count {
        return;
    }
    // Nobody waits any more once a step failed.
    if sender.send((index, (work.step)(index))).is_ok() {
        rayon::spawn_fifo(move || turn(work, sender));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_is_done_once_and_a_failure_ends_the_work() {
        let workers = Workers::new(3).unwrap();
        let mut seen = Vec::new();
        workers.run(50, 2, |index| Ok(index * 2), |index, twice| seen.push((index, twice))).unwrap();
        seen.sort_unstable();
        assert_eq!(seen, (0..50).map(|index| (index, index * 2)).collect::<Vec<_>>());

        let begun = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&begun);
        let step = move |index| {
            counted.fetch_add(1, Ordering::Relaxed);
            if index == 5 { Err(RunError::cancelled()) } else { Ok(()) }
        };
        let error = workers.run(1_000_000, 9, step, |_, ()| {}).unwrap_err();
        assert_eq!(error.code, RunCode::Cancelled);
        assert!(begun.load(Ordering::Relaxed) < 1_000_000);
        workers.run(0, 2, |_| Ok(()), |_, ()| {}).unwrap();
    }
}
