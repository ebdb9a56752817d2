//! Lists on standard output: with titles where somebody looks on; programs get the rows alone.

use std::io::IsTerminal as _;

use daemon::Table;

use crate::failure::Outcome;
use crate::ui::{Style, Ui};

/// A list that is shown row by row.
pub(crate) struct Listing<'a, const N: usize> {
    ui: &'a Ui,
    table: Table<N>,
    has_titles: bool,
    is_seen: bool,
}

impl<'a, const N: usize> Listing<'a, N> {
    /// A list whose columns are called so.
    pub(crate) fn new(titles: [&'static str; N], ui: &'a Ui) -> Self {
        Self { ui, table: Table::new(titles), has_titles: false, is_seen: std::io::stdout().is_terminal() }
    }

    /// Shows the next rows. A cell holds something: programs count them.
    pub(crate) fn show(&mut self, rows: &[[String; N]]) -> Outcome {
        if self.is_seen && !self.has_titles && !rows.is_empty() {
            self.has_titles = true;
            self.ui.print(self.ui.paint(Style::Bold, self.table.titles(rows)))?;
        }
        self.table.lines(rows).into_iter().try_for_each(|line| self.ui.print(line))
    }

    /// Says below the list what its titles have no room for, where somebody looks on.
    pub(crate) fn note(&self, words: &str) {
        if self.has_titles {
            self.ui.say(self.ui.paint(Style::Dim, words));
        }
    }
}
