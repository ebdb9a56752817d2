//! Hundreds of histories, and the same with one rule broken at a time.

use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use simulator::{Config, Coverage, Failure, Sabotage, run};

/// Enough for every fault and every end to occur, and for every sabotage to be found.
const SEEDS: u64 = 300;

/// Plays all seeds on all cores.
fn play(seeds: u64, config: Config) -> Result<Coverage, Box<Failure>> {
    let next = AtomicU64::new(0);
    let work = || -> Result<Coverage, Box<Failure>> {
        let mut coverage = Coverage::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return Ok(coverage);
            }
            coverage.add(&run(seed, config)?.coverage);
        }
    };
    thread::scope(|scope| {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        let mut all = Coverage::default();
        for worker in workers {
            all.add(&worker.join().expect("a worker ends by itself")?);
        }
        Ok(all)
    })
}

#[test]
fn everything_holds_whatever_goes_wrong() {
    let coverage = play(SEEDS, Config::default()).unwrap_or_else(|failure| panic!("{failure}"));
    println!("{coverage}");
    assert_eq!(coverage.missing(), [""; 0], "none of these happened, so the run shows nothing about them");
}

#[test]
fn one_seed_is_one_history() {
    let mut hashes = Vec::new();
    for seed in 0..12 {
        let (one, other) = (run(seed, Config::default()).unwrap(), run(seed, Config::default()).unwrap());
        assert_eq!(one.hash, other.hash, "seed {seed}");
        assert_eq!(one.notes, other.notes, "seed {seed}");
        hashes.push(one.hash);
    }
    hashes.sort_unstable();
    hashes.dedup();
    assert_eq!(hashes.len(), 12);
}

#[test]
fn every_sabotage_is_found() {
    for (sabotage, by) in Sabotage::ALL {
        let config = Config { sabotage: Some(*sabotage), ..Config::default() };
        let failure = (0..SEEDS).find_map(|seed| run(seed, config).err());
        let failure = failure.unwrap_or_else(|| panic!("{sabotage:?} was not found in {SEEDS} seeds"));
        println!(
            "{sabotage:?}: seed {}, step {}: {}: {}",
            failure.seed, failure.step, failure.invariant, failure.found
        );
        assert!(by.contains(&failure.invariant), "{sabotage:?}: {failure}");
        let again = run(failure.seed, config).unwrap_err();
        assert_eq!(
            (again.step, again.notes),
            (failure.step, failure.notes),
            "a failure comes back with its seed"
        );
    }
}

#[test]
fn the_program_sums_up() {
    let program = env!("CARGO_BIN_EXE_market-sim");
    let output = Command::new(program).args(["--from", "1", "--seeds", "2"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    assert!(
        text.starts_with("2 seeds, ") && text.contains("\ntasks: ") && text.contains("\nrefusals: "),
        "{text}"
    );
    let trace = Command::new(program).args(["--seed", "1", "--trace"]).output().unwrap().stdout;
    assert_eq!(trace, Command::new(program).args(["--seed", "1", "--trace"]).output().unwrap().stdout);
}
