//! `compute-agent earnings`: what came in and what it cost, by day, out of the book; also while the agent runs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Parser;
use daemon::default_data_dir;
use serde::Serialize;
use taskmarket::{Address, Amount, Timestamp, eip55};

use super::book::{Book, BookError, FILE};
use crate::agent::now;

/// Seconds of a day.
const DAY_SECS: u64 = 86_400;

/// Shows what settled tasks earned, by day in UTC, and what the transactions cost.
///
/// A payment counts on the day on which the agent saw it on chain.
#[derive(Debug, Clone, Parser)]
#[command(name = "compute-agent earnings")]
pub struct EarningsArgs {
    /// The agent's data folder [default: that of the only agent of this user].
    #[arg(long, env = "ZORAI_AGENT_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,

    /// So many days, today included.
    #[arg(long, value_name = "N", default_value = "30", value_parser = clap::value_parser!(u64).range(1..=36_500))]
    pub days: u64,

    /// As JSON.
    #[arg(long)]
    pub json: bool,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum EarningsError {
    /// No agent of this user has a book.
    #[error(
        "no agent has taken settled tasks here: {} has no data folder of one\nhint: agents take them with --escrow; name another data \
         folder by --data", .0.display()
    )]
    NoFolder(PathBuf),
    /// It is not clear of which agent.
    #[error("several agents have taken settled tasks here: {} has their data folders\nhint: name one by --data", .0.display())]
    ManyFolders(PathBuf),
    /// The book cannot be read.
    #[error(transparent)]
    Book(#[from] BookError),
    /// It cannot be written out.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
}

/// What one day brought.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Day {
    /// The day, in UTC.
    day: String,
    /// By token.
    tokens: Vec<TokenDay>,
    /// What transactions cost, in the native coin's smallest unit.
    gas: Amount,
}

/// What one day brought in one token, in its smallest unit.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct TokenDay {
    /// The token; zero is the native coin.
    #[serde(with = "eip55")]
    token: Address,
    /// Attempts that were paid.
    paid: u32,
    /// Disputes that ended with a division.
    split: u32,
    /// Leases that ended with nothing delivered.
    lapsed: u32,
    /// What came in.
    earned: Amount,
    /// What was lost of stakes.
    lost: Amount,
    /// Disputes of which the chain would not tell how they ended.
    untold: u32,
}

impl EarningsArgs {
    /// The report, as it is to be printed; empty where there is nothing to report, unless JSON is asked for.
    ///
    /// # Errors
    /// [`EarningsError`]
    pub async fn report(self) -> Result<String, EarningsError> {
        let folder = match self.data {
            Some(folder) => folder,
            None => only_folder()?,
        };
        let book = Book::open_to_read(&folder)?;
        let first = (now().unix() / DAY_SECS + 1).saturating_sub(self.days);
        let days = days(&book, Timestamp::from_unix(first * DAY_SECS)).await?;
        if self.json {
            return Ok(serde_json::to_string_pretty(&days)? + "\n");
        }
        Ok(table(&days))
    }
}

/// The one folder with a book among the agents of this user.
fn only_folder() -> Result<PathBuf, EarningsError> {
    let agents = default_data_dir("agent");
    let found = std::fs::read_dir(&agents).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found = found.filter(|path| path.join(FILE).is_file());
    match (found.next(), found.next()) {
        (Some(folder), None) => Ok(folder),
        (None, _) => Err(EarningsError::NoFolder(agents)),
        (Some(_), Some(_)) => Err(EarningsError::ManyFolders(agents)),
    }
}

async fn days(book: &Book, since: Timestamp) -> Result<Vec<Day>, BookError> {
    let mut tokens: BTreeMap<(u64, Address), TokenDay> = BTreeMap::new();
    for ended in book.endings(since).await? {
        let day = tokens.entry((ended.at.unix() / DAY_SECS, ended.token)).or_insert_with(|| TokenDay {
            token: ended.token,
            paid: 0,
            split: 0,
            lapsed: 0,
            earned: Amount::ZERO,
            lost: Amount::ZERO,
            untold: 0,
        });
        match ended.ending.as_str() {
            "paid" => day.paid += 1,
            "split" => day.split += 1,
            "lapsed" => day.lapsed += 1,
            _ => {}
        }
        day.untold += u32::from(ended.earned.is_none());
        day.earned = sum(day.earned, ended.earned.unwrap_or_default());
        day.lost = sum(day.lost, ended.lost.unwrap_or_default());
    }
    let mut days: BTreeMap<u64, Day> = BTreeMap::new();
    for ((number, _), token) in tokens {
        // What was given up or went to others earned nothing, and says nothing.
        if (token.paid, token.split, token.lapsed) != (0, 0, 0) {
            days.entry(number).or_default().tokens.push(token);
        }
    }
    for (at, cost) in book.costs(since).await? {
        let day = days.entry(at.unix() / DAY_SECS).or_default();
        day.gas = sum(day.gas, cost);
    }
    Ok(days.into_iter().map(|(number, day)| Day { day: date(number), ..day }).collect())
}

fn sum(one: Amount, other: Amount) -> Amount {
    one.checked_add(other).unwrap_or(Amount(taskmarket::U256::MAX))
}

fn date(day: u64) -> String {
    let midnight = Timestamp::from_unix(day * DAY_SECS).to_string();
    midnight.split('T').next().unwrap_or_default().to_owned()
}

fn table(days: &[Day]) -> String {
    if days.is_empty() {
        return String::new();
    }
    let mut text = String::new();
    for day in days {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{}  gas {}", day.day, day.gas);
        for token in &day.tokens {
            let name = if token.token.is_zero() { "native".to_owned() } else { token.token.to_string() };
            let _ = write!(text, "  {name}: earned {} by {} paid", token.earned, token.paid);
            for (count, what) in
                [(token.split, "divided"), (token.lapsed, "lapsed"), (token.untold, "untold")]
            {
                if count > 0 {
                    let _ = write!(text, ", {count} {what}");
                }
            }
            if token.lost != Amount::ZERO {
                let _ = write!(text, "; lost {} of the stake", token.lost);
            }
            text.push('\n');
        }
    }
    text.push_str("amounts in the token's smallest unit; gas in the native coin's\n");
    text
}

#[cfg(test)]
mod tests {
    use rpc::link::AttemptKey;
    use taskmarket::{B256, TaskId, U256};

    use super::super::book::Closing;
    use super::super::claim::Ending;
    use super::*;

    fn closing(task: u8, ending: Ending, day: u64, earned: Option<u64>, lost: u64) -> Closing {
        let amount = |amount| Amount(U256::from(amount));
        Closing {
            key: AttemptKey { task_id: TaskId(B256::repeat_byte(task)), attempt: 1 },
            ending,
            at: Timestamp::from_unix(day * DAY_SECS + 7),
            token: Address::ZERO,
            earned: earned.map(amount),
            lost: earned.map(|_| amount(lost)),
        }
    }

    #[tokio::test]
    async fn earnings_add_up_by_day() {
        let folder = tempfile::tempdir().unwrap();
        let book = Book::open(folder.path()).unwrap();
        for closing in [
            closing(1, Ending::Paid, 20_000, Some(5), 0),
            closing(2, Ending::Paid, 20_000, Some(6), 0),
            // The same again, as after a crash, counts once.
            closing(2, Ending::Paid, 20_000, Some(6), 0),
            closing(3, Ending::Lapsed, 20_001, Some(0), 9),
            closing(4, Ending::Split, 20_001, None, 0),
            closing(5, Ending::Lost, 20_002, Some(0), 0),
            closing(6, Ending::Paid, 19_000, Some(100), 0),
        ] {
            book.close(closing).await.unwrap();
        }
        book.sent("prove:1".to_owned()).await.unwrap();
        book.sent("prove:2".to_owned()).await.unwrap();
        assert_eq!(book.uncounted().await.unwrap().len(), 2);
        let at = Timestamp::from_unix(20_001 * DAY_SECS);
        book.cost("prove:1".to_owned(), at, U256::from(3)).await.unwrap();
        assert_eq!(book.uncounted().await.unwrap(), ["prove:2"]);

        let reader = Book::open_to_read(folder.path()).unwrap();
        let days = days(&reader, Timestamp::from_unix(20_000 * DAY_SECS)).await.unwrap();
        assert_eq!(
            table(&days),
            "2024-10-04  gas 0\n  native: earned 11 by 2 paid\n2024-10-05  gas 3\n  native: earned 0 by 0 paid, 1 divided, \
             1 lapsed, 1 untold; lost 9 of the stake\namounts in the token's smallest unit; gas in the native coin's\n"
        );
        assert_eq!(table(&[]), "", "nothing is no data");
        let json = serde_json::to_value(&days).unwrap();
        assert_eq!(
            (json[0]["tokens"][0]["earned"].as_str(), json[1]["gas"].as_str()),
            (Some("11"), Some("3"))
        );
    }
}
