//! What the flags of `run` tell the runtime: each is a key of the runtime's parameters.

use serde_json::{Map, Value, json};
use taskmarket::Runtime;
use taskmarket::params::Params;

use crate::failure::{Failure, Outcome};

/// How the program runs.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Program")]
pub(crate) struct Program {
    /// The runtime's parameters, in place of the flags below
    #[arg(long, value_name = "JSON", conflicts_with_all =
          ["arg", "env", "entrypoint", "egress", "memory", "cpus", "disk", "fuel", "seed", "concurrency"])]
    params: Option<String>,
    /// An argument; repeat it for several (wasm, container)
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    arg: Vec<String>,
    /// An environment variable; repeat it for several (wasm, container)
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_variable)]
    env: Vec<(String, String)>,
    /// What runs in place of the image's entry point; repeat it for its arguments (container)
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    entrypoint: Vec<String>,
    /// A domain to reach by HTTP and HTTPS, if the provider allows it: example.org or *.example.org; repeat it for several
    /// (container)
    #[arg(long, value_name = "DOMAIN")]
    egress: Vec<String>,
    /// Memory at most, in MiB [default: what the node allows] (wasm, container)
    #[arg(long, value_name = "MIB")]
    memory: Option<u32>,
    /// Processors at most, such as 1.5 [default: what the node allows] (container)
    #[arg(long, value_name = "N", value_parser = parse_cpus)]
    cpus: Option<u32>,
    /// Space for /out and /tmp at most, in MiB [default: what the node allows] (container)
    #[arg(long, value_name = "MIB")]
    disk: Option<u32>,
    /// Fuel: about as many instructions (wasm)
    #[arg(long, value_name = "N")]
    fuel: Option<u64>,
    /// The seed of what the program reads as randomness (wasm)
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Requests that are at the engine at once [default: what the node allows] (openai)
    #[arg(long, value_name = "N")]
    concurrency: Option<u32>,
}

impl Program {
    /// The canonical text that is signed.
    ///
    /// # Errors
    /// Exit code 2: a flag or a key that the runtime does not have.
    pub(crate) fn of(&self, runtime: Runtime) -> Outcome<String> {
        let (flag, value) = match &self.params {
            Some(text) => {
                let value = serde_json::from_str(text);
                ("--params: ", value.map_err(|error| Failure::usage(format_args!("--params: {error}")))?)
            }
            None => ("", Value::Object(self.keys(runtime)?)),
        };
        let wrong = |error: &dyn std::fmt::Display| Failure::usage(format_args!("{flag}{error}"));
        let canonical = serde_json_canonicalizer::to_string(&value).map_err(|error| wrong(&error))?;
        Params::parse(runtime, &canonical).map(|_| canonical).map_err(|error| wrong(&error))
    }

    fn keys(&self, runtime: Runtime) -> Outcome<Map<String, Value>> {
        use Runtime::{Container, Openai, Wasm};

        let list = |list: &Vec<String>| (!list.is_empty()).then(|| json!(list));
        let env: Map<String, Value> =
            self.env.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
        let mut keys = Map::new();
        for (flag, key, value, runtimes) in [
            ("--arg", "args", list(&self.arg), &[Wasm, Container][..]),
            ("--env", "env", (!env.is_empty()).then_some(Value::Object(env)), &[Wasm, Container]),
            ("--entrypoint", "entrypoint", list(&self.entrypoint), &[Container]),
            ("--egress", "egress", list(&self.egress), &[Container]),
            ("--memory", "memory_mb", self.memory.map(|mib| json!(mib)), &[Wasm, Container]),
            ("--cpus", "cpu_millis", self.cpus.map(|millis| json!(millis)), &[Container]),
            ("--disk", "disk_mb", self.disk.map(|mib| json!(mib)), &[Container]),
            ("--fuel", "fuel", self.fuel.map(|fuel| json!(fuel)), &[Wasm]),
            ("--seed", "seed", self.seed.map(|seed| json!(seed)), &[Wasm]),
            ("--concurrency", "concurrency", self.concurrency.map(|n| json!(n)), &[Openai]),
        ] {
            let Some(value) = value else { continue };
            if !runtimes.contains(&runtime) {
                let names: Vec<_> = runtimes.iter().map(|runtime| runtime.as_str()).collect();
                return Err(Failure::usage(format_args!(
                    "{flag} is for {}, not {runtime}",
                    names.join(" and ")
                )));
            }
            keys.insert(key.to_owned(), value);
        }
        Ok(keys)
    }
}

fn parse_variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        Some(_) | None => Err("expected NAME=VALUE".to_owned()),
    }
}

/// A number of processors, in thousandths.
fn parse_cpus(text: &str) -> Result<u32, String> {
    let wrong =
        || "expected a number of processors of at most three digits after the point, such as 1.5".to_owned();
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(whole) || !is_number(part) || part.len() > 3 {
        return Err(wrong());
    }
    let millis = format!("{part:0<3}").parse::<u32>().map_err(|_| wrong())?;
    let whole = whole.parse::<u32>().ok().and_then(|whole| whole.checked_mul(1000)).ok_or_else(wrong)?;
    whole.checked_add(millis).filter(|millis| *millis > 0).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        program: Program,
    }

    fn of(runtime: Runtime, flags: &str) -> Result<String, String> {
        let words = std::iter::once("run").chain(flags.split_whitespace());
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        line.program.of(runtime).map_err(|failure| failure.message().to_owned())
    }

    #[test]
    fn flags_become_keys() {
        assert_eq!(of(Runtime::Embed, "").unwrap(), "{}");
        assert_eq!(
            of(Runtime::Wasm, "--arg -v --arg x --env A=b=c --fuel 5 --memory 64 --seed 1").unwrap(),
            r#"{"args":["-v","x"],"env":{"A":"b=c"},"fuel":5,"memory_mb":64,"seed":1}"#
        );
        assert_eq!(
            of(Runtime::Container, "--entrypoint sh --egress example.org --cpus 1.5 --disk 10").unwrap(),
            r#"{"cpu_millis":1500,"disk_mb":10,"egress":["example.org"],"entrypoint":["sh"]}"#
        );
        assert_eq!(of(Runtime::Openai, "--concurrency 4").unwrap(), r#"{"concurrency":4}"#);
        assert_eq!(of(Runtime::Wasm, r#"--params {"fuel":1}"#).unwrap(), r#"{"fuel":1}"#);
    }

    #[test]
    fn what_the_runtime_does_not_have_is_refused() {
        assert_eq!(
            of(Runtime::Wasm, "--egress a.example").unwrap_err(),
            "--egress is for container, not wasm"
        );
        assert_eq!(of(Runtime::Embed, "--arg a").unwrap_err(), "--arg is for wasm and container, not embed");
        assert!(of(Runtime::Wasm, "--params {}  --arg a").unwrap_err().contains("cannot be used with"));
        assert!(of(Runtime::Wasm, r#"--params {"fule":1}"#).unwrap_err().contains("fule"));
        for wrong in ["=b", "A"] {
            assert!(of(Runtime::Wasm, &format!("--env {wrong}")).unwrap_err().contains("NAME=VALUE"));
        }
    }

    #[test]
    fn processors_are_counted_in_thousandths() {
        for (text, millis) in [("1", 1000), ("1.5", 1500), ("0.25", 250), ("12.005", 12_005)] {
            assert_eq!(parse_cpus(text), Ok(millis));
        }
        for wrong in ["", "0", "-1", "1.", ".5", "1.2345", "x", "9999999", "1e3", "+1"] {
            assert!(parse_cpus(wrong).is_err(), "{wrong}");
        }
    }
}
