//! What the relay reads of a request: model, fallbacks, preferences and how the conversation begins. One pass over the body; everything
//! else in it is the engine's.

use std::borrow::Cow;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use rpc::error::ErrorCode;
use rpc::inference::{
    FIRST_BYTE_HEADER, MAX_FALLBACKS, MAX_MODEL_ID_BYTES, MAX_PREFERRED, Preferences, QUEUE_TIMEOUT_HEADER,
    TIMEOUT_HEADER, TOKEN_HEADER,
};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use store::Deadlines;

use super::config::GatewayConfig;
use super::directory::MAX_WORD_BYTES;
use crate::error::ApiError;

/// Turns that tell conversations apart, at most: those up to the first of the user.
const MAX_TURNS: usize = 16;
/// As much of a turn or a prompt as tells it apart, in bytes.
const MAX_TURN_BYTES: usize = 4096;

/// What a request asks for.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    /// The model, and those to fall back to.
    pub(super) models: Vec<String>,
    pub(super) stream: bool,
    pub(super) preferences: Preferences,
    /// Tells conversations apart by how they begin.
    pub(super) beginning: Option<u64>,
    /// Where in the body the model's name is, quotes included.
    named: Option<(usize, usize)>,
}

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow, default)]
    model: Option<&'a RawValue>,
    #[serde(default)]
    models: Option<Vec<String>>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    provider: Option<Preferences>,
    #[serde(default)]
    messages: Beginning,
    #[serde(default)]
    prompt: Beginning,
    #[serde(default)]
    input: Beginning,
}

impl Ask {
    /// Reads a body.
    ///
    /// # Errors
    /// 400, which names the field.
    pub(super) fn read(body: &[u8]) -> Result<Self, ApiError> {
        let parsed: Body<'_> = match serde_json::from_slice(body) {
            Ok(parsed) => parsed,
            Err(error) => return Err(explain(body, &error)),
        };
        let (mut models, mut named) = (Vec::new(), None);
        if let Some(raw) = parsed.model.filter(|raw| raw.get() != "null") {
            let name: String =
                serde_json::from_str(raw.get()).map_err(|_| field("model", "must be a text"))?;
            let start = raw.get().as_ptr().addr() - body.as_ptr().addr();
            named = Some((start, start + raw.get().len()));
            models.push(name);
        }
        let fallbacks = parsed.models.unwrap_or_default();
        if fallbacks.len() > MAX_FALLBACKS {
            return Err(field("models", &format!("{MAX_FALLBACKS} at most")));
        }
        for name in fallbacks {
            if !models.contains(&name) {
                models.push(name);
            }
        }
        if let Some(long) = models.iter().position(|name| name.len() > MAX_MODEL_ID_BYTES) {
            let name = if long == 0 && named.is_some() { "model" } else { "models" };
            return Err(field(name, &format!("no model's name is longer than {MAX_MODEL_ID_BYTES} bytes")));
        }
        if models.is_empty() {
            return Err(field("model", "is needed: GET /v1/models lists those that there are"));
        }
        let preferences = parsed.provider.unwrap_or_default();
        check(&preferences)?;
        let beginnings = [parsed.messages, parsed.prompt, parsed.input];
        Ok(Self {
            models,
            stream: parsed.stream.unwrap_or_default(),
            preferences,
            beginning: beginnings.into_iter().find_map(|beginning| beginning.0),
            named,
        })
    }

    /// The body that was read, as the engine of this model is to get it: as it came, unless it names another model.
    pub(super) fn body_for(&self, body: &Bytes, model: &str) -> Bytes {
        if self.named.is_some() && self.models.first().is_some_and(|first| first == model) {
            return body.clone();
        }
        let name = serde_json::Value::from(model).to_string();
        let (before, name, after) = match self.named {
            Some((start, end)) => (&body[..start], name, &body[end..]),
            None => {
                let brace = body.iter().position(|byte| *byte == b'{').map_or(0, |place| place + 1);
                (&body[..brace], format!("\"model\":{name},"), &body[brace..])
            }
        };
        [before, name.as_bytes(), after].concat().into()
    }
}

/// Checks that no list of preferences is long: each of its entries is compared with every host of a model, while no other request can
/// choose one.
fn check(preferences: &Preferences) -> Result<(), ApiError> {
    let Preferences { order, only, ignore, quantizations, .. } = preferences;
    for (name, entries) in [
        ("provider.order", order.len()),
        ("provider.only", only.len()),
        ("provider.ignore", ignore.len()),
        ("provider.quantizations", quantizations.len()),
    ] {
        if entries > MAX_PREFERRED {
            return Err(field(name, &format!("{MAX_PREFERRED} at most")));
        }
    }
    if quantizations.iter().any(|one| one.len() > MAX_WORD_BYTES) {
        return Err(field("provider.quantizations", &format!("{MAX_WORD_BYTES} bytes each at most")));
    }
    Ok(())
}

fn field(name: &'static str, why: &str) -> ApiError {
    ApiError::new(ErrorCode::InvalidField, format!("{name}: {why}")).with_param(name)
}

/// What is wrong with a body: looked for only once something is.
fn explain(body: &[u8], error: &serde_json::Error) -> ApiError {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let (path, error) = match serde_path_to_error::deserialize::<_, Body<'_>>(&mut deserializer) {
        Ok(_) => (".".to_owned(), error.to_string()),
        Err(found) => (found.path().to_string(), found.into_inner().to_string()),
    };
    let failed = |message| ApiError::new(ErrorCode::MalformedRequest, message);
    if path == "." { failed(error) } else { failed(format!("{path}: {error}")).with_param(path) }
}

/// How a conversation begins, as a number: the same for all its turns.
#[derive(Default)]
struct Beginning(Option<u64>);

/// A turn of a conversation.
#[derive(Deserialize)]
struct Turn<'a> {
    #[serde(borrow, default)]
    role: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    content: Option<&'a RawValue>,
}

impl<'de> Deserialize<'de> for Beginning {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Beginner)
    }
}

struct Beginner;

impl<'de> Visitor<'de> for Beginner {
    type Value = Beginning;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut turns: A) -> Result<Beginning, A::Error> {
        let (mut hasher, mut counted, mut is_open) = (DefaultHasher::new(), 0, true);
        while is_open && counted < MAX_TURNS {
            // What is no turn, such as a token's number, ends the search.
            match turns.next_element::<Element<'de>>()? {
                None => return Ok(Beginning((counted > 0).then(|| hasher.finish()))),
                Some(Element(None)) => is_open = false,
                Some(Element(Some(turn))) => {
                    counted += 1;
                    let content = turn.content.map_or("", RawValue::get).as_bytes();
                    (turn.role.as_deref(), content.len().min(MAX_TURN_BYTES)).hash(&mut hasher);
                    hasher.write(&content[..content.len().min(MAX_TURN_BYTES)]);
                    is_open = turn.role.as_deref() != Some("user");
                }
            }
        }
        while turns.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Beginning((counted > 0).then(|| hasher.finish())))
    }

    fn visit_str<E>(self, text: &str) -> Result<Beginning, E> {
        let mut hasher = DefaultHasher::new();
        hasher.write(&text.as_bytes()[..text.len().min(MAX_TURN_BYTES)]);
        Ok(Beginning(Some(hasher.finish())))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Beginning, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Beginning(None))
    }

    fn visit_unit<E>(self) -> Result<Beginning, E> {
        Ok(Beginning(None))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Beginning, E> {
        Ok(Beginning(None))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Beginning, E> {
        Ok(Beginning(None))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Beginning, E> {
        Ok(Beginning(None))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Beginning, E> {
        Ok(Beginning(None))
    }
}

/// An element of a list: a turn, or something else.
struct Element<'a>(Option<Turn<'a>>);

impl<'de> Deserialize<'de> for Element<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&'de RawValue>::deserialize(deserializer)?;
        let is_turn = raw.get().starts_with('{');
        // Only what matters of it is read: a turn whose fields have other types tells nothing apart.
        Ok(Self(is_turn.then(|| serde_json::from_str(raw.get()).ok()).flatten()))
    }
}

/// How long a request may take: the shortest of what the relay, its API key and its own headers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Patience {
    pub(super) total: Duration,
    /// For each host until the first byte of its answer, where key or request say; besides, the relay has a deadline of its own for
    /// each model's streams.
    pub(super) first_byte: Option<Duration>,
    pub(super) between_tokens: Duration,
    /// For a host, where the request says.
    pub(super) queue: Option<Duration>,
}

impl Patience {
    /// # Errors
    /// 400 where a header is no number.
    pub(super) fn read(
        headers: &HeaderMap,
        stream: bool,
        key: &Deadlines,
        config: &GatewayConfig,
    ) -> Result<Self, ApiError> {
        let secs = |secs: u32| Duration::from_secs(secs.into());
        let millis = |name, most| number(headers, name, 0.001, most);
        let shortest = |name, own: Duration, key: Option<u32>| {
            let most = key.map_or(own, |key| own.min(secs(key)));
            Ok::<_, ApiError>(millis(name, most)?.unwrap_or(most))
        };
        let total = shortest(TIMEOUT_HEADER, config.total, key.total)?;
        // Another answer than a stream begins when it is whole: only who asks for that one can tell how long it may take.
        let of_key = key.first_byte.filter(|_| stream).map(secs);
        Ok(Self {
            total,
            first_byte: millis(FIRST_BYTE_HEADER, total)?.into_iter().chain(of_key).min(),
            between_tokens: shortest(TOKEN_HEADER, config.between_tokens, key.between_tokens)?,
            queue: number(headers, QUEUE_TIMEOUT_HEADER, 1.0, config.max_queue)?,
        })
    }
}

/// A time in a header, in units of so many seconds, and `most` at most.
fn number(
    headers: &HeaderMap,
    name: &'static str,
    unit: f64,
    most: Duration,
) -> Result<Option<Duration>, ApiError> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    let parse = |value: &HeaderValue| value.to_str().ok()?.trim().parse::<f64>().ok();
    match parse(value).filter(|number| number.is_finite() && *number >= 0.0) {
        Some(number) => Ok(Some(Duration::from_secs_f64((number * unit).min(most.as_secs_f64())))),
        None => {
            let message = format!("{name}: a number is needed, 0 or more");
            Err(ApiError::new(ErrorCode::MalformedRequest, message).with_param(name))
        }
    }
}

/// Whether a model of this id can be asked for and listed.
pub(super) fn is_plain_id(id: &str) -> bool {
    !id.is_empty() && id.len() <= MAX_MODEL_ID_BYTES && !id.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Ask {
        Ask::read(body.as_bytes()).unwrap_or_else(|error| panic!("{body}: {error:?}"))
    }

    #[test]
    fn the_body_stays_as_it_came_and_only_another_models_name_is_put_in() {
        let body = r#" {"odd" : [1,{"model":"no"}], "model" : "a\"b" ,"stream":true,"models":["c","a\"b"],"x":null}"#;
        let ask = read(body);
        assert_eq!((ask.models.clone(), ask.stream), (vec!["a\"b".to_owned(), "c".to_owned()], true));
        assert_eq!(ask.body_for(&body.into(), "a\"b"), body);
        assert_eq!(ask.body_for(&body.into(), "c"), body.replacen(r#""a\"b""#, r#""c""#, 1));
        let body = r#"{"models":["c/\"d"]}"#;
        assert_eq!(read(body).body_for(&body.into(), "c/\"d"), r#"{"model":"c/\"d","models":["c/\"d"]}"#);
    }

    #[test]
    fn a_conversation_is_known_by_its_beginning() {
        let of = |field: &str| read(&format!(r#"{{"model":"m",{field}}}"#)).beginning;
        let system = r#"{"role":"system","content":"be kind"}"#;
        let (hi, ho) = (r#"{"role":"user","content":"hi"}"#, r#"{"role":"user","content":[{"text":"ho"}]}"#);
        let answer = r#"{"role":"assistant","content":"well"}"#;
        let first = of(&format!(r#""messages":[{system},{hi}]"#));
        assert!(first.is_some());
        assert_eq!(first, of(&format!(r#""messages":[{system},{hi},{answer},{ho}]"#)));
        assert_ne!(first, of(&format!(r#""messages":[{system},{ho}]"#)));
        assert_ne!(first, of(&format!(r#""messages":[{hi}]"#)));
        assert_eq!(of(r#""prompt":"once""#), of(r#""prompt":"once""#));
        assert_ne!(of(r#""prompt":"once""#), of(r#""prompt":"tw\u0069ce""#));
        for nothing in [r#""prompt":[1,2]"#, r#""input":{}"#, r#""input":7"#, r#""messages":[]"#, r#""x":1"#]
        {
            assert_eq!(of(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn wrong_bodies_name_the_field() {
        let long = |list: &str, entry: &str| {
            let of = |count| {
                let entries = vec![format!("{entry:?}"); count].join(",");
                format!(r#"{{"model":"m","provider":{{"{list}":[{entries}]}}}}"#)
            };
            read(&of(MAX_PREFERRED));
            of(MAX_PREFERRED + 1)
        };
        let address = format!("0x{}", "aa".repeat(20));
        let [order, only, ignore] = ["order", "only", "ignore"].map(|list| long(list, &address));
        let quantizations = long("quantizations", "q4_k_m");
        let word = format!(r#"{{"model":"m","provider":{{"quantizations":["{}"]}}}}"#, "q".repeat(65));
        let name = "m".repeat(MAX_MODEL_ID_BYTES + 1);
        let (model, fallback) =
            (format!(r#"{{"model":"{name}"}}"#), format!(r#"{{"model":"m","models":["{name}"]}}"#));
        for (body, param) in [
            (order.as_str(), Some("provider.order")),
            (&only, Some("provider.only")),
            (&ignore, Some("provider.ignore")),
            (&quantizations, Some("provider.quantizations")),
            (&word, Some("provider.quantizations")),
            (&model, Some("model")),
            (&fallback, Some("models")),
            ("{}", Some("model")),
            (r#"{"model":7}"#, Some("model")),
            (r#"{"model":"m","models":["1","2","3","4","5","6","7","8","9"]}"#, Some("models")),
            (r#"{"model":"m","stream":"yes"}"#, Some("stream")),
            (r#"{"model":"m","provider":{"zdr":true}}"#, Some("provider.zdr")),
            (r#"{"model":"m","provider":{"only":["x"]}}"#, Some("provider.only[0]")),
            (r#"{"model":"m","messages":[1,}"#, Some("messages")),
            (r#"{"model":"m""#, None),
            ("[]", None),
            ("\u{0}", None),
        ] {
            let error = Ask::read(body.as_bytes()).unwrap_err();
            let error = rpc::error::ErrorBody::from(error).error;
            let is_meant =
                param.is_none_or(|param| error.param.as_deref().is_some_and(|at| at.starts_with(param)));
            assert!(is_meant, "{body}: {error:?}");
        }
    }

    #[test]
    fn the_shortest_of_relay_key_and_headers_counts() {
        let config = GatewayConfig::default();
        let read = |key: &Deadlines, name: &'static str, value: &'static str, stream| {
            let headers =
                HeaderMap::from_iter([(http::HeaderName::from_static(name), value.parse().unwrap())]);
            Patience::read(&headers, stream, key, &config)
        };
        let (none, millis) = (Deadlines::default(), Duration::from_millis);
        assert_eq!(read(&none, TIMEOUT_HEADER, "1500", true).unwrap().total, millis(1500));
        assert_eq!(read(&none, TIMEOUT_HEADER, "1e99", true).unwrap().total, config.total);
        assert_eq!(read(&none, FIRST_BYTE_HEADER, "5", true).unwrap().first_byte, Some(millis(5)));
        assert_eq!(read(&none, QUEUE_TIMEOUT_HEADER, "2.5", true).unwrap().queue, Some(millis(2500)));
        let plain = Patience::read(&HeaderMap::new(), false, &none, &config).unwrap();
        assert_eq!((plain.first_byte, plain.queue), (None, None));
        assert_eq!((plain.total, plain.between_tokens), (config.total, config.between_tokens));
        for wrong in ["", "-1", "NaN", "soon", "inf"] {
            assert!(read(&none, TOKEN_HEADER, wrong, true).is_err(), "{wrong}");
        }

        let key = Deadlines { total: Some(7), first_byte: Some(5), between_tokens: Some(3) };
        for (header, is_shorter) in [("2000", true), ("9000", false)] {
            let (asked, of_key) = (millis(2000), |secs: u64| Duration::from_secs(secs));
            let shorter = |secs| if is_shorter { asked } else { of_key(secs) };
            assert_eq!(read(&key, TIMEOUT_HEADER, header, true).unwrap().total, shorter(7));
            assert_eq!(read(&key, FIRST_BYTE_HEADER, header, true).unwrap().first_byte, Some(shorter(5)));
            assert_eq!(read(&key, TOKEN_HEADER, header, true).unwrap().between_tokens, shorter(3));
        }
        let whole = Patience::read(&HeaderMap::new(), false, &key, &config).unwrap();
        assert_eq!((whole.total, whole.first_byte), (millis(7000), None), "it is no stream");
        let longer = Deadlines { total: Some(u32::MAX), first_byte: None, between_tokens: Some(u32::MAX) };
        let bounded = Patience::read(&HeaderMap::new(), true, &longer, &config).unwrap();
        assert_eq!((bounded.total, bounded.between_tokens), (config.total, config.between_tokens));
    }
}
