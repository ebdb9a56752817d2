//! What was measured, as a table for people and as JSON.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

/// One table of figures.
#[derive(Debug)]
pub(crate) struct Table {
    title: String,
    columns: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
    notes: Vec<String>,
}

/// A figure, or the words that say what it is about.
#[derive(Debug, Clone)]
pub(crate) enum Cell {
    /// Words.
    Text(String),
    /// A figure, and how many digits after the point to show.
    Number(f64, usize),
}

impl Cell {
    /// A count.
    pub(crate) fn count(count: u64) -> Self {
        Self::Number(count as f64, 0)
    }

    fn show(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Number(number, digits) => format!("{number:.digits$}"),
        }
    }

    fn json(&self) -> Value {
        match self {
            Self::Text(text) => json!(text),
            Self::Number(number, _) => json!(number),
        }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl Table {
    /// An empty table. Its columns' names are the JSON's keys.
    pub(crate) fn new(title: impl Into<String>, columns: &[&'static str]) -> Self {
        Self { title: title.into(), columns: columns.to_vec(), rows: Vec::new(), notes: Vec::new() }
    }

    /// Adds a row, one cell for each column.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Adds a remark below the table.
    pub(crate) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// The table in Markdown.
    pub(crate) fn markdown(&self) -> String {
        let shown: Vec<Vec<String>> =
            self.rows.iter().map(|row| row.iter().map(Cell::show).collect()).collect();
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|column| {
                let cells = shown.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
                cells.chain([self.columns[column].len()]).max().unwrap_or(0)
            })
            .collect();
        let line = |cells: &mut dyn Iterator<Item = &str>| {
            let padded: Vec<_> = cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            format!("| {} |\n", padded.join(" | "))
        };
        let rules: Vec<_> = widths.iter().map(|width| "-".repeat(*width)).collect();
        let mut text = format!("### {}\n\n", self.title);
        text += &line(&mut self.columns.iter().copied());
        text += &line(&mut rules.iter().map(String::as_str));
        for row in &shown {
            text += &line(&mut row.iter().map(String::as_str));
        }
        for note in &self.notes {
            // Writing to a String does not fail.
            let _ = write!(text, "\n{note}\n");
        }
        text
    }

    /// The table as an object: its title, its rows as one object each, its remarks.
    pub(crate) fn json(&self) -> Value {
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| {
                let cells = self.columns.iter().zip(row);
                cells.map(|(name, cell)| ((*name).to_owned(), cell.json())).collect::<Map<_, _>>()
            })
            .collect();
        json!({ "title": self.title, "rows": rows, "notes": self.notes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_shown_and_written() {
        let mut table = Table::new("Pick", &["hosts", "mean_us"]);
        table.row([Cell::count(1000), Cell::Number(0.256, 2)]);
        table.note("One thread.");
        assert_eq!(
            table.markdown(),
            "### Pick\n\n| hosts | mean_us |\n| ----- | ------- |\n| 1000  | 0.26    |\n\nOne thread.\n"
        );
        assert_eq!(table.json()["rows"][0]["mean_us"], json!(0.256));
    }
}
