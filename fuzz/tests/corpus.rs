//! Feeds every target its seeds, and variants of them that are the same in each run. A seed's name says what becomes of it: one that
//! begins with `ok-` is taken, one that begins with `bad-` is refused.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use fuzz::{Outcome, TARGETS, Target};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use serde_json::Value;

/// The largest input, in bytes.
const MAX_BYTES: usize = 16 * 1024;

/// Values that are often wrong where others are right.
const VALUES: &[&str] = &[
    "null",
    "true",
    "0",
    "-1",
    "1",
    "1.5",
    "-0.0",
    "1e400",
    "255",
    "256",
    "4294967296",
    "9007199254740993",
    "18446744073709551615",
    "18446744073709551616",
    r#""""#,
    r#""\u0000""#,
    r#""0x""#,
    r#""\ud83d\ude00""#,
    r#""1970-01-01T00:00:00Z""#,
    r#""9999-12-31T23:59:60Z""#,
    r#""+262142-12-31""#,
    r#""0x0000000000000000000000000000000000000000""#,
    r#""https://user:secret@a.example/?q#f""#,
    "[]",
    "[null]",
    "{}",
    r#"{"":0}"#,
];
/// Pieces of text that grammars here give a meaning to.
const PIECES: &[&str] = &[
    "\0", "\n", "/", "//", "../", "?", "#", "@", ":", "%00", "%2f", "0x", "://", "[::1]", "\\", "é",
    "\u{202e}", "&cursor=", "=", "\"", "{", "}", "[", "]", ",", "-", "e9", "00", "\u{feff}",
];

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// A target's seeds by name, in the order of the names.
fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let mut seeds: Vec<_> = fs::read_dir(corpus().join(target))
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    seeds.sort();
    seeds
}

/// Runs a target and names the input if a promise was broken.
fn run(target: Target, input: &[u8], from: &str) -> Outcome {
    catch_unwind(AssertUnwindSafe(|| (target.run)(input))).unwrap_or_else(|_| {
        panic!("{}, made from {from}, breaks a promise: \"{}\"", target.name, input.escape_ascii())
    })
}

#[test]
fn each_folder_of_seeds_has_its_target_and_its_program() {
    let names: BTreeSet<_> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    let folders: BTreeSet<_> = fs::read_dir(corpus())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names, folders);
    let manifest = include_str!("../targets/Cargo.toml");
    for name in names {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "targets/Cargo.toml has no {name}");
    }
}

#[test]
fn seeds_are_taken_or_refused_as_their_names_say() {
    for target in TARGETS {
        let seeds = seeds(target.name);
        for (name, seed) in &seeds {
            let expected = if name.starts_with("ok-") { Outcome::Taken } else { Outcome::Refused };
            assert!(name.starts_with("ok-") || name.starts_with("bad-"), "{}/{name}", target.name);
            assert_eq!(run(target, seed, name), expected, "{}/{name}", target.name);
        }
        let taken = seeds.iter().filter(|(name, _)| name.starts_with("ok-")).count();
        assert!(taken > 0 && taken < seeds.len(), "{} needs seeds of both kinds", target.name);
    }
}

/// One test for each target, so that they run side by side, with how many variants it is fed: what a second or two allow in an
/// unoptimised build.
macro_rules! variants {
    ($($name:ident: $count:literal),+ $(,)?) => {
        $(
            #[test]
            fn $name() {
                feed_variants(stringify!($name), $count);
            }
        )+

        #[test]
        fn every_target_is_fed() {
            assert_eq!([$(stringify!($name)),+], TARGETS.map(|target| target.name));
        }
    };
}

variants! {
    signed_message: 3000,
    publish_task: 3000,
    history: 1500,
    history_script: 300,
    evidence: 1000,
    handshake: 3000,
    reference: 10_000,
    folder_manifest: 10_000,
    params: 5000,
    task_query: 10_000,
}

/// How many times as many variants are fed as usual: the number in `FUZZ_TIMES`, if it is set.
fn times() -> usize {
    std::env::var("FUZZ_TIMES").map_or(1, |text| text.parse().expect("FUZZ_TIMES is a number"))
}

fn feed_variants(name: &str, count: usize) {
    let target = TARGETS.into_iter().find(|target| target.name == name).unwrap();
    let seeds = seeds(name);
    let mut rng = StdRng::seed_from_u64(1);
    for _ in 0..count * times() {
        let (from, seed) = seeds.choose(&mut rng).unwrap();
        let mut input = match serde_json::from_slice::<Value>(seed) {
            Ok(tree) if rng.random_ratio(3, 4) => tree_variant(tree, &mut rng),
            Ok(_) | Err(_) => {
                let (_, other) = seeds.choose(&mut rng).unwrap();
                byte_variant(seed.clone(), other, &mut rng)
            }
        };
        input.truncate(MAX_BYTES);
        run(target, &input, from);
    }
}

/// The seed with one value changed, added, doubled or taken away.
fn tree_variant(mut tree: Value, rng: &mut StdRng) -> Vec<u8> {
    let mut at = &mut tree;
    while rng.random_ratio(9, 10) {
        let size = match &*at {
            Value::Object(fields) => fields.len(),
            Value::Array(items) => items.len(),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
        };
        if size == 0 {
            break;
        }
        let index = rng.random_range(0..size);
        at = match at {
            Value::Object(fields) => fields.values_mut().nth(index).unwrap(),
            Value::Array(items) => &mut items[index],
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => unreachable!(),
        };
    }
    change(at, rng);
    // Every value is text of its own, so that one which no tree can hold gets in too.
    let text = serde_json::to_string(&tree).unwrap();
    text.replace(r#""<raw>""#, VALUES.choose(rng).unwrap()).into_bytes()
}

fn change(at: &mut Value, rng: &mut StdRng) {
    match at {
        Value::Object(fields) if rng.random() => {
            if let Some(name) = fields.keys().nth(rng.random_range(0..fields.len().max(1))).cloned() {
                let value = fields.remove(&name).unwrap();
                if rng.random() {
                    fields.insert(format!("{name}x"), value);
                }
            }
        }
        Value::Array(items) if rng.random() && !items.is_empty() => {
            let index = rng.random_range(0..items.len());
            let item = items[index].clone();
            match rng.random_range(0..3) {
                0 => drop(items.remove(index)),
                1 => items.insert(index, item),
                _ => items.swap(0, index),
            }
        }
        Value::Number(number) if rng.random() => {
            let step = rng.random_range(0..3_u64);
            *at = number
                .as_u64()
                .map_or(Value::Null, |number| number.wrapping_add(step).wrapping_sub(1).into());
        }
        Value::String(text) if rng.random() => {
            let changed = byte_variant(text.clone().into_bytes(), b"", rng);
            *text = String::from_utf8_lossy(&changed).into_owned();
        }
        Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::Array(_)
        | Value::Object(_) => *at = "<raw>".into(),
    }
}

/// The seed with a few bytes changed, or a part of it put elsewhere, cut, or followed by a part of another.
fn byte_variant(mut bytes: Vec<u8>, other: &[u8], rng: &mut StdRng) -> Vec<u8> {
    for _ in 0..rng.random_range(1..4) {
        let at = rng.random_range(0..=bytes.len());
        let to = rng.random_range(at..=bytes.len());
        match rng.random_range(0..7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << rng.random_range(0..8),
            1 if at < bytes.len() => bytes[at] = rng.random(),
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..to.min(at + 16))),
            4 => {
                let part = bytes[at..to.min(at + 64)].to_vec();
                bytes.splice(at..at, part);
            }
            5 => bytes.extend_from_slice(&other[at.min(other.len())..]),
            _ => drop(bytes.splice(at..at, PIECES.choose(rng).unwrap().bytes())),
        }
    }
    bytes
}
