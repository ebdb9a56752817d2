//! The program `market-sim`: plays seeds and says what happened.

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::Parser;
use simulator::{Config, Coverage, run};

/// Plays the market's rules and scheduler against crashes, a faulty network and liars, one history per seed.
///
/// Exits with 1 at the first seed in whose history something does not hold that must, and prints what led to it.
#[derive(Parser)]
#[command(name = "market-sim", version, after_help = EXAMPLES)]
struct Cli {
    /// How many seeds to play.
    #[arg(long, default_value_t = 300)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Plays this seed alone.
    #[arg(long, conflicts_with_all = ["seeds", "from"])]
    seed: Option<u64>,
    /// Prints everything that happens.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Stops each history after so many steps.
    #[arg(long, default_value_t = Config::default().max_steps)]
    steps: u64,
}

const EXAMPLES: &str = "\
Examples:
  Play a thousand histories:
    market-sim --seeds 1000
  See what happens in one of them:
    market-sim --seed 42 --trace";

fn main() -> io::Result<ExitCode> {
    let cli = Cli::parse();
    let seeds = match cli.seed {
        Some(seed) => seed..seed.saturating_add(1),
        None => cli.from..cli.from.saturating_add(cli.seeds),
    };
    let config = Config { max_steps: cli.steps, ..Config::default() };
    let mut out = io::BufWriter::new(io::stdout().lock());
    let (mut played, mut steps, mut coverage) = (0u64, 0, Coverage::default());
    for seed in seeds {
        let played_out = run(seed, config);
        if cli.trace {
            let notes = played_out.as_ref().map_or_else(|failure| &failure.notes, |outcome| &outcome.notes);
            notes.iter().try_for_each(|note| writeln!(out, "{note}"))?;
        }
        match played_out {
            Ok(outcome) => {
                if cli.seed.is_some() {
                    writeln!(out, "seed {seed}: trace {:016x}", outcome.hash)?;
                }
                played += 1;
                steps += outcome.steps;
                coverage.add(&outcome.coverage);
            }
            Err(failure) => {
                writeln!(out, "{failure}\nagain: market-sim --seed {seed} --trace")?;
                out.flush()?;
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    writeln!(out, "{played} seeds, {steps} events, everything held\n{coverage}")?;
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}
