//! WebAssembly modules with WASI preview 1: the input on standard input, the result from standard output.
//!
//! A program sees its arguments, its environment and its streams, and nothing else: no files, no network, no threads.
//! What could differ from run to run is fixed, so that the same task gives the same bytes on every machine: the wall
//! clock stands still, the monotonic clock advances by a step with each reading and by what the program waits, random
//! bytes come from the task's seed (the low byte of each word of ChaCha20, its key being the seed in little-endian order),
//! and NaNs and relaxed vector instructions give the same bits everywhere. What bounds a program is its fuel, the wall
//! clock, its memory, and the size of its result. A limit of the node's own ends the program: only a limit that the task
//! names can be seen from within, as memory that does not grow.

mod clock;
mod modules;
mod scan;
mod stdio;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::future::BoxFuture;
use rand::SeedableRng;
use rand::rngs::ChaCha20Rng;
use taskmarket::params::{Params, WasmParams};
use wasmtime::{
    Cache, CacheConfig, Config, Engine, InstancePre, Linker, Module, ResourceLimiter, Store, Trap,
};
use wasmtime_wasi::cli::InputFile;
use wasmtime_wasi::p1::{self, WasiP1Ctx};
use wasmtime_wasi::{I32Exit, WasiCtxBuilder};

use self::clock::{SteppingClock, StillClock};
use self::modules::Modules;
use self::stdio::Pipe;
use super::{
    Context, Job, Limits, Logs, ModelFiles, ModelShape, Output, RunCode, RunError, Runtime, Stop, blocking,
};

/// The largest module that is compiled, in bytes. Compiling cannot be interrupted, and its time grows with the size.
pub const MAX_MODULE_BYTES: u64 = 16 << 20;

/// The most random bytes that a program may ask for at once: the host makes them without a look at the clock.
const MAX_RANDOM_BYTES: u64 = 1 << 20;

/// How often a running program is looked at: the longest time that a cancelled one goes on spinning.
const EPOCH: Duration = Duration::from_millis(10);

/// The table elements that a program may have: 16 MiB of the node's memory.
const MAX_TABLE_ELEMENTS: usize = 1 << 20;

/// The call stack of a program, in bytes.
const MAX_STACK_BYTES: usize = 1 << 20;

/// How much of standard error goes into a failure's message, in bytes: the end, since the reason stands there.
const STDERR_IN_MESSAGE: usize = 512;

/// How much room compiled modules may take on the disk, in bytes; those not used for longest go first.
const DISK_CACHE_BYTES: u64 = 1 << 30;

/// The program's name, its argument 0.
const PROGRAM: &str = "task.wasm";

/// Runs WebAssembly modules.
pub struct WasmRuntime {
    engine: Engine,
    linker: Linker<Guest>,
    modules: Modules,
    _ticker: Ticker,
}

impl WasmRuntime {
    /// A runtime with its own engine and the thread that interrupts programs. Compiled modules stay in memory alone.
    ///
    /// # Errors
    /// The engine does not work on this machine, or no thread can be started.
    pub fn new() -> wasmtime::Result<Self> {
        Self::with_cache(None)
    }

    /// As [`Self::new`], with compiled modules kept in `folder` too, so that they outlive this process.
    ///
    /// What lies in the folder is run as it is: nobody else may write there.
    ///
    /// # Errors
    /// As those of [`Self::new`], or the folder cannot be made.
    pub fn cached_in(folder: &Path) -> wasmtime::Result<Self> {
        let mut config = CacheConfig::new();
        config
            .with_directory(std::path::absolute(folder)?)
            .with_files_total_size_soft_limit(DISK_CACHE_BYTES);
        Self::with_cache(Some(Cache::new(config)?))
    }

    fn with_cache(cache: Option<Cache>) -> wasmtime::Result<Self> {
        let mut config = Config::new();
        config
            .cache(cache)
            .consume_fuel(true)
            .epoch_interruption(true)
            .cranelift_nan_canonicalization(true)
            .relaxed_simd_deterministic(true)
            .wasm_multi_memory(false)
            .wasm_memory64(false)
            .parallel_compilation(false)
            .max_wasm_stack(MAX_STACK_BYTES);
        let engine = Engine::new(&config)?;
        let mut linker = Linker::new(&engine);
        p1::add_to_linker_async(&mut linker, |guest: &mut Guest| &mut guest.wasi)?;
        clock::add_to_linker(&mut linker)?;
        let ticker = Ticker::start(engine.clone())?;
        Ok(Self { engine, linker, modules: Modules::new(), _ticker: ticker })
    }
}

impl Runtime for WasmRuntime {
    fn run<'a>(&'a self, job: Job, context: &'a Context) -> BoxFuture<'a, Result<Output, RunError>> {
        Box::pin(async move {
            let (stop, _ends_with_this_future) = Stop::guarded(job.limits.wall, context);
            let params = read_params(&job)?;
            let ModelFiles::File(path) = job.model.files.clone() else {
                let reason = "the model is a folder; a module is one file";
                return Err(RunError::new(RunCode::BadModel, reason));
            };
            let pre = tokio::select! {
                biased;
                reason = stop.stopped() => return Err(reason),
                pre = self.prepare(&job.model.digest, path) => pre?,
            };
            let (engine, logs) = (self.engine.clone(), context.logs.clone());
            // A program that computes must not hold up the threads that serve connections.
            let handle = tokio::runtime::Handle::current();
            blocking(move || {
                stop.check()?;
                let execution = Execution::new(&engine, &job, params, logs)?;
                handle.block_on(execution.run(&pre, &stop))
            })
            .await
        })
    }

    fn model_shape(&self) -> ModelShape {
        ModelShape::File
    }

    fn needs_folder(&self) -> bool {
        false
    }

    fn warm_models(&self) -> Vec<String> {
        self.modules.digests()
    }
}

impl WasmRuntime {
    /// The module at `path`, compiled where it is not yet. Dropping the future lets a compilation end alone.
    async fn prepare(&self, digest: &str, path: PathBuf) -> Result<InstancePre<Guest>, RunError> {
        let (engine, linker) = (self.engine.clone(), self.linker.clone());
        self.modules.get(digest, move || prepare(&engine, &linker, &path)).await
    }
}

fn read_params(job: &Job) -> Result<WasmParams, RunError> {
    let bad = |message: String| RunError::new(RunCode::BadParams, message);
    match Params::parse(taskmarket::params::Runtime::Wasm, &job.params) {
        Ok(Params::Wasm(params)) => {
            let nul = |text: &String| text.contains('\0');
            if params.args.iter().any(nul) || params.env.iter().any(|(key, value)| nul(key) || nul(value)) {
                return Err(bad("arguments and environment must not contain NUL".to_owned()));
            }
            let allowed = job.limits.memory_bytes >> 20;
            match params.memory_mb {
                Some(asked) if u64::from(asked) > allowed => {
                    Err(bad(format!("memory_mb is {asked}; this node allows {allowed}")))
                }
                Some(_) | None => Ok(params),
            }
        }
        Ok(Params::Embed(_) | Params::Container(_) | Params::Openai(_)) => {
            Err(bad("these are parameters of another runtime".to_owned()))
        }
        Err(error) => Err(bad(error.to_string())),
    }
}

/// Compiles the module at `path` and links what it imports.
fn prepare(engine: &Engine, linker: &Linker<Guest>, path: &Path) -> Result<InstancePre<Guest>, RunError> {
    let bad = |message: String| RunError::new(RunCode::BadModel, message);
    let file = File::open(path).map_err(|error| bad(format!("cannot read the module: {error}")))?;
    let mut bytes = Vec::new();
    file.take(MAX_MODULE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| bad(format!("cannot read the module: {error}")))?;
    if bytes.len() as u64 > MAX_MODULE_BYTES {
        return Err(bad(format!("the module is larger than {MAX_MODULE_BYTES} bytes")));
    }
    scan::check(&bytes).map_err(bad)?;
    let module = Module::from_binary(engine, &bytes).map_err(|error| bad(format!("{error:#}")))?;
    let start = module.get_export("_start").and_then(|export| export.func().cloned());
    if !start.is_some_and(|start| start.params().len() == 0 && start.results().len() == 0) {
        return Err(bad("the module exports no function _start: it is no WASI command".to_owned()));
    }
    linker.instantiate_pre(&module).map_err(|error| bad(format!("{error:#}")))
}

/// What belongs to one program while it runs.
struct Guest {
    wasi: WasiP1Ctx,
    clock: SteppingClock,
    memory: MemoryLimit,
}

/// A program about to run.
struct Execution {
    store: Store<Guest>,
    stdout: Pipe,
    stderr: Pipe,
    limits: Limits,
}

impl Execution {
    fn new(engine: &Engine, job: &Job, params: WasmParams, logs: Logs) -> Result<Self, RunError> {
        let input = File::open(&job.input)
            .map_err(|error| RunError::new(RunCode::BadInput, format!("cannot read the input: {error}")))?;
        let stdout = Pipe::bounded(usize::try_from(job.limits.output_bytes).unwrap_or(usize::MAX));
        let stderr = Pipe::tail(STDERR_IN_MESSAGE, logs);
        let clock = SteppingClock::default();
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&params.seed.unwrap_or_default().to_le_bytes());

        let mut wasi = WasiCtxBuilder::new();
        wasi.arg(PROGRAM).args(&params.args);
        for (key, value) in &params.env {
            wasi.env(key, value);
        }
        wasi.stdin(InputFile::new(input)).stdout(stdout.clone()).stderr(stderr.clone());
        wasi.wall_clock(StillClock).monotonic_clock(clock.clone());
        wasi.secure_random(ChaCha20Rng::from_seed(seed)).insecure_random(ChaCha20Rng::from_seed(seed));
        wasi.max_random_size(MAX_RANDOM_BYTES);
        wasi.insecure_random_seed(u128::from(params.seed.unwrap_or_default()));

        let allowed = params.memory_mb.map_or(job.limits.memory_bytes, |mb| u64::from(mb) << 20);
        let memory = MemoryLimit {
            bytes: usize::try_from(allowed).unwrap_or(usize::MAX),
            of_task: params.memory_mb.is_some(),
            refused: false,
        };
        let mut store = Store::new(engine, Guest { wasi: wasi.build_p1(), clock, memory });
        store.limiter(|guest| &mut guest.memory);
        store.epoch_deadline_async_yield_and_update(1);
        // Without fuel of its own, the wall clock is what bounds the program.
        store
            .set_fuel(params.fuel.unwrap_or(u64::MAX))
            .map_err(|error| RunError::new(RunCode::Internal, format!("{error:#}")))?;
        Ok(Self { store, stdout, stderr, limits: job.limits })
    }

    async fn run(mut self, pre: &InstancePre<Guest>, stop: &Stop) -> Result<Output, RunError> {
        let store = &mut self.store;
        let program = async {
            let instance = pre.instantiate_async(&mut *store).await.map_err(Ended::Starting)?;
            let start = instance.get_typed_func::<(), ()>(&mut *store, "_start").map_err(Ended::Starting)?;
            start.call_async(&mut *store, ()).await.map_err(Ended::Running)
        };
        let ended = tokio::select! {
            biased;
            reason = stop.stopped() => return Err(reason),
            ended = program => ended,
        };
        if self.stdout.overflowed() {
            return Err(RunError::output_too_large(self.limits.output_bytes));
        }
        let (error, otherwise) = match ended {
            Ok(()) => return Ok(Output::Bytes(self.stdout.take())),
            Err(Ended::Starting(error)) => (error, RunCode::BadModel),
            Err(Ended::Running(error)) => (error, RunCode::Trapped),
        };
        match error.downcast_ref::<I32Exit>() {
            Some(I32Exit(0)) => Ok(Output::Bytes(self.stdout.take())),
            Some(I32Exit(status)) => {
                Err(self.failure(RunCode::ExitNonzero, &format!("exit status {status}")))
            }
            None => Err(self.explain(&error, otherwise)),
        }
    }

    /// What a trap, or a refusal to start, means.
    fn explain(&self, error: &wasmtime::Error, otherwise: RunCode) -> RunError {
        let trap = error.downcast_ref::<Trap>();
        if trap == Some(&Trap::OutOfFuel) {
            return self.failure(RunCode::OutOfFuel, "the program used up its fuel");
        }
        // Programs that are refused memory commonly abort; the refusal is the cause then.
        if self.store.data().memory.refused {
            let limit = self.store.data().memory.bytes;
            return self
                .failure(RunCode::OutOfMemory, &format!("the program asked for more than {limit} bytes"));
        }
        match trap {
            Some(trap) => self.failure(RunCode::Trapped, &trap.to_string()),
            None => self.failure(otherwise, &error.root_cause().to_string()),
        }
    }

    fn failure(&self, code: RunCode, reason: &str) -> RunError {
        let stderr = self.stderr.take();
        let tail = String::from_utf8_lossy(&stderr);
        let tail = tail.trim();
        let separator = if tail.is_empty() { "" } else { ": " };
        RunError::new(code, format!("{reason}{separator}{tail}"))
    }
}

/// In which part of its life a program failed.
enum Ended {
    Starting(wasmtime::Error),
    Running(wasmtime::Error),
}

/// Bounds the linear memory of a program, and remembers that it was refused more.
///
/// A program that asked for too much goes on only where every machine would refuse it the same.
struct MemoryLimit {
    bytes: usize,
    /// Whether the limit is the task's, and so the same on every machine.
    of_task: bool,
    refused: bool,
}

impl ResourceLimiter for MemoryLimit {
    fn memory_growing(
        &mut self,
        _current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        // What the program itself declares is the same everywhere.
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        let allowed = desired <= self.bytes;
        self.refused |= !allowed;
        if allowed || self.of_task {
            return Ok(allowed);
        }
        Err(wasmtime::format_err!("more than {} bytes of memory", self.bytes))
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        // This machine has no more.
        self.refused = true;
        Err(error)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let allowed = desired <= MAX_TABLE_ELEMENTS;
        self.refused |= !allowed;
        Ok(allowed)
    }

    fn instances(&self) -> usize {
        1
    }

    fn tables(&self) -> usize {
        4
    }

    fn memories(&self) -> usize {
        1
    }
}

/// The thread that makes running programs look up, once per [`EPOCH`]. It ends with its owner.
struct Ticker {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    fn start(engine: Engine) -> std::io::Result<Self> {
        let (stop, stopped) = channel();
        let thread = std::thread::Builder::new().name("wasm-epoch".to_owned()).spawn(move || {
            while stopped.recv_timeout(EPOCH) == Err(RecvTimeoutError::Timeout) {
                engine.increment_epoch();
            }
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // The thread has nothing to report, and a panic there has been printed.
            let _ = thread.join();
        }
    }
}
