//! The scheduler's choice among live hosts.

use std::collections::VecDeque;
use std::hint::black_box;
use std::time::Instant;

use anyhow::{Context, ensure};
use scheduler::{Device, Index, Need, NodeKey, Offer};
use taskmarket::{Address, B256, Bytes32, ContentHash, Runtime, Task};

use crate::report::{Cell, Table};
use crate::tasks::Requesters;
use crate::timing::Times;

const GPUS: [(&str, u64); 8] = [
    ("NVIDIA H200", 141_312),
    ("NVIDIA H100 80GB HBM3", 81_559),
    ("NVIDIA A100-SXM4-80GB", 81_920),
    ("NVIDIA A100-SXM4-40GB", 40_960),
    ("NVIDIA L40S", 46_068),
    ("NVIDIA GeForce RTX 4090", 24_564),
    ("NVIDIA GeForce RTX 3090", 24_576),
    ("AMD Instinct MI300X", 196_608),
];
/// Models that hosts have loaded.
const MODELS: u64 = 200;

/// Measures with each number of hosts: each of some hosts' kinds, and one row with many kinds at the largest number.
pub(crate) fn measure(hosts: &[u64], picks: usize) -> anyhow::Result<Table> {
    let columns = ["hosts", "kinds", "mean_us", "p50_us", "p99_us", "pick_alone_us"];
    let mut table = Table::new("Scheduler: pick, reserve, release", &columns);
    let many = hosts.iter().max().copied();
    let cases = hosts.iter().map(|hosts| (*hosts, 40)).chain(many.map(|hosts| (hosts, 1000)));
    let needs = needs()?;
    for (hosts, kinds) in cases {
        table.row(run(hosts, kinds, picks, &needs)?);
    }
    table.note(format!(
        "{picks} rounds of one pick, reserve and release on one thread, half of all hosts holding a task; a third of the picks each for a \
         GPU by name, for no GPU, and for a model that some hosts have loaded. kinds: hosts of different GPUs, counts and memory. \
         Goal: mean under 5 us at 100,000 hosts."
    ));
    Ok(table)
}

fn run(hosts: u64, kinds: u64, picks: usize, needs: &[Need]) -> anyhow::Result<Vec<Cell>> {
    let mut index = Index::new();
    for number in 0..hosts {
        index.upsert(offer(number, kinds));
    }
    let mut held = VecDeque::new();
    let mut round = |index: &mut Index, need: &Need, keep: bool| {
        let key = index.pick(need, |_| false).context("no host is free")?;
        ensure!(index.reserve(&key), "the host picked has no slot");
        held.push_back(key);
        if !keep && let Some(oldest) = held.pop_front() {
            index.release(&oldest);
        }
        anyhow::Ok(())
    };
    let mut next = needs.iter().cycle();
    for need in next.by_ref().take(hosts as usize / 2) {
        round(&mut index, need, true)?;
    }
    let mut times = Vec::with_capacity(picks);
    for need in next.by_ref().take(picks) {
        let began = Instant::now();
        round(&mut index, need, false)?;
        times.push(began.elapsed());
    }
    let began = Instant::now();
    for need in next.take(picks) {
        black_box(index.pick(need, |_| false));
    }
    let alone = began.elapsed().as_secs_f64() * 1e6 / picks as f64;
    let times = Times::of(times);
    let figures = [times.mean_us(), times.quantile_us(0.5), times.quantile_us(0.99), alone];
    let counts = [Cell::count(hosts), Cell::count(kinds)];
    Ok(counts.into_iter().chain(figures.map(|figure| Cell::Number(figure, 2))).collect())
}

/// A host of one of the kinds; one in four has no GPU.
fn offer(number: u64, kinds: u64) -> Offer {
    let kind = number % kinds;
    let (name, vram_mb) = GPUS[(kind % 8) as usize];
    // Memory as reported differs a little from host to host, which makes kinds.
    let gpu = Device { name: name.to_owned(), vram_mb: vram_mb - kind / 8, is_gpu: true };
    let cpu = Device { name: "CPU".to_owned(), vram_mb: 65_536 + kind, is_gpu: false };
    let devices = if kind % 4 == 3 { vec![cpu] } else { vec![gpu; 1 + (kind / 8 % 4) as usize] };
    let id = B256::left_padding_from(&number.to_be_bytes());
    Offer {
        key: NodeKey { provider: Address::from_word(taskmarket::keccak256(id)), node_id: Bytes32(id) },
        devices,
        runtimes: vec![Runtime::Embed, Runtime::Wasm],
        slots: 1 + (number % 8) as u32,
        busy: 0,
        warm: vec![model(number % MODELS)],
        served: Vec::new(),
        accepting: true,
    }
}

fn model(number: u64) -> ContentHash {
    ContentHash(B256::left_padding_from(&(number + 1).to_be_bytes()))
}

fn needs() -> anyhow::Result<Vec<Need>> {
    let task: Task = Requesters::new()?.sign()?.message;
    let need = |change: &dyn Fn(&mut Task)| {
        let mut task = task.clone();
        task.model_hash = ContentHash::UNPINNED;
        change(&mut task);
        Need::of(&task)
    };
    let named = ["A100", "H100", "RTX 4090", "L40S"];
    let mut needs = Vec::new();
    for number in 0..MODELS {
        needs.push(need(&|task| task.config.gpu_type = named[number as usize % named.len()].to_owned()));
        needs.push(need(&|task| {
            task.config.gpu_type = String::new();
            (task.config.gpu_count, task.config.min_vram) = (0, 0);
        }));
        needs.push(need(&|task| {
            task.config.gpu_type = String::new();
            task.model_hash = model(number);
        }));
    }
    Ok(needs)
}
