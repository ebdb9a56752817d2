//! `--model`: a model that the engine inside this program serves, and how that engine is started.

use std::num::NonZero;
use std::path::PathBuf;
use std::str::FromStr;

use super::ARGUMENT;
use crate::engines::config::{Launch, named, parse_slots};

/// The most threads of one engine.
const MAX_THREADS: usize = 1024;

/// A model that this program serves itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSpec {
    /// Its id in requests, and what the operator calls its engine.
    pub name: String,
    /// A GGUF file, or a folder with safetensors.
    pub path: PathBuf,
    /// The GPU that it is to use, as `CUDA_VISIBLE_DEVICES` names it.
    pub gpu: Option<String>,
    /// Requests at once.
    pub slots: Option<u32>,
    /// Threads for all of them together; as many as there are processors where absent.
    pub threads: Option<NonZero<usize>>,
}

impl ModelSpec {
    /// What its engine is started with; `program` is this one.
    pub(in crate::engines) fn launch(&self, program: &str) -> Launch {
        let flags = [
            ARGUMENT,
            "--exit-with-stdin",
            "--model",
            "{model}",
            "--name",
            "{name}",
            "--port",
            "{port}",
            "--slots",
            "{slots}",
        ];
        let processors = || std::thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN);
        let threads = self.threads.unwrap_or_else(processors);
        Launch {
            name: self.name.clone(),
            words: std::iter::once(program).chain(flags).map(str::to_owned).collect(),
            model: self.path.display().to_string(),
            gpu: self.gpu.clone(),
            slots: self.slots.unwrap_or(1),
            port: None,
            threads: Some(threads),
        }
    }
}

impl FromStr for ModelSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str = "NAME=PATH[,slots=N][,threads=N][,gpu=N]";
        let (name, mut rest) = named(text, FORM)?;
        let mut spec = Self { name, path: PathBuf::new(), gpu: None, slots: None, threads: None };
        // From the end: a path may have commas.
        while let Some((before, part)) = rest.rsplit_once(',') {
            match part.split_once('=') {
                Some(("gpu", gpu)) => spec.gpu = Some(gpu.to_owned()),
                Some(("slots", number)) => spec.slots = Some(parse_slots(number)?),
                Some(("threads", number)) => spec.threads = Some(parse_threads(number)?),
                Some(_) | None => break,
            }
            rest = before;
        }
        spec.path = PathBuf::from(rest);
        if spec.path.as_os_str().is_empty() {
            return Err(format!("the model is missing; write {FORM}"));
        }
        Ok(spec)
    }
}

fn parse_threads(text: &str) -> Result<NonZero<usize>, String> {
    let threads = text.parse().ok().filter(|threads: &NonZero<usize>| threads.get() <= MAX_THREADS);
    threads.ok_or_else(|| format!("threads={text}: write a number from 1 to {MAX_THREADS}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_read_and_started() {
        let spec: ModelSpec = "toy=/srv/a,b {port}.gguf,slots=2,threads=3,gpu=1".parse().unwrap();
        let launch = spec.launch("/bin/node");
        let line = launch.line(81).join("|");
        assert_eq!(
            line,
            "/bin/node|__engine|--exit-with-stdin|--model|/srv/a,b {port}.gguf|--name|toy|--port|81|--slots|2"
        );
        assert_eq!((launch.gpu.as_deref(), launch.threads.map(NonZero::get)), (Some("1"), Some(3)));
        for wrong in ["toy", "toy=", "=x", "toy=x,slots=0", "toy=x,threads=0", "toy=,slots=1"] {
            assert!(wrong.parse::<ModelSpec>().is_err(), "{wrong}");
        }
    }
}
