//! Compiled modules: each is compiled once, however many tasks ask for it, and kept for the next ones.
//!
//! In memory the modules used last stay, within bounds. On disk the engine keeps what it compiled in a cache of its own,
//! which goes by the module's bytes and by everything that the engine's version, settings and processor decide.

use std::collections::HashMap;
use std::num::NonZero;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use wasmtime::InstancePre;

use super::Guest;
use crate::runtime::{RunCode, RunError};

/// How much compiled code stays in memory, in bytes.
const MAX_BYTES: usize = 256 << 20;

/// The most modules that stay in memory: what belongs to each besides its code is not counted by bytes.
const MAX_MODULES: usize = 64;

/// A module that is ready to run, or why it never will be.
type Compiled = Result<InstancePre<Guest>, RunError>;

/// The modules of one engine. Clones share them.
#[derive(Clone)]
pub(super) struct Modules {
    state: Arc<Mutex<State>>,
    /// One permit for each module that may be compiled at this moment.
    ///
    /// A compilation cannot be interrupted. So an attempt that has to stop leaves it behind and gives its slot back, and
    /// the permit stays with the thread until that ends. Since a module is compiled on one thread and there are fewer
    /// permits than processors, compilations that nobody waits for any more cannot take the machine; at worst they make
    /// other modules wait, each no longer than its own task may take.
    compiling: Arc<Semaphore>,
}

#[derive(Default)]
struct State {
    /// The modules used last, the latest at the end.
    ready: Vec<Ready>,
    /// What is compiled at this moment, by its digest. A channel whose sender is gone is of a compiler that failed.
    compiling: HashMap<String, watch::Receiver<Option<Compiled>>>,
}

struct Ready {
    digest: String,
    pre: InstancePre<Guest>,
    bytes: usize,
}

impl Modules {
    pub(super) fn new() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        let compiling = Arc::new(Semaphore::new((processors / 2).max(1)));
        Self { state: Arc::default(), compiling }
    }

    /// The digests of the modules in memory.
    pub(super) fn digests(&self) -> Vec<String> {
        self.state().ready.iter().map(|ready| ready.digest.clone()).collect()
    }

    /// The module with this digest; `compile` makes it where it is neither here nor in the making.
    ///
    /// Dropping the future lets a compilation that has begun end alone; what it gives is kept.
    pub(super) async fn get(
        &self,
        digest: &str,
        compile: impl FnOnce() -> Compiled + Send + 'static,
    ) -> Compiled {
        let receiver = match self.find(digest) {
            Some(Found::Ready(pre)) => return Ok(pre),
            Some(Found::Compiling(receiver)) => receiver,
            None => {
                let permit = Arc::clone(&self.compiling).acquire_owned().await;
                let permit = permit.map_err(|error| RunError::new(RunCode::Internal, error.to_string()))?;
                match self.begin(digest) {
                    Begun::Found(Found::Ready(pre)) => return Ok(pre),
                    Begun::Found(Found::Compiling(receiver)) => receiver,
                    Begun::New(sender, receiver) => {
                        self.spawn(digest.to_owned(), compile, permit, sender);
                        receiver
                    }
                }
            }
        };
        compiled(receiver).await
    }

    fn find(&self, digest: &str) -> Option<Found> {
        self.state().find(digest)
    }

    /// Finds the module, or announces that the caller compiles it.
    fn begin(&self, digest: &str) -> Begun {
        let mut state = self.state();
        if let Some(found) = state.find(digest) {
            return Begun::Found(found);
        }
        let (sender, receiver) = watch::channel(None);
        state.compiling.insert(digest.to_owned(), receiver.clone());
        Begun::New(sender, receiver)
    }

    /// Compiles on a thread of its own, which holds the permit.
    fn spawn(
        &self,
        digest: String,
        compile: impl FnOnce() -> Compiled + Send + 'static,
        permit: OwnedSemaphorePermit,
        sender: watch::Sender<Option<Compiled>>,
    ) {
        let modules = self.clone();
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let compiled = compile();
            modules.state().finish(digest, &compiled);
            sender.send_replace(Some(compiled));
        });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is one insertion or removal, so the lists are whole after a panic elsewhere.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Found {
    Ready(InstancePre<Guest>),
    Compiling(watch::Receiver<Option<Compiled>>),
}

enum Begun {
    Found(Found),
    New(watch::Sender<Option<Compiled>>, watch::Receiver<Option<Compiled>>),
}

impl State {
    fn find(&mut self, digest: &str) -> Option<Found> {
        if let Some(position) = self.ready.iter().position(|ready| ready.digest == digest) {
            let ready = self.ready.remove(position);
            let pre = ready.pre.clone();
            self.ready.push(ready);
            return Some(Found::Ready(pre));
        }
        let receiver = self.compiling.get(digest)?;
        if receiver.has_changed().is_err() && receiver.borrow().is_none() {
            self.compiling.remove(digest);
            return None;
        }
        Some(Found::Compiling(receiver.clone()))
    }

    fn finish(&mut self, digest: String, compiled: &Compiled) {
        self.compiling.remove(&digest);
        let Ok(pre) = compiled else { return };
        let code = pre.module().image_range();
        let bytes = (code.end as usize).saturating_sub(code.start as usize);
        self.ready.push(Ready { digest, pre: pre.clone(), bytes });
        let mut total: usize = self.ready.iter().map(|ready| ready.bytes).sum();
        while total > MAX_BYTES || self.ready.len() > MAX_MODULES {
            total -= self.ready.remove(0).bytes;
        }
    }
}

async fn compiled(mut receiver: watch::Receiver<Option<Compiled>>) -> Compiled {
    let failed = || RunError::new(RunCode::Internal, "the compiler failed");
    let compiled = receiver.wait_for(Option::is_some).await.map_err(|_| failed())?;
    compiled.clone().unwrap_or_else(|| Err(failed()))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use wasmtime::{Engine, Linker, Module};

    use super::*;

    fn pre() -> InstancePre<Guest> {
        let engine = Engine::default();
        let module = Module::from_binary(&engine, b"\0asm\x01\0\0\0").unwrap();
        Linker::new(&engine).instantiate_pre(&module).unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn many_who_ask_at_once_share_one_compilation() {
        let (modules, compiled) = (Modules::new(), Arc::new(AtomicUsize::new(0)));
        let (begun, mut has_begun) = watch::channel(false);
        let begun = Arc::new(begun);
        let (release, released) = std::sync::mpsc::channel::<()>();
        let released = Arc::new(Mutex::new(released));
        let ask = || {
            let (compiled, begun, released) = (compiled.clone(), begun.clone(), released.clone());
            let modules = modules.clone();
            async move {
                let compile = move || {
                    compiled.fetch_add(1, Ordering::Relaxed);
                    begun.send_replace(true);
                    released.lock().unwrap().recv().unwrap();
                    Ok(pre())
                };
                modules.get("a", compile).await
            }
        };
        // The one who began gives up; the others wait for what it began.
        let first = tokio::spawn(ask());
        has_begun.wait_for(|begun| *begun).await.unwrap();
        first.abort();
        let others: Vec<_> = (0..8).map(|_| tokio::spawn(ask())).collect();
        release.send(()).unwrap();
        for other in others {
            other.await.unwrap().unwrap();
        }
        assert_eq!(compiled.load(Ordering::Relaxed), 1);
        assert_eq!(modules.digests(), ["a"]);
    }

    #[tokio::test]
    async fn failures_are_told_and_not_kept() {
        let modules = Modules::new();
        let bad = || Err(RunError::new(RunCode::BadModel, "bad"));
        assert_eq!(modules.get("a", bad).await.err().unwrap().code, RunCode::BadModel);
        let panics = || -> Compiled { panic!("the compiler has an error") };
        assert_eq!(modules.get("a", panics).await.err().unwrap().code, RunCode::Internal);
        modules.get("a", || Ok(pre())).await.unwrap();
    }

    #[tokio::test]
    async fn the_modules_used_last_stay() {
        let modules = Modules::new();
        for number in 0..=MAX_MODULES {
            modules.get(&number.to_string(), || Ok(pre())).await.unwrap();
            modules.get("0", || panic!("it is there")).await.unwrap();
        }
        let digests = modules.digests();
        assert_eq!(digests.len(), MAX_MODULES);
        assert!(digests.contains(&"0".to_owned()) && !digests.contains(&"1".to_owned()));
    }
}
