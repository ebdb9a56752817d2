//! The demo: one task over a text, from publication to approval, and something that shows that the result is real.

use std::time::{Duration, Instant};

use serde::Deserialize;
use taskmarket::{Address, Amount, ContentHash, Runtime, Task, TaskConfig};
use wallet::Wallet;

use super::money::{BUDGET, Money};
use super::weights::{NAME, Weights};
use super::{TEXT, WORD_COUNT};
use crate::commands::poll::{Approve, Verdict, Verify, Watched};
use crate::commands::publish::{Payment, publish};
use crate::commands::run::random_salt;
use crate::content::Content;
use crate::failure::{Failure, Outcome};
use crate::follow::now;
use crate::money::Funding;
use crate::proof::{Checked, Receipt};
use crate::relay::Relay;
use crate::ui::Ui;

/// How long the whole task may take, in seconds: a slow machine loads and runs the model in a part of it.
const DEADLINE_SECS: u64 = 600;
/// How long its one attempt may run, in seconds.
const MAX_DURATION_SECS: u64 = 300;
/// The largest result that is looked at, in bytes; vectors of a hundred paragraphs take a part of it.
const MAX_RESULT_BYTES: u64 = 16 << 20;
/// How much of a paragraph is shown, in characters.
const SHOWN_CHARS: usize = 72;

/// A task to show.
#[derive(Debug)]
pub(crate) struct Demo {
    model: Content,
    input: Content,
    runtime: Runtime,
    title: String,
}

impl Demo {
    /// Embeddings by the real model, or a count of words where there is none.
    pub(crate) fn new(weights: Result<Weights, Vec<String>>) -> Outcome<Self> {
        let input = Content::of_bytes(TEXT.as_bytes())?;
        let (model, runtime, title) = match weights {
            Ok(weights) => {
                let title = format!("embeds {} paragraphs with {NAME}", paragraphs(TEXT).len());
                (Content::of_folder(&weights.folder, &weights.manifest)?, Runtime::Embed, title)
            }
            Err(reasons) => {
                let title = format!(
                    "a WASM task that counts the words of a text, for want of the weights of {NAME} ({})",
                    reasons.join("; ")
                );
                (Content::of_bytes(WORD_COUNT)?, Runtime::Wasm, title)
            }
        };
        Ok(Self { model, input, runtime, title })
    }

    /// What it does.
    pub(crate) fn title(&self) -> &str {
        &self.title
    }

    /// Publishes, follows, checks and approves the task, and shows what came out.
    pub(crate) async fn run(&self, relay: &Relay, money: Option<&Money>, ui: &Ui) -> Outcome {
        let wallet = money.map_or_else(Wallet::random, |money| money.requester().clone());
        let task = self.task(&wallet, money)?;
        let before = match money {
            Some(money) => Some((money, money.balances().await?)),
            None => None,
        };
        let purse = money.map(Money::purse);
        let started = Instant::now();
        let paid = purse.map(|purse| Payment { purse, funding: &Funding::Own, deadline_in: None });
        let id = publish(relay, &wallet, &task, &[&self.model, &self.input], paid, ui).await?;
        ui.say(format_args!("task {id}"));
        let verdict = Verdict { verify: Verify::Proof, approve: Approve::Auto };
        let watched = Watched { relay, wallet: &wallet, task: &task, id, purse, started, ui };
        let (checked, status) = Box::pin(watched.poll(verdict)).await?;
        let insight = self.insight(&checked)?;
        let receipt = Receipt::new(&checked, status, started.elapsed().max(Duration::from_millis(1)), None);
        if ui.json {
            ui.say(insight);
            return ui.print_json(&receipt);
        }
        receipt.say(ui);
        if let Some((money, before)) = &before {
            money.say(id, before, ui).await?;
        }
        ui.print(insight)
    }

    fn task(&self, wallet: &Wallet, money: Option<&Money>) -> Outcome<Task> {
        let budget = match money {
            Some(_) => BUDGET.parse().map_err(Failure::failed)?,
            None => Amount::ZERO,
        };
        let hash = |content: &Content| content.hash.unwrap_or(ContentHash::UNPINNED);
        Ok(Task {
            requester: wallet.address(),
            model_cid: self.model.reference.clone(),
            model_hash: hash(&self.model),
            input_cid: self.input.reference.clone(),
            input_hash: hash(&self.input),
            config: TaskConfig {
                runtime: self.runtime,
                params: "{}".to_owned(),
                gpu_type: String::new(),
                gpu_count: 0,
                min_vram: 0,
                max_duration: MAX_DURATION_SECS,
                max_attempts: 1,
            },
            token: Address::ZERO,
            budget,
            provider_stake: budget.half_up(),
            dispute_bond: budget.half_up(),
            deadline: now().plus(DEADLINE_SECS),
            dispute_window: 86_400,
            arbiter_window: 604_800,
            arbiter: money.map_or(Address::ZERO, Money::arbiter),
            salt: random_salt()?,
        })
    }

    /// What the result says, in words that a wrong one could not say.
    fn insight(&self, checked: &Checked) -> Outcome<String> {
        let bytes = checked.result.read(MAX_RESULT_BYTES)?;
        match self.runtime {
            Runtime::Embed => most_similar(&bytes, &paragraphs(TEXT)),
            Runtime::Wasm | Runtime::Container | Runtime::Openai => {
                let text = String::from_utf8_lossy(&bytes);
                let counted = text
                    .trim()
                    .parse::<usize>()
                    .map_err(|error| Failure::failed(format_args!("the result is no number: {error}")))?;
                let expected = TEXT.split_ascii_whitespace().count();
                if counted != expected {
                    return Err(Failure::failed(format_args!(
                        "the provider counted {counted} words, this program {expected}"
                    )));
                }
                Ok(format!("the text has {counted} words; this program counts as many"))
            }
        }
    }
}

/// OpenAI's embeddings, as far as they are needed.
#[derive(Deserialize)]
struct Embeddings {
    data: Vec<Embedding>,
}

#[derive(Deserialize)]
struct Embedding {
    embedding: Vec<f32>,
}

/// The two paragraphs that mean most nearly the same.
fn most_similar(result: &[u8], paragraphs: &[String]) -> Outcome<String> {
    let embeddings: Embeddings = serde_json::from_slice(result)
        .map_err(|error| Failure::failed(format_args!("the result is no embeddings: {error}")))?;
    let vectors: Vec<&[f32]> = embeddings.data.iter().map(|one| one.embedding.as_slice()).collect();
    if vectors.len() != paragraphs.len() || vectors.len() < 2 {
        return Err(Failure::failed(format_args!(
            "{} vectors for {} paragraphs",
            vectors.len(),
            paragraphs.len()
        )));
    }
    let pairs = (0..vectors.len()).flat_map(|a| (a + 1..vectors.len()).map(move |b| (a, b)));
    let best = pairs.map(|(a, b)| (cosine(vectors[a], vectors[b]), a, b)).max_by(|x, y| x.0.total_cmp(&y.0));
    let Some((cosine, a, b)) = best else { return Err(Failure::failed("there are no two vectors")) };
    Ok(format!(
        "of {} paragraphs in {} dimensions, the most similar two (cosine {cosine:.3}):\n  {}\n  {}",
        vectors.len(),
        vectors[a].len(),
        shown(&paragraphs[a]),
        shown(&paragraphs[b])
    ))
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    if norms > 0.0 { dot(a, b) / norms } else { 0.0 }
}

fn shown(paragraph: &str) -> String {
    let mut text: String = paragraph.chars().take(SHOWN_CHARS).collect();
    if text.len() < paragraph.len() {
        text.push('…');
    }
    text
}

/// A text's paragraphs, as the `embed` runtime divides it: by blank lines.
fn paragraphs(text: &str) -> Vec<String> {
    let mut paragraphs = vec![String::new()];
    for line in text.lines() {
        if line.trim().is_empty() {
            paragraphs.push(String::new());
        } else if let Some(last) = paragraphs.last_mut() {
            last.push_str(line);
            last.push(' ');
        }
    }
    let folded = |text: String| text.split_whitespace().collect::<Vec<_>>().join(" ");
    paragraphs.into_iter().map(folded).filter(|text| !text.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_two_are_found() {
        let result =
            br#"{"object":"list","data":[{"embedding":[1,0]},{"embedding":[0,1]},{"embedding":[0.1,1]}]}"#;
        let texts = paragraphs("one\n\n\ntwo\nlines\n \nthree\n");
        assert_eq!(texts, ["one", "two lines", "three"]);
        let words = most_similar(result, &texts).unwrap();
        assert!(
            words.contains("two lines") && words.contains("three") && !words.contains("one\n"),
            "{words}"
        );
        assert!(most_similar(result, &texts[..2]).is_err());
        assert!(most_similar(b"7", &texts).is_err());
    }
}
