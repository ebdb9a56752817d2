//! What a WebAssembly program can and cannot do.

mod support;

use std::time::{Duration, Instant};

use computenode::runtime::wasm::WasmRuntime;
use computenode::runtime::{Context, Job, LogStream, RunCode, RunError, Runtime};

async fn run_job(job: Job) -> Result<Vec<u8>, RunError> {
    let runtime = WasmRuntime::new().expect("the engine works");
    let context = Context::default();
    let running = runtime.run(job, &context);
    let ended =
        tokio::time::timeout(Duration::from_secs(60), running).await.expect("the program never ended");
    ended.map(support::bytes)
}

async fn run_with(name: &str, params: &str, change: impl FnOnce(&mut Job)) -> Result<Vec<u8>, RunError> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut job = support::wasm_job(folder.path(), &support::program(name), b"");
    job.params = params.to_owned();
    change(&mut job);
    run_job(job).await
}

async fn fails(name: &str, params: &str) -> RunError {
    run_with(name, params, |_| {}).await.expect_err("the program ended well")
}

#[tokio::test]
async fn input_becomes_output() {
    let folder = tempfile::tempdir().unwrap();
    let text = "Grüße, all of you. ".repeat(10_000);
    let job = support::wasm_job(folder.path(), &support::program("upper"), text.as_bytes());
    assert_eq!(run_job(job).await.unwrap(), text.to_ascii_uppercase().as_bytes());
}

#[tokio::test]
async fn fuel_is_exact() {
    let error = fails("spin", r#"{"fuel":1000000}"#).await;
    assert_eq!(error.code, RunCode::OutOfFuel);
    // The program is one instruction and its function's entry: so little is enough, and less is not.
    assert!(run_with("start_large", r#"{"fuel":2}"#, |job| job.limits.memory_bytes = 2 << 30).await.is_ok());
    let error = run_with("start_large", r#"{"fuel":0}"#, |job| job.limits.memory_bytes = 2 << 30).await;
    assert_eq!(error.unwrap_err().code, RunCode::OutOfFuel);
}

#[tokio::test]
async fn memory_is_bounded() {
    assert_eq!(fails("grow", r#"{"memory_mb":8}"#).await.code, RunCode::OutOfMemory);
    assert_eq!(fails("grow", "{}").await.code, RunCode::OutOfMemory);
    assert_eq!(fails("start_large", "{}").await.code, RunCode::OutOfMemory);
    let error = fails("upper", r#"{"memory_mb":257}"#).await;
    assert_eq!((error.code, error.message.contains("256")), (RunCode::BadParams, true), "{error}");
}

#[tokio::test]
async fn waiting_takes_none_of_the_machines_time() {
    let started = Instant::now();
    let bytes = run_with("sleep", "{}", |_| {}).await.unwrap();
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    assert_eq!(number(8) - number(0), 3_600_000_000_000 + 1_000, "an hour, and the step of a reading");
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn traps_and_exits_show_what_the_program_said() {
    let trap = fails("trap", "{}").await;
    assert_eq!(trap.code, RunCode::Trapped);
    assert!(trap.message.contains("divide by zero") && trap.message.contains("about to fail"), "{trap}");
    let exit = fails("exit", "{}").await;
    assert_eq!(exit.code, RunCode::ExitNonzero);
    assert!(exit.message.contains('3') && exit.message.contains("no luck"), "{exit}");
}

#[tokio::test]
async fn output_is_bounded_and_standard_error_is_cut() {
    let flooded = run_with("flood", "{}", |job| job.limits.output_bytes = 1 << 20).await;
    assert_eq!(flooded.unwrap_err().code, RunCode::OutputTooLarge);
    // With an argument it writes 64 MB to standard error, and nothing to its output.
    assert_eq!(run_with("flood", r#"{"args":["x"]}"#, |_| {}).await.unwrap(), b"");
}

#[tokio::test]
async fn standard_error_is_logged_while_the_program_runs() {
    let folder = tempfile::tempdir().unwrap();
    // It writes a line, and then computes until it is stopped.
    let module = wat::parse_str(
        r#"(module
             (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
             (memory (export "memory") 1)
             (data (i32.const 0) "\10\00\00\00\06\00\00\00")
             (data (i32.const 16) "hello\n")
             (func (export "_start")
               (drop (call $write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 8)))
               (loop $forever (br $forever))))"#,
    );
    let job = support::wasm_job(folder.path(), &module.unwrap(), b"");
    let (runtime, context) = (WasmRuntime::new().unwrap(), Context::default());
    let mut next = context.logs.next();
    let heard = async {
        next.wait_for(|next| *next == 1).await.unwrap();
        context.cancel.cancel();
    };
    let both = async { tokio::join!(runtime.run(job, &context), heard) };
    let (ended, ()) = tokio::time::timeout(Duration::from_secs(60), both).await.unwrap();
    assert_eq!(ended.unwrap_err().code, RunCode::Cancelled);
    let lines = context.logs.since(0, 9);
    assert_eq!((lines[0].stream, lines[0].text.as_str()), (LogStream::Stderr, "hello"));
}

#[tokio::test]
async fn surroundings_are_the_same_everywhere() {
    let seen = |params: &'static str| async move { run_with("surroundings", params, |_| {}).await.unwrap() };
    let bytes = seen(r#"{"args":["one","two"],"env":{"A":"b"},"seed":7}"#).await;
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    assert_eq!(number(0), 946_684_800_000_000_000, "the wall clock stands at 2000-01-01");
    assert_eq!(number(16) - number(8), 1_000, "the monotonic clock goes by steps");
    assert_eq!(number(56), 0x7ff8_0000_0000_0000, "NaNs are canonical");
    assert_eq!(&bytes[128..146], b"task.wasm\0one\0two\0");
    assert_eq!(&bytes[256..260], b"A=b\0");

    assert_eq!(seen(r#"{"args":["one","two"],"env":{"A":"b"},"seed":7}"#).await, bytes);
    let other = seen(r#"{"seed":8}"#).await;
    assert_ne!(other[24..56], bytes[24..56], "the seed decides what is random");
    // RFC 8439 has the stream for a key of zeros: 76b8e0ad a0f13d90 405d6ae5 5386bd28 bdd219b8 a08ded1a a836efcc 8b770dc7.
    assert_eq!(seen("{}").await[24..32], [0x76, 0xa0, 0x40, 0x53, 0xbd, 0xa0, 0xa8, 0x8b]);
}

/// Names the file that another process writes its result to.
const RESULT_FILE: &str = "COMPUTENODE_TEST_RESULT";

/// Everything that could differ from run to run, in one program's result.
#[expect(clippy::unwrap_used, reason = "helpers of tests may panic")]
async fn all_that_could_differ(runtime: &WasmRuntime) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let mut job = support::wasm_job(folder.path(), &support::program("determinism"), b"the input");
    job.params = r#"{"args":["x"],"env":{"A":"b"},"memory_mb":4,"seed":1844674407370}"#.to_owned();
    let context = Context::default();
    let ended = tokio::time::timeout(Duration::from_secs(60), runtime.run(job, &context)).await.unwrap();
    support::bytes(ended.unwrap())
}

#[tokio::test]
#[ignore = "the other process of results_are_the_same_in_every_run_engine_and_process"]
async fn another_process() {
    let Some(file) = std::env::var_os(RESULT_FILE) else { return };
    let result = all_that_could_differ(&WasmRuntime::new().unwrap()).await;
    std::fs::write(file, result).unwrap();
}

#[tokio::test]
async fn results_are_the_same_in_every_run_engine_and_process() {
    let cache = tempfile::tempdir().unwrap();
    let runtime = WasmRuntime::cached_in(cache.path()).unwrap();
    let result = all_that_could_differ(&runtime).await;
    let u32_at = |at: usize| u32::from_le_bytes(result[at..at + 4].try_into().unwrap());
    assert_eq!(result.len(), 512);
    assert_eq!(u32_at(0), 0x7fc0_0000, "NaNs are canonical, whatever they were made of");
    assert_eq!(u32_at(96), 1, "the first growth of memory is allowed");
    assert_eq!(u32_at(100), u32::MAX, "the task's limit is seen as such");
    assert_eq!(u32_at(104), 1, "a stream is ready before time passes");

    assert_eq!(all_that_could_differ(&runtime).await, result, "another run of the same compiled module");
    let again = WasmRuntime::cached_in(cache.path()).unwrap();
    assert_eq!(all_that_could_differ(&again).await, result, "the module from the disk");
    assert_eq!(all_that_could_differ(&WasmRuntime::new().unwrap()).await, result, "another engine");
    let file = cache.path().join("result");
    let child = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["another_process", "--exact", "--ignored"])
        .env(RESULT_FILE, &file)
        .stdout(std::process::Stdio::null())
        .status();
    assert!(tokio::time::timeout(Duration::from_secs(60), child).await.unwrap().unwrap().success());
    assert_eq!(std::fs::read(&file).unwrap(), result, "another process");
}

#[tokio::test]
async fn a_limit_of_the_nodes_own_cannot_be_seen_from_within() {
    // The program would go on if it were told; only the task's own limit may be.
    let module = wat::parse_str(
        r#"(module (memory (export "memory") 1)
             (func (export "_start") (drop (memory.grow (i32.const 100)))))"#,
    );
    let module = module.unwrap();
    for (params, expected) in [("{}", Err(RunCode::OutOfMemory)), (r#"{"memory_mb":4}"#, Ok(()))] {
        let folder = tempfile::tempdir().unwrap();
        let mut job = support::wasm_job(folder.path(), &module, b"");
        job.params = params.to_owned();
        job.limits.memory_bytes = 4 << 20;
        assert_eq!(run_job(job).await.map(drop).map_err(|error| error.code), expected, "{params}");
    }
}

#[tokio::test]
async fn compiled_modules_are_warm_and_outlive_the_process() {
    let (folder, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let job = support::wasm_job(folder.path(), &support::program("upper"), b"text");
    let (digest, context) = (job.model.digest.clone(), Context::default());
    let runtime = WasmRuntime::cached_in(cache.path()).unwrap();
    assert_eq!(runtime.warm_models(), Vec::<String>::new());
    runtime.run(job.clone(), &context).await.unwrap();
    assert_eq!(runtime.warm_models(), [digest]);
    // In memory it is not read again.
    std::fs::remove_file(folder.path().join("module.wasm")).unwrap();
    let again = runtime.run(job, &context).await.unwrap();
    assert_eq!(support::bytes(again), b"TEXT");
    assert!(std::fs::read_dir(cache.path()).unwrap().next().is_some(), "nothing was kept on the disk");
}

#[tokio::test]
async fn there_are_no_files_and_no_network() {
    assert_eq!(run_with("files", "{}", |_| {}).await.unwrap(), b"");
    let error = fails("socket", "{}").await;
    assert_eq!((error.code, error.message.contains("sock_open")), (RunCode::BadModel, true), "{error}");
}

#[tokio::test]
async fn what_is_no_program_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let whole = support::program("upper");
    let no_start = wat::parse_str("(module)").unwrap();
    let start_is_no_function = wat::parse_str(r#"(module (memory (export "_start") 1))"#).unwrap();
    let start_takes = wat::parse_str(r#"(module (func (export "_start") (param i32)))"#).unwrap();
    let shared = wat::parse_str(r#"(module (memory 1 1 shared) (func (export "_start")))"#).unwrap();
    let tables =
        wat::parse_str(format!(r#"(module {} (func (export "_start")))"#, "(table 1 funcref)".repeat(5)));
    let text = b"(module (func (export \"_start\")))".to_vec();
    let component = wat::parse_str("(component)").unwrap();
    let mut programs =
        vec![vec![], tables.unwrap(), text, no_start, start_is_no_function, start_takes, shared, component];
    programs.extend((0..whole.len()).step_by(17).map(|cut| whole[..cut].to_vec()));
    for module in programs {
        let error = run_job(support::wasm_job(folder.path(), &module, b"")).await.unwrap_err();
        assert_eq!(error.code, RunCode::BadModel, "{module:?}: {error}");
    }
    // Flipped bits may leave a program; what matters is that the node lives on.
    for at in 0..whole.len() {
        let mut module = whole.clone();
        module[at] ^= 1 << (at % 8);
        let mut job = support::wasm_job(folder.path(), &module, b"text");
        job.params = r#"{"fuel":100000}"#.to_owned();
        drop(run_job(job).await);
    }
}

#[tokio::test]
async fn what_would_take_the_compiler_too_long_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let deep = format!("{}{}", "loop ".repeat(25_000), "end ".repeat(25_000));
    let module = format!(r#"(module (func (export "_start") {} {deep}))"#, "(local i64)".repeat(2000));
    let started = Instant::now();
    let job = support::wasm_job(folder.path(), &wat::parse_str(module).unwrap(), b"");
    let error = run_job(job).await.unwrap_err();
    assert_eq!((error.code, error.message.contains("nested")), (RunCode::BadModel, true), "{error}");
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compilation_does_not_hold_up_the_deadline() {
    let folder = tempfile::tempdir().unwrap();
    // Within all limits, and seconds of work for the compiler.
    let sums = "(drop (i64.div_s (local.get 0) (i64.add (local.get 0) (i64.const 1))))".repeat(60_000);
    let module = format!(
        r#"(module (func (export "_start") unreachable) {})"#,
        format!("(func (local i64) {sums})").repeat(4)
    );
    let mut job = support::wasm_job(folder.path(), &wat::parse_str(module).unwrap(), b"");
    job.limits.wall = Duration::from_millis(100);
    let (runtime, context) = (WasmRuntime::new().unwrap(), Context::default());
    let started = Instant::now();
    let error = runtime.run(job, &context).await.unwrap_err();
    let ended = started.elapsed();
    assert_eq!(error.code, RunCode::TimedOut);
    assert!(ended < Duration::from_millis(1500), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn asking_for_much_randomness_does_not_hold_up_the_deadline() {
    let folder = tempfile::tempdir().unwrap();
    let program = |bytes: u32| {
        let import =
            r#"(import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))"#;
        let ask = format!("(loop $l (drop (call $random (i32.const 0) (i32.const {bytes}))) (br $l))");
        let module =
            format!(r#"(module {import} (memory (export "memory") 1000) (func (export "_start") {ask}))"#);
        support::wasm_job(folder.path(), &wat::parse_str(module).unwrap(), b"")
    };
    assert_eq!(run_job(program(60_000_000)).await.unwrap_err().code, RunCode::Trapped);
    let mut job = program(1 << 20);
    job.limits.wall = Duration::from_millis(300);
    let started = Instant::now();
    assert_eq!(run_job(job).await.unwrap_err().code, RunCode::TimedOut);
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

#[tokio::test]
async fn params_that_cannot_be_passed_are_refused() {
    for params in [r#"{"args":["a\u0000b"]}"#, r#"{"env":{"A":"\u0000"}}"#, r#"{"fuel":-1}"#, "[]", ""] {
        assert_eq!(fails("upper", params).await.code, RunCode::BadParams, "{params}");
    }
}
