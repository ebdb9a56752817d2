//! What was measured, as tables.

use super::CASES;
use super::load::{Outcome, Shape};
use crate::report::{Cell, Table};
use crate::timing::median;

/// The places of the chains that others are compared to.
const DIRECT: usize = 0;
const NGINX: usize = 1;
const TUNNEL: usize = 2;
pub(super) const MARKET: usize = 3;

/// What one run of clients came to.
pub(super) struct Sample {
    pub(super) outcome: Outcome,
    /// The seconds of processors that each process of the chain used.
    pub(super) cpu: Vec<f64>,
}

impl Sample {
    fn per_sec(&self) -> f64 {
        self.outcome.served as f64 / self.outcome.secs
    }

    fn cpu_per_1k(&self) -> f64 {
        self.cpu.iter().sum::<f64>() * 1e3 / self.outcome.served.max(1) as f64
    }

    fn cpu_per_million_tokens(&self) -> f64 {
        self.cpu.iter().sum::<f64>() * 1e6 / self.outcome.tokens.max(1) as f64
    }

    fn mib_per_sec(&self) -> f64 {
        self.per_sec() * Shape::ECHO_BYTES as f64 / f64::from(1 << 20)
    }
}

/// All samples: of each chain, for each case, one of each round.
pub(super) struct Samples {
    pub(super) names: Vec<&'static str>,
    pub(super) by_chain: Vec<[Vec<Sample>; CASES.len()]>,
}

/// Seconds of a processor for one receipt.
#[derive(Clone, Copy)]
pub(super) struct Signature {
    pub(super) sign: f64,
    pub(super) verify: f64,
}

impl Samples {
    fn median(&self, chain: usize, case: usize, figure: impl Fn(&Sample) -> f64) -> f64 {
        median(self.by_chain[chain][case].iter().map(figure))
    }

    /// The median of a chain's figure over another's of the same round.
    fn ratio(&self, chain: usize, to: usize, case: usize, figure: impl Fn(&Sample, &Sample) -> f64) -> f64 {
        let rounds = self.by_chain[DIRECT][case].iter().enumerate();
        median(rounds.map(|(round, direct)| {
            let of = |chain: usize| figure(&self.by_chain[chain][case][round], direct);
            of(chain) / of(to)
        }))
    }

    fn failed(&self, chain: usize, case: usize) -> Cell {
        Cell::count(self.by_chain[chain][case].iter().map(|sample| sample.outcome.failed).sum())
    }

    pub(super) fn tables(&self, signature: Signature) -> Vec<Table> {
        let mut tables = vec![self.one_by_one(0)];
        tables.extend([1, 2].map(|case| self.at_once(case, signature)));
        tables.push(self.streams(3));
        tables.push(self.bodies([4, 5]));
        tables
    }

    fn one_by_one(&self, case: usize) -> Table {
        let columns =
            ["chain", "p50_us", "p99_us", "added_p50_us", "added_of_tunnel", "cpu_s_per_1k", "failed"];
        let mut table = Table::new("Inference: one client, short answers", &columns);
        let added = |sample: &Sample, direct: &Sample| sample.outcome.whole.p50 - direct.outcome.whole.p50;
        for (chain, name) in self.names.iter().enumerate() {
            let direct = self.median(DIRECT, case, |sample| sample.outcome.whole.p50);
            let p50 = self.median(chain, case, |sample| sample.outcome.whole.p50);
            table.row([
                (*name).into(),
                Cell::Number(p50, 0),
                Cell::Number(self.median(chain, case, |sample| sample.outcome.whole.p99), 0),
                Cell::Number(p50 - direct, 0),
                Cell::Number(self.ratio(chain, TUNNEL, case, added), 2),
                Cell::Number(self.median(chain, case, Sample::cpu_per_1k), 3),
                self.failed(chain, case),
            ]);
        }
        table.note("Goal: added_of_tunnel of this market at most 1.25.");
        table
    }

    fn at_once(&self, case: usize, signature: Signature) -> Table {
        let columns = [
            "chain",
            "per_s",
            "per_s_of_tunnel",
            "p50_ms",
            "p99_ms",
            "cpu_s_per_1k",
            "cpu_of_tunnel",
            "cpu_unsigned_of_tunnel",
            "failed",
        ];
        let title = format!("Inference: {} clients, short answers", CASES[case].1);
        let mut table = Table::new(title, &columns);
        for (chain, name) in self.names.iter().enumerate() {
            let signatures = if chain == MARKET { (signature.sign + signature.verify) * 1e3 } else { 0.0 };
            let cpu = self.ratio(chain, TUNNEL, case, |sample, _| sample.cpu_per_1k());
            let tunnel = self.median(TUNNEL, case, Sample::cpu_per_1k);
            table.row([
                (*name).into(),
                Cell::Number(self.median(chain, case, Sample::per_sec), 0),
                Cell::Number(self.ratio(chain, TUNNEL, case, |sample, _| sample.per_sec()), 2),
                Cell::Number(self.median(chain, case, |sample| sample.outcome.whole.p50) / 1e3, 1),
                Cell::Number(self.median(chain, case, |sample| sample.outcome.whole.p99) / 1e3, 1),
                Cell::Number(self.median(chain, case, Sample::cpu_per_1k), 3),
                Cell::Number(cpu, 2),
                Cell::Number(cpu - signatures / tunnel, 2),
                self.failed(chain, case),
            ]);
        }
        table.note(
            "Goals: per_s_of_tunnel at least 1; cpu_of_tunnel at most 1.3, and at most 1 without signatures.",
        );
        table
    }

    fn streams(&self, case: usize) -> Table {
        let columns = [
            "chain",
            "first_p50_ms",
            "first_p99_ms",
            "first_p50_less_nginx_ms",
            "gap_p50_ms",
            "gap_p99_ms",
            "tokens_per_s",
            "cpu_s_per_million",
            "cpu_of_tunnel",
            "failed",
        ];
        let mut table = Table::new(format!("Inference: {} streams", CASES[case].1), &columns);
        for (chain, name) in self.names.iter().enumerate() {
            let ms = |figure: &dyn Fn(&Outcome) -> f64| {
                self.median(chain, case, |sample| figure(&sample.outcome)) / 1e3
            };
            let nginx = self.median(NGINX, case, |sample| sample.outcome.first.p50) / 1e3;
            let first = ms(&|outcome| outcome.first.p50);
            table.row([
                (*name).into(),
                Cell::Number(first, 1),
                Cell::Number(ms(&|outcome| outcome.first.p99), 1),
                Cell::Number(first - nginx, 1),
                Cell::Number(ms(&|outcome| outcome.gap.p50), 1),
                Cell::Number(ms(&|outcome| outcome.gap.p99), 1),
                Cell::Number(
                    self.median(chain, case, |sample| sample.outcome.tokens as f64 / sample.outcome.secs),
                    0,
                ),
                Cell::Number(self.median(chain, case, Sample::cpu_per_million_tokens), 1),
                Cell::Number(self.ratio(chain, TUNNEL, case, |sample, _| sample.cpu_per_million_tokens()), 2),
                self.failed(chain, case),
            ]);
        }
        table.note("Goals: first_p50_less_nginx_ms at most 3, and cpu_of_tunnel at most 0.75.");
        table
    }

    fn bodies(&self, cases: [usize; 2]) -> Table {
        let columns = [
            "chain",
            "alone_mib_per_s",
            "alone_of_tunnel",
            "8_mib_per_s",
            "8_of_tunnel",
            "cpu_s_per_gib",
            "failed",
        ];
        let mut table = Table::new("Inference: 8 MiB there and back, one client and eight", &columns);
        for (chain, name) in self.names.iter().enumerate() {
            let mut row = vec![(*name).into()];
            for case in cases {
                row.push(Cell::Number(self.median(chain, case, Sample::mib_per_sec), 0));
                row.push(Cell::Number(self.ratio(chain, TUNNEL, case, |sample, _| sample.per_sec()), 2));
            }
            let per_gib = |sample: &Sample| sample.cpu_per_1k() * 128.0 / 1e3;
            row.push(Cell::Number(self.median(chain, cases[1], per_gib), 2));
            row.push(self.failed(chain, cases[1]));
            table.row(row);
        }
        table.note("MiB of answers; as much goes the other way before. Goal: at least 2 of the tunnel.");
        table
    }

    /// What each of the market's processes used.
    pub(super) fn processes(&self, names: &[&'static str]) -> Table {
        let columns = [
            "process",
            "64_cpu_s_per_1k",
            "256_cpu_s_per_1k",
            "stream_cpu_s_per_million",
            "8_mib_cpu_s_per_gib",
        ];
        let mut table = Table::new("Inference: the market's processes", &columns);
        for (place, name) in names.iter().enumerate() {
            let per = |case: usize, of: fn(&Sample) -> f64| {
                Cell::Number(self.median(MARKET, case, |sample| sample.cpu[place] / of(sample)), 3)
            };
            let requests: fn(&Sample) -> f64 = |sample| sample.outcome.served as f64 / 1e3;
            table.row([
                (*name).into(),
                per(1, requests),
                per(2, requests),
                per(3, |sample| sample.outcome.tokens as f64 / 1e6),
                per(5, |sample| sample.outcome.served as f64 / 128.0),
            ]);
        }
        table
    }
}
