//! Which engines the node uses: flags, and what they mean.

use std::collections::{BTreeMap, HashSet};
use std::num::NonZero;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use reqwest::Url;
use url::Host;

use super::embedded::ModelSpec;

/// The most requests that one engine is given at once, whatever is configured.
const MAX_SLOTS: u32 = 4096;

/// The longest name of an engine, in bytes.
const MAX_NAME_BYTES: usize = 64;

/// The commands that are known by name. An operator's `--engine-command` of the same name wins.
const TEMPLATES: [(&str, &str); 2] = [
    (
        "llama.cpp",
        "llama-server --model {model} --alias {name} --host 127.0.0.1 --port {port} --parallel {slots}",
    ),
    (
        "vllm",
        "vllm serve {model} --served-model-name {name} --host 127.0.0.1 --port {port} --max-num-seqs {slots}",
    ),
];

/// The flags about engines.
#[derive(Debug, Clone, Default, Args)]
pub struct EngineArgs {
    /// Serve the models of an OpenAI-compatible engine: NAME=http://HOST:PORT[,slots=N]; repeatable, or several with ;
    /// between. SLOTS is how many requests it works on at once, where it does not say so itself.
    #[arg(long, env = "ZORAI_NODE_ENGINE", value_name = "NAME=URL", value_delimiter = ';')]
    pub engine: Vec<EngineSpec>,

    /// Also serve what answers on the usual ports of loopback: vLLM (8000), SGLang (30000), llama.cpp (8080), Ollama
    /// (11434), LM Studio (1234). Off unless asked for: such an engine may be meant for this machine's owner alone.
    #[arg(long, env = "ZORAI_NODE_DETECT_ENGINES")]
    pub detect_engines: bool,

    /// Start an engine, watch it, and serve its model under NAME: NAME=TEMPLATE,model=PATH, and as wanted
    /// ,gpu=N ,slots=N ,port=N; repeatable, or several with ; between. TEMPLATE is llama.cpp, vllm, or a name of --engine-command.
    #[arg(long, env = "ZORAI_NODE_MANAGED_ENGINE", value_name = "NAME=TEMPLATE,…", value_delimiter = ';')]
    pub managed_engine: Vec<ManagedSpec>,

    /// Serve a model of the Llama family with the engine inside this program, under NAME: NAME=PATH, a GGUF file or a folder
    /// with safetensors, and as wanted ,slots=N ,threads=N ,gpu=N; repeatable, or several with ; between.
    #[arg(long, env = "ZORAI_NODE_MODEL", value_name = "NAME=PATH", value_delimiter = ';')]
    pub model: Vec<ModelSpec>,

    /// A command for --managed-engine: NAME=COMMAND, with {name} {model} {port} {slots} and {gpu} filled in. Words are
    /// parted at white space; no shell reads them. Repeatable.
    #[arg(long, value_name = "NAME=COMMAND")]
    pub engine_command: Vec<EngineCommand>,
}

impl EngineArgs {
    /// Whether any engine is asked for.
    pub fn is_any(&self) -> bool {
        self.detect_engines
            || !self.engine.is_empty()
            || !self.managed_engine.is_empty()
            || !self.model.is_empty()
    }
}

/// [`EngineArgs`] with the times that go with them.
#[derive(Debug, Clone, Default)]
pub struct EnginesConfig {
    /// What the operator wrote.
    pub args: EngineArgs,
    /// The program that serves `--model`, given [`embedded::ARGUMENT`](super::embedded::ARGUMENT): this one where absent.
    pub program: Option<PathBuf>,
    /// How often and how long.
    pub timing: EngineTiming,
}

impl From<EngineArgs> for EnginesConfig {
    fn from(args: EngineArgs) -> Self {
        Self { args, ..Self::default() }
    }
}

/// How often and how long. The defaults suit everybody; tests shorten them.
#[derive(Debug, Clone, Copy)]
pub struct EngineTiming {
    /// An idle engine is asked how it is so often.
    pub probe: Duration,
    /// How long each such question may take.
    pub probe_deadline: Duration,
    /// The delay before a managed engine is first restarted; it doubles up to a minute.
    pub restart: Duration,
    /// How long a managed engine may take to end once it is told to.
    pub stop: Duration,
    /// The longest silence of an engine that works on a request.
    pub silence: Duration,
    /// How long a batch waits for an engine that is away.
    pub absence: Duration,
}

impl Default for EngineTiming {
    fn default() -> Self {
        Self {
            probe: Duration::from_secs(3),
            probe_deadline: Duration::from_secs(2),
            restart: Duration::from_secs(1),
            stop: Duration::from_secs(5),
            silence: Duration::from_secs(600),
            absence: Duration::from_secs(60),
        }
    }
}

/// An engine that runs already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineSpec {
    /// What the operator calls it.
    pub name: String,
    /// Its base URL, without `/v1`.
    pub url: Url,
    /// Requests at once, where the operator says so.
    pub slots: Option<u32>,
}

/// An engine that the node starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManagedSpec {
    /// What the operator calls it; also the model's id, where the template says so.
    pub name: String,
    /// The name of the command.
    pub template: String,
    /// The model: a path, or what else the engine takes.
    pub model: String,
    /// The GPU that it is to use, as `CUDA_VISIBLE_DEVICES` names it.
    pub gpu: Option<String>,
    /// Requests at once.
    pub slots: Option<u32>,
    /// Its port on loopback; a free one where absent.
    pub port: Option<u16>,
}

/// A command by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineCommand {
    /// The name, for `--managed-engine`.
    pub name: String,
    /// The words, with their placeholders.
    pub words: Vec<String>,
}

/// Why the flags about engines cannot be meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// Two engines have one name.
    #[error(
        "two engines are called {0:?}\nhint: give each --engine, --managed-engine and --model a name of its own"
    )]
    TwiceNamed(String),
    /// There is no such command.
    #[error("--managed-engine {name}: there is no command {template:?}\nhint: the commands are {known}")]
    NoTemplate {
        /// The engine.
        name: String,
        /// What it names.
        template: String,
        /// What there is.
        known: String,
    },
    /// A command wants a GPU and the engine names none.
    #[error("--managed-engine {0}: its command uses {{gpu}}\nhint: add gpu=N")]
    NoGpu(String),
    /// An engine's URL holds a user's name or password, which engines are not sent and logs would show.
    #[error(
        "--engine {0}: its URL holds a user name or a password\nhint: write NAME=http://HOST:PORT without them"
    )]
    Credentials(String),
    /// There is no such model.
    #[error("--model {name}: {}: {reason}\nhint: name a GGUF file, or a folder with safetensors", path.display())]
    NoModel {
        /// The model.
        name: String,
        /// Where it should lie.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// This program does not know where it lies itself.
    #[error("the engine inside this program cannot be started: {0}")]
    Program(String),
    /// No HTTP client can be made.
    #[error("the client for engines cannot be set up: {0}")]
    Client(String),
}

/// What a managed engine is started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Launch {
    pub(super) name: String,
    pub(super) words: Vec<String>,
    pub(super) model: String,
    pub(super) gpu: Option<String>,
    pub(super) slots: u32,
    pub(super) port: Option<u16>,
    /// The threads of the engine inside this program, which also ends with its standard input. Others mind themselves.
    pub(super) threads: Option<NonZero<usize>>,
}

impl Launch {
    /// The command line for a port.
    pub(super) fn line(&self, port: u16) -> Vec<String> {
        let fill = |word: &String| {
            word.replace("{name}", &self.name)
                .replace("{port}", &port.to_string())
                .replace("{slots}", &self.slots.to_string())
                .replace("{gpu}", self.gpu.as_deref().unwrap_or_default())
                // The model last: what its path holds is no placeholder.
                .replace("{model}", &self.model)
        };
        self.words.iter().map(fill).collect()
    }
}

impl EngineArgs {
    /// What to start, once names and commands are found to fit.
    pub(super) fn launches(&self) -> Result<Vec<Launch>, EngineError> {
        let mut names = HashSet::new();
        let all = self.engine.iter().map(|spec| &spec.name);
        let started = self.managed_engine.iter().map(|spec| &spec.name);
        for name in all.chain(started).chain(self.model.iter().map(|spec| &spec.name)) {
            if !names.insert(name) {
                return Err(EngineError::TwiceNamed(name.clone()));
            }
        }
        // Here and not where the URL is parsed: the command line's own errors would quote it.
        let secret = |url: &Url| !url.username().is_empty() || url.password().is_some();
        if let Some(spec) = self.engine.iter().find(|spec| secret(&spec.url)) {
            return Err(EngineError::Credentials(spec.name.clone()));
        }
        let split = |command: &str| command.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let mut commands: BTreeMap<&str, Vec<String>> =
            TEMPLATES.iter().map(|(name, command)| (*name, split(command))).collect();
        commands.extend(self.engine_command.iter().map(|command| (&*command.name, command.words.clone())));
        let launch = |spec: &ManagedSpec| {
            let words = commands.get(&*spec.template).cloned().ok_or_else(|| EngineError::NoTemplate {
                name: spec.name.clone(),
                template: spec.template.clone(),
                known: commands.keys().copied().collect::<Vec<_>>().join(", "),
            })?;
            if spec.gpu.is_none() && words.iter().any(|word| word.contains("{gpu}")) {
                return Err(EngineError::NoGpu(spec.name.clone()));
            }
            Ok(Launch {
                name: spec.name.clone(),
                words,
                model: spec.model.clone(),
                gpu: spec.gpu.clone(),
                slots: spec.slots.unwrap_or(1),
                port: spec.port,
                threads: None,
            })
        };
        self.managed_engine.iter().map(launch).collect()
    }

    /// Whether an engine is named that listens on this port of loopback.
    pub(super) fn names_loopback(&self, port: u16) -> bool {
        let is_there = |url: &Url| url.port_or_known_default() == Some(port) && is_loopback(url);
        self.engine.iter().any(|spec| is_there(&spec.url))
            || self.managed_engine.iter().any(|spec| spec.port == Some(port))
    }

    /// What serves the models that this program, `program`, serves itself.
    pub(super) fn own_launches(&self, program: Option<&PathBuf>) -> Result<Vec<Launch>, EngineError> {
        let mut launches = Vec::new();
        for spec in &self.model {
            std::fs::metadata(&spec.path).map_err(|error| EngineError::NoModel {
                name: spec.name.clone(),
                path: spec.path.clone(),
                reason: error.to_string(),
            })?;
            let program = program.cloned().map_or_else(std::env::current_exe, Ok);
            let program = program.map_err(|error| EngineError::Program(error.to_string()))?;
            launches.push(spec.launch(&program.display().to_string()));
        }
        Ok(launches)
    }
}

impl FromStr for EngineSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, rest) = named(text, "NAME=http://HOST:PORT[,slots=N]")?;
        let mut parts = rest.split(',');
        let url = parts.next().unwrap_or_default();
        let mut url: Url = url.parse().map_err(|error| format!("it is no URL: {error}"))?;
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() || url.query().is_some() {
            return Err("write http://HOST:PORT".to_owned());
        }
        // Engines are named with and without the /v1 that follows in every path.
        let path = url.path().trim_end_matches('/');
        let path = format!("{}/", path.strip_suffix("/v1").unwrap_or(path));
        url.set_path(&path);
        let mut slots = None;
        for part in parts {
            match part.split_once('=') {
                Some(("slots", number)) => slots = Some(parse_slots(number)?),
                Some(_) | None => return Err(format!("{part:?}: only slots=N may follow the URL")),
            }
        }
        Ok(Self { name, url, slots })
    }
}

impl FromStr for ManagedSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str = "NAME=TEMPLATE,model=PATH[,gpu=N][,slots=N][,port=N]";
        let (name, rest) = named(text, FORM)?;
        let mut parts = rest.split(',');
        let template = parts.next().unwrap_or_default().to_owned();
        let mut spec = Self { name, template, model: String::new(), gpu: None, slots: None, port: None };
        for part in parts {
            match part.split_once('=') {
                Some(("model", model)) => model.clone_into(&mut spec.model),
                Some(("gpu", gpu)) => spec.gpu = Some(gpu.to_owned()),
                Some(("slots", number)) => spec.slots = Some(parse_slots(number)?),
                Some(("port", port)) => {
                    spec.port = Some(port.parse().map_err(|_| format!("{port:?} is no port"))?);
                }
                Some(_) | None => return Err(format!("{part:?} is not understood; write {FORM}")),
            }
        }
        if spec.model.is_empty() {
            return Err(format!("the model is missing; write {FORM}"));
        }
        Ok(spec)
    }
}

impl FromStr for EngineCommand {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, command) = named(text, "NAME=COMMAND")?;
        let words: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
        if !words.iter().any(|word| word.contains("{port}")) {
            return Err("the command must say where {port} goes".to_owned());
        }
        Ok(Self { name, words })
    }
}

pub(super) fn named<'a>(text: &'a str, form: &str) -> Result<(String, &'a str), String> {
    let (name, rest) = text.split_once('=').ok_or_else(|| format!("write {form}"))?;
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.chars().all(fits) {
        return Err(format!("{name:?} is no name: letters, digits, dots, dashes and underscores"));
    }
    Ok((name.to_owned(), rest))
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback() || address.is_unspecified(),
        Some(Host::Ipv6(address)) => address.is_loopback() || address.is_unspecified(),
        None => false,
    }
}

pub(super) fn parse_slots(text: &str) -> Result<u32, String> {
    let slots = text.parse().ok().filter(|slots| (1..=MAX_SLOTS).contains(slots));
    slots.ok_or_else(|| format!("slots={text}: write a number from 1 to {MAX_SLOTS}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_are_read() {
        let spec: EngineSpec = "a=http://127.0.0.1:8080/v1,slots=4".parse().unwrap();
        assert_eq!((spec.url.as_str(), spec.slots), ("http://127.0.0.1:8080/", Some(4)));
        let spec: EngineSpec = "b=https://gpu.lan/openai".parse().unwrap();
        assert_eq!((spec.url.as_str(), spec.slots), ("https://gpu.lan/openai/", None));
        for wrong in [
            "a",
            "a=",
            "=http://h:1",
            "a b=http://h:1",
            "a=ftp://h",
            "a=http://h:1,slots=0",
            "a=http://h:1,x",
        ] {
            assert!(wrong.parse::<EngineSpec>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn passwords_are_refused_and_not_told() {
        for url in ["http://user:hunter2@127.0.0.1:1", "http://:hunter2@127.0.0.1:1", "http://hunter2@h:1"] {
            let spec = format!("a={url}").parse().unwrap();
            let error = EngineArgs { engine: vec![spec], ..EngineArgs::default() }.launches().unwrap_err();
            assert_eq!(error, EngineError::Credentials("a".to_owned()));
            assert!(!error.to_string().contains("hunter2"));
        }
        let error = "a=http://user:hunter2@h:port".parse::<EngineSpec>().unwrap_err();
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn an_engine_elsewhere_takes_no_port_of_loopback() {
        let names = |engine: &str| {
            let args = EngineArgs { engine: vec![engine.parse().unwrap()], ..EngineArgs::default() };
            args.names_loopback(8000)
        };
        assert!(names("a=http://127.0.0.1:8000") && names("a=http://localhost:8000/v1"));
        assert!(names("a=http://[::1]:8000"));
        assert!(!names("a=http://gpu.lan:8000") && !names("a=http://127.0.0.1:8001"));
    }

    #[test]
    fn templates_are_filled_in() {
        let launches = |managed: &[&str], commands: &[&str]| {
            let args = EngineArgs {
                managed_engine: managed.iter().map(|text| text.parse().unwrap()).collect(),
                engine_command: commands.iter().map(|text| text.parse().unwrap()).collect(),
                ..EngineArgs::default()
            };
            args.launches()
        };
        let llama = &launches(&["m=llama.cpp,model=/srv/a {port}.gguf,slots=2"], &[]).unwrap()[0];
        let expected =
            "llama-server|--model|/srv/a {port}.gguf|--alias|m|--host|127.0.0.1|--port|81|--parallel|2";
        assert_eq!(llama.line(81).join("|"), expected);
        let own = &launches(&["m=own,model=x,gpu=3"], &["own=serve {model} on {gpu} at {port}"]).unwrap()[0];
        assert_eq!(own.line(5).join(" "), "serve x on 3 at 5");
        let no_gpu = launches(&["m=own,model=x"], &["own=serve {gpu} {port}"]);
        assert_eq!(no_gpu.unwrap_err(), EngineError::NoGpu("m".to_owned()));
        assert!(matches!(launches(&["m=tgi,model=x"], &[]), Err(EngineError::NoTemplate { .. })));
        assert!(matches!(
            launches(&["m=vllm,model=x", "m=vllm,model=y"], &[]),
            Err(EngineError::TwiceNamed(_))
        ));
        assert!("m=vllm".parse::<ManagedSpec>().is_err());
        assert!("own=serve {model}".parse::<EngineCommand>().is_err());
    }
}
