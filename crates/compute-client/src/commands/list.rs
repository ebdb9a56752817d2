//! `list`: tasks, newest first.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use rpc::tasks::{ShownTask, TaskPage, TaskView};
use taskmarket::{Address, Status, Timestamp};

use crate::cli::{Global, parse_address};
use crate::failure::Outcome;
use crate::follow::{ago, now};
use crate::listing::Listing;
use crate::relay::Relay;
use crate::ui::{Ui, clean};

/// The largest page that relays give.
const MAX_PAGE: u32 = 1000;
/// The columns' titles.
const TITLES: [&str; 6] = ["TASK", "STATUS", "RUNTIME", "GPU", "BUDGET", "PUBLISHED"];

/// What to list.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    zorai-compute list --status open --since 12h\n  \
    zorai-compute list --requester 0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed --all --json")]
pub(crate) struct Args {
    /// Published by this address
    #[arg(long, value_name = "ADDRESS", value_parser = parse_address)]
    requester: Option<Address>,
    /// Held, or last held, by this address
    #[arg(long, value_name = "ADDRESS", value_parser = parse_address)]
    provider: Option<Address>,
    /// In this status
    #[arg(long, value_parser = statuses())]
    status: Option<Status>,
    /// Asking for exactly this GPU type, in any case
    #[arg(long, value_name = "NAME")]
    gpu_type: Option<String>,
    /// Published at this time or later: `2026-01-31T12:00:00Z`, or an age such as `30m`, `12h`, `7d`
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    since: Option<Timestamp>,
    /// Published before this time, told in the same ways
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    until: Option<Timestamp>,
    /// How many at most
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_PAGE)))]
    limit: u32,
    /// All of them
    #[arg(long, conflicts_with = "limit")]
    all: bool,
}

/// Reads a status, and lets help, completions and errors list them all.
fn statuses() -> impl TypedValueParser<Value = Status> {
    PossibleValuesParser::new(Status::ALL.map(Status::as_str)).try_map(|word| word.parse::<Status>())
}

/// Reads a time, or an age as the time so long ago.
fn parse_time(text: &str) -> Result<Timestamp, String> {
    const UNITS: [(char, u64); 4] = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400)];
    let age = UNITS.iter().find_map(|(unit, seconds)| {
        let count: u64 = text.strip_suffix(*unit)?.parse().ok()?;
        count.checked_mul(*seconds)
    });
    match age {
        Some(age) => Ok(Timestamp::from_unix(now().unix().saturating_sub(age))),
        None => text
            .parse()
            .map_err(|_| "expected 2026-01-31T12:00:00Z, or an age such as 30m, 12h or 7d".to_owned()),
    }
}

/// Lists tasks.
pub(crate) async fn run(global: &Global, args: &Args, ui: &Ui) -> Outcome {
    let relay = global.relay(ui)?;
    let mut cursor = None;
    let mut collected = Vec::new();
    let mut last_event_id = None;
    let (mut list, mut is_empty) = (Listing::new(TITLES, ui), true);
    loop {
        let page = page(&relay, args, cursor.as_deref()).await?;
        // Of the first page: the later ones may have newer tasks left out.
        last_event_id.get_or_insert(page.last_event_id);
        if ui.json {
            collected.extend(page.tasks);
        } else {
            let rows: Vec<_> = page.tasks.iter().map(row).collect();
            is_empty &= rows.is_empty();
            list.show(&rows)?;
        }
        cursor = page.next_cursor;
        if !args.all || cursor.is_none() {
            break;
        }
    }
    if ui.json {
        let last_event_id = last_event_id.unwrap_or_default();
        return ui.print_json(&TaskPage { tasks: collected, next_cursor: cursor, last_event_id });
    }
    list.note("budgets in the smallest unit of the task's token, such as wei");
    if is_empty {
        ui.say("there are no such tasks of this API key");
    }
    if cursor.is_some() {
        ui.say("there are more: --limit N, or --all");
    }
    Ok(())
}

async fn page(relay: &Relay, args: &Args, cursor: Option<&str>) -> Outcome<TaskPage> {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    let limit = if args.all { MAX_PAGE } else { args.limit };
    query.append_pair("limit", &limit.to_string());
    let pairs = [
        ("requester", args.requester.map(|address| address.to_string())),
        ("provider", args.provider.map(|address| address.to_string())),
        ("status", args.status.map(|status| status.to_string())),
        ("gpu_type", args.gpu_type.clone()),
        ("created_from", args.since.map(|time| time.to_string())),
        ("created_before", args.until.map(|time| time.to_string())),
        ("cursor", cursor.map(str::to_owned)),
    ];
    for (name, value) in pairs {
        if let Some(value) = value {
            query.append_pair(name, &value);
        }
    }
    relay.get(&format!("v1/tasks?{}", query.finish())).await
}

fn row(view: &TaskView) -> [String; 6] {
    let (runtime, gpu, budget) = match &view.task {
        ShownTask::Whole(task) => (task.config.runtime, task.config.gpu_type.as_str(), task.budget),
        ShownTask::Public(task) => (task.config.runtime, task.config.gpu_type.as_str(), task.budget),
    };
    let gpu = if gpu.is_empty() { "any".to_owned() } else { clean(gpu) };
    [
        view.task_id.to_string(),
        view.status.to_string(),
        runtime.to_string(),
        gpu,
        budget.to_string(),
        ago(view.created_at),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_dates_or_ages() {
        assert_eq!(parse_time("2026-01-31T12:00:00Z").unwrap().to_string(), "2026-01-31T12:00:00Z");
        let half_an_hour = now().unix() - parse_time("30m").unwrap().unix();
        assert!((1799..=1801).contains(&half_an_hour), "{half_an_hour}");
        assert_eq!(parse_time("99999999d").unwrap().unix(), 0, "before all times is the first of them");
        for wrong in ["", "d", "-1d", "yesterday", "18446744073709551615d", "2026-01-31"] {
            assert!(parse_time(wrong).is_err(), "{wrong}");
        }
    }
}
