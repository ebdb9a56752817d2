//! Times of many calls, and who makes them.

use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::task::JoinSet;

/// The clock ticks of `/proc/self/stat`, which Linux counts a hundred of in a second on every machine.
const TICKS_PER_SEC: f64 = 100.0;

/// Times of calls, sorted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    /// Sorts times.
    pub(crate) fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self(times)
    }

    /// The time, in microseconds, that a share of the calls do not exceed; zero without calls.
    pub(crate) fn quantile_us(&self, share: f64) -> f64 {
        let last = self.0.len().saturating_sub(1);
        let place = (last as f64 * share).round() as usize;
        self.0.get(place).map_or(0.0, |time| time.as_secs_f64() * 1e6)
    }

    /// The mean, in microseconds; zero without calls.
    pub(crate) fn mean_us(&self) -> f64 {
        self.0.iter().sum::<Duration>().as_secs_f64() * 1e6 / self.0.len().max(1) as f64
    }
}

/// What calls from many callers took.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    /// How many calls there were in a second.
    pub(crate) per_sec: f64,
    /// What each took.
    pub(crate) times: Times,
    /// What this process used of processors for each, in microseconds.
    pub(crate) cpu_us: f64,
}

/// Makes one call for each item, as many at a time as there are callers.
pub(crate) async fn drive<T, F>(
    callers: usize,
    items: Vec<T>,
    call: impl Fn(T) -> F + Clone + Send + 'static,
) -> anyhow::Result<Run>
where
    T: Send + 'static,
    F: Future<Output = anyhow::Result<()>> + Send,
{
    let count = items.len().max(1) as f64;
    let mut shares: Vec<Vec<T>> = (0..callers).map(|_| Vec::new()).collect();
    for (place, item) in items.into_iter().enumerate() {
        shares[place % callers].push(item);
    }
    let (cpu, began) = (cpu_secs()?, Instant::now());
    let mut running = JoinSet::new();
    for share in shares {
        let call = call.clone();
        running.spawn(async move {
            let mut times = Vec::with_capacity(share.len());
            for item in share {
                let began = Instant::now();
                call(item).await?;
                times.push(began.elapsed());
            }
            anyhow::Ok(times)
        });
    }
    let mut times = Vec::new();
    while let Some(done) = running.join_next().await {
        times.extend(done??);
    }
    let per_sec = count / began.elapsed().as_secs_f64();
    Ok(Run { per_sec, times: Times::of(times), cpu_us: (cpu_secs()? - cpu) * 1e6 / count })
}

/// The seconds of processors that this process has used.
pub(crate) fn cpu_secs() -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").context("/proc/self/stat")?;
    // The second field is the program's name in parentheses; user and system time are the 14th and 15th.
    let (_, fields) = stat.rsplit_once(')').context("/proc/self/stat: no name")?;
    let ticks: Result<Vec<f64>, _> = fields.split_whitespace().skip(11).take(2).map(str::parse).collect();
    Ok(ticks?.iter().sum::<f64>() / TICKS_PER_SEC)
}

/// The median of some figures; zero without any.
pub(crate) fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    let mut figures: Vec<_> = figures.into_iter().collect();
    figures.sort_by(f64::total_cmp);
    let middle = |place: usize| figures.get(place).copied().unwrap_or(0.0);
    (middle(figures.len().saturating_sub(1) / 2) + middle(figures.len() / 2)) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_sorted_times() {
        let times = Times::of((1..=101).rev().map(Duration::from_micros).collect());
        assert_eq!(times.quantile_us(0.5).round(), 51.0);
        assert_eq!(times.quantile_us(0.99).round(), 100.0);
        assert_eq!(times.mean_us().round(), 51.0);
        assert_eq!(Times::default().quantile_us(0.5), 0.0);
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([3.0, 1.0]), 2.0);
    }

    #[tokio::test]
    async fn every_item_is_called_once() {
        let (sender, mut called) = tokio::sync::mpsc::unbounded_channel();
        let run = drive(4, (0..10).collect(), move |item: i32| {
            let sent = sender.send(item).map_err(anyhow::Error::from);
            async move { sent }
        });
        assert_eq!(run.await.unwrap().times.0.len(), 10);
        let mut items = Vec::new();
        while let Ok(item) = called.try_recv() {
            items.push(item);
        }
        items.sort_unstable();
        assert_eq!(items, (0..10).collect::<Vec<_>>());
    }
}
